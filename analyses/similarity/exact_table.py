"""The rows of the table for CKA of frames from every pair of rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..fold import ArrayKey
from ..plan import Outcome, describe_exposure, most_exposed
from ..source import AGAINST
from ..statistics.resampling import MIN_GROUPS, jackknife_spread
from .cka_estimate import BETWEEN, Estimate, biased_ceiling, one_sided, to_ratio
from .cka_exact import ExactGroup, ExactPlan
from .exact_fold import ExactHsic
from .pairs import name_pairs
from .row_groups import Refused

_ESTIMATORS = ("debiased", "biased")


def conclude_exact(
    plan: ExactPlan, outcome: Outcome, attrs: dict[str, object]
) -> list[pd.DataFrame]:
    """Return the rows of the table for all pairs of rows."""
    if not plan.groups and not plan.refused:
        return []
    attrs["exact"] = (
        "granularity frame: debiased and biased from every pair of rows, those of one utterance as "
        "well; between_groups from those of different speakers, where sums for each speaker fit"
    )
    attrs["exact_null_ceiling"] = (
        "expected CKA of independent data if the rows of an utterance were all alike"
    )
    counts = {}
    for group in plan.groups:
        n = group.tiles[0].n_groups
        site, mask = group.rows.arrays[0].site, group.rows.masks[0]
        name = f"{site} ({mask})" if site in counts else site
        counts[name] = n if n >= MIN_GROUPS else 0
    attrs["exact_jackknife_groups"] = ", ".join(f"{site} {n}" for site, n in counts.items())
    tables = [frame for group in plan.groups for frame in _frames(group, outcome)]
    return [*tables, *_refused(plan.refused)]


def _frames(group: ExactGroup, outcome: Outcome) -> Iterator[pd.DataFrame]:
    """Yield the rows of each estimator, all pairs of arrays in one order."""
    arrays = group.rows.arrays
    found = [outcome.folds[tile] for tile in group.tiles]
    faults = {
        key: f"{fault}: {key}" if fault else ""
        for tile, one in zip(group.tiles, found, strict=True)
        for key, fault in zip(tile.arrays, one.faults, strict=True)
    }
    far = np.asarray([key.capture.startswith(AGAINST) for key in arrays])
    a_p, b_p = np.triu_indices(len(arrays))
    kept = np.flatnonzero(~np.logical_and(far[a_p], far[b_p]))
    a_p, b_p = a_p[kept], b_p[kept]
    sides = [(arrays[a], arrays[b]) for a, b in zip(a_p.tolist(), b_p.tolist(), strict=True)]
    head = name_pairs(arrays, a_p, b_p).assign(
        granularity="frame", kernel="linear", n=found[0].sums.rows
    )
    head = head.assign(
        mask=np.asarray(group.rows.masks, dtype=object)[a_p],
        exposed=_expose(sides, group.rows.samples, outcome),
    )
    why = [faults[a] or faults[b] or "self-similarity not positive" for a, b in sides]
    for name, one in _estimate(group, found, [bool(faults[key]) for key in arrays]).items():
        value_p = one.value[a_p, b_p]
        missing = np.isnan(value_p)
        yield head.assign(
            estimator=name,
            value=value_p,
            value_low=one.low[a_p, b_p],
            value_high=one.high[a_p, b_p],
            p_value=one.p_value[a_p, b_p],
            null_ceiling=np.where(missing, np.nan, one.null_ceiling[a_p, b_p]),
            reason=np.where(missing, np.asarray(why, dtype=object), ""),
        )


def _expose(
    sides: Sequence[tuple[ArrayKey, ArrayKey]], samples: NDArray[np.int64], outcome: Outcome
) -> list[str]:
    """Return whether the captures of each pair were trained on some of the samples."""
    views = outcome.selection.source.views
    names = {key.capture for pair in sides for key in pair}
    exposed = {name: describe_exposure(views[name], samples) for name in names}
    return [most_exposed(exposed[a.capture], exposed[b.capture]) for a, b in sides]


def _estimate(
    group: ExactGroup, found: Sequence[ExactHsic], bad: Sequence[bool]
) -> dict[str, Estimate]:
    """Return all estimates of all pairs; groups with sums of their own give the intervals."""
    kept_l = np.where(bad, np.nan, 1.0)
    hsic = {
        "debiased": _join(group, [one.sums.unbiased_sll for one in found], kept_l),
        "biased": _join(group, [one.sums.biased_sll for one in found], kept_l),
    }
    between = [one.between_sll for one in found if one.between_sll is not None]
    ceiling_ll = _ceiling(group, found, hsic["debiased"][0])
    hsic |= {BETWEEN: _join(group, between, kept_l)} if between else {}
    estimates = {}
    for name, hsic_sll in hsic.items():
        value, *left_out = (to_ratio(hsic_ll) for hsic_ll in hsic_sll)
        half = jackknife_spread(value, left_out, len(left_out))
        nothing = np.full_like(value, np.nan)
        test = one_sided(value, half, len(left_out)) if name == BETWEEN else nothing
        ceiling = nothing if name == BETWEEN else ceiling_ll
        estimates[name] = Estimate(value, value - half, value + half, ceiling, test)
    return estimates


def _ceiling(
    group: ExactGroup, found: Sequence[ExactHsic], unbiased_ll: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return what independent data would show if the rows of an utterance were all alike."""
    spread = {
        key: spread
        for tile, one in zip(group.tiles, found, strict=True)
        for key, spread in zip(tile.arrays, one.sums.spread_l, strict=True)
    }
    rows = found[0].sums.rows
    trace_l = np.asarray([spread[key] for key in group.rows.arrays]) / (rows - 1)
    self_l = np.diagonal(unbiased_ll) / (rows * (rows - 3))
    gamma_l = np.square(trace_l) / np.where(self_l > 0, self_l, np.nan)
    return biased_ceiling(gamma_l, group.rows.samples.size)


