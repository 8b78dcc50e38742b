"""Tests over folds and layers: folds share training samples, and many layers are looked at."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from .resampling import MIN_GROUPS


def compare_folds(
    difference_gm: NDArray[np.float64], ratio: float, *, two_sided: bool
) -> NDArray[np.float64]:
    """Return p-values of the mean difference over folds, by the corrected resampled t test.

    Parameters
    ----------
    difference_gm
        Differences of a score in each fold, [folds, statistics].
    ratio
        Test samples over training samples of a fold, mean over folds: 1/(G-1) for folds of one
        size.
    two_sided
        Whether a mean below 0 counts as well.

    Returns
    -------
    numpy.ndarray
        [statistics]; NaN below 3 folds, without a finite difference or with no spread.

    Notes
    -----
    t = mean / √(variance · (1/G + ratio)) with G - 1 degrees of freedom. Scores of folds whose
    training parts overlap are correlated; 1/G alone takes them for independent and finds too much.

    References
    ----------
    Nadeau and Bengio 2003, Inference for the generalization error, Machine Learning 52.
    """
    n_folds = difference_gm.shape[0]
    if n_folds < MIN_GROUPS:
        return np.full(difference_gm.shape[1:], np.nan)
    mean = difference_gm.mean(axis=0)
    spread = difference_gm.std(axis=0, ddof=1)
    usable = np.isfinite(spread) & (spread > 1e-12)  # equal differences leave rounding
    error = np.where(usable, spread, 1.0) * np.sqrt(1 / n_folds + ratio)
    t = np.where(usable, mean / error, np.nan)
    freedom = n_folds - 1
    return 2 * stats.t.sf(np.abs(t), freedom) if two_sided else stats.t.sf(t, freedom)


def correct_holm(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return p-values corrected for how many there are (Holm 1979); NaN stays, and is not counted.

    Below 5 % anywhere among them: with probability of at most 5 % if nothing is there.
    """
    out = np.full(p.shape, np.nan)
    known = np.flatnonzero(np.isfinite(p))
    order = known[np.argsort(p[known], kind="stable")]
    steps = np.arange(order.size, 0, -1)
    out[order] = np.minimum(np.maximum.accumulate(p[order] * steps), 1.0)
    return out
