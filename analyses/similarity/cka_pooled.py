"""CKA of pooled features of all pairs: one vector a sample, linear and Gaussian kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..fold import ArrayKey
from ..masks import pooled_frames
from ..plan import Outcome
from ..selection import Selection
from ..source import View
from ..statistics.resampling import MIN_GROUPS
from .cka_estimate import estimate, no_estimate
from .features import count_feature_bytes, prefers_features, sum_features
from .frame_fold import order_samples
from .gaussian import ANCHORS, RULES, Gaussian, choose_anchors, describe_kernel, median_distances
from .gram import choose_dtype, describe_dtype, sum_at_a_glance, sum_pairs
from .hsic import HsicSums
from .moments import Moments, find_moments, map_in_turn
from .pairs import Compared, PairGroup, blank, explain_arrays, jackknife_groups
from .permuted import count_permutations, permuted_p

_TILE_BYTES = 64 * 2**20
"""The block of the Gram matrices, at most."""
_SHARE = 0.6
"""Part of the memory that is not held by pooled features which panels and sums may take."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel as the table names it."""

    name: str
    factor: float = 0.0
    """Bandwidth in median distances; 0: the linear kernel."""
    rule: str = RULES[0]


def list_kernels(
    kernels: Sequence[str], bandwidths: Sequence[float], rule: str
) -> tuple[Kernel, ...]:
    """Return every kernel, a Gaussian one for each bandwidth."""
    found: list[Kernel] = []
    for name in kernels:
        if name == "linear":
            found.append(Kernel("linear"))
        else:
            found += [Kernel(describe_kernel(f, rule), f, rule) for f in bandwidths]
    return tuple(found)


@dataclass(frozen=True)
class Work:
    """The pooled features of some arrays over the same samples, and how much room there is."""

    outcome: Outcome
    arrays: tuple[ArrayKey, ...]
    samples: NDArray[np.int64]
    group_n: NDArray[np.int64]
    """Group of the jackknife of every sample."""
    dtype: type[np.floating]
    panel: int
    """Samples whose features are held at a time."""
    room: int
    """Bytes for what is not held yet."""

    @property
    def widths(self) -> list[int]:
        """Features of every array."""
        return [self.outcome.pooled.width(key) for key in self.arrays]

    @cached_property
    def moments(self) -> Moments:
        """Mean and scale of every array."""
        # What is read again from rows takes memory for them: one array at a time then
        mapper = self.outcome.runner.map if self.outcome.pooled.in_memory else map_in_turn
        return find_moments(self.read, len(self.arrays), self.samples.size, mapper=mapper)

    def read(self, a: int, rows: NDArray[np.int64]) -> NDArray:
        """Return rows of one array."""
        return self.outcome.pooled.matrix(self.arrays[a], self.samples[rows])


def compare_pooled(
    keys: Sequence[ArrayKey],
    group: PairGroup,
    kernels: Sequence[Kernel],
    permutations: int | None,
    outcome: Outcome,
    attrs: dict[str, object],
) -> list[pd.DataFrame]:
    """Return the pooled rows of all pairs of arrays over one set of samples."""
    selection = outcome.selection
    arrays = group.arrays(keys, selection)
    masks = tuple(_mask(selection, key) for key in arrays)
    few = Compared(selection, group, arrays, masks, explain_arrays([], 0, arrays), 0)
    if group.samples.size < 4:
        nothing = no_estimate(len(arrays))
        few = replace(few, reasons=explain_arrays([], group.samples.size, arrays))
        return [
            f for k in kernels for f in few.frames(nothing, granularity="pooled", kernel=k.name)
        ]
    view = selection.source.views[arrays[0].capture]
    work = _prepare(arrays, group.samples, view, outcome, attrs)
    n_groups = int(work.group_n.max()) + 1
    count = count_permutations(work, len(kernels), permutations, attrs)
    frames = []
    for kernel in kernels:
        gaussian, faults, sums = _sum(kernel, work, attrs)
        # As a task: products of some hundred numbers are faster on one thread than on several
        found = blank(outcome.runner.map(estimate, [sums])[0], faults)
        p_ll = permuted_p(work, gaussian, faults, view.group_n[group.samples], count)
        reasons = explain_arrays(faults, group.samples.size, arrays)
        compared = replace(few, reasons=reasons, n_groups=n_groups)
        frames += compared.frames(
            found, granularity="pooled", kernel=kernel.name, p_permutation=p_ll
        )
    return frames


