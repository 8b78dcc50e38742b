"""How much two subspaces share: overlaps, and the principal angles between them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_ROUNDING = 1e-6
"""Singular values below this part of the largest are rounding of float32 weights."""


def leading_directions(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return an orthonormal basis of the column space, the largest first, [outputs, its rank]."""
    vectors, sizes, _ = np.linalg.svd(matrix, full_matrices=False)
    return vectors[:, sizes > _ROUNDING * sizes[:1]]


def overlap(left: NDArray[np.float64], right: NDArray[np.float64]) -> float:
    """Return how much of the smaller span lies in the larger one, 0 (nothing) to 1 (all).

    Parameters
    ----------
    left, right
        Orthonormal directions, [features, i] and [features, j].

    Notes
    -----
    ‖U'V‖²/min(i, j): the measure φ of Hu et al., LoRA, arXiv 2106.09685, section 7.2. Random spans
    share max(i, j)/features: see `random_overlap`.
    """
    return float(np.square(left.T @ right).sum() / min(left.shape[1], right.shape[1]))


def random_overlap(features: int, i: int, j: int) -> float:
    """Return the mean overlap of random spans of i and j directions: each has i j/features."""
    return max(i, j) / features


def principal_angles(left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the principal angles in degrees, the smallest first, [min(i, j)].

    Parameters
    ----------
    left, right
        Orthonormal directions, [features, i] and [features, j].

    Notes
    -----
    With V the smaller span: cosines are the singular values of U'V, sines those of V - U U'V, and
    the angle is atan2 of both [1]_. A cosine alone cannot tell angles below 1e-8 from 0; a sine
    alone is as blind near 90 degrees. O(features · i · j).

    References
    ----------
    .. [1] Björck & Golub, Math. Comp. 27 (1973) 579; Knyazev & Argentati, SIAM J. Sci. Comput. 23
       (2002) 2008.
    """
    if left.shape[1] < right.shape[1]:
        left, right = right, left
    inner = left.T @ right
    cosine = np.linalg.svd(inner, compute_uv=False)
    sine = np.linalg.svd(right - left @ inner, compute_uv=False)[::-1]
    return np.degrees(np.arctan2(sine, cosine))
