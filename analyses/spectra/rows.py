"""Which rows of a piece a spectrum is of: those of each block of speakers, those with audio."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ..fold import Piece


def choose_rows(
    piece: Piece,
    *,
    valid_n: NDArray[np.int64] | None = None,
    block_n: NDArray[np.int64] | None = None,
) -> Iterator[tuple[int, slice | NDArray[np.int64]]]:
    """Yield each block of speakers that has rows, with its rows: a slice where they lie together.

    Parameters
    ----------
    piece
        Rows of some samples.
    valid_n
        How many rows of each sample of the axis count, from its first; None: all.
    block_n
        Block of each sample of the axis; None: block 0.
    """
    start_n, count_n = piece.offsets[:-1], piece.count_rows(valid_n)
    own_n = np.zeros_like(start_n) if block_n is None else block_n[piece.samples]
    for number in np.unique(own_n[count_n > 0]).tolist():
        mine = (own_n == number) & (count_n > 0)
        start, count = start_n[mine], count_n[mine]
        if (start[1:] == start[:-1] + count[:-1]).all():
            yield number, slice(int(start[0]), int(start[-1] + count[-1]))
        else:  # the first row of each sample, and how far each row is from it
            place = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
            yield number, np.repeat(start, count) + place
