"""HSIC of all pairs of arrays from centred Gram tiles: the numbers behind every exact CKA.

The Gram form: `n` samples against `n` samples, never `d` against `d`, so that arrays of any width
can be compared. Nothing of size n² is kept; what is kept are sums over pairs of samples, split by
group so that every delete-one-group estimate follows without a second pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

type Reader = Callable[[int, NDArray[np.int64]], NDArray]
"""`read(array, rows)`: the rows (given by number) of one array, [rows, features]."""

_CONSTANT = 1e-24
"""Features whose centred square sum is below this part of the uncentred one are constant."""


@dataclass(frozen=True, slots=True)
class Moments:
    """What a first look at every array gives: mean, scale and whether it can be used."""

    means: list[NDArray[np.float64]]
    """Mean of every feature, one [features] vector for each array."""
    scales: NDArray[np.float64]
    """Root mean square distance from the mean, [arrays]; CKA does not depend on it."""
    faults: list[str]
    """Why an array has no similarity ("" where it has), one for each array."""


@dataclass(frozen=True, slots=True)
class HsicSums:
    """Sums over pairs of samples; see `hsic` for what they give."""

    products_gll: NDArray[np.float64]
    """Sum of u_a[i, j] u_b[i, j] over i in the group and all j ≠ i, [groups, arrays, arrays]."""
    own_gll: NDArray[np.float64]
    """The same with j in the group of i as well."""
    row_lng: NDArray[np.float64]
    """Centred Gram matrix summed over j in each group, with diagonal, [arrays, samples, groups]."""
    norms_ln: NDArray[np.float64]
    """Its diagonal, [arrays, samples]."""
    group_n: NDArray[np.int64]
    """Group number of every sample."""

    @property
    def n_groups(self) -> int:
        """How many groups the sums are split by."""
        return self.products_gll.shape[0]


def find_moments(read: Reader, n_arrays: int, n: int) -> Moments:
    """Return mean and scale of every array, reading each once.

    Parameters
    ----------
    read
        Source of the features.
    n_arrays, n
        Numbers of arrays and of samples.
    """
    rows = np.arange(n, dtype=np.int64)
    means, scales, faults = [], np.ones(n_arrays), []
    for a in range(n_arrays):
        x_nd = np.asarray(read(a, rows), dtype=np.float64)
        finite = bool(np.isfinite(x_nd).all())
        mean_d = x_nd.mean(axis=0) if finite else np.zeros(x_nd.shape[1])
        spread = float(np.square(x_nd - mean_d).sum()) if finite else 0.0
        constant = finite and spread <= _CONSTANT * float(np.square(x_nd).sum())
        means.append(mean_d)
        scales[a] = np.sqrt(spread / n) if finite and not constant else 1.0
        faults.append("NaN or infinite features" * (not finite) + "constant features" * constant)
    return Moments(means, scales, faults)


def sum_pairs(
    read: Reader,
    moments: Moments,
    group_n: NDArray[np.int64],
    *,
    dtype: type[np.floating] = np.float64,
    panel_rows: int | None = None,
    tile_bytes: int = 64 * 2**20,
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
    dtype
        Type of the Gram products; sums are always float64.
    panel_rows
        Samples whose features are held at a time; None holds all. Two panels are held.
    tile_bytes
        Size of the Gram tiles of all arrays together.

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
    )
    panels = _panels(n, panel_rows or n)
    held = _Panels(read, moments, order, dtype)
    for panel in panels:
        for a, x in enumerate(held.load(panel)):
            out.norms_ln[a, panel] = np.einsum("nd,nd->n", x, x, dtype=np.float64)
    shift_ln = _shifts(out.norms_ln)
    for rows in panels:
        for columns in panels:
            _add_panels(
                out, held.load(rows), held.load(columns), shift_ln, (rows, columns), tile_bytes
            )
    return out


class _Panels:
    """Centred and scaled features of runs of samples; the last two that were asked for are kept."""

    def __init__(
        self, read: Reader, moments: Moments, order: NDArray[np.int64], dtype: type[np.floating]
    ) -> None:
        self._read, self._moments, self._order, self._dtype = read, moments, order, dtype
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
            return np.zeros((panel.stop - panel.start, 1), dtype=self._dtype)
        x_nd = np.asarray(self._read(a, self._order[panel]), dtype=np.float64)
        return ((x_nd - self._moments.means[a]) / self._moments.scales[a]).astype(self._dtype)


def _panels(n: int, size: int) -> list[slice]:
    return [slice(start, min(n, start + size)) for start in range(0, n, size)]


def _shifts(norms_ln: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a_i with which K_ij + a_i + a_j is the U-centred matrix of all samples.

    HSIC₁ does not change under such shifts; they take out what would cancel, so that tiles can be
    float32.
    """
    n = norms_ln.shape[1]
    if n < 4:
        return np.zeros_like(norms_ln)
    return norms_ln / (n - 2) - norms_ln.sum(axis=1, keepdims=True) / (2 * (n - 1) * (n - 2))