def _mask(selection: Selection, key: ArrayKey) -> str:
    """Return which frames a pooled array is the mean of."""
    frames = pooled_frames(selection, key)
    return key.pool.removeprefix("mean_") if frames is None else frames.masks[0]


def _prepare(
    arrays: tuple[ArrayKey, ...],
    samples: NDArray[np.int64],
    view: View,
    outcome: Outcome,
    attrs: dict[str, object],
) -> Work:
    """Return the arrays with their moments, and in which panels they are read to fit."""
    workers, pooled = outcome.runner.workers, outcome.pooled
    widths = [pooled.width(key) for key in arrays]
    multiplications = sum(widths) * float(samples.size) ** 2
    single = all(pooled.dtype(key) != np.float64 for key in arrays)
    dtype = choose_dtype(multiplications, single=single, device=outcome.runner.device)
    room = int(_SHARE * (outcome.selection.memory_bytes - pooled.held_bytes))
    most = room // (8 * 24 * len(arrays) ** 2)
    groups = jackknife_groups(view, samples, outcome.selection.seed, most)
    n_groups = int(groups.max()) + 1
    room -= 8 * len(arrays) * ((8 * n_groups + 2 * workers) * len(arrays))
    room -= 8 * len(arrays) * samples.size * (n_groups + 8)
    panel = max(16, min(samples.size, room // 2 // (sum(widths) * np.dtype(dtype).itemsize)))
    panels = -(-samples.size // panel)
    attrs["gram_dtype"] = np.dtype(dtype).name
    attrs["arithmetic"] = describe_dtype(dtype)
    attrs["pooled_reads"] = 1 if pooled.in_memory else panels * (panels + 1) // 2 + panels + 1
    attrs["jackknife_groups"] = n_groups if n_groups >= MIN_GROUPS else 0
    return Work(outcome, arrays, samples, groups, dtype, panel, room)


def _sum(
    kernel: Kernel, work: Work, attrs: dict[str, object]
) -> tuple[Gaussian | None, list[str], HsicSums]:
    """Return the kernel, what is wrong with each array, and the sums over pairs of samples."""
    runner, n = work.outcome.runner, work.samples.size
    grams: dict[str, Any] = {
        "dtype": work.dtype,
        "panel_rows": work.panel,
        "tile_bytes": max(2**20, min(_TILE_BYTES, work.room // 16)),
        "mapper": runner.map,
        "workers": runner.workers,
        "device": runner.device,
    }
    if kernel.factor:
        attrs["bandwidth"] = f"median distance of {ANCHORS} samples at most, times the factor"
        gaussian, faults = _find_bandwidths(kernel, work)
        sums = sum_pairs(work.read, work.moments, work.group_n, gaussian=gaussian, **grams)
        return gaussian, faults, sums
    fits = count_feature_bytes(work.widths, n, runner.workers) <= work.room
    fits = fits and runner.device == "cpu"  # a device multiplies Gram matrices faster than it reads
    if fits and prefers_features(work.widths, n):
        attrs["linear_form"] = "features: samples · (Σ features)² multiplications are fewer"
        sums = sum_features(work.read, work.moments, work.group_n, mapper=runner.map)
        return None, work.moments.faults, sums
    attrs["linear_form"] = "Gram matrices: samples² · Σ features multiplications are fewer, or "
    attrs["linear_form"] += "the features of all arrays do not fit"
    if work.outcome.pooled.in_memory and work.dtype == np.float32:
        moments, sums = sum_at_a_glance(work.read, work.group_n, len(work.arrays), **grams)
        return None, moments.faults, sums
    sums = sum_pairs(work.read, work.moments, work.group_n, **grams)
    return None, work.moments.faults, sums


def _find_bandwidths(kernel: Kernel, work: Work) -> tuple[Gaussian, list[str]]:
    """Return the Gaussian kernel, and what is wrong with each array."""
    ids = [str(i) for i in work.outcome.selection.source.ids[work.samples]]
    order_n = order_samples(ids, 1, work.outcome.selection.seed)[0]
    anchors = choose_anchors(ids, order_n)
    medians_l = median_distances(work.read, work.moments, anchors, rule=kernel.rule)
    faults = [
        fault or "median distance of samples is 0" * bool(median == 0)
        for fault, median in zip(work.moments.faults, medians_l, strict=True)
    ]
    return Gaussian(kernel.factor * np.where(medians_l > 0, medians_l, 1.0)), faults
