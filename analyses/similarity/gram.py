"""Sums over pairs of samples from centred Gram tiles, for all pairs of arrays at once.

The Gram form: `n` samples against `n` samples, never `d` against `d`, so that arrays of any width
can be compared. Nothing of size n² is kept; what is kept are sums over pairs of samples, split by
group so that every delete-one-group estimate follows without a second pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backend import array_module, to_device, to_host
from .gaussian import Gaussian, recentre
from .hsic import HsicSums, Moments, Reader, u_shifts

type Mapper = Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]]
"""`mapper(function, items)`: the results of all items, in order."""


def map_in_turn(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """Return the results of all items, one after the other."""
    return [function(item) for item in items]


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
        Type of the Gram products; sums are always float64.
    panel_rows
        Samples whose features are held at a time; None holds all. Two panels are held.
    tile_bytes
        Size of the Gram tiles of all arrays together that one worker holds.
    mapper, workers
        What runs tiles, and how many it runs at a time; sums do not depend on either.
    device
        Where panels are held and multiplied: `cpu` or `cuda`.

    Notes
    -----
    Time: arrays · n² · features (Gram) + arrays² · n² (pairs). Memory: two panels, the tiles and 2
    · groups · arrays² + arrays · n · groups numbers. With p panels the features are read p² + p
    times.
    """
    n, n_arrays = group_n.size, len(moments.means)
    order = np.argsort(group_n, kind="stable")
    sorted_n = group_n[order]
    n_groups = int(sorted_n[-1]) + 1
    out = HsicSums(
        np.zeros((n_groups, n_arrays, n_arrays)),
        np.zeros((n_groups, n_arrays, n_arrays)),
        np.zeros((n_arrays, n, n_groups)),
        np.zeros((n_arrays, n)),
        sorted_n,
        np.zeros((n_arrays, n)),
    )
    panels = _panels(n, panel_rows or n)
    held = _Panels(read, moments, order, dtype, device)
    for panel in panels:
        for a, x in enumerate(held.load(panel)):
            out.norms_ln[a, panel] = to_host(np.einsum("nd,nd->n", x, x, dtype=np.float64))
    out.shift_ln[:] = gaussian.shifts(out.norms_ln) if gaussian else u_shifts(out.norms_ln)
    known = _Known(to_device(out.norms_ln, device), to_device(out.shift_ln, device), sorted_n)
    for rows in panels:
        for columns in panels:
            panels_xy = held.load(rows), held.load(columns)
            job = _Job(*panels_xy, known, gaussian, rows, columns, device)
            tiles = list(_tiles(sorted_n, rows, job.count_rows(tile_bytes)))
            for first in range(0, len(tiles), workers):
                some = tiles[first : first + workers]
                for tile, sums in zip(some, mapper(job.sum_tile, some), strict=True):
                    _add_tile(out, tile, sums)
    return recentre(out) if gaussian else out


@dataclass(frozen=True, slots=True)
class _Known:
    """Diagonal and shifts of the Gram matrices on the device, and the group of every sample."""

    norms_ln: NDArray[np.float64]
    shift_ln: NDArray[np.float64]
    group_n: NDArray[np.int64]


class _Panels:
    """Centred and scaled features of runs of samples; the last two that were asked for are kept."""

    def __init__(
        self,
        read: Reader,
        moments: Moments,
        order: NDArray[np.int64],
        dtype: type[np.floating],
        device: str,
    ) -> None:
        self._read, self._moments, self._order, self._dtype = read, moments, order, dtype
        self._device = device
        self._kept: dict[int, list[NDArray]] = {}

    def load(self, panel: slice) -> list[NDArray]:
        if panel.start not in self._kept:
            while len(self._kept) > 1:
                self._kept.pop(next(iter(self._kept)))
            self._kept[panel.start] = [
                self._centre(a, panel) for a in range(len(self._moments.means))
            ]
        self._kept[panel.start] = self._kept.pop(panel.start)  # the most recent is last
        return self._kept[panel.start]

    def _centre(self, a: int, panel: slice) -> NDArray:
        if self._moments.faults[a]:
            empty_nd = np.zeros((panel.stop - panel.start, 1), dtype=self._dtype)
            return to_device(empty_nd, self._device)
        x_nd = self._moments.centre(a, self._read(a, self._order[panel]))
        return to_device(x_nd.astype(self._dtype), self._device)


