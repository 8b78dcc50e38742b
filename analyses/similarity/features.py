"""The sums of linear HSIC from products of features: cheaper where samples outnumber features."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations_with_replacement

import numpy as np
from numpy.typing import NDArray

from .gram import Mapper, map_in_turn
from .hsic import HsicSums, Moments, Reader


def prefers_features(widths: Sequence[int], n: int) -> bool:
    """Return whether all pairs take fewer multiplications from features than from Gram matrices.

    Features: samples · (Σ widths)²; Gram: samples² · (Σ widths + arrays²).
    """
    return sum(widths) ** 2 < n * (sum(widths) + len(widths) ** 2)


def count_feature_bytes(widths: Sequence[int], n: int, workers: int) -> int:
    """Return the memory of `sum_features` beyond the sums that it returns."""
    return 8 * (sum(widths) * n + max(widths) * n + workers * 3 * max(widths) ** 2)


def sum_features(
    read: Reader,
    moments: Moments,
    group_n: NDArray[np.int64],
    *,
    mapper: Mapper = map_in_turn,
) -> HsicSums:
    """Return what `sum_pairs` of gram.py returns for the linear kernel, without any Gram matrix.

    Parameters
    ----------
    read
        Source of the features.
    moments
        What `find_moments` gave for the same source.
    group_n
        Group number 0 … G-1 of every sample, [samples].
    mapper
        What runs pairs of arrays.

    Notes
    -----
    With C = Σ x y' and its part C_g from the samples of a group, Σ over i in g and all j of
    (x_i·x_j)(y_i·y_j) = ⟨C_g, C⟩, and over j in g ‖C_g‖²; rows of the Gram matrix summed over a
    group are x_i · Σ_g x. All in float64. samples · (Σ features)² multiplications (twice as many
    with groups), O(samples · Σ features) memory.
    """
    n, n_arrays = group_n.size, len(moments.means)
    order = np.argsort(group_n, kind="stable")
    sorted_n = group_n[order]
    starts = np.flatnonzero(np.diff(sorted_n, prepend=-1))
    runs = [slice(a, b) for a, b in zip(starts, [*starts[1:], n], strict=True)]
    arrays = [_centre(read, moments, a, order) for a in range(n_arrays)]
    norms_ln = np.stack([np.einsum("nd,nd->n", x, x) for x in arrays])
    row_lng = np.stack([x @ np.add.reduceat(x, starts, axis=0).T for x in arrays])
    diagonal_gll = np.stack([norms_ln[:, run] @ norms_ln[:, run].T for run in runs])
    pairs = list(combinations_with_replacement(range(n_arrays), 2))

    def multiply(pair: tuple[int, int]) -> NDArray[np.float64]:
        x, y = arrays[pair[0]], arrays[pair[1]]
        whole = x.T @ y
        if len(runs) == 1:
            return np.full((2, 1), float(np.vdot(whole, whole)))
        sums_2g = np.empty((2, len(runs)))
        for g, run in enumerate(runs):
            part = x[run].T @ y[run]
            sums_2g[:, g] = np.vdot(part, whole), np.vdot(part, part)
        return sums_2g

    products, own = np.empty((2, len(runs), n_arrays, n_arrays))
    for (a, b), (of_all, of_own) in zip(pairs, mapper(multiply, pairs), strict=True):
        products[:, a, b] = products[:, b, a] = of_all
        own[:, a, b] = own[:, b, a] = of_own
    return HsicSums(
        *(products - diagonal_gll, own - diagonal_gll, row_lng, norms_ln, sorted_n),
        np.zeros_like(norms_ln),
    )


def _centre(
    read: Reader, moments: Moments, a: int, order: NDArray[np.int64]
) -> NDArray[np.float64]:
    if moments.faults[a]:
        return np.zeros((order.size, 1))
    return moments.centre(a, read(a, order))
