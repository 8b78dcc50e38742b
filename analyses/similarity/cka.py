"""CKA: how similar the geometry of two arrays is, within a capture, between captures and stores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations_with_replacement

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..errors import MissingSitesError
from ..fold import ArrayKey
from ..plan import Outcome, Plan, Table, describe_exposure, mask_of, most_exposed
from ..selection import Selection
from ..source import View
from ..statistics.resampling import MIN_GROUPS
from .between import MIN_GROUPS as MIN_BETWEEN
from .cka_estimate import BETWEEN, Estimate, estimate, no_estimate
from .cka_frames import FramePlan, conclude_frames, plan_frames
from .gram import sum_pairs
from .hsic import find_moments

_CHEAP = {"cpu": 4e11, "cuda": 4e14}
"""Multiplications of the Gram matrices (arrays · samples² · features) that are done in float64."""
_MOST_GROUPS = 64
"""Groups that a jackknife deletes one by one; more speakers are put together at random."""
_TILE_BYTES = 64 * 2**20
"""Gram tiles of one worker, at most."""
_SHARE = 0.6
"""Part of the memory that is not held by pooled features which panels and sums may take."""


@dataclass(frozen=True, slots=True)
class CKA:
    """Linear CKA of all pairs: pooled, by three estimators; frames by minibatch within a site."""

    frames: bool = True
    """Whether to compare frames as well."""
    frames_per_sample: int = 8
    """Frames drawn of each sample at most; fewer when they exceed a quarter of the memory."""
    name: str = "cka"
    description: str = (
        "similarity of any two layers, sites and captures, with null ceiling, p and interval"
    )

    def plan(self, selection: Selection) -> Plan:
        """Return the pooled arrays to compare, and a fold for the frames of each site."""
        views = [*selection.captures, *selection.others]
        keys = tuple(key for view in views for key in selection.pooled_keys(view))
        if not keys:
            msg = (
                "cka needs pooled features (mean_valid) or rows of a site, and the store holds "
                "none of those asked for. Record them: `record.pool: [mean_valid]`."
            )
            raise MissingSitesError(msg)
        frames = (
            plan_frames(selection, self.frames_per_sample) if self.frames else FramePlan((), ())
        )
        return Plan(partial(_conclude, keys, frames), frames.folds, keys)


def _conclude(keys: Sequence[ArrayKey], frames: FramePlan, outcome: Outcome) -> dict[str, Table]:
    attrs: dict[str, object] = {
        "pairs": "each unordered pair of arrays once, with itself as well",
        "ratio": "HSIC(a, b) / sqrt(HSIC(a, a) HSIC(b, b)), not clamped",
        "null_ceiling_biased": "expected biased CKA of independent data of the same spectra",
        "null_ceiling_debiased": "debiased CKA that independent data exceed in 5 % of cases",
        "p_value": "debiased: Szekely-Rizzo t test, one-sided, wrong for samples of few speakers; "
        "between_groups: t test of the jackknife, one-sided, conservative",
        "interval": "delete-one-speaker jackknife, t quantile, 95 %",
        "between_groups": "HSIC from pairs, triples, quadruples of samples of different speakers",
        "pooled_from": "recorded mean_valid, else the mean of the stored rows of each sample",
    }
    tables = [
        frame
        for group in group_pairs(outcome.selection)
        for frame in _compare(keys, group, outcome, attrs)
    ]
    tables += conclude_frames(frames, outcome, attrs)
    return {"cka": Table(pd.concat(tables, ignore_index=True), attrs)}


@dataclass(frozen=True, slots=True)
class PairGroup:
    """Pairs of captures that share the same samples."""

    samples: NDArray[np.int64]
    """Places on the sample axis."""
    pairs: set[tuple[str, str]]
    """Names of the captures, each pair in the order of the store."""


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


def _compare(
    keys: Sequence[ArrayKey], group: PairGroup, outcome: Outcome, attrs: dict[str, object]
) -> list[pd.DataFrame]:
    """Return the pooled rows of all pairs of arrays over one set of samples."""
    samples, pairs = group.samples, group.pairs
    known = outcome.selection.source.views
    views = [known[name] for name in known if any(name in pair for pair in pairs)]
    arrays = [key for view in views for key in keys if key.capture == view.name]
    a_p, b_p = np.triu_indices(len(arrays))
    asked = [(arrays[a].capture, arrays[b].capture) in pairs for a, b in zip(a_p, b_p, strict=True)]
    a_p, b_p = a_p[asked], b_p[asked]
    estimates, faults, n_groups = _estimate(arrays, samples, views, outcome, attrs)
    reasons = explain_pairs(faults, samples.size, arrays)
    head = name_pairs(arrays, a_p, b_p)
    masks = [_mask(outcome.selection, key) for key in arrays]
    exposed = describe_pair_exposure(views, samples)
    frames = []
    for name, found in estimates.items():
        if name == BETWEEN and not views[0].group_name:
            continue
        few = ""
        if name == BETWEEN and n_groups < MIN_BETWEEN:
            few = (
                f"{n_groups} {views[0].group_name}s; pairs between them need at least {MIN_BETWEEN}"
            )
        columns = {
            "granularity": "pooled",
            "kernel": "linear",
            "estimator": name,
            "mask": [masks[a] for a in a_p],
            "n": samples.size,
            "exposed": [exposed[k.capture, m.capture] for k, m in _both(arrays, a_p, b_p)],
            "value": found.value[a_p, b_p],
            "value_low": found.low[a_p, b_p],
            "value_high": found.high[a_p, b_p],
            "p_value": found.p_value[a_p, b_p],
            "null_ceiling": found.null_ceiling[a_p, b_p],
        }
        frame = head.assign(**columns)
        frame["reason"] = [
            reasons[a] or reasons[b] or few or "self-similarity not positive"
            if np.isnan(value)
            else ""
            for a, b, value in zip(a_p, b_p, columns["value"], strict=True)
        ]
        frames.append(frame)
    return frames


def _mask(selection: Selection, key: ArrayKey) -> str:
    """Return which frames a pooled array is the mean of."""
    stored = selection.stored_key(key)
    view = selection.source.views[key.capture]
    return stored.pool.removeprefix("mean_") if stored.pool else mask_of(view, key.site)


def _both(
    arrays: Sequence[ArrayKey], a_p: NDArray, b_p: NDArray
) -> list[tuple[ArrayKey, ArrayKey]]:
    return [(arrays[a], arrays[b]) for a, b in zip(a_p, b_p, strict=True)]


def name_pairs(
    arrays: Sequence[ArrayKey], a_p: NDArray[np.int64], b_p: NDArray[np.int64]
) -> pd.DataFrame:
    """Return the columns that name both sides of each pair."""
    columns: dict[str, NDArray] = {}
    for side, at in (("a", a_p), ("b", b_p)):
        for part in ("capture", "site"):
            values = np.asarray([getattr(key, part) for key in arrays], dtype=object)
            columns[f"{part}_{side}"] = values[at]
        columns[f"layer_{side}"] = np.asarray([key.layer for key in arrays])[at]
    return pd.DataFrame(columns)


def explain_pairs(faults: Sequence[str], n: int, arrays: Sequence[ArrayKey]) -> list[str]:
    """Return why each array has no similarity with any other; empty where it has."""
    if n < 4:
        return [f"{n} common samples; HSIC needs at least 4"] * len(arrays)
    return [f"{fault}: {key}" if fault else "" for fault, key in zip(faults, arrays, strict=True)]


def describe_pair_exposure(
    views: Sequence[View], samples: NDArray[np.int64]
) -> dict[tuple[str, str], str]:
    """Return `exposed` of each ordered pair of captures: the more exposed side counts."""
    own = {view.name: describe_exposure(view, samples) for view in views}
    return {(a, b): most_exposed(own[a], own[b]) for a in own for b in own}


def _estimate(
    arrays: Sequence[ArrayKey],
    samples: NDArray[np.int64],
    views: Sequence[View],
    outcome: Outcome,
    attrs: dict[str, object],
) -> tuple[dict[str, Estimate], list[str], int]:
    """Return CKA of all pairs, in panels of samples when their features do not fit.

    Also what is wrong with each array, and how many groups there were.
    """
    if samples.size < 4:
        return no_estimate(len(arrays)), [""] * len(arrays), 0
    workers, pooled = outcome.runner.workers, outcome.pooled

    def read(a: int, rows: NDArray[np.int64]) -> NDArray:
        return pooled.matrix(arrays[a], samples[rows])

    widths = [pooled.width(key) for key in arrays]
    work = sum(widths) * float(samples.size) ** 2
    device = outcome.selection.device
    dtype = np.float64 if work <= _CHEAP[device] else np.float32
    room = int(_SHARE * (outcome.selection.memory_bytes - pooled.held_bytes))
    most = room // (8 * 24 * len(arrays) ** 2)
    groups = jackknife_groups(views[0], samples, outcome.selection.seed, most)
    n_groups = int(groups.max()) + 1
    room -= 8 * len(arrays) * ((8 * n_groups + 2 * workers) * len(arrays))
    room -= 8 * len(arrays) * samples.size * (n_groups + 8)
    panel = max(16, min(samples.size, room // 2 // (sum(widths) * np.dtype(dtype).itemsize)))
    panels = -(-samples.size // panel)
    attrs["gram_dtype"] = np.dtype(dtype).name
    attrs["pooled_reads"] = 1 if pooled.in_memory else panels**2 + panels + 1
    attrs["jackknife_groups"] = n_groups if n_groups >= MIN_GROUPS else 0
    moments = find_moments(read, len(arrays), samples.size)
    sums = sum_pairs(
        read,
        moments,
        groups,
        dtype=dtype,
        panel_rows=panel,
        tile_bytes=max(2**20, min(_TILE_BYTES, room // 8 // workers)),
        mapper=outcome.runner.map,
        workers=workers,
        device=device,
    )
    return _blank(estimate(sums), moments.faults), moments.faults, n_groups


def _blank(estimates: dict[str, Estimate], faults: Sequence[str]) -> dict[str, Estimate]:
    """Return the estimates, NaN where one side cannot be compared."""
    bad = np.flatnonzero([bool(fault) for fault in faults])
    for found in estimates.values():
        for part in (found.value, found.low, found.high, found.null_ceiling, found.p_value):
            part[bad] = np.nan
            part[:, bad] = np.nan
    return estimates


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
    most = min(_MOST_GROUPS, most)
    if most < MIN_GROUPS or not view.group_name:
        return np.zeros(samples.size, dtype=np.int64)
    if names.size <= most:
        return group_n.astype(np.int64)
    return (np.random.default_rng(seed).permutation(names.size) % most)[group_n]
