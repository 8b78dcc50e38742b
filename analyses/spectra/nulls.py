"""What a spectrum of noise would show: the Marchenko-Pastur edge and that of shuffled columns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

COLUMNS = (
    *("independent", "noise_variance", "mp_edge", "above_mp"),
    *("shuffled_edge", "above_shuffled"),
)
"""Columns of table `svd` that `compare_with_noise` gives."""


@dataclass(frozen=True, slots=True)
class NoiseEdge:
    """The noise under a spectrum."""

    variance: float
    """Of the noise, in every direction alike."""
    edge: float
    """Largest eigenvalue that the noise alone would show."""
    above: float
    """Eigenvalues beyond it; a whole number."""


def find_noise(lambda_k: NDArray[np.float64], n: int, dimension: int) -> NoiseEdge:
    """Return the Marchenko-Pastur edge of a spectrum and what is above it.

    Parameters
    ----------
    lambda_k
        Eigenvalues of the covariance, largest first; those left out are 0.
    n
        Independent rows.
    dimension
        Directions that rows of noise would fill.

    Notes
    -----
    Edge s²(1 + √(p/n))² [1]_ for p directions of variance s². s² is the mean of the eigenvalues
    that are not above the edge, found by leaving those above out until none is added: signal in few
    directions does not raise it.

    References
    ----------
    .. [1] Marchenko & Pastur, Math. USSR-Sbornik 1 (1967) 457.
    """
    above = 0
    while True:
        rest = dimension - above
        variance = float(lambda_k[above:].sum()) / rest
        edge = variance * (1 + np.sqrt(rest / n)) ** 2
        found = int(np.sum(lambda_k > edge))
        if found <= above or found >= dimension:
            return NoiseEdge(variance, float(edge), max(found, above))
        above = found


def shuffled_edge(variance_d: NDArray[np.float64], n: int) -> float:
    """Return the largest eigenvalue after each column was shuffled on its own, in the limit.

    Parameters
    ----------
    variance_d
        Variance of every column, at least one above 0.
    n
        Independent rows.

    Notes
    -----
    Shuffling leaves the variances and nothing else, so the eigenvalues tend to the generalised
    Marchenko-Pastur law of these variances [1]_. Its upper edge is the least value of

        x + Σ (d_j + d_j²/(x - d_j))/n   over x > max d_j

    with d_j the variances [2]_: O(features), no rows, no draws. Variances that are all s² give
    s²(1 + √(features/n))².

    References
    ----------
    .. [1] Dobriban & Owen, Deterministic parallel analysis, JRSS-B 81 (2019) 163.
    .. [2] Silverstein & Choi, J. Multivariate Analysis 54 (1995) 295.
    """
    largest = float(variance_d.max())
    d = variance_d / largest

    def slope(x: float) -> float:
        return 1 - float(np.square(d / (x - d)).sum()) / n

    low, high = 1 + 1 / np.sqrt(n), 1 + np.sqrt(np.square(d).sum() / n)
    # at `low` the largest column alone makes the slope 0 or less, at `high` all of them less than 1
    x = low if slope(low) >= 0 else high
    if slope(low) < 0 < slope(high):
        x = float(optimize.root_scalar(slope, bracket=(low, high)).root)
    return largest * float(x + (d + d**2 / (x - d)).sum() / n)


def compare_with_noise(
    sigma_k: NDArray[np.float64],
    square_d: NDArray[np.float64],
    *,
    rows: int,
    independent: int,
    dimension: int,
) -> dict[str, float]:
    """Return noise variance, edges and how many eigenvalues of the covariance are above each.

    Parameters
    ----------
    sigma_k
        Singular values of the rows, largest first.
    square_d
        Sum of squares of every column.
    rows
        How many rows both are of: eigenvalues are σ²/rows.
    independent
        Rows that count as independent: samples, as the frames of one are not.
    dimension
        Singular values that there can be.

    Returns
    -------
    dict
        See `COLUMNS`; NaN where nothing varies or fewer than 2 rows are independent. The three of
        Marchenko and Pastur are NaN where more than half of the directions end above the edge: what
        is left is then the tail of a falling spectrum, no bulk of noise.
    """
    if independent < 2 or not sigma_k.any():
        return {**dict.fromkeys(COLUMNS, float("nan")), "independent": float(independent)}
    lambda_k = np.square(sigma_k) / rows
    noise = find_noise(lambda_k, independent, dimension)
    if 2 * noise.above > dimension:
        noise = NoiseEdge(float("nan"), float("nan"), float("nan"))
    edge = shuffled_edge(square_d / rows, independent)
    return {
        "independent": float(independent),
        "noise_variance": noise.variance,
        "mp_edge": noise.edge,
        "above_mp": noise.above,
        "shuffled_edge": edge,
        "above_shuffled": float(np.sum(lambda_k > edge)),
    }
