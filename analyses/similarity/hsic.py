"""HSIC of all pairs of arrays, with or without any one group, from sums over sample pairs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .moments import Moments, Reader, find_moments

__all__ = ["HsicSums", "Moments", "Reader", "find_moments", "hsic", "u_centre", "u_shifts"]


@dataclass(frozen=True)
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
    """Group number 0 … G-1 of every sample, ascending; no group is empty."""
    shift_ln: NDArray[np.float64]
    """s_i, where u[i, j] is the centred Gram matrix plus s_i + s_j, [arrays, samples]."""

    @property
    def n_groups(self) -> int:
        """How many groups the sums are split by."""
        return self.products_gll.shape[0]

    @property
    def members(self) -> list[slice]:
        """Places of the samples of each group."""
        starts = np.searchsorted(self.group_n, np.arange(self.n_groups + 1))
        return [slice(a, b) for a, b in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)]

    @cached_property
    def row_ln(self) -> NDArray[np.float64]:
        """Centred Gram matrix summed over all columns, [arrays, samples]."""
        return self.row_lng.sum(axis=2)

    @cached_property
    def shift_lg(self) -> NDArray[np.float64]:
        """Shifts summed over each group, [arrays, groups]."""
        return np.add.reduceat(self.shift_ln, [m.start for m in self.members], axis=1)


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
    total_ll = sums.products_gll.sum(axis=0)
    row_ln, shift_l, n = sums.row_ln, sums.shift_lg.sum(axis=1, keepdims=True), sums.group_n.size
    left_out = slice(0, 0)
    if without is not None:
        total_ll += sums.own_gll[without] - 2 * sums.products_gll[without]
        row_ln = row_ln - sums.row_lng[:, :, without]
        shift_l = shift_l - sums.shift_lg[:, [without]]
        left_out = sums.members[without]
        n -= left_out.stop - left_out.start
    if n < 4:
        return np.full_like(total_ll, np.nan), np.full_like(total_ll, np.nan), n
    rho_ln = row_ln - sums.norms_ln
    rho_ln += (n - 2) * sums.shift_ln
    rho_ln += shift_l
    rho_ln[:, left_out] = 0
    tau_l = rho_ln.sum(axis=1)
    unbiased_ll = total_ll - 2 / (n - 2) * (rho_ln @ rho_ln.T)
    unbiased_ll += np.outer(tau_l, tau_l) / ((n - 1) * (n - 2))
    row_l = row_ln.sum(axis=1, keepdims=True) - row_ln[:, left_out].sum(axis=1, keepdims=True)
    centred_ln = row_ln * (-2 / n)
    centred_ln += sums.norms_ln
    centred_ln += row_l / n**2
    centred_ln[:, left_out] = 0
    trace_l = centred_ln.sum(axis=1)
    biased_ll = unbiased_ll + n / (n - 2) * (centred_ln @ centred_ln.T)
    biased_ll -= np.outer(trace_l, trace_l) / ((n - 1) * (n - 2))
    return unbiased_ll / (n * (n - 3)), biased_ll / (n - 1) ** 2, n
