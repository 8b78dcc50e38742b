"""Minibatch HSIC: unbiased HSIC of small random batches, summed before the ratio is taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..backend import to_host
from .between import count_tuples, sum_between
from .hsic import HsicSums, hsic, u_centre


def sum_batch(features: Sequence[NDArray], total_ll: NDArray[np.float64]) -> None:
    """Add n(n-3) HSIC₁ of one batch to `total_ll`, for all pairs of arrays.

    Parameters
    ----------
    features
        Arrays [rows, features] of the same rows, at least 4, all on one device.
    total_ll
        Sums so far, [arrays, arrays], on the host.

    Notes
    -----
    Batches of unequal size n weigh in with n(n-3), as U-statistics must [1]_. The features are
    centred in float64, the Gram matrix is U-centred; rows · (features + arrays) · rows · arrays
    operations.

    References
    ----------
    .. [1] Nguyen, Raghu & Kornblith, Do wide and deep networks learn the same things?, ICLR 2021.
    """
    total_ll += _products(np.stack([_centre(x) for x in features]))


@dataclass(frozen=True, slots=True)
class GroupTotals:
    """Sums of HSIC over batches, of all groups and without each of them."""

    pairs_ll: NDArray[np.float64]
    """Sum of n(n-3) HSIC₁, as `sum_batch` gives it, [arrays, arrays]."""
    pairs_left_gll: NDArray[np.float64]
    """The same of the batches without each group in turn, [groups, arrays, arrays]."""
    between_ll: NDArray[np.float64]
    """HSIC from rows of different groups only, times the pairs of them in the batch."""
    between_left_gll: NDArray[np.float64]

    @classmethod
    def empty(cls, n_groups: int, n_arrays: int) -> GroupTotals:
        """Return the sums of no batch."""
        shape = (n_arrays, n_arrays)
        sizes = (shape, (n_groups, *shape), shape, (n_groups, *shape))
        return cls(*(np.zeros(size) for size in sizes))

    @property
    def n_groups(self) -> int:
        """How many groups were left out, each in turn."""
        return len(self.pairs_left_gll)

    @staticmethod
    def count_bytes(n_groups: int, n_arrays: int, n: int) -> int:
        """Return the memory of the sums and of adding a batch of n rows, its features aside."""
        here = min(n_groups, n)  # groups of one batch
        sums = n_arrays**2 * (2 * n_groups + 14 * here + 8)
        return 8 * (sums + n_arrays * (3 * n**2 + 4 * n * (here + 1) + 3 * here**2))

    def add(self, features: Sequence[NDArray], group_n: NDArray[np.int64]) -> None:
        """Add one batch.

        Parameters
        ----------
        features
            As in `sum_batch`.
        group_n
            Group of every row, ascending: a group is one run of rows.

        Notes
        -----
        HSIC₁ does not change when a_i + a_j is added to a Gram matrix, so the U-centred matrix of
        all rows gives that of any of them. A batch of which fewer than 4 rows (or groups) are left
        adds nothing. Beside `sum_batch` rows · arrays² operations for each group, and groups² ·
        arrays² for each that is left out.
        """
        u_lnn = np.stack([_centre(x) for x in features])
        starts = np.flatnonzero(np.diff(group_n, prepend=-1))
        sums, present = _sum_runs(u_lnn, starts), group_n[starts].tolist()
        batch_ll = sums.products_gll.sum(axis=0)
        self.pairs_ll[:] += batch_ll
        self.pairs_left_gll[:] += batch_ll
        for i, g in enumerate(present):
            left_ll, _, m = hsic(sums, without=i)
            self.pairs_left_gll[g] += m * (m - 3) * left_ll - batch_ll if m >= 4 else -batch_ll
        self._add_between(sums, present)

    def _add_between(self, sums: HsicSums, present: Sequence[int]) -> None:
        if len(present) < 4:
            return
        tuples = sum_between(sums)
        pairs, *_ = count_tuples(tuples.sizes_g)
        batch_ll = pairs * tuples.hsic()
        self.between_ll[:] += batch_ll
        self.between_left_gll[:] += batch_ll
        for i, g in enumerate(present):
            change_ll = -batch_ll
            if len(present) > 4:
                pairs, *_ = count_tuples(np.delete(tuples.sizes_g, i))
                change_ll = pairs * tuples.hsic(i) - batch_ll
            self.between_left_gll[g] += change_ll


def _sum_runs(u_lnn: NDArray, starts: NDArray[np.int64]) -> HsicSums:
    """Return the sums of U-centred matrices, on the host, by runs of rows that are the groups."""
    n_arrays, n = u_lnn.shape[:2]
    ends = [*starts[1:].tolist(), n]
    runs = [slice(*run) for run in zip(starts.tolist(), ends, strict=True)]
    products_gll = np.stack([_products(u_lnn[:, run]) for run in runs])
    own_gll = np.stack([_products(u_lnn[:, run, run]) for run in runs])
    row_lng = np.stack([to_host(u_lnn[:, run].sum(axis=1)) for run in runs], axis=2)
    group_n = np.repeat(np.arange(len(runs)), np.diff([*starts, n]))
    nothing_ln = np.zeros((n_arrays, n))
    return HsicSums(products_gll, own_gll, row_lng, nothing_ln, group_n, nothing_ln)


def _products(u_lmn: NDArray) -> NDArray[np.float64]:
    """Return the inner products of all pairs of arrays, [arrays, arrays], on the host."""
    flat = u_lmn.reshape(len(u_lmn), -1)
    return to_host(flat @ flat.T)


def _centre(x_nd: NDArray) -> NDArray[np.float64]:
    """Return the U-centred linear Gram matrix, [rows, rows]."""
    x_nd = x_nd - x_nd.mean(axis=0, dtype=np.float64)
    return u_centre(x_nd @ x_nd.T)
