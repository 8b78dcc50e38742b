"""Gram matrices of few samples: pooled or flattened rows, of any width, within a budget."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ..similarity.hsic import u_centre

type Read = Callable[[int], NDArray]
"""`read(i)`: all rows of the i-th sample, [rows, features]."""

_COLUMNS = 2**18
"""Numbers of a sample that are multiplied at a time, in float64."""


def flattened_gram(read: Read, n: int, room_bytes: int, sample_bytes: int) -> NDArray[np.float64]:
    """Return X X' of samples whose rows are all their columns, [samples, samples].

    Parameters
    ----------
    read
        Source of the samples; all have the same number of rows.
    n
        Number of samples.
    room_bytes
        What may be held; at least two samples are.
    sample_bytes
        Size of one sample.

    Notes
    -----
    A panel of samples is held and the others pass by one at a time: with p panels everything is
    read (p + 1)/2 times. Products and sums in float64. n² · rows · features operations.
    """
    panel = max(1, min(n, room_bytes // max(1, sample_bytes) - 1))
    gram_nn = np.zeros((n, n))
    for first in range(0, n, panel):
        rows = range(first, min(n, first + panel))
        held = [np.asarray(read(i)).reshape(-1) for i in rows]
        for j in range(rows.stop):
            other = held[j - first] if j >= first else np.asarray(read(j)).reshape(-1)
            values = np.array([_dot(x, other) for x in held[max(0, j - first) :]])
            start = max(first, j)
            gram_nn[start : rows.stop, j] = values
            gram_nn[j, start : rows.stop] = values
    return gram_nn


def _dot(x: NDArray, y: NDArray) -> float:
    """Return the inner product of two long vectors in float64, block by block."""
    total = 0.0
    for start in range(0, x.size, _COLUMNS):
        part = slice(start, start + _COLUMNS)
        total += float(x[part].astype(np.float64) @ y[part].astype(np.float64))
    return total


def rbf_kernel(gram_nn: NDArray[np.float64], columns: int, *, single: bool) -> NDArray:
    """Return exp(-γ ‖x - y‖²) with γ = 1 / columns, the default of scikit-learn.

    Parameters
    ----------
    gram_nn
        X X'.
    columns
        Number of features.
    single
        Whether distances and kernel are rounded to float32, as those of float32 data are.
    """
    norm_n = np.diagonal(gram_nn)
    distance_nn = np.maximum(norm_n[:, None] + norm_n - 2 * gram_nn, 0.0)
    np.fill_diagonal(distance_nn, 0.0)
    if not single:
        return np.exp(-distance_nn / columns)
    return np.exp(distance_nn.astype(np.float32) * np.float32(-1 / columns))


def hsic_biased(k_nn: NDArray, l_nn: NDArray) -> float:
    """Return ⟨HKH, HLH⟩ / (n - 1)² in the precision of the matrices."""
    n = len(k_nn)
    return float((_centre(k_nn) * _centre(l_nn)).sum() / (n - 1) ** 2)


def hsic_debiased(k_nn: NDArray, l_nn: NDArray) -> float:
    """Return HSIC₁ from U-centred matrices, in the precision of the matrices; NaN below n = 4."""
    n = len(k_nn)
    if n < 4:
        return float("nan")
    return float((u_centre(k_nn.copy()) * u_centre(l_nn.copy())).sum() / (n * (n - 3)))


def _centre(k_nn: NDArray) -> NDArray:
    mean_n = k_nn.mean(axis=0)
    return k_nn - mean_n - mean_n[:, None] + k_nn.mean()


def cka(k_nn: NDArray, l_nn: NDArray, *, biased: bool) -> float:
    """Return CKA of two kernel matrices, not clamped; NaN where a self-HSIC is not above 0."""
    hsic = hsic_biased if biased else hsic_debiased
    if _is_flat(k_nn) or _is_flat(l_nn):
        return float("nan")
    own = hsic(k_nn, k_nn), hsic(l_nn, l_nn)
    if not (own[0] > 0 and own[1] > 0):
        return float("nan")
    return hsic(k_nn, l_nn) / float(np.sqrt(own[0] * own[1]))


def _is_flat(k_nn: NDArray) -> bool:
    """Return whether all samples are alike to a kernel: what centring leaves is rounding."""
    return bool((k_nn == k_nn[0, 0]).all())


def permuted_cka(k_nn: NDArray, l_nn: NDArray, *, biased: bool, draws: int, seed: int) -> float:
    """Return the mean CKA when samples of one side are paired at random: what pairing means."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        order = rng.permutation(len(l_nn))
        found.append(cka(k_nn, l_nn[np.ix_(order, order)], biased=biased))
    return float(np.mean(found))
