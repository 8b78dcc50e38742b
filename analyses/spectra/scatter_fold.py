"""The fold behind spectra and alignment: scatter of the rows, by blocks of speakers if they fit."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from ..backend import to_device, to_host
from ..fold import ArrayKey, Block
from ..lora.projection import Projection, Turned
from ..masks import Frames
from .blocks import Blocks
from .intervals import spread_measures
from .rows import choose_rows
from .scatter import TILE_ROWS, Scatter, add_rows, join_scatters, merge_scatter
from .spectrum import singular_values


@dataclass(frozen=True, slots=True)
class Spectra:
    """Singular values of one array."""

    n: int
    """Rows."""
    centred: NDArray[np.float64]
    """Of the rows less their mean, largest first."""
    uncentred: NDArray[np.float64]
    """Of the rows as they are."""
    reason: str
    """Why there are none; empty otherwise."""
    squares: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
    """Sums of squares of every column, around its mean and as it is; None with a reason."""
    turned: Turned | None = None
    """What the similarity with a LoRA partner follows from, where the array has one."""
    spreads: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
    """What `spread_measures` gave; None without blocks of speakers."""
    directions_dk: NDArray[np.float64] | None = None
    """Leading directions of the centred rows, [features, directions]; None where none are kept."""


@dataclass(slots=True)
class Parts:
    """The scatter of each block of speakers seen so far."""

    scatters: dict[int, Scatter] = field(default_factory=dict)
    borrowed: set[int] = field(default_factory=set)
    """Those of another state, which may not be changed: they are copied before that."""

    def own(self, number: int, width: int, device: str) -> Scatter:
        """Return the scatter of a block to be changed; of no rows where there is none yet."""
        if number not in self.scatters:
            self.scatters[number] = Scatter.empty(width, device)
        elif number in self.borrowed:
            self.scatters[number] = self.scatters[number].copy()
        self.borrowed.discard(number)
        return self.scatters[number]


@dataclass(frozen=True, slots=True)
class ScatterFold:
    """Mean and scatter of the rows of one array, then its singular values.

    Notes
    -----
    O(features²) memory, one pass, rows · features² operations and 18 features³ at the end; with
    blocks of speakers as much for each of them.
    """

    key: ArrayKey
    width: int
    rank: int
    """Singular values that there can be: the width, or the rank of the adapter behind `lora_b`."""
    itemsize: int
    """Bytes of one value in memory."""
    projection: Projection | None = None
    """How the rows of a LoRA partner follow; None for an array without one."""
    device: str = "cpu"
    """Where the products are computed."""
    mask: str = ""
    """`valid`: only the rows that hold audio; empty: all that were recorded."""
    frames: Frames | None = field(default=None, compare=False, repr=False)
    """Which rows hold audio; needed for `valid`."""
    blocks: Blocks | None = None
    """Speakers that are left out in turn; None: no intervals."""
    directions: int = 0
    """Leading directions that are kept."""

    @property
    def needs(self) -> tuple[ArrayKey, ...]:
        """The one array."""
        return (self.key,)

    @property
    def scratch_bytes(self) -> int:
        """Return what `count_scratch` says; rows are picked by speaker or by what they hold."""
        picked = self.blocks is not None or bool(self.mask)
        return count_scratch(self.width, self.itemsize, picked=picked)

    @property
    def result_bytes(self) -> int:
        """Directions that stay after the pass."""
        return 8 * self.width * self.directions

    def state_bytes(self, workers: int) -> int:
        """One float64 matrix for each worker, or each block of speakers that a worker sees."""
        parts = workers if self.blocks is None else self.blocks.parts(workers)
        return 8 * self.width * (self.width + 1) * parts

    def empty(self) -> Parts:
        """Return the scatter of no rows."""
        return Parts()

    def add(self, state: Parts, block: Block) -> Parts:
        """Return the scatters with the rows of the block."""
        piece = block[self.key]
        valid_n = self.frames.valid_n if self.mask and self.frames is not None else None
        block_n = None if self.blocks is None else self.blocks.block_n
        for number, rows in choose_rows(piece, valid_n=valid_n, block_n=block_n):
            part = state.own(number, self.width, self.device)
            if isinstance(rows, slice):
                add_rows(part, piece.values[rows])
            else:
                add_rows(part, piece.values, to_device(rows, self.device))
        return state

    def merge(self, left: Parts, right: Parts) -> Parts:
        """Return the scatters of both."""
        for number, part in right.scatters.items():
            if number in left.scatters:
                merge_scatter(left.own(number, self.width, self.device), part)
            else:
                left.scatters[number] = part
                left.borrowed.add(number)
        return left

    def finish(self, state: Parts) -> Spectra:
        """Return the singular values."""
        parts = [state.scatters[number] for number in sorted(state.scatters)]
        # what was read by one worker is not copied
        whole = parts[0] if len(parts) == 1 else join_scatters(parts, self.width, self.device)
        nothing = np.empty(0)
        if not np.isfinite(whole.scatter_dd).all():
            return Spectra(whole.n, nothing, nothing, "NaN or infinite features")
        if whole.n < 2:
            return Spectra(whole.n, nothing, nothing, f"rows: {whole.n}; at least 2 are needed")
        centred = singular_values(whole.scatter_dd, min(self.rank, whole.n - 1))
        uncentred = singular_values(whole.uncentred(), min(self.rank, whole.n))
        # a mean that is not exact leaves rounding where every row is the same
        floor = 1e-12 * uncentred[0]
        centred = np.where(centred <= floor, 0.0, centred) if centred[0] <= floor else centred
        square_d = to_host(whole.scatter_dd.diagonal().copy())
        squares = square_d, square_d + whole.n * np.square(to_host(whole.mean_d))
        spreads = None if self.blocks is None else self._spread(parts, whole)
        directions_dk = self._lead(whole, int(np.count_nonzero(centred)))
        turned = self._turned(whole)
        return Spectra(whole.n, centred, uncentred, "", squares, turned, spreads, directions_dk)

    def _spread(
        self, parts: list[Scatter], whole: Scatter
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """Return what leaving out blocks changes; where few directions are used, within those."""
        if 4 * self.rank >= self.width:
            return spread_measures(parts, self.rank, self.device)
        axes_dk = leading_vectors(to_host(whole.uncentred()), self.rank)
        axes_dk = to_device(axes_dk, self.device)
        small = [
            Scatter(one.n, one.mean_d @ axes_dk, axes_dk.T @ one.scatter_dd @ axes_dk)
            for one in parts
        ]
        return spread_measures(small, self.rank, self.device)

    def _lead(self, whole: Scatter, rank: int) -> NDArray[np.float64] | None:
        count = min(self.directions, rank)
        return leading_vectors(to_host(whole.scatter_dd), count) if count else None

    def _turned(self, whole: Scatter) -> Turned | None:
        matrix_dk = None if self.projection is None else self.projection.matrix_dk
        if matrix_dk is None or not np.isfinite(matrix_dk).all():
            return None
        return Turned.of(to_host(whole.scatter_dd), matrix_dk)


def count_scratch(width: int, itemsize: int, *, picked: bool) -> int:
    """Return the working memory of a scatter fold in bytes.

    A centred tile, its product and the outer product of means, or copies of `finish`; a second tile
    and copies without each block of speakers where rows are picked.
    """
    tiles, copies = (2, 5) if picked else (1, 3)
    return tiles * TILE_ROWS * width * itemsize + copies * 8 * width**2


def leading_vectors(scatter_dd: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Return the eigenvectors of the largest eigenvalues, the largest first, [features, count]."""
    width = scatter_dd.shape[0]
    last = (width - count, width - 1)
    vectors_dk = linalg.eigh(scatter_dd, subset_by_index=last, check_finite=False)[1]
    return np.ascontiguousarray(vectors_dk[:, ::-1])
