"""Every row of some arrays against every row of some others, one tile of a matrix of pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..backend import array_module, to_device
from ..fold import ArrayKey, Block, Piece
from ..source import Source
from ..statistics.draws import hash_text
from .between_rows import count_between_bytes, hsic_between
from .row_sums import REDUCED_NUMBERS, Layout, RowHsic, RowSums, add_tile, merge_sums

_ORIGIN_SAMPLES = 16
"""Samples that say where about the rows lie."""
_CONSTANT = 1e-24
"""Features whose centred square sum is below this part of the uncentred one are constant."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What is taken off every row of an array, and what it is multiplied with: changes no value."""

    shift_d: NDArray[np.float64]
    factor: float
    """A power of two, so that nothing is rounded."""


@dataclass(frozen=True, slots=True)
class ExactHsic:
    """HSIC of the pairs of one tile, and what is wrong with its arrays."""

    sums: RowHsic
    between_sll: NDArray[np.float64] | None
    """HSIC from rows of different groups: of all, then without each; None below 5 groups."""
    faults: tuple[str, ...]
    """Why an array has no similarity; empty where it has."""


@dataclass(frozen=True, slots=True, eq=False)
class ExactFold:
    """Sums over all rows for the pairs of one tile.

    Notes
    -----
    Every row is taken relative to `origins`, which the samples alone decide, so blocks of any size
    and order add up to the same; an offset common to all rows costs no precision.
    """

    arrays: tuple[ArrayKey, ...]
    """Arrays of one site with the same rows: those of the left side first."""
    layout: Layout
    samples: NDArray[np.int64]
    """Places on the sample axis that all captures have, ascending."""
    counts: NDArray[np.int64]
    """Rows of each of them that are compared, from its first."""
    group_n: NDArray[np.int64]
    """Group number 0 … G-1 of every sample, for the jackknife; all 0: none."""
    wide: bool
    """Whether a value is float64."""
    tile_rows: int
    """Rows multiplied at a time."""
    origins: tuple[Origin, ...] = ()
    device: str = "cpu"

    @property
    def needs(self) -> tuple[ArrayKey, ...]:
        """Both sides."""
        return self.arrays

    @property
    def n_groups(self) -> int:
        """How many groups keep sums of their own."""
        return int(self.group_n.max(initial=0)) + 1

    @property
    def scratch_bytes(self) -> int:
        """One tile of rows, two copies of its widest array, and one product."""
        item = 8 if self.wide else 4
        n, columns = len(self.arrays), sum(self.layout.widths)
        rows = self.tile_rows * (item * (columns + 2 * max(self.layout.widths)) + 8 * 3 * n)
        return rows + item * (self._largest_panel + columns * n)

    def state_bytes(self, workers: int) -> int:
        """Return the size of all sums, and of what is formed of part of a panel in the end."""
        reduced = min(self._largest_panel, REDUCED_NUMBERS + max(self.layout.widths))
        held = 8 * (workers * self.n_groups * self.layout.size + 4 * reduced)
        return held + count_between_bytes(self.layout, self.n_groups)

    @property
    def _largest_panel(self) -> int:
        return max(rows * columns for rows, columns in map(self.layout.shape, self.layout.left))

    def empty(self) -> RowSums:
        """Return the sums of no rows."""
        return RowSums.empty(self.layout, self.n_groups, self.device)

    def add(self, state: RowSums, block: Block) -> RowSums:
        """Return the sums and those of the block."""
        first, last = np.searchsorted(self.samples, [block.start, block.stop])
        places = np.arange(first, last)
        groups = self.group_n[first:last]
        pieces = [block[key] for key in self.arrays]
        for group in np.unique(groups).tolist():
            for x_nd in self._tiles(pieces, places[groups == group]):
                add_tile(state, self.layout, group, x_nd)
        return state

    def _tiles(self, pieces: Sequence[Piece], places: NDArray[np.int64]) -> Iterator[NDArray]:
        """Yield the rows of some samples, all arrays side by side, some thousand at a time."""
        xp = array_module(self.device)
        dtype = np.float64 if self.wide else np.float32
        samples, counts = self.samples[places], self.counts[places]
        rows = [_find_rows(piece, samples, counts) for piece in pieces]
        n = rows[0].size
        whole_nd = xp.empty((min(n, self.tile_rows), sum(self.layout.widths)), dtype=dtype)
        shifts = [to_device(one.shift_d.astype(dtype), self.device) for one in self.origins]
        for start in range(0, n, self.tile_rows):
            tile_nd = whole_nd[: min(n - start, self.tile_rows)]
            for a, (piece, origin) in enumerate(zip(pieces, self.origins, strict=True)):
                x_nd = _take(piece, rows[a][start : start + self.tile_rows], self.device)
                with np.errstate(invalid="ignore", over="ignore"):
                    tile_nd[:, self.layout.own(a)] = (x_nd - shifts[a]) * dtype(origin.factor)
            yield tile_nd

    def merge(self, left: RowSums, right: RowSums) -> RowSums:
        """Return the sums of both."""
        return merge_sums(left, right)

    def finish(self, state: RowSums) -> ExactHsic:
        """Return HSIC of the pairs; the sums are not needed any more."""
        found = RowHsic.of(state, self.layout, self.device)
        squares = found.rows * np.asarray(
            [np.square(one.shift_d * one.factor).sum() for one in self.origins]
        )
        faults = tuple(
            "NaN or infinite features" * (not np.isfinite(spread))
            + "constant features" * bool(spread <= _CONSTANT * square)
            for spread, square in zip(found.spread_l, squares, strict=True)
        )
        return ExactHsic(found, hsic_between(state, self.layout), faults)


