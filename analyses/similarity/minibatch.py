"""Minibatch HSIC: unbiased HSIC of small random batches, summed before the ratio is taken."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..backend import to_host
from .hsic import u_centre


def sum_batch(
    features: Sequence[NDArray],
    total_ll: NDArray[np.float64],
    group_n: NDArray[np.int64] | None = None,
    left_gll: NDArray[np.float64] | None = None,
) -> None:
    """Add n(n-3) HSIC₁ of one batch to `total_ll`, for all pairs of arrays.

    Parameters
    ----------
    features
        Arrays [rows, features] of the same rows, at least 4, all on one device.
    total_ll
        Sums so far, [arrays, arrays], on the host.
    group_n
        Group of every row, ascending: equal groups are one run of rows.
    left_gll
        Sums so far without each group in turn, [groups, arrays, arrays], on the host. A batch of
        which fewer than 4 rows are left adds nothing.

    Notes
    -----
    Batches of unequal size n weigh in with n(n-3), as U-statistics must [1]_. The features are
    centred in float64, the Gram matrix is U-centred; rows · (features + arrays) · rows · arrays
    operations, and rows · arrays² for each group.

    References
    ----------
    .. [1] Nguyen, Raghu & Kornblith, Do wide and deep networks learn the same things?, ICLR 2021.
    """
    u_lnn = np.stack([_centre(x) for x in features])
    if group_n is None or left_gll is None:
        total_ll += _products(u_lnn)
        return
    n = group_n.size
    starts = np.flatnonzero(np.diff(group_n, prepend=-1))
    runs = [slice(*ends) for ends in zip(starts, [*starts[1:], n], strict=True)]
    rows_gll = np.stack([_products(u_lnn[:, run]) for run in runs])
    batch_ll = rows_gll.sum(axis=0)
    total_ll += batch_ll
    left_gll += batch_ll
    for run, rows_ll in zip(runs, rows_gll, strict=True):
        change_ll = -batch_ll
        if n - (run.stop - run.start) >= 4:
            change_ll = _leave_out(u_lnn, run) - 2 * rows_ll
        left_gll[group_n[run.start]] += change_ll


def _leave_out(u_lnn: NDArray, run: slice) -> NDArray[np.float64]:
    """Return what m(m-3) HSIC₁ of the m rows outside a run has beyond Σ u u of all, less twice its.

    Notes
    -----
    HSIC₁ does not change when a_i + a_j is added to a Gram matrix, so that of fewer rows follows
    from the U-centred matrix of all. Rows of that sum to 0: outside the run they sum to -f, where f
    is their sum over the run, and all of them to w, the sum of the run's own block. So with u and v
    two of them, m(m-3) HSIC₁ = Σ u v outside + w_u w_v / ((m-1)(m-2)) - 2 f_u·f_v / (m-2).
    """
    m = u_lnn.shape[1] - (run.stop - run.start)
    rows_lmn = u_lnn[:, run]
    f_ln = rows_lmn.sum(axis=1)
    w_l = f_ln[:, run].sum(axis=1)
    f_ln[:, run] = 0
    cross_ll = w_l[:, None] * w_l / ((m - 1) * (m - 2)) - 2 / (m - 2) * (f_ln @ f_ln.T)
    return _products(rows_lmn[:, :, run]) + to_host(cross_ll)


def _products(u_lmn: NDArray) -> NDArray[np.float64]:
    """Return the inner products of all pairs of arrays, [arrays, arrays], on the host."""
    flat = u_lmn.reshape(len(u_lmn), -1)
    return to_host(flat @ flat.T)


def _centre(x_nd: NDArray) -> NDArray[np.float64]:
    """Return the U-centred linear Gram matrix, [rows, rows]."""
    x_nd = x_nd - x_nd.mean(axis=0, dtype=np.float64)
    return u_centre(x_nd @ x_nd.T)