def _join(
    group: ExactGroup, parts: Sequence[NDArray[np.float64]], kept_l: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return what the tiles give in one matrix of all pairs, [1 + groups, arrays, arrays].

    `kept_l` is NaN for arrays that have no similarity, 1 for the others.
    """
    place = {key: a for a, key in enumerate(group.rows.arrays)}
    n = len(place)
    whole = np.full((len(parts[0]), n, n), np.nan)
    for tile, part in zip(group.tiles, parts, strict=True):
        at = np.asarray([place[key] for key in tile.arrays], dtype=np.int64)
        for a in tile.layout.left:
            partners = at[tile.layout.first(a) :]
            values = part[:, a, tile.layout.first(a) :]
            whole[:, int(at[a]), partners] = whole[:, partners, int(at[a])] = values
    return np.where(np.isnan(np.outer(kept_l, kept_l)), np.nan, whole)


def _refused(refused: Sequence[Refused]) -> Iterator[pd.DataFrame]:
    """Yield a row for each estimator of every pair whose rows do not match."""
    kept = [
        one
        for one in refused
        if not (one.a.capture.startswith(AGAINST) and one.b.capture.startswith(AGAINST))
    ]
    keys = list(dict.fromkeys(key for one in kept for key in (one.a, one.b)))
    place = {key: at for at, key in enumerate(keys)}
    a_p = np.asarray([place[one.a] for one in kept], dtype=np.int64)
    b_p = np.asarray([place[one.b] for one in kept], dtype=np.int64)
    nothing = dict.fromkeys(("value", "value_low", "value_high", "p_value", "null_ceiling"), np.nan)
    for estimator in _ESTIMATORS if kept else ():
        yield name_pairs(keys, a_p, b_p).assign(
            granularity="frame",
            kernel="linear",
            estimator=estimator,
            mask=[one.mask for one in kept],
            n=0,
            exposed="none",
            reason=[one.reason for one in kept],
            **nothing,
        )
