"""HSIC of all pairs of arrays, with or without any one group, from sums over sample pairs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

type Reader = Callable[[int, NDArray[np.int64]], NDArray]
"""`read(array, rows)`: the rows (given by number) of one array, [rows, features]."""

_CONSTANT = 1e-24
"""Features whose centred square sum is below this part of the uncentred one are constant."""
_ROWS = 512
"""Samples whose mean is taken at a time."""


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


@dataclass(frozen=True, slots=True)
class HsicSums:
    """Sums over pairs of samples; `sum_pairs` makes them, `hsic` says what they give."""

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
    shift_ln: NDArray[np.float64]
    """s_i, where u[i, j] is the centred Gram matrix plus s_i + s_j, [arrays, samples]."""

    @property
    def n_groups(self) -> int:
        """How many groups the sums are split by."""
        return self.products_gll.shape[0]


def find_moments(read: Reader, n_arrays: int, n: int) -> Moments:
    """Return mean and scale of every array, reading each once, some hundred samples at a time.

    Parameters
    ----------
    read
        Source of the features.
    n_arrays, n
        Numbers of arrays and of samples.
    """
    means, scales, faults = [], np.ones(n_arrays), []
    for a in range(n_arrays):
        mean_d, spread, square = np.zeros(1), 0.0, 0.0
        for start in range(0, n, _ROWS):
            rows = np.arange(start, min(n, start + _ROWS), dtype=np.int64)
            x_nd = np.asarray(read(a, rows), dtype=np.float64)
            with np.errstate(invalid="ignore", over="ignore"):  # infinite features end as a fault
                delta_d = x_nd.mean(axis=0) - mean_d
                spread += float(np.square(x_nd - (mean_d + delta_d)).sum())
                spread += float(np.square(delta_d).sum()) * start * rows.size / (start + rows.size)
                square += float(np.square(x_nd).sum())
                mean_d = mean_d + delta_d * (rows.size / (start + rows.size))
        finite = bool(np.isfinite(square))
        constant = finite and spread <= _CONSTANT * square
        means.append(mean_d if finite else np.zeros_like(mean_d))
        scales[a] = np.sqrt(spread / n) if finite and not constant else 1.0
        faults.append("NaN or infinite features" * (not finite) + "constant features" * constant)
    return Moments(means, scales, faults)


def u_centre(gram_nn: NDArray) -> NDArray:
    """Return the U-centred matrix of a symmetric one, which is overwritten, [samples, samples].

    Off the diagonal K_ij - r_i/(n-2) - r_j/(n-2) + t/((n-1)(n-2)) with r the sums of rows without
    the diagonal and t their total; 0 on it.
    """
    n = len(gram_nn)
    np.fill_diagonal(gram_nn, 0.0)
    rows_n = gram_nn.sum(axis=1) / (n - 2)
    gram_nn -= rows_n[:, None] + rows_n[None, :]
    gram_nn += rows_n.sum() / (n - 1)
    np.fill_diagonal(gram_nn, 0.0)
    return gram_nn


def u_shifts(norms_ln: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a_i with which K_ij + a_i + a_j is the U-centred matrix of all samples.

    HSIC₁ does not change under such shifts; they take out what would cancel, so that tiles can be
    float32.
    """
    n = norms_ln.shape[1]
    if n < 4:
        return np.zeros_like(norms_ln)
    return norms_ln / (n - 2) - norms_ln.sum(axis=1, keepdims=True) / (2 * (n - 1) * (n - 2))


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
        sums.shift_ln[:, keep],
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
