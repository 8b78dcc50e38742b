"""One published quantity: a function of the faults that are switched on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..fold import ArrayKey, Fold
from ..plan import Outcome
from .faults import switches

NAN = float("nan")


@dataclass(frozen=True, slots=True)
class Place:
    """What a value is about."""

    capture: str
    site: str = ""
    layer: int = -1
    """-1 for a value that is about no single layer."""
    capture_b: str = ""
    """The other side of a comparison; empty where there is none."""
    site_b: str = ""


@dataclass(frozen=True, slots=True)
class Value:
    """A quantity under some set of faults."""

    value: float
    n: int
    """Samples behind it; rows for spectra; frames for contributions."""
    exposed: str
    reason: str = ""
    """Why `value` is NaN."""
    permuted: float = NAN
    """The same of samples that are paired at random (mean); NaN where that means nothing."""
    place: Place | None = None
    """What it is about, where a fault changes that."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number that the paper reports, of one capture and layer."""

    part: str
    """Name of the analysis that has the corrected definition."""
    name: str
    place: Place
    faults: tuple[str, ...]
    """Faults of the published code that apply, by name."""
    evaluate: Callable[[frozenset[str]], Value]
    """Its value when these faults are on."""


@dataclass(frozen=True, slots=True)
class Part:
    """What the published counterpart of one analysis needs and gives."""

    folds: tuple[Fold, ...] = ()
    pooled: tuple[ArrayKey, ...] = ()
    """Pooled arrays that it reads."""
    quantities: Callable[[Outcome], list[Quantity]] = lambda outcome: []
    missing: str = ""
    """What to record, where the store cannot serve any of it."""
    notes: tuple[str, ...] = ()
    """What the store lacks for some of the faults."""


def tabulate(quantities: Iterable[Quantity], chosen: Sequence[str]) -> pd.DataFrame:
    """Return one row for each quantity and set of faults, beside the corrected value."""
    rows = [row for quantity in quantities for row in _rows(quantity, chosen)]
    return pd.DataFrame(rows)


def _rows(quantity: Quantity, chosen: Sequence[str]) -> list[dict[str, object]]:
    values: dict[frozenset[str], Value] = {}
    rows = []
    for name, faults in switches(quantity.faults, chosen):
        if faults not in values:
            values[faults] = quantity.evaluate(faults)
        found, right = values[faults], values[frozenset()]
        place = found.place or quantity.place
        known = np.isfinite(right.value) and right.value != 0
        rows.append(
            {
                "part": quantity.part,
                "quantity": quantity.name,
                "capture": place.capture,
                "site": place.site,
                "layer": place.layer,
                "capture_b": place.capture_b,
                "site_b": place.site_b,
                "fault": name,
                "value": found.value,
                "corrected": right.value,
                "difference": found.value - right.value,
                "ratio": found.value / right.value if known else NAN,
                "permuted": found.permuted,
                "n": found.n,
                "exposed": found.exposed,
                "reason": _reason(found, right),
            }
        )
    return rows


def _reason(found: Value, right: Value) -> str:
    if np.isnan(found.value):
        return found.reason
    return f"no corrected value: {right.reason}" if np.isnan(right.value) else ""
