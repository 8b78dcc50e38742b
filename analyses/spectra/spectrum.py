"""Numbers that describe a spectrum of singular values."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from ..backend import to_host

_ROUNDING = 2.0
"""Eigenvalues up to this times the lowest below 0 are rounding. In data of low rank the highest was
at most 1.5 times the lowest, at any size (`tests/analyses/test_svd_rank.py`)."""


def singular_values(scatter_dd: NDArray[np.float64], rank: int) -> NDArray[np.float64]:
    """Return the singular values of the data behind a scatter matrix, largest first, [rank].

    Parameters
    ----------
    scatter_dd
        Σ x x', [features, features]; on a CUDA device it is solved there.
    rank
        How many there can be at most: rounding leaves the rest slightly off 0, and is cut.

    Notes
    -----
    Square roots of eigenvalues: a scatter formed in float32 resolves values above about 2e-4 of the
    largest to 1 %, one formed in float64 above 1e-8. About 9 features³ operations.

    A scatter has no eigenvalues below 0. Those that come out there show how far rounding moves the
    ones that are 0, to either side alike: so whatever is below twice the lowest of them is 0.
    """
    if isinstance(scatter_dd, np.ndarray):
        ascending_d = linalg.eigvalsh(scatter_dd, check_finite=False)
    else:
        ascending_d = to_host(np.linalg.eigvalsh(scatter_dd))
    values_d = ascending_d[::-1][:rank]
    floor = -_ROUNDING * min(float(ascending_d[0]), 0.0)
    return np.sqrt(np.where(values_d > floor, values_d, 0.0))


def describe_spectrum(sigma_d: NDArray[np.float64]) -> dict[str, float]:
    """Return the summary numbers of singular values σ (largest first), NaN where all are 0.

    Parameters
    ----------
    sigma_d
        Singular values, none negative.

    Returns
    -------
    dict
        `sv90` smallest k whose first k squares hold 90 % of Σσ²; `sv90_interpolated` where the
        cumulated energy, joined by straight lines from 0, crosses 90 %; `top10_energy` part of Σσ²
        in the first 10 (0 … 1); `erank` exp(entropy of σ/Σσ) [1]_ and `erank_energy` the same of
        σ²/Σσ² (1 … count); `stable_rank` Σσ²/σ₁²; `participation_ratio` (Σσ²)²/Σσ⁴.

    References
    ----------
    .. [1] Roy & Vetterli, The effective rank, EUSIPCO 2007.
    """
    energy_d = np.square(sigma_d)
    total = float(energy_d.sum())
    names = ("sv90", "sv90_interpolated", "top10_energy", "erank", "erank_energy")
    if not total > 0:
        return dict.fromkeys((*names, "stable_rank", "participation_ratio"), float("nan"))
    part_d = energy_d / total
    cumulated_d = np.cumsum(part_d)
    # the last sum may be 1 - 1e-16; a threshold lowered by rounding finds the same k
    k = int(np.searchsorted(cumulated_d, 0.9 - 1e-12)) + 1
    before = float(cumulated_d[k - 2]) if k > 1 else 0.0
    return {
        "sv90": float(k),
        "sv90_interpolated": k - 1 + (0.9 - before) / float(part_d[k - 1]),
        "top10_energy": float(cumulated_d[min(10, cumulated_d.size) - 1]),
        "erank": _exp_entropy(sigma_d / sigma_d.sum()),
        "erank_energy": _exp_entropy(part_d),
        "stable_rank": total / float(energy_d[0]),
        "participation_ratio": 1 / float(np.square(part_d).sum()),
    }


def _exp_entropy(p_d: NDArray[np.float64]) -> float:
    positive_d = p_d[p_d > 0]
    return float(np.exp(-(positive_d * np.log(positive_d)).sum()))
