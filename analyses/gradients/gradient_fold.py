"""One gradient a sample, summed up by class and speaker: what norms, cosines and noise need."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..fold import ArrayKey, Block, Piece

_TILE_NUMBERS = 2**18
"""Numbers of the per-sample gradients held at once, in float64."""


@dataclass(slots=True)
class GradientState:
    """Sums over the samples seen so far, by cell (class and speaker)."""

    count_c: NDArray[np.int64]
    """Samples of each cell."""
    sum_cd: NDArray[np.float64]
    """Sum of their gradients."""
    square_c: NDArray[np.float64]
    """Sum of their squared norms."""
    unit_count_c: NDArray[np.int64]
    """Samples whose gradient is not 0."""
    unit_cd: NDArray[np.float64]
    """Sum of their gradients, each divided by its norm."""
    bad: int = 0
    """Samples with NaN or infinite values; in no sum."""
    samples: list[NDArray[np.int64]] = field(default_factory=list)
    """Places on the sample axis, one array a block."""
    norms: list[NDArray[np.float64]] = field(default_factory=list)
    """Norm of each sample's gradient; NaN without rows or with NaN."""


@dataclass(frozen=True, slots=True)
class GradientSums:
    """What the gradients of one array come to, their dimension summed out."""

    samples: NDArray[np.int64]
    """Places on the sample axis, ascending."""
    norm_n: NDArray[np.float64]
    """Norm of each sample's gradient; NaN without rows or with NaN."""
    count_c: NDArray[np.int64]
    """Samples of each cell."""
    square_c: NDArray[np.float64]
    """Sum of their squared norms."""
    gram_cc: NDArray[np.float64]
    """Inner products of the sums of gradients."""
    unit_count_c: NDArray[np.int64]
    """Samples of each cell whose gradient is not 0."""
    unit_gram_cc: NDArray[np.float64]
    """Inner products of the sums of their unit vectors."""
    bad: int
    """Samples with NaN or infinite values; in no sum."""


@dataclass(frozen=True, slots=True, eq=False)
class GradientFold:
    """Sums of per-sample gradients, and of their directions, for each class of each speaker.

    Notes
    -----
    The gradient of a sample is the sum over its rows (the one vector of a pooled array). Sums of
    unit vectors give every mean cosine between cells exactly, so no samples x samples matrix is
    needed: O(cells · features) memory, one pass, rows · features time.
    """

    key: ArrayKey
    width: int
    cell_n: NDArray[np.int64]
    """Cell of each sample of the axis."""
    n_cells: int

    @property
    def needs(self) -> tuple[ArrayKey, ...]:
        """The one array."""
        return (self.key,)

    @property
    def scratch_bytes(self) -> int:
        """A tile of gradients, their units, and one sorted copy."""
        return 8 * 3 * max(_TILE_NUMBERS, self.width)

    def state_bytes(self, workers: int) -> int:
        """Two vectors a cell for each worker, two numbers a sample once, and the inner products."""
        cells = 16 * self.n_cells * (self.width + 2) * workers
        return cells + 16 * self.cell_n.size + 16 * self.n_cells**2

    def empty(self) -> GradientState:
        """Return the sums over no samples."""
        c, d = self.n_cells, self.width
        return GradientState(
            np.zeros(c, np.int64),
            np.zeros((c, d)),
            np.zeros(c),
            np.zeros(c, np.int64),
            np.zeros((c, d)),
        )

    def add(self, state: GradientState, block: Block) -> GradientState:
        """Return the sums with the samples of the block."""
        piece = block[self.key]
        step = max(1, _TILE_NUMBERS // self.width)
        for start in range(0, piece.samples.size, step):
            tile = slice(start, start + step)
            gradient_nd = sum_rows(piece, tile)
            norm_n = np.sqrt(np.einsum("nd,nd->n", gradient_nd, gradient_nd))
            filled = np.diff(piece.offsets)[tile] > 0
            norm_n[~filled] = np.nan
            usable = np.isfinite(norm_n)
            norm_n[~usable] = np.nan
            state.bad += int((filled & ~usable).sum())
            state.samples.append(piece.samples[tile])
            state.norms.append(norm_n)
            cell_n = self.cell_n[piece.samples[tile]]
            _add_tile(state, gradient_nd[usable], norm_n[usable], cell_n[usable])
        return state

    def merge(self, left: GradientState, right: GradientState) -> GradientState:
        """Return the sums of both."""
        left.count_c += right.count_c
        left.sum_cd += right.sum_cd
        left.square_c += right.square_c
        left.unit_count_c += right.unit_count_c
        left.unit_cd += right.unit_cd
        left.bad += right.bad
        left.samples = left.samples + right.samples
        left.norms = left.norms + right.norms
        return left

    def finish(self, state: GradientState) -> GradientSums:
        """Return the sums without their vectors, the samples in the order of the axis."""
        samples = np.concatenate([np.zeros(0, np.int64), *state.samples])
        order = np.argsort(samples)
        return GradientSums(
            samples[order],
            np.concatenate([np.zeros(0), *state.norms])[order],
            state.count_c,
            state.square_c,
            state.sum_cd @ state.sum_cd.T,
            state.unit_count_c,
            state.unit_cd @ state.unit_cd.T,
            state.bad,
        )


def sum_rows(piece: Piece, samples: slice) -> NDArray[np.float64]:
    """Return the float64 sum of the rows of some samples of a piece, [samples, features]."""
    ends = list(zip(piece.offsets[:-1][samples], piece.offsets[1:][samples], strict=True))
    out = np.zeros((len(ends), piece.values.shape[1]))
    with np.errstate(invalid="ignore"):  # infinities of both signs have no sum
        for i, (start, stop) in enumerate(ends):
            out[i] = piece.values[start:stop].sum(axis=0, dtype=np.float64)
    return out


def _add_tile(
    state: GradientState,
    gradient_nd: NDArray[np.float64],
    norm_n: NDArray[np.float64],
    cell_n: NDArray[np.int64],
) -> None:
    np.add.at(state.count_c, cell_n, 1)
    np.add.at(state.square_c, cell_n, np.square(norm_n))
    turned = norm_n > 0
    np.add.at(state.unit_count_c, cell_n[turned], 1)
    unit_nd = gradient_nd / np.where(turned, norm_n, 1.0)[:, None]  # 0 stays 0
    for cell in np.unique(cell_n):
        mine = cell_n == cell
        state.sum_cd[cell] += gradient_nd[mine].sum(axis=0)
        state.unit_cd[cell] += unit_nd[mine].sum(axis=0)
