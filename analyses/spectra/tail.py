"""Singular values down to the last digits: one triangular factor that rows are streamed into.

The square of a singular value 1e-6 of the largest is below the resolution of a scatter matrix; the
factor R of a QR decomposition holds the value itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from ..fold import ArrayKey, Block
from ..masks import Frames
from .rows import choose_rows

_MOST_ROWS, _FEWEST_ROWS = 8192, 512
"""Rows that are taken in at once, of arrays of any width."""


@dataclass(slots=True)
class Triangle:
    """Count of the rows seen so far, and R of [1, X]."""

    n: int
    r_dd: NDArray[np.float64]
    """[1 + features, 1 + features], upper triangular."""


@dataclass(frozen=True, slots=True)
class Tail:
    """All singular values of one array."""

    centred: NDArray[np.float64]
    """Of the rows less their mean, largest first; empty where features are not finite."""
    uncentred: NDArray[np.float64]
    """Of the rows as they are."""


@dataclass(frozen=True, slots=True)
class TailFold:
    """Singular values of the rows of one array by streaming QR in float64.

    Notes
    -----
    R of [1, X] gives both spectra. Its first row is √n times (1, mean), up to sign; the rest of R
    is that of X less its mean, since that is orthogonal to the ones. R of [R; tile] is R of both,
    so states merge. O(features²) memory, 2 rows · features² operations in float64 and of a slower
    kind than a product: about 6 times the time of a scatter (`benchmarks/spectra.py --tail`).

    References
    ----------
    Demmel et al., Communication-optimal parallel and sequential QR and LU, SIAM J. Sci. Comput. 34
    (2012) A206.
    """

    key: ArrayKey
    width: int
    rank: int
    """Singular values that there can be."""
    mask: str = ""
    """`valid`: only the rows that hold audio; empty: all that were recorded."""
    frames: Frames | None = field(default=None, compare=False, repr=False)
    """Which rows hold audio; needed for `valid`."""

    @property
    def needs(self) -> tuple[ArrayKey, ...]:
        """The one array."""
        return (self.key,)

    @property
    def _tile_rows(self) -> int:
        """Four times the features, so that the triangle on top of them costs little."""
        return min(max(4 * self.width, _FEWEST_ROWS), _MOST_ROWS)

    @property
    def scratch_bytes(self) -> int:
        """The triangle with a tile below it, a picked tile, and a copy of the triangle."""
        side = 1 + self.width
        return 8 * side * (2 * self._tile_rows + 3 * side)

    def state_bytes(self, workers: int) -> int:
        """One float64 matrix for each worker."""
        return 8 * (1 + self.width) ** 2 * workers

    def empty(self) -> Triangle:
        """Return the factor of no rows."""
        return Triangle(0, np.zeros((1 + self.width, 1 + self.width)))

    def add(self, state: Triangle, block: Block) -> Triangle:
        """Return the factor with the rows of the block."""
        piece = block[self.key]
        valid_n = self.frames.valid_n if self.mask and self.frames is not None else None
        for _, rows in choose_rows(piece, valid_n=valid_n):
            for tile_nd in self._tiles(piece.values, rows):
                stacked = np.empty((len(state.r_dd) + len(tile_nd), len(state.r_dd)), order="F")
                stacked[: len(state.r_dd)] = state.r_dd
                stacked[len(state.r_dd) :, 0] = 1.0
                stacked[len(state.r_dd) :, 1:] = tile_nd
                state = Triangle(state.n + len(tile_nd), triangularise(stacked))
        return state

    def _tiles(self, x_nd: NDArray, rows: slice | NDArray[np.int64]) -> Iterator[NDArray]:
        whole = isinstance(rows, slice)
        count = rows.stop - rows.start if isinstance(rows, slice) else rows.size
        for start in range(0, count, self._tile_rows):
            stop = min(start + self._tile_rows, count)
            yield x_nd[rows][start:stop] if whole else x_nd[rows[start:stop]]

    def merge(self, left: Triangle, right: Triangle) -> Triangle:
        """Return the factor of both."""
        stacked = np.asfortranarray(np.concatenate([left.r_dd, right.r_dd]))
        return Triangle(left.n + right.n, triangularise(stacked))

    def finish(self, state: Triangle) -> Tail:
        """Return the singular values."""
        if not np.isfinite(state.r_dd).all() or state.n < 2:
            return Tail(np.empty(0), np.empty(0))
        below, whole = state.r_dd[1:, 1:], state.r_dd[:, 1:]
        centred = np.linalg.svd(below, compute_uv=False)[: min(self.rank, state.n - 1)]
        uncentred = np.linalg.svd(whole, compute_uv=False)[: min(self.rank, state.n)]
        # a mean that is not exact leaves rounding where every row is the same
        constant = centred[0] <= 1e-12 * uncentred[0]
        return Tail(np.zeros_like(centred) if constant else centred, uncentred)


def triangularise(stacked: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return R of a QR decomposition, [columns, columns]; the matrix itself is overwritten.

    Parameters
    ----------
    stacked
        [rows >= columns, columns], in Fortran order.
    """
    if not np.isfinite(stacked).all():
        return np.full((stacked.shape[1],) * 2, np.nan)  # said as a reason at the end
    decompose, ask = linalg.get_lapack_funcs(("geqrf", "geqrf_lwork"), (stacked,))
    factor = decompose(stacked, lwork=int(ask(*stacked.shape)[0]), overwrite_a=1)[0]
    return np.triu(factor[: stacked.shape[1]])
