"""Which captures are compared over which samples, and the rows of the table for pairs of arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..fold import ArrayKey
from ..plan import describe_exposure, most_exposed
from ..selection import Selection
from ..source import View
from ..statistics.resampling import MIN_GROUPS
from .between import MIN_GROUPS as MIN_BETWEEN
from .cka_estimate import BETWEEN, Estimate

MOST_GROUPS = 64
"""Groups that a jackknife deletes one by one; more speakers are put together at random."""


@dataclass(frozen=True, slots=True)
class PairGroup:
    """Pairs of captures that share the same samples."""

    samples: NDArray[np.int64]
    """Places on the sample axis."""
    pairs: set[tuple[str, str]]
    """Names of the captures, each pair in the order of the store."""

    def arrays(self, keys: Sequence[ArrayKey], selection: Selection) -> tuple[ArrayKey, ...]:
        """Return the arrays of these captures, in the order of the captures."""
        known = [n for n in selection.source.views if any(n in pair for pair in self.pairs)]
        return tuple(key for name in known for key in keys if key.capture == name)

    def asked(self, arrays: Sequence[ArrayKey]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return both sides of every pair of arrays that is compared, as numbers of arrays."""
        a_p, b_p = np.triu_indices(len(arrays))
        names = [key.capture for key in arrays]
        both = zip(a_p.tolist(), b_p.tolist(), strict=True)
        keep = np.asarray([(names[a], names[b]) in self.pairs for a, b in both], dtype=bool)
        return a_p[keep], b_p[keep]


def group_pairs(selection: Selection) -> list[PairGroup]:
    """Return all pairs of captures, together where they share the same samples."""
    mine, others = selection.captures, selection.others
    pairs = [*combinations_with_replacement(mine, 2), *((a, b) for a in mine for b in others)]
    groups: dict[bytes, PairGroup] = {}
    for a, b in pairs:
        samples = np.intersect1d(a.samples, b.samples)
        group = groups.setdefault(samples.tobytes(), PairGroup(samples, set()))
        group.pairs.add((a.name, b.name))
    return list(groups.values())


def jackknife_groups(
    view: View, samples: NDArray[np.int64], seed: int, most: int
) -> NDArray[np.int64]:
    """Return the group of every sample: its speaker, or several speakers when there are too many.

    Parameters
    ----------
    view
        Capture that names the speakers.
    samples
        Places on the sample axis.
    seed
        Of how speakers are put together.
    most
        Groups that fit into memory.
    """
    names, group_n = np.unique(view.group_n[samples].astype(str), return_inverse=True)
    most = min(MOST_GROUPS, most)
    if most < MIN_GROUPS or not view.group_name:
        return np.zeros(samples.size, dtype=np.int64)
    if names.size <= most:
        return group_n.astype(np.int64)
    return (np.random.default_rng(seed).permutation(names.size) % most)[group_n]


