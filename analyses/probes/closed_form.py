"""Ridge and LDA of all leave-one-group-out folds and label sets, in closed form."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from .statistics import GroupSums, Training, gather_rows

_LARGEST_SHRINKAGE = 1 - 1e-9
"""A shrinkage of 1 leaves no covariance to divide by; this is 1 up to rounding."""


@dataclass(frozen=True, slots=True)
class Linear:
    """Scores that are linear in the features as they are stored."""

    weight_dsk: NDArray[np.float64]
    """[features, label sets, classes]."""
    intercept_sk: NDArray[np.float64]
    """[label sets, classes]."""
    penalty: float
    """Of ridge: the weight of the squared weights. Of LDA: the shrinkage."""

    def score(self, x_nd: NDArray) -> NDArray[np.float64]:
        """Return [samples, label sets, classes]."""
        flat = x_nd @ self.weight_dsk.reshape(self.weight_dsk.shape[0], -1)
        return flat.reshape(-1, *self.intercept_sk.shape) + self.intercept_sk


def fit_ridge(training: Training, penalty: float) -> Linear:
    """Return least squares to one-hot labels with penalty · ‖weights of standardised features‖².

    The intercept has no penalty. Scores are no probabilities.
    """
    weight_dsk, _ = training.solve(penalty)
    share_sk = training.count_sk / training.n
    offset_sk = np.tensordot(training.mean_d, weight_dsk, axes=1)
    return Linear(weight_dsk, share_sk - offset_sk, penalty)


def fit_lda(training: Training, shrinkage: float | None = None) -> Linear:
    """Return log posteriors of Gaussian classes that share a covariance, up to a common constant.

    Parameters
    ----------
    training
        Sums of the training samples; every class must occur.
    shrinkage
        Part of the scaled identity in the covariance of the standardised features, above 0 and
        below 1; None: the oracle approximating shrinkage (Chen et al. 2010) of the real labels.

    Notes
    -----
    With A = S + λD⁻², λ = nγν/(1-γ), the covariance (1-γ)(S - MM')/n + γνD⁻² gives
    Σ⁻¹M = n/(1-γ) · A⁻¹M (I - M'A⁻¹M)⁻¹: one factorisation serves all label sets. γ and
    ν = trace/features are those of the real labels; control sets are shrunk as much, to the same.
    """
    n, width = training.n, training.mean_d.size
    trace, norm = training.moments_within()
    level = max(trace / width, 1e-12)
    gamma = oracle_shrinkage(trace, norm, n, width) if shrinkage is None else shrinkage
    gamma = min(gamma, _LARGEST_SHRINKAGE)
    solved_dsk, product_skk = training.solve(n * gamma * level / (1 - gamma))
    scale_sk = np.sqrt(training.count_sk)
    within_skk = np.eye(scale_sk.shape[1]) - product_skk / (
        scale_sk[:, :, None] * scale_sk[:, None, :]
    )
    # m_k = b_k / n_k, so Σ⁻¹m_k is the column of Σ⁻¹M over √n_k
    turn_skl = np.linalg.inv(within_skk) / scale_sk[:, None, :]
    weight_dsk = np.einsum("dsk,skl->dsl", solved_dsk / scale_sk, turn_skl) * (n / (1 - gamma))
    half_sk = 0.5 * np.einsum("dsk,dsk->sk", training.cross_dsk / training.count_sk, weight_dsk)
    offset_sk = np.tensordot(training.mean_d, weight_dsk, axes=1)
    return Linear(weight_dsk, np.log(training.count_sk / n) - half_sk - offset_sk, gamma)


def oracle_shrinkage(trace: float, norm: float, n: int, width: int) -> float:
    """Return the oracle approximating shrinkage (Chen et al. 2010, eq. 23) of a covariance.

    Parameters
    ----------
    trace, norm
        tr S and tr S² of the covariance S.
    n, width
        Samples and features.
    """
    alpha, mu = norm / width**2, trace / width
    least = (n + 1) * (alpha - mu**2 / width)
    return 1.0 if least <= 0 else min((alpha + mu**2) / least, 1.0)


def train_folds(
    x_nd: NDArray[np.float64], group_n: NDArray[np.int64], class_ns: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.int64], Training]]:
    """Yield test mask, classes of the training part and its sums, for each group left out in turn.

    Parameters
    ----------
    x_nd
        [samples, features].
    group_n
        Group numbers 0 … G-1.
    class_ns
        Class numbers, [samples, label sets]; every set has the classes of a group equally often.

    Notes
    -----
    By cost: with as many training samples as features or more, from sums of the groups by
    subtraction, O(samples · features²) once and O(features³/3) a fold and penalty; with fewer, from
    products of the rows of each fold, O(training² · features).
    """
    n_groups, width = int(group_n.max()) + 1, x_nd.shape[1]
    sums = None
    if x_nd.shape[0] - np.bincount(group_n).max() >= width:
        sums = GroupSums.of(x_nd, group_n, class_ns)
    for group in range(n_groups):
        test = group_n == group
        present = np.unique(class_ns[~test])
        if sums is not None:
            training = sums.without(group)
            training.count_sk = training.count_sk[:, present]
            training.cross_dsk = np.ascontiguousarray(training.cross_dsk[:, :, present])
        else:
            compact_ns = np.searchsorted(present, class_ns[~test])
            training = gather_rows(x_nd[~test], compact_ns, present.size)
        yield test, present, training


def posterior(score_nsk: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return probabilities of log posteriors, over the last axis."""
    return np.exp(log_softmax(score_nsk, axis=2))


def count_bytes(n: int, width: int, groups: int, columns: int) -> int:
    """Return the memory of all folds of one array beyond its features, in bytes.

    Parameters
    ----------
    n, width, groups
        Samples, features, groups.
    columns
        Label sets times classes.
    """
    small = 8 * columns * (4 * width + 4 * n)
    if n - n // max(groups, 1) >= width:
        return 8 * width * ((groups + 5) * width + columns * (groups + 1)) + small
    return 8 * n * (3 * n + 3 * width) + small
