"""CKA of frames by minibatch: one random frame of each utterance a batch, over same-site pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..fold import ArrayKey
from ..plan import Outcome, describe_exposure, most_exposed
from ..selection import Selection
from ..source import AGAINST
from ..statistics.resampling import MIN_GROUPS
from .between import MIN_GROUPS as MIN_BETWEEN
from .frame_estimate import BETWEEN, MINIBATCH, FrameEstimate, estimate_frames, find_ceiling
from .frame_fold import BATCH, FrameFold, FrameSums, draw_rows, order_samples
from .pairs import jackknife_groups
from .row_groups import Refused, RowGroup, match_rows

_SHARE = 0.25
"""Part of the memory that the drawn frames of all sites may take together; those of whole samples
with their padding as much again, so that frames with audio are the same where there is none."""
_LEFT_SHARE = 0.05
"""Part of the memory that the sums without each group may take; else speakers are put together."""
_MOST_GROUPS = 32
"""Groups that frames are left out by; more speakers are put together: each costs in every batch."""


@dataclass(frozen=True, slots=True)
class FramePlan:
    """Which frames are compared, and which pairs cannot be."""

    folds: tuple[FrameFold, ...]
    masks: tuple[tuple[str, ...], ...]
    """Which rows of every array of each fold: `valid`, `all` or `every:K`."""
    refused: tuple[Refused, ...]
    """Pairs of arrays whose rows do not match, with the reason."""


def plan_frames(selection: Selection, most: int) -> FramePlan:
    """Return one fold for each site and group of captures whose rows match.

    Parameters
    ----------
    selection
        What is compared.
    most
        Frames of each sample, at least 1; fewer where they do not fit.
    """
    groups, refused = match_rows(selection)
    draws = {
        whole: _fit_draws(selection, [one for one in groups if one.whole == whole], most)
        for whole in (False, True)
    }
    folds = tuple(_make_fold(selection, one, draws[one.whole]) for one in groups)
    return FramePlan(folds, tuple(one.masks for one in groups), refused)


def _fit_draws(selection: Selection, wanted: Sequence[RowGroup], most: int) -> int:
    """Return how many frames of each sample fit into their part of the memory, at least 1."""
    views = selection.source.views
    each = 0
    for one in wanted:
        infos = [views[key.capture].info(key) for key in one.arrays]
        each += one.samples.size * sum(i.width * (8 if i.dtype == "float64" else 4) for i in infos)
    return max(1, min(most, int(_SHARE * selection.memory_bytes) // max(each, 1)))


def _make_fold(selection: Selection, one: RowGroup, draws: int) -> FrameFold:
    source = selection.source
    ids = [str(i) for i in source.ids[one.samples]]
    infos = [source.views[key.capture].info(key) for key in one.arrays]
    return FrameFold(
        one.arrays,
        one.samples,
        draw_rows(ids, one.counts, draws, selection.seed),
        order_samples(ids, draws, selection.seed),
        tuple(info.width for info in infos),
        any(info.dtype == "float64" for info in infos),
        selection.device,
        _find_groups(selection, one),
    )


def _find_groups(selection: Selection, one: RowGroup) -> NDArray[np.int64] | None:
    """Return the group of every sample that the jackknife leaves out, None below 3 speakers."""
    view = selection.source.views[one.arrays[0].capture]
    most = int(_LEFT_SHARE * selection.memory_bytes) // (8 * 16 * len(one.arrays) ** 2)
    group_n = jackknife_groups(view, one.samples, selection.seed, min(most, _MOST_GROUPS))
    return group_n if group_n.max() + 1 >= MIN_GROUPS else None


def conclude_frames(
    plan: FramePlan, outcome: Outcome, attrs: dict[str, object]
) -> list[pd.DataFrame]:
    """Return the rows of the table for the frames."""
    if plan.folds:
        attrs["minibatch"] = f"sum of unbiased HSIC over batches of at most {BATCH}, then the ratio"
        attrs["minibatch_batch"] = "one random frame of each utterance"
        attrs["minibatch_p_value"] = "t test of the jackknife over speakers, one-sided"
        attrs["minibatch_between_groups"] = "HSIC of frames of different speakers, in batches"
        attrs["minibatch_jackknife_groups"] = max(fold.n_groups for fold in plan.folds)
        attrs["frames_per_sample"] = int(plan.folds[0].draws_nk.shape[1])
    rows = [
        row
        for fold, masks in zip(plan.folds, plan.masks, strict=True)
        for row in _rows(fold, masks, outcome.folds[fold], outcome)
    ]
    for one in plan.refused:
        if not (one.a.capture.startswith(AGAINST) and one.b.capture.startswith(AGAINST)):
            row = _row(one.a, one.b) | {"mask": one.mask, "n": 0}
            rows.append(row | {"exposed": "none", "reason": one.reason})
    return [pd.DataFrame(rows)] if rows else []


def _row(a: ArrayKey, b: ArrayKey) -> dict[str, object]:
    row: dict[str, object] = {}
    for side, key in (("a", a), ("b", b)):
        row |= {
            f"capture_{side}": key.capture,
            f"site_{side}": key.site,
            f"layer_{side}": key.layer,
        }
    row |= {"granularity": "frame", "kernel": "linear", "estimator": MINIBATCH}
    nothing = dict.fromkeys(("value", "value_low", "value_high", "p_value", "null_ceiling"), np.nan)
    return row | nothing


def _rows(
    fold: FrameFold, masks: Sequence[str], found: FrameSums, outcome: Outcome
) -> Iterator[dict[str, object]]:
    views = outcome.selection.source.views
    exposed = {
        name: describe_exposure(views[name], fold.samples)
        for name in {key.capture for key in fold.arrays}
    }
    ceilings = {MINIBATCH: find_ceiling(found.n)}
    estimates, few = estimate_frames(found.totals), ""
    group_name = views[fold.arrays[0].capture].group_name
    if group_name and BETWEEN not in estimates:
        few = f"pairs between {group_name}s need at least {MIN_BETWEEN} of them"
        estimates[BETWEEN] = FrameEstimate(*np.full((3, *found.totals.pairs_ll.shape), np.nan))
    for i, j in combinations_with_replacement(range(len(fold.arrays)), 2):
        a, b = fold.arrays[i], fold.arrays[j]
        if a.capture.startswith(AGAINST) and b.capture.startswith(AGAINST):
            continue
        fault = next(
            (f"{found.faults[k]}: {fold.arrays[k]}" for k in (i, j) if found.faults[k]), ""
        )
        head = _row(a, b) | {
            "mask": masks[i],
            "n": found.rows,
            "exposed": most_exposed(exposed[a.capture], exposed[b.capture]),
        }
        for name, estimate in estimates.items():
            value, spread = float(estimate.value[i, j]), float(estimate.spread[i, j])
            reason = "self-similarity not positive" if np.isnan(value) else ""
            row = head | {"estimator": name, "reason": fault or (few * (name == BETWEEN)) or reason}
            if not fault:
                row |= {"value": value, "value_low": value - spread, "value_high": value + spread}
                row |= {"p_value": float(estimate.p_value[i, j])}
                row |= {"null_ceiling": ceilings.get(name, np.nan)}
            yield row
