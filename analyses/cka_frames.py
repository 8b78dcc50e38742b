"""CKA of frames by minibatch: one random frame of each utterance a batch, over same-site pairs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement, product

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .cka_estimate import debiased_ceiling, to_ratio
from .fold import ArrayKey
from .frame_fold import BATCH, FrameFold, FrameSums
from .plan import Outcome, describe_exposure, mask_of, most_exposed
from .selection import Selection
from .source import AGAINST, Source, View

_SHARE = 0.25
"""Part of the memory that the drawn frames of all sites may take together."""
_CHECK_SAMPLES = 512
"""Samples whose row positions are compared at a time."""


@dataclass(frozen=True, slots=True)
class FramePlan:
    """Which frames are compared, and which pairs cannot be."""

    folds: tuple[FrameFold, ...]
    refused: tuple[tuple[ArrayKey, ArrayKey, str], ...]
    """Pairs of arrays whose rows do not match, with the reason."""


@dataclass(slots=True)
class _Group:
    """Captures whose rows of one site match."""

    views: list[View]
    samples: NDArray[np.int64]


def plan_frames(selection: Selection, frames_per_sample: int) -> FramePlan:
    """Return one fold for each site and group of captures whose rows match.

    Rows match when every common sample has as many rows, at the same positions, in both captures.
    """
    views = [*selection.captures, *selection.others]
    sites = dict.fromkeys(key.site for view in views for key in selection.row_keys(view))
    wanted, refused = [], []
    for site in sites:
        groups: list[_Group] = []
        for view in (v for v in views if site in v.sites):
            reasons = [_join(group, view, site, selection.source) for group in groups]
            if "" not in reasons:
                for group, reason in zip(groups, reasons, strict=True):
                    refused += _pairs_between(group, view, site, selection, reason)
                groups.append(_Group([view], view.samples))
        for group in groups:
            arrays = tuple(k for v in group.views for k in selection.row_keys(v) if k.site == site)
            counts = group.views[0].rows[group.views[0].sites[site].stream][group.samples]
            wanted.append((arrays, group.samples[counts > 0], counts[counts > 0]))
    wanted = [one for one in wanted if one[1].size >= 4]
    draws = _fit_draws(selection, wanted, frames_per_sample)
    return FramePlan(tuple(_make_fold(selection, *one, draws) for one in wanted), tuple(refused))


def _join(group: _Group, view: View, site: str, source: Source) -> str:
    """Add a capture to a group and return ""; or return why its rows do not match."""
    samples = np.intersect1d(group.samples, view.samples)
    reason = _compare_rows(source, group.views[0], view, site, samples)
    if not reason:
        group.views.append(view)
        group.samples = samples
    return reason


def _compare_rows(source: Source, a: View, b: View, site: str, samples: NDArray[np.int64]) -> str:
    if samples.size < 4:
        return f"{samples.size} common samples; HSIC needs at least 4"
    streams = a.sites[site].stream, b.sites[site].stream
    counts_a, counts_b = a.rows[streams[0]][samples], b.rows[streams[1]][samples]
    differ = np.flatnonzero(counts_a != counts_b)
    if differ.size:
        first = differ[0]
        return (
            f"rows do not match: sample {source.ids[samples[first]]!r} has {counts_a[first]} and "
            f"{counts_b[first]} ({differ.size} of {samples.size} samples differ)"
        )
    for start in range(0, samples.size, _CHECK_SAMPLES):
        some = samples[start : start + _CHECK_SAMPLES]
        positions = [
            source.read_positions(v.name, s, some) for v, s in ((a, streams[0]), (b, streams[1]))
        ]
        if not np.array_equal(*positions):
            return "rows do not match: the same samples have rows at other positions"
    return ""


def _pairs_between(
    group: _Group, view: View, site: str, selection: Selection, reason: str
) -> Iterator[tuple[ArrayKey, ArrayKey, str]]:
    for other in group.views:
        keys = [[k for k in selection.row_keys(v) if k.site == site] for v in (other, view)]
        yield from ((a, b, reason) for a, b in product(*keys))


def _fit_draws(
    selection: Selection,
    wanted: Sequence[tuple[tuple[ArrayKey, ...], NDArray[np.int64], NDArray[np.int64]]],
    most: int,
) -> int:
    """Return how many frames of each sample fit into their part of the memory, at least 1."""
    one = 0
    for arrays, samples, _ in wanted:
        views = selection.source.views
        infos = [views[key.capture].info(key) for key in arrays]
        one += samples.size * sum(i.width * (8 if i.dtype == "float64" else 4) for i in infos)
    return max(1, min(most, int(_SHARE * selection.memory_bytes) // max(one, 1)))


def _make_fold(
    selection: Selection,
    arrays: tuple[ArrayKey, ...],
    samples: NDArray[np.int64],
    counts: NDArray[np.int64],
    draws: int,
) -> FrameFold:
    source = selection.source
    ids = source.ids[samples]
    draws_nk = np.stack(
        [
            _draw_rows(selection.seed, str(i), int(c), draws)
            for i, c in zip(ids, counts, strict=True)
        ]
    )
    order_kn = np.stack(
        [np.argsort([_hash(selection.seed, f"{k}/{i}") for i in ids]) for k in range(draws)]
    )
    infos = [source.views[key.capture].info(key) for key in arrays]
    return FrameFold(
        arrays,
        samples,
        draws_nk,
        order_kn,
        tuple(info.width for info in infos),
        any(info.dtype == "float64" for info in infos),
    )


def _hash(seed: int, text: str) -> int:
    digest = hashlib.blake2b(f"{seed}/{text}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _draw_rows(seed: int, sample: str, count: int, draws: int) -> NDArray[np.int64]:
    """Return `draws` rows of one sample, all different while there are enough; more draws extend fewer."""
    rng = np.random.default_rng(_hash(seed, sample))
    rounds = [rng.permutation(count) for _ in range(-(-draws // count))]
    return np.concatenate(rounds)[:draws].astype(np.int64)


def conclude_frames(
    plan: FramePlan, outcome: Outcome, attrs: dict[str, object]
) -> list[pd.DataFrame]:
    """Return the rows of the table for the frames."""
    if plan.folds:
        attrs["minibatch"] = f"sum of unbiased HSIC over batches of at most {BATCH}, then the ratio"
        attrs["minibatch_batch"] = "one random frame of each utterance"
        attrs["frames_per_sample"] = int(plan.folds[0].draws_nk.shape[1])
    rows = [row for fold in plan.folds for row in _rows(fold, outcome.folds[fold], outcome)]
    views = outcome.selection.source.views
    for a, b, reason in plan.refused:
        if not (a.capture.startswith(AGAINST) and b.capture.startswith(AGAINST)):
            row = _row(a, b) | {"mask": mask_of(views[a.capture], a.site), "n": 0}
            rows.append(row | {"exposed": "none", "reason": reason})
    return [pd.DataFrame(rows)] if rows else []


def _row(a: ArrayKey, b: ArrayKey) -> dict[str, object]:
    row: dict[str, object] = {}
    for side, key in (("a", a), ("b", b)):
        row |= {
            f"capture_{side}": key.capture,
            f"site_{side}": key.site,
            f"layer_{side}": key.layer,
        }
    row |= {"granularity": "frame", "kernel": "linear", "estimator": "minibatch"}
    nothing = dict.fromkeys(("value", "value_low", "value_high", "p_value", "null_ceiling"), np.nan)
    return row | nothing


def _rows(fold: FrameFold, found: FrameSums, outcome: Outcome) -> Iterator[dict[str, object]]:
    ratio_ll = to_ratio(found.sums_ll)
    batches = np.array_split(np.arange(found.n), -(-found.n // BATCH))
    # draws of the same utterances depend on each other: only one of them counts for the ceiling
    pairs = sum(batch.size * (batch.size - 3) / 2 for batch in batches)
    ceiling = debiased_ceiling((3 + np.sqrt(9 + 8 * pairs)) / 2)
    views = outcome.selection.source.views
    exposed = {
        name: describe_exposure(views[name], fold.samples)
        for name in {key.capture for key in fold.arrays}
    }
    for i, j in combinations_with_replacement(range(len(fold.arrays)), 2):
        a, b = fold.arrays[i], fold.arrays[j]
        if a.capture.startswith(AGAINST) and b.capture.startswith(AGAINST):
            continue
        fault = next(
            (f"{found.faults[k]}: {fold.arrays[k]}" for k in (i, j) if found.faults[k]), ""
        )
        value = float("nan") if fault else float(ratio_ll[i, j])
        yield _row(a, b) | {
            "mask": mask_of(views[a.capture], a.site),
            "n": found.rows,
            "exposed": most_exposed(exposed[a.capture], exposed[b.capture]),
            "value": value,
            "null_ceiling": float("nan") if fault else ceiling,
            "reason": fault or ("self-similarity not positive" if np.isnan(value) else ""),
        }
