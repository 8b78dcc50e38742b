"""A first look at every array: its mean, its scale, and whether it can be compared at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

type Reader = Callable[[int, NDArray[np.int64]], NDArray]
"""`read(array, rows)`: the rows (given by number) of one array, [rows, features].

What it returns may be written to, unless it is marked as read-only.
"""
type Mapper = Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]]
"""`mapper(function, items)`: the results of all items, in order."""

_CONSTANT = 1e-24
"""Features whose centred square sum is below this part of the uncentred one are constant."""
_DOUBTFUL = 1e-8
"""Below this part float32 rounding could be what is left: those are looked at in float64."""
_SAFE = 0.1
"""Above this part of the square of the mean, the spread may be a difference of square sums."""
_ROWS = 512
"""Samples whose mean is taken at a time."""
_GLANCE = 64
"""Samples that a glance takes mean and scale from."""


def map_in_turn(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """Return the results of all items, one after the other."""
    return [function(item) for item in items]


@dataclass(frozen=True, slots=True)
class Moments:
    """What a first look at every array gives: mean, scale and whether it can be used."""

    means: list[NDArray[np.float64]]
    """Mean of every feature, one [features] vector for each array."""
    scales: NDArray[np.float64]
    """Root mean square distance from the mean, [arrays]; CKA does not depend on it."""
    faults: list[str]
    """Why an array has no similarity ("" where it has), one for each array."""

    def centre(self, a: int, x_nd: NDArray) -> NDArray[np.float64]:
        """Return rows of array `a` less its mean, in units of its scale."""
        return (np.asarray(x_nd, dtype=np.float64) - self.means[a]) / self.scales[a]

    def centre_as(self, a: int, x_nd: NDArray, dtype: type[np.floating]) -> NDArray[np.floating]:
        """Return rows of array `a` less its mean, in units of about its scale, in a given type.

        Parameters
        ----------
        a
            Number of the array.
        x_nd
            Its rows.
        dtype
            Of what is returned.

        Notes
        -----
        float32 rows for float32 products are taken from the float32 mean without a copy in
        float64. What the mean was rounded by is common to all samples, and HSIC does not see what
        is; the differences round to 6e-8 of themselves.
        """
        scale = float(self.scales[a])
        if dtype != np.float32 or x_nd.dtype != np.float32 or not 1e-30 < scale < 1e30:
            return self.centre(a, x_nd).astype(dtype, copy=False)
        out_nd = x_nd if x_nd.flags.writeable else np.empty_like(x_nd)
        np.subtract(x_nd, self.means[a].astype(np.float32), out=out_nd)
        out_nd *= np.float32(1 / scale)
        return out_nd


def find_moments(read: Reader, n_arrays: int, n: int, *, mapper: Mapper = map_in_turn) -> Moments:
    """Return mean and scale of every array, reading each once, some hundred samples at a time.

    Parameters
    ----------
    read
        Source of the features.
    n_arrays, n
        Numbers of arrays and of samples.
    mapper
        What runs arrays.

    Notes
    -----
    float64 arrays in float64. float32 arrays in float32 sums of differences from a first mean (the
    scale to 1e-5), again in float64 where those differences could be rounding alone.
    """
    found = mapper(lambda a: _look_at(read, a, n), range(n_arrays))
    return Moments(
        [mean_d for mean_d, _, _ in found],
        np.asarray([scale for _, scale, _ in found]),
        [fault for _, _, fault in found],
    )


def glance(read: Reader, n_arrays: int, n: int) -> Moments | None:
    """Return mean and scale of every array from 64 samples, evenly spread over all.

    Parameters
    ----------
    read
        Source of the features.
    n_arrays, n
        Numbers of arrays and of samples.

    Returns
    -------
    Moments
        The mean is off by an eighth of the scale where samples are independent. None where those
        samples could show a fault; then `find_moments` says which.
    """
    rows = np.unique(np.linspace(0, n - 1, _GLANCE).astype(np.int64))
    with np.errstate(invalid="ignore", over="ignore"):  # infinite features end as None
        found = [_look_single(read(a, rows)) for a in range(n_arrays)]
        spread_l = np.asarray([spread for _, spread in found])
        square_l = spread_l + [rows.size * float(mean_d @ mean_d) for mean_d, _ in found]
        sound_l = np.isfinite(square_l) & (spread_l > _DOUBTFUL * square_l)
    if not sound_l.all():
        return None
    return Moments([mean_d for mean_d, _ in found], np.sqrt(spread_l / rows.size), [""] * n_arrays)


def will_do(moments: Moments, norms_ln: NDArray[np.float64], centred_ln: NDArray) -> bool:
    """Return whether a glance was near enough to the moments of all samples.

    Parameters
    ----------
    moments
        What `glance` gave.
    norms_ln
        Squared norms of the features less its means, in units of its scales, [arrays, samples].
    centred_ln
        The same less the means of all samples.

    Returns
    -------
    bool
        False where anything is NaN or infinite, where the means were off by more than a third of
        the spread, and where rounding could be what is left: `find_moments` looks closer.
    """
    spread_l, apart_l = centred_ln.sum(axis=1), norms_ln.sum(axis=1)
    mean_l = np.asarray([float(mean_d @ mean_d) for mean_d in moments.means])
    square_l = spread_l + norms_ln.shape[1] * mean_l / np.square(moments.scales)
    near = (spread_l > (1 - _SAFE) * apart_l) & (spread_l > _DOUBTFUL * square_l)
    return bool(near.all())  # comparisons with NaN are false, and so is infinity above infinity


def _look_at(read: Reader, a: int, n: int) -> tuple[NDArray[np.float64], float, str]:
    """Return mean, scale and fault of one array."""
    mean_d, spread, square = _sum_blocks(read, a, n, _look_single)
    if not (np.isfinite(square) and spread > _DOUBTFUL * square):
        mean_d, spread, square = _sum_blocks(read, a, n, _look_double)
    finite = bool(np.isfinite(square))
    constant = finite and spread <= _CONSTANT * square
    fault = "NaN or infinite features" * (not finite) + "constant features" * constant
    scale = float(np.sqrt(spread / n)) if not fault else 1.0
    return mean_d if finite else np.zeros_like(mean_d), scale, fault


type _Look = Callable[[NDArray], tuple[NDArray[np.float64], float]]
"""Mean and square sum of the differences from it, of some rows."""


def _sum_blocks(
    read: Reader, a: int, n: int, look: _Look
) -> tuple[NDArray[np.float64], float, float]:
    """Return the mean, and the square sums with and without the mean taken out."""
    mean_d, spread, square = np.zeros(1), 0.0, 0.0
    for start in range(0, n, _ROWS):
        rows = np.arange(start, min(n, start + _ROWS), dtype=np.int64)
        with np.errstate(invalid="ignore", over="ignore"):  # infinite features end as a fault
            own_d, own = look(read(a, rows))
            delta_d = own_d - mean_d
            square += own + rows.size * float(own_d @ own_d)
            spread += own + float(delta_d @ delta_d) * start * rows.size / (start + rows.size)
            mean_d = mean_d + delta_d * (rows.size / (start + rows.size))
    return mean_d, spread, square


def _look_double(x_nd: NDArray) -> tuple[NDArray[np.float64], float]:
    x_nd = np.asarray(x_nd, dtype=np.float64)
    mean_d = x_nd.mean(axis=0)
    return mean_d, float(np.square(x_nd - mean_d).sum())


def _look_single(x_nd: NDArray) -> tuple[NDArray[np.float64], float]:
    if x_nd.dtype != np.float32:
        return _look_double(x_nd)
    share_n = np.full(len(x_nd), 1 / len(x_nd), dtype=np.float32)
    first_d = share_n @ x_nd
    flat = x_nd.reshape(-1)
    spread = float(flat @ flat) - len(x_nd) * float(first_d @ first_d)
    if spread > _SAFE * len(x_nd) * float(first_d @ first_d):
        return first_d.astype(np.float64), spread
    rest_nd = x_nd - first_d
    rest_d = (share_n @ rest_nd).astype(np.float64)
    flat = rest_nd.reshape(-1)
    spread = float(flat @ flat) - len(x_nd) * float(rest_d @ rest_d)
    return first_d + rest_d, max(spread, 0.0)