def _panels(n: int, size: int) -> list[slice]:
    return [slice(start, min(n, start + size)) for start in range(0, n, size)]


def _tiles(group_n: NDArray[np.int64], rows: slice, size: int) -> Iterator[slice]:
    """Cut a run of samples into tiles of at most `size` that never cross a group."""
    borders = np.flatnonzero(np.diff(group_n[rows])) + 1 + rows.start
    for start, stop in zip([rows.start, *borders], [*borders, rows.stop], strict=True):
        for first in range(start, stop, size):
            yield slice(first, min(stop, first + size))


@dataclass(frozen=True, slots=True)
class _TileSums:
    """What one tile of rows against a panel of columns gives."""

    products_ll: NDArray[np.float64]
    own_ll: NDArray[np.float64]
    row_ltg: NDArray[np.float64]
    """Sums over the columns of each group that the panel holds."""
    group: int
    """Group of the rows."""
    columns: NDArray[np.int64]
    """Groups of the columns."""


@dataclass(frozen=True, slots=True)
class _Job:
    """The rows of one panel against the columns of another."""

    x: Sequence[NDArray]
    """Features of the rows, one array each."""
    y: Sequence[NDArray]
    """Features of the columns."""
    known: _Known
    """What is there before the first tile."""
    gaussian: Gaussian | None
    rows: slice
    columns: slice
    device: str

    def count_rows(self, tile_bytes: int) -> int:
        """Return how many rows a tile of so many bytes has."""
        row = len(self.x) * (self.columns.stop - self.columns.start) * self.x[0].itemsize
        return max(1, tile_bytes // row)

    def sum_tile(self, tile: slice) -> _TileSums:
        """Return the sums of one tile of rows, all of the same group."""
        n_arrays, columns = len(self.x), self.columns
        local = slice(tile.start - self.rows.start, tile.stop - self.rows.start)
        shape = (n_arrays, tile.stop - tile.start, columns.stop - columns.start)
        gram = array_module(self.device).empty(shape, dtype=self.x[0].dtype)
        for out, x, y in zip(gram, self.x, self.y, strict=True):
            np.matmul(x[local], y.T, out=out)
        same = np.arange(max(tile.start, columns.start), min(tile.stop, columns.stop))
        same = to_device(same, self.device)
        if self.gaussian:
            norms_ln = self.known.norms_ln
            self.gaussian.apply(gram, norms_ln[:, tile], norms_ln[:, columns], self.device)
            gram[:, same - tile.start, same - columns.start] = 0
        group_n = self.known.group_n[columns]
        starts = np.flatnonzero(np.diff(group_n, prepend=-1))  # sorted by group
        row_ltg = _sum_groups(gram, starts)
        gram += self.known.shift_ln[:, tile, None]
        gram += self.known.shift_ln[:, None, columns]
        gram[:, same - tile.start, same - columns.start] = 0
        group = int(self.known.group_n[tile.start])
        products_ll = _square(gram)
        first, last = np.searchsorted(group_n, [group, group + 1])
        alone = last - first == group_n.size
        own_ll = products_ll if alone else _square(gram[:, :, first:last])
        return _TileSums(products_ll, own_ll, row_ltg, group, group_n[starts])


def _sum_groups(gram: NDArray, starts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return sums over runs of columns, [arrays, rows, runs]."""
    if isinstance(gram, np.ndarray):
        return np.add.reduceat(gram, starts, axis=2, dtype=np.float64)
    ends = [*starts[1:].tolist(), gram.shape[2]]
    runs = [slice(*run) for run in zip(starts.tolist(), ends, strict=True)]
    return to_host(np.stack([gram[:, :, run].sum(axis=2, dtype=np.float64) for run in runs], 2))


def _square(gram: NDArray) -> NDArray[np.float64]:
    """Return the inner products of all pairs of arrays, [arrays, arrays]."""
    flat = gram.reshape(gram.shape[0], -1)
    return to_host(flat @ flat.T).astype(np.float64)


def _add_tile(out: HsicSums, tile: slice, sums: _TileSums) -> None:
    out.products_gll[sums.group] += sums.products_ll
    out.own_gll[sums.group] += sums.own_ll
    out.row_lng[:, tile, sums.columns] += sums.row_ltg