def _find_rows(
    piece: Piece, samples: NDArray[np.int64], counts: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return which rows of a piece are the first ones of given samples, in their order."""
    starts = piece.offsets[np.searchsorted(piece.samples, samples)]
    before = np.cumsum(counts) - counts
    return np.repeat(starts - before, counts) + np.arange(counts.sum())


def _take(piece: Piece, rows: NDArray[np.int64], device: str) -> NDArray:
    """Return rows of a piece; without a copy where they follow each other."""
    if rows[-1] - rows[0] + 1 == rows.size:
        return piece.values[int(rows[0]) : int(rows[-1]) + 1]
    return piece.values[to_device(rows, device)]


def find_origin(
    source: Source, key: ArrayKey, samples: NDArray[np.int64], counts: NDArray[np.int64]
) -> Origin:
    """Return mean and size of the rows of a few samples, which depend on their ids alone.

    Parameters
    ----------
    source
        Where the rows are read: those of at most 16 samples.
    key
        The array.
    samples
        Places on the sample axis that may be read.
    counts
        Rows of each of them that count, from its first.
    """
    order = np.argsort([hash_text(str(i)) for i in source.ids[samples]], kind="stable")
    few = order[:_ORIGIN_SAMPLES]
    n, mean_d, spread = 0, np.zeros(1), 0.0
    for sample, count in zip(samples[few].tolist(), counts[few].tolist(), strict=True):
        x_nd = source.read(key, sample, sample + 1).values[:count].astype(np.float64)
        rows = x_nd.shape[0]
        with np.errstate(invalid="ignore", over="ignore"):  # infinite features end as a reason
            delta_d = x_nd.mean(axis=0) - mean_d
            spread += float(np.square(x_nd - (mean_d + delta_d)).sum())
            spread += float(np.square(delta_d).sum()) * n * rows / (n + rows)
            mean_d = mean_d + delta_d * (rows / (n + rows))
        n += rows
    if not np.isfinite(spread):
        return Origin(np.zeros_like(mean_d), 1.0)
    size = np.sqrt(spread / (n * mean_d.size))
    return Origin(mean_d, 2.0 ** -float(np.clip(np.round(np.log2(size)), -99, 99)) if size else 1.0)
