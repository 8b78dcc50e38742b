"""Minibatch HSIC: unbiased HSIC of small random batches, summed before the ratio is taken."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..backend import to_host
from .hsic import u_centre


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
    n = features[0].shape[0]
    centred_lnn = np.stack([_centre(x) for x in features])
    flat = centred_lnn.reshape(len(features), n * n)
    total_ll += to_host(flat @ flat.T)


def _centre(x_nd: NDArray) -> NDArray[np.float64]:
    """Return the U-centred linear Gram matrix, [rows, rows]."""
    x_nd = x_nd - x_nd.mean(axis=0, dtype=np.float64)
    return u_centre(x_nd @ x_nd.T)
