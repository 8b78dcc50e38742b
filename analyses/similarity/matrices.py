"""CKA of Gram (or distance) matrices that are in memory, whatever kernel they are of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .cka_estimate import Estimate, estimate
from .hsic import HsicSums, u_shifts

_ASYMMETRY = 1e-3
"""What K_ij and K_ji may differ by, as part of the largest value: float32 products of wide rows."""


def kernel_cka(
    grams: Sequence[NDArray], groups: Sequence[object] | None = None
) -> dict[str, Estimate]:
    """Return CKA of all pairs of kernel matrices over the same samples, by every estimator.

    Parameters
    ----------
    grams
        Symmetric matrices [samples, samples]: of a kernel, or of negative distances. With distances
        the debiased estimate is the bias-corrected distance correlation of Székely and Rizzo.
    groups
        Speaker (or another group) of every sample, for the intervals and `between_groups`.

    Raises
    ------
    ValueError
        Matrices that are not square, not symmetric, or not of the same samples.

    Notes
    -----
    O(matrices · samples²) memory, twice what is given; matrices² · samples² time.
    """
    n = len(grams[0])
    for gram in grams:
        if gram.shape != (n, n):
            msg = f"matrices {[g.shape for g in grams]}: CKA compares square ones of the same size."
            raise ValueError(msg)
        difference = float(np.abs(gram - gram.T).max(initial=0))
        if difference > _ASYMMETRY * float(np.abs(gram).max(initial=0)):
            msg = f"a matrix is not symmetric: [i, j] and [j, i] differ by up to {difference:.3g}."
            raise ValueError(msg)
    labels = np.zeros(n) if groups is None else np.asarray(groups)
    return estimate(sum_grams(grams, np.unique(labels, return_inverse=True)[1].astype(np.int64)))


def sum_grams(grams: Sequence[NDArray], group_n: NDArray[np.int64]) -> HsicSums:
    """Return the sums over pairs of samples of given Gram matrices.

    Parameters
    ----------
    grams
        Symmetric [samples, samples], any kernel; centred here.
    group_n
        Group number 0 … G-1 of every sample.
    """
    order = np.argsort(group_n, kind="stable")
    sorted_n = group_n[order]
    starts = np.flatnonzero(np.diff(sorted_n, prepend=-1))
    stops = np.append(starts[1:], sorted_n.size)
    u_lnn = np.stack([_centre(gram[np.ix_(order, order)]) for gram in grams])
    norms_ln = np.diagonal(u_lnn, axis1=1, axis2=2).copy()
    row_lng = np.add.reduceat(u_lnn, starts, axis=2)
    shift_ln = u_shifts(norms_ln)
    u_lnn += shift_ln[:, :, None] + shift_ln[:, None, :]
    diagonal = np.arange(sorted_n.size)
    u_lnn[:, diagonal, diagonal] = 0
    products, own = np.zeros((2, starts.size, len(grams), len(grams)))
    for g, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        rows = u_lnn[:, start:stop]
        products[g] = _products(rows)
        own[g] = _products(rows[:, :, start:stop])
    return HsicSums(products, own, row_lng, norms_ln, sorted_n, shift_ln)


def _centre(gram_nn: NDArray) -> NDArray[np.float64]:
    """Return HKH in float64, scaled to a mean diagonal of 1 where that is possible."""
    gram_nn = gram_nn.astype(np.float64)
    gram_nn -= gram_nn.mean(axis=0)
    gram_nn -= gram_nn.mean(axis=1, keepdims=True)
    scale = float(np.abs(np.diagonal(gram_nn)).mean()) if len(gram_nn) else 0.0
    return gram_nn / scale if scale > 0 else gram_nn


def _products(u_lmn: NDArray[np.float64]) -> NDArray[np.float64]:
    flat = u_lmn.reshape(u_lmn.shape[0], -1)
    return flat @ flat.T
