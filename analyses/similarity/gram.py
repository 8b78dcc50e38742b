"""Sums over pairs of samples from centred Gram matrices, for all pairs of arrays at once.

The Gram form: `n` samples against `n` samples, never `d` against `d`, so that arrays of any width
can be compared. Nothing of size n² is kept but one block of them; what is kept are sums over pairs
of samples, split by group so that every delete-one-group estimate follows without a second pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations_with_replacement, product
from math import isqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backend import array_module, to_device, to_host
from .gaussian import Gaussian, recentre
from .gram_block import Features, GramBlock
from .hsic import HsicSums, u_shifts
from .moments import Mapper, Moments, Reader, find_moments, glance, map_in_turn, will_do

DEAR = {"cpu": 5e9, "cuda": 4e14}
"""Multiplications of the Gram matrices above which those of float32 features are float32."""
TOO_DEAR = {"cpu": 4e11, "cuda": 4e14}
"""Multiplications above which those of float64 features are float32 as well."""


def choose_dtype(multiplications: float, *, single: bool, device: str) -> type[np.floating]:
    """Return the type of the Gram products.

    Parameters
    ----------
    multiplications
        Of all Gram matrices: samples² · Σ features.
    single
        Whether all features are stored with no more digits than float32 has.
    device
        `cpu` or `cuda`.
    """
    limit = (DEAR if single else TOO_DEAR)[device]
    return np.float64 if multiplications <= limit else np.float32


def describe_dtype(dtype: type[np.floating]) -> str:
    """Return what the attribute `arithmetic` says of the Gram products."""
    if dtype == np.float64:
        return "float64"
    return "Gram products in float32 of rows that are centred and scaled, sums in float64"


def sum_pairs(  # noqa: PLR0913 - all but three optional
    read: Reader,
    moments: Moments,
    group_n: NDArray[np.int64],
    *,
    gaussian: Gaussian | None = None,
    dtype: type[np.floating] = np.float64,
    panel_rows: int | None = None,
    tile_bytes: int = 64 * 2**20,
    mapper: Mapper = map_in_turn,
    workers: int = 1,
    device: str = "cpu",
) -> HsicSums:
    """Return the sums over pairs of samples from which HSIC of every pair of arrays follows.

    Parameters
    ----------
    read
        Source of the features.
    moments
        What `find_moments` gave for the same source.
    group_n
        Group number 0 … G-1 of every sample, [samples].
    gaussian
        Kernel in place of the linear one; its bandwidths count in root mean square distances from
        the mean, `moments.scales`.
    dtype
        Type of the Gram products; sums are float64.
    panel_rows
        Samples whose features are held at a time; None holds all. Two panels are held.
    tile_bytes
        Size of the block of the Gram matrices of all arrays together that is held. Workers share
        it; each may hold a copy of an eighth of it for sums by columns.
    mapper, workers
        What runs arrays and parts of blocks, and how many at a time (who calls counts the copies
        that they hold); sums do not depend on either.
    device
        Where panels are held and multiplied: `cpu` or `cuda`.

    Notes
    -----
    Gram matrices are symmetric: blocks above the diagonal count for those below. Time: arrays · n²
    · features / 2 (Gram) + arrays² · n² (pairs). Memory: two panels, the block and 2 · groups ·
    arrays² + arrays · n · groups numbers. With p panels the features are read p (p + 1) / 2 + p
    times at most. With float32 no sum is longer than some 10,000 numbers before it goes on in
    float64.
    """
    n, n_arrays = group_n.size, len(moments.means)
    order = np.argsort(group_n, kind="stable")
    out = _empty(n_arrays, group_n[order])
    size = max(1, isqrt(tile_bytes // (n_arrays * np.dtype(dtype).itemsize)))
    panels = cut(slice(0, n), panel_rows or n)
    whole = len(panels) == 1 and n <= size
    held = _Panels(read, moments, order, dtype, device, mapper if len(panels) == 1 else map_in_turn)
    if not whole:
        for panel in panels:
            for a, x in enumerate(held.load(panel)):
                out.norms_ln[a, panel] = to_host(np.einsum("nd,nd->n", x, x, dtype=np.float64))
        shift_ln = gaussian.shifts(out.norms_ln) if gaussian else u_shifts(out.norms_ln)
        out.shift_ln[:] = shift_ln.astype(dtype)
    memory = array_module(device).empty(n_arrays * min(size, n) ** 2, dtype=dtype)
    for one, other in combinations_with_replacement(panels, 2):
        sides = [held.lazy(one)] if whole else [held.load(one), held.load(other)]
        for rows, columns in product(cut(one, size), cut(other, size)):
            if rows.start <= columns.start:
                pair = Features(sides[0], one.start), Features(sides[-1], other.start)
                block = GramBlock(*pair, out, gaussian, rows, columns, memory, device, whole)
                block.sum_all(mapper, tile_bytes // 8)
    return recentre(out) if gaussian else out


def sum_at_a_glance(
    read: Reader,
    group_n: NDArray[np.int64],
    n_arrays: int,
    *,
    mapper: Mapper = map_in_turn,
    **options: Any,  # noqa: ANN401 - those of `sum_pairs`
) -> tuple[Moments, HsicSums]:
    """Return moments and the linear kernel's sums, from features in memory looked at once.

    Parameters
    ----------
    read, group_n, mapper, options
        Those of `sum_pairs`.
    n_arrays
        Number of arrays.

    Notes
    -----
    HSIC does not see what is common to all samples, so a mean that is near will do for float32
    products; how near it was is seen from the Gram matrices. Where it was not near enough, all is
    done again with the moments of all samples.
    """
    moments = glance(read, n_arrays, group_n.size)
    if moments is not None:
        with np.errstate(invalid="ignore", over="ignore"):  # what was not seen may be infinite
            sums = sum_pairs(read, moments, group_n, mapper=_quietly(mapper), **options)
            centred = recentre(sums, sums.norms_ln)
            near = will_do(moments, sums.norms_ln, centred.norms_ln)
        if near:
            return moments, centred
    moments = find_moments(read, n_arrays, group_n.size, mapper=mapper)
    return moments, sum_pairs(read, moments, group_n, mapper=mapper, **options)


def _quietly(mapper: Mapper) -> Mapper:
    """Return a mapper whose threads do not warn of infinite numbers."""

    def call(function: Callable[[Any], Any], item: Any) -> Any:  # noqa: ANN401 - any task
        with np.errstate(invalid="ignore", over="ignore"):
            return function(item)

    return lambda function, items: mapper(partial(call, function), items)


def cut(whole: slice, size: int) -> list[slice]:
    """Return consecutive parts of at most `size`."""
    starts = range(whole.start, whole.stop, size)
    return [slice(start, min(whole.stop, start + size)) for start in starts]


def _empty(n_arrays: int, group_n: NDArray[np.int64]) -> HsicSums:
    """Return sums of nothing; numbers of one group of columns lie together in memory."""
    n, n_groups = group_n.size, int(group_n[-1]) + 1
    return HsicSums(
        np.zeros((n_groups, n_arrays, n_arrays)),
        np.zeros((n_groups, n_arrays, n_arrays)),
        np.zeros((n_groups, n_arrays, n)).transpose(1, 2, 0),
        np.zeros((n_arrays, n)),
        group_n,
        np.zeros((n_arrays, n)),
    )


@dataclass(frozen=True, slots=True)
class _Panels:
    """Centred and scaled features of runs of samples; the last two that were asked for are kept."""

    read: Reader
    moments: Moments
    order: NDArray[np.int64]
    dtype: type[np.floating]
    device: str
    mapper: Mapper
    """What runs arrays; in turn where several panels leave no memory for what workers hold."""
    kept: dict[int, list[NDArray]] = field(default_factory=dict)

    def load(self, panel: slice) -> list[NDArray]:
        """Return the features of all arrays, [samples, features] each."""
        if panel.start not in self.kept:
            while len(self.kept) > 1:
                self.kept.pop(next(iter(self.kept)))
            arrays = range(len(self.moments.means))
            self.kept[panel.start] = self.mapper(partial(self._centre, panel), arrays)
        self.kept[panel.start] = self.kept.pop(panel.start)  # the most recent is last
        return self.kept[panel.start]

    def lazy(self, panel: slice) -> Callable[[int], NDArray]:
        """Return what centres an array when it is asked for: each is, once."""
        return partial(self._centre, panel)

    def _centre(self, panel: slice, a: int) -> NDArray:
        if self.moments.faults[a]:
            empty_nd = np.zeros((panel.stop - panel.start, 1), dtype=self.dtype)
            return to_device(empty_nd, self.device)
        x_nd = self.read(a, self.order[panel])
        return to_device(self.moments.centre_as(a, x_nd, self.dtype), self.device)
