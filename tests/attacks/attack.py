"""What an attack is: a function that spoils a sound store, the rule it breaks, and who must notice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from .forge import Forge

type Stage = Literal["open", "read", "verify", "write", "results", "ignored"]
"""Who must refuse: `open` implies that reading, verifying and writing refuse too; `ignored`: all
work, and the content is the sound store's."""


@dataclass(frozen=True, slots=True)
class Attack:
    """One hostile store."""

    name: str
    """Unique."""
    stage: Stage
    """The first stage that must refuse it."""
    rule: str
    """The rule that it breaks."""
    spoil: Callable[[Forge], object]
    """Turns a sound store into the hostile one."""


class Attacks(list[Attack]):
    """The attacks of one module."""

    def __call__(
        self, stage: Stage, rule: str
    ) -> Callable[[Callable[[Forge], object]], Callable[[Forge], object]]:
        """Return a decorator that adds a function."""

        def add(spoil: Callable[[Forge], object]) -> Callable[[Forge], object]:
            self.append(Attack(spoil.__name__, stage, rule, spoil))
            return spoil

        return add

    def table(self, stage: Stage, rule: str, rows: dict[str, Callable[[Forge], object]]) -> None:
        """Add attacks that are one expression each."""
        self.extend(Attack(name, stage, rule, spoil) for name, spoil in rows.items())
