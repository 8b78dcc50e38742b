"""What was compared: the captures, their order and the facts about them, read once per report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .frames import in_order, plain, strings

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

USUAL_ORDER = ("frozen", "untrained", "random", "lora")


@dataclass(frozen=True, slots=True)
class Study:
    """The comparison that the whole report is about."""

    captures: tuple[str, ...]
    """Names of the conditions, in the order in which every figure shows them."""
    reference: str
    """The condition that the others are compared with."""
    adapted: str
    """The condition of interest: the last one with a trained adapter, else the last one."""
    n_classes: int | None
    """Number of labels, if known: chance is one over it."""

    @property
    def focus(self) -> tuple[str, ...]:
        """The captures that a summary speaks of: the reference and what was trained last."""
        return tuple(dict.fromkeys(c for c in (self.reference, self.adapted) if c))

    @property
    def others(self) -> tuple[str, ...]:
        """The captures that are compared with the reference."""
        return tuple(c for c in self.captures if c != self.reference)

    @property
    def chance(self) -> float | None:
        """UAR of guessing, in 0..1."""
        return None if not self.n_classes else 1.0 / self.n_classes

    def style(self, capture: str) -> int:
        """Return the number of the colour, marker and dash that a capture has everywhere."""
        return self.captures.index(capture) if capture in self.captures else len(self.captures)


def read_study(tables: Mapping[str, pd.DataFrame], summary: Mapping[str, object]) -> Study:
    """Return the comparison that the tables and the summary describe.

    The reference is `frozen` if there is one, else the first capture without an adapter, else the
    first one.
    """
    described = mapping(summary, "captures")
    found = list(described)
    for table in tables.values():
        for column in ("capture", "capture_a", "capture_b"):
            found += [name for name in dict.fromkeys(strings(table, column)) if name]
    captures = tuple(in_order([plain(name) for name in found], USUAL_ORDER))
    bare = [plain(n) for n, d in described.items() if isinstance(d, dict) and not d.get("adapter")]
    candidates = [c for c in ("frozen", *bare, *captures[:1]) if c in captures]
    labels = {
        label
        for description in described.values()
        if isinstance(description, dict)
        for label in description.get("labels") or ()
    }
    trained = [
        plain(name)
        for name, d in described.items()
        if isinstance(d, dict) and "adapter" in (d.get("trained") or ())
    ]
    adapted = [c for c in captures if c in trained] or [*captures]
    return Study(
        captures,
        candidates[0] if candidates else "",
        adapted[-1] if adapted else "",
        len(labels) or None,
    )


def mapping(summary: Mapping[str, object], key: str) -> dict[str, object]:
    """Return a nested mapping of the summary, empty if it is not there."""
    value = summary.get(key)
    return {str(k): v for k, v in value.items()} if isinstance(value, dict) else {}