def _tiles(group_n: NDArray[np.int64], rows: slice, size: int) -> Iterator[slice]:
    """Cut a run of samples into tiles of at most `size` that never cross a group."""
    borders = np.flatnonzero(np.diff(group_n[rows])) + 1 + rows.start
    for start, stop in zip([rows.start, *borders], [*borders, rows.stop], strict=True):
        for first in range(start, stop, size):
            yield slice(first, min(stop, first + size))


def _add_panels(
    out: HsicSums,
    x: Sequence[NDArray],
    y: Sequence[NDArray],
    shift_ln: NDArray[np.float64],
    place: tuple[slice, slice],
    tile_bytes: int,
) -> None:
    """Add what rows of one panel against columns of another give."""
    rows, columns = place
    n_columns = columns.stop - columns.start
    size = max(1, tile_bytes // (len(x) * n_columns * x[0].itemsize))
    starts = np.flatnonzero(np.diff(out.group_n[columns], prepend=-1))  # sorted by group
    present = out.group_n[columns][starts]
    for tile in _tiles(out.group_n, rows, size):
        local = slice(tile.start - rows.start, tile.stop - rows.start)
        gram = np.stack([xa[local] @ ya.T for xa, ya in zip(x, y, strict=True)])
        sums = np.add.reduceat(gram, starts, axis=2, dtype=np.float64)
        out.row_lng[:, tile, present] += sums
        gram += shift_ln[:, tile, None]
        gram += shift_ln[:, None, columns]
        same = np.arange(max(tile.start, columns.start), min(tile.stop, columns.stop))
        gram[:, same - tile.start, same - columns.start] = 0
        group = int(out.group_n[tile.start])
        flat = gram.reshape(len(x), -1)
        out.products_gll[group] += flat @ flat.T
        own = np.flatnonzero(out.group_n[columns] == group)
        if own.size:
            flat = gram[:, :, own[0] : own[-1] + 1].reshape(len(x), -1)
            out.own_gll[group] += flat @ flat.T


def hsic(sums: HsicSums, *, without: int | None = None) -> tuple[NDArray, NDArray, int]:
    """Return unbiased and biased HSIC of all pairs of arrays, and the number of samples.

    Parameters
    ----------
    sums
        What `sum_pairs` gave.
    without
        Group that is left out.

    Returns
    -------
    tuple
        HSIC₁ [arrays, arrays] (NaN below 4 samples), HSIC₀ [arrays, arrays], samples.

    Notes
    -----
    With K̃ the Gram matrix without diagonal, ρ its row sums and τ their total [1]_, n(n-3) HSIC₁ =
    tr(K̃L̃) + τ_K τ_L / ((n-1)(n-2)) - 2 ρ_K·ρ_L / (n-2), and (n-1)² HSIC₀ = n(n-3) HSIC₁ + n/(n-2)
    Σ k l - Σk Σl / ((n-1)(n-2)) with the centred squared norms k, l.

    References
    ----------
    .. [1] Song et al., Feature selection via dependence maximization, JMLR 2012.
    """
    keep = np.ones(sums.group_n.size, dtype=bool) if without is None else sums.group_n != without
    n = int(keep.sum())
    total_ll = sums.products_gll.sum(axis=0)
    row_ln = sums.row_lng.sum(axis=2)
    if without is not None:
        total_ll = total_ll - 2 * sums.products_gll[without] + sums.own_gll[without]
        row_ln = row_ln - sums.row_lng[:, :, without]
    if n < 4:
        return np.full_like(total_ll, np.nan), np.full_like(total_ll, np.nan), n
    norms_ln, row_ln, shift_ln = (
        sums.norms_ln[:, keep],
        row_ln[:, keep],
        _shifts(sums.norms_ln)[:, keep],
    )
    rho_ln = row_ln - norms_ln + (n - 2) * shift_ln + shift_ln.sum(axis=1, keepdims=True)
    tau_l = rho_ln.sum(axis=1)
    unbiased_ll = (
        total_ll + np.outer(tau_l, tau_l) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (rho_ln @ rho_ln.T)
    )
    centred_ln = norms_ln - 2 / n * row_ln + row_ln.sum(axis=1, keepdims=True) / n**2
    trace_l = centred_ln.sum(axis=1)
    biased_ll = (
        unbiased_ll
        + n / (n - 2) * (centred_ln @ centred_ln.T)
        - np.outer(trace_l, trace_l) / ((n - 1) * (n - 2))
    )
    return unbiased_ll / (n * (n - 3)), biased_ll / (n - 1) ** 2, n
