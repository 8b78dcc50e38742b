"""Scatter matrices that merge: mean and centred Σ(x - μ)(x - μ)' of any number of blocks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..backend import array_module

TILE_ROWS = 8192
"""Rows multiplied at once; bounds the working copy and the length of a float32 sum."""


@dataclass(slots=True)
class Scatter:
    """Count, mean and centred scatter of the rows seen so far."""

    n: int
    """Rows."""
    mean_d: NDArray[np.float64]
    scatter_dd: NDArray[np.float64]
    """Σ(x - mean)(x - mean)', [features, features]."""

    @classmethod
    def empty(cls, width: int, device: str = "cpu") -> Scatter:
        """Return the scatter of no rows, on a device."""
        xp = array_module(device)
        return cls(0, xp.zeros(width), xp.zeros((width, width)))

    def copy(self) -> Scatter:
        """Return one that may be changed on its own."""
        return Scatter(self.n, self.mean_d.copy(), self.scatter_dd.copy())

    def uncentred(self) -> NDArray[np.float64]:
        """Return Σ x x', [features, features]: the centred scatter and the mean's rank-one part."""
        return self.scatter_dd + self.n * self.mean_d[:, None] * self.mean_d


def add_rows(state: Scatter, x_nd: NDArray, rows: NDArray[np.int64] | None = None) -> Scatter:
    """Return `state` with the rows of one block; `state` itself is changed.

    Parameters
    ----------
    state
        What was seen before.
    x_nd
        [rows, features], float32 or float64, on the device of `state`.
    rows
        Which of them, on the same device; None: all. They are copied tile by tile.

    Notes
    -----
    Each tile is centred on its own mean, rounded to the type of the rows, multiplied in that type
    and added in float64, so that an offset common to all rows costs no precision; what the rounding
    of the mean adds is taken off again. O(features²) memory, rows · features² time.
    """
    working_nd = np.empty_like(x_nd[:TILE_ROWS])  # one for all tiles: fresh pages are slow
    for start in range(0, x_nd.shape[0] if rows is None else rows.shape[0], TILE_ROWS):
        tile = slice(start, start + TILE_ROWS)
        tile_nd = x_nd[tile] if rows is None else x_nd[rows[tile]]
        with np.errstate(invalid="ignore", over="ignore"):  # infinite features end as a reason
            mean_d = tile_nd.mean(axis=0, dtype=np.float64)
            shift_d = mean_d.astype(tile_nd.dtype)  # both float32: four times faster than mixed
            centred_nd = np.subtract(tile_nd, shift_d, out=working_nd[: tile_nd.shape[0]])
            scatter_dd = centred_nd.T @ centred_nd
            rest_d = mean_d - shift_d
        _join(state, tile_nd.shape[0], mean_d, scatter_dd)
        _shift(state.scatter_dd, -tile_nd.shape[0], rest_d)
    return state


def _shift(scatter_dd: NDArray[np.float64], n: int, by_d: NDArray[np.float64]) -> None:
    """Add n times a rank-one matrix; nothing where the mean of float64 rows was not rounded."""
    with np.errstate(invalid="ignore", over="ignore"):
        if by_d.any():
            scatter_dd += n * by_d[:, None] * by_d


def join_scatters(parts: Iterable[Scatter], width: int, device: str = "cpu") -> Scatter:
    """Return the scatter of all rows of several; none of them is changed."""
    whole = Scatter.empty(width, device)
    for part in parts:
        merge_scatter(whole, part)
    return whole


def merge_scatter(left: Scatter, right: Scatter) -> Scatter:
    """Return the scatter of both sets of rows; `left` is changed, `right` is not."""
    _join(left, right.n, right.mean_d, right.scatter_dd)
    return left


def _join(state: Scatter, n: int, mean_d: NDArray, scatter_dd: NDArray) -> None:
    """Chan's update: the scatter of a union is both scatters and the distance of the means."""
    if n == 0:
        return
    total = state.n + n
    with np.errstate(invalid="ignore", over="ignore"):
        delta_d = mean_d - state.mean_d
        state.scatter_dd += scatter_dd
        if state.n:
            state.scatter_dd += (delta_d * (state.n * n / total))[:, None] * delta_d
        state.mean_d = state.mean_d + delta_d * (n / total)
    state.n = total