@dataclass(frozen=True, slots=True)
class Compared:
    """Arrays that were compared over the same samples."""

    selection: Selection
    group: PairGroup
    arrays: tuple[ArrayKey, ...]
    masks: tuple[str, ...]
    """Which frames each array is of."""
    reasons: tuple[str, ...]
    """Why an array has no similarity with any other; empty where it has."""
    n_groups: int
    """Groups of the jackknife."""

    def frames(
        self,
        estimates: Mapping[str, Estimate],
        *,
        granularity: str,
        kernel: str,
        p_permutation: NDArray[np.float64] | None = None,
    ) -> Iterator[pd.DataFrame]:
        """Yield the table: the rows of each estimator, all pairs of arrays in one order."""
        pairs = self.group.asked(self.arrays)
        head = self._head(pairs)
        view = self.selection.source.views[self.arrays[0].capture]
        parts: list[dict[str, NDArray]] = []
        for name, found in estimates.items():
            if name == BETWEEN and not view.group_name:
                continue
            part = {
                **head,
                "estimator": _repeat(name, pairs[0].size),
                "value": found.value[pairs],
                "value_low": found.low[pairs],
                "value_high": found.high[pairs],
                "p_value": found.p_value[pairs],
                "null_ceiling": found.null_ceiling[pairs],
                "reason": self._explain(name, found.value[pairs], pairs, view.group_name),
            }
            if p_permutation is not None:
                tested = name == "debiased"
                part["p_permutation"] = np.where(tested, p_permutation[pairs], np.nan)
            parts.append(part)
        rows = pairs[0].size * len(parts)
        yield as_frame(
            {
                **{name: np.concatenate([part[name] for part in parts]) for name in parts[0]},
                "granularity": _repeat(granularity, rows),
                "kernel": _repeat(kernel, rows),
                "n": np.full(rows, self.group.samples.size),
            }
        )

    def _head(self, pairs: tuple[NDArray[np.int64], NDArray[np.int64]]) -> dict[str, NDArray]:
        """Return the columns that all estimators share."""
        names = [key.capture for key in self.arrays]
        views = [self.selection.source.views[name] for name in dict.fromkeys(names)]
        exposed = describe_pair_exposure(views, self.group.samples)
        words = [exposed[names[a], names[b]] for a, b in zip(*pairs, strict=True)]
        return {
            **name_sides(self.arrays, *pairs),
            "mask": np.asarray(self.masks, dtype=object)[pairs[0]],
            "exposed": np.asarray(words, dtype=object),
        }

    def _explain(
        self, estimator: str, value_p: NDArray, pairs: tuple[NDArray, NDArray], group: str
    ) -> NDArray[np.object_]:
        few = ""
        if estimator == BETWEEN and self.n_groups < MIN_BETWEEN:
            few = f"{self.n_groups} {group}s; pairs between them need at least {MIN_BETWEEN}"
        reasons = _repeat("", value_p.size)
        for p in np.flatnonzero(np.isnan(value_p)).tolist():
            known = self.reasons[pairs[0][p]] or self.reasons[pairs[1][p]]
            reasons[p] = known or few or "self-similarity not positive"
        return reasons


def _repeat(text: str, count: int) -> NDArray[np.object_]:
    return np.full(count, text, dtype=object)


def blank(estimates: dict[str, Estimate], faults: Sequence[str]) -> dict[str, Estimate]:
    """Return the estimates, NaN where one side cannot be compared."""
    bad = np.flatnonzero([bool(fault) for fault in faults])
    for found in estimates.values():
        for part in (found.value, found.low, found.high, found.null_ceiling, found.p_value):
            part[bad] = np.nan
            part[:, bad] = np.nan
    return estimates


def name_pairs(
    arrays: Sequence[ArrayKey], a_p: NDArray[np.int64], b_p: NDArray[np.int64]
) -> pd.DataFrame:
    """Return the columns that name both sides of each pair."""
    return as_frame(name_sides(arrays, a_p, b_p))


def name_sides(
    arrays: Sequence[ArrayKey], a_p: NDArray[np.int64], b_p: NDArray[np.int64]
) -> dict[str, NDArray]:
    """Return the columns that name both sides of each pair, by name."""
    columns: dict[str, NDArray] = {}
    for side, at in (("a", a_p), ("b", b_p)):
        for part in ("capture", "site"):
            values = np.asarray([getattr(key, part) for key in arrays], dtype=object)
            columns[f"{part}_{side}"] = values[at]
        columns[f"layer_{side}"] = np.asarray([key.layer for key in arrays])[at]
    return columns


def as_frame(columns: Mapping[str, NDArray]) -> pd.DataFrame:
    """Return columns as a table; text stays objects: pandas need not copy it to its own strings."""
    index = pd.RangeIndex(len(next(iter(columns.values()))))
    data = {
        name: pd.Series(values, index=index, dtype=values.dtype) for name, values in columns.items()
    }
    return pd.DataFrame(data, index=index, copy=False)


def explain_arrays(faults: Sequence[str], n: int, arrays: Sequence[ArrayKey]) -> tuple[str, ...]:
    """Return why each array has no similarity with any other; empty where it has."""
    if n < 4:
        return (f"{n} common samples; HSIC needs at least 4",) * len(arrays)
    return tuple(
        f"{fault}: {key}" if fault else "" for fault, key in zip(faults, arrays, strict=True)
    )


def describe_pair_exposure(
    views: Sequence[View], samples: NDArray[np.int64]
) -> dict[tuple[str, str], str]:
    """Return `exposed` of each ordered pair of captures: the more exposed side counts."""
    own = {view.name: describe_exposure(view, samples) for view in views}
    return {(a, b): most_exposed(own[a], own[b]) for a in own for b in own}
