"""The penalty, chosen inside each training part by leaving one more group out; never on the test.

The score is the UAR of all inner predictions together; of equal ones the stronger penalty is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..statistics.metrics import fold_recalls
from .statistics import Training

PENALTIES = tuple(float(p) for p in 10.0 ** np.arange(5, -2, -1))
"""What is tried, strongest first: C from 1e-5 to 10."""

type FitAndPredict = Callable[
    [NDArray[np.float64], NDArray[np.int64], float, NDArray[np.float64]],
    tuple[NDArray[np.int64], NDArray[np.float64]],
]
"""Training features, their classes [samples, sets], penalty and test features to the classes of the
training part and the probabilities of the test samples, [samples, sets, classes]."""


@dataclass(frozen=True, slots=True)
class Inner:
    """One training part in the eigenbasis of its standardised products, [samples, rank]."""

    basis_nr: NDArray[np.float64]
    value_r: NDArray[np.float64]
    group_n: NDArray[np.int64]
    class_n: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        x_nd: NDArray[np.float64],
        training: Training,
        group_n: NDArray[np.int64],
        class_n: NDArray[np.int64],
    ) -> Inner:
        """Return the eigenbasis of the training samples `x_nd` that `training` sums up."""
        if training.rows_nd is not None:
            value_r, basis_nr = np.linalg.eigh(training.square)
        else:
            scale_dd = training.deviation_d[:, None] * training.deviation_d
            value_r, turn_dr = np.linalg.eigh(training.square / scale_dd)
            basis_nr = ((x_nd - training.mean_d) / training.deviation_d) @ turn_dr
        kept = value_r > 1e-10 * value_r[-1]
        basis_nr, value_r = basis_nr[:, kept], value_r[kept]
        if training.rows_nd is None:
            basis_nr = basis_nr / np.sqrt(value_r)
        return cls(basis_nr, value_r, group_n, class_n)

    def predict(self, penalty: float) -> NDArray[np.float64]:
        """Return ridge's scores of every sample, trained without its group, [samples, classes].

        Notes
        -----
        With the hat matrix H = 11'/n + U Λ/(Λ + λ) U' of all groups, the residuals of a group that
        is left out are (I - H_gg)⁻¹ times those of the whole fit: exact, no refit. Features keep
        the scale of the whole training part; the intercept is that of each inner one.
        """
        target_nk = (self.class_n[:, None] == np.arange(self.class_n.max() + 1)).astype(float)
        n = len(target_nk)
        damped_nr = self.basis_nr * (self.value_r / (self.value_r + penalty))
        residual_nk = target_nk - target_nk.mean(axis=0) - damped_nr @ (self.basis_nr.T @ target_nk)
        out = np.empty_like(target_nk)
        for group in np.unique(self.group_n):
            members = np.flatnonzero(self.group_n == group)
            own = np.eye(members.size) - 1 / n - damped_nr[members] @ self.basis_nr[members].T
            out[members] = target_nk[members] - np.linalg.solve(own, residual_nk[members])
        return out


def count_bytes(n: int, width: int, largest: int) -> int:
    """Return the memory that choosing ridge's penalty takes beyond five copies of the features.

    Parameters
    ----------
    n, width, largest
        Samples, features, samples of the largest group.

    Notes
    -----
    The eigenbasis and its damped copy, the products with their eigenvectors, and the hat matrix of
    the group that is left out inside, with what is solved.
    """
    rank = min(n, width)
    return 8 * (2 * n * rank + 3 * rank**2 + 3 * largest**2)


def choose_ridge(inner: Inner) -> float:
    """Return the penalty with the best UAR over the inner groups.

    With a single group there is nothing to leave out inside: the middle of the penalties is taken.
    Cost: one eigendecomposition, then O(samples · largest group · rank) for each penalty.
    """
    if np.unique(inner.group_n).size < 2:
        return PENALTIES[len(PENALTIES) // 2]
    scores = [_recall(inner.class_n, inner.predict(p).argmax(axis=1)) for p in PENALTIES]
    return PENALTIES[int(np.argmax(scores))]


def choose_logistic(
    x_nd: NDArray[np.float64],
    group_n: NDArray[np.int64],
    class_n: NDArray[np.int64],
    fit_and_predict: FitAndPredict,
) -> NDArray[np.float64]:
    """Return the penalty of each outer fold with the best UAR over its inner folds, [groups].

    Notes
    -----
    The training part without groups g and h serves g with h left out inside, and h with g: G(G-1)/2
    fits for each penalty. With two groups there is nothing to leave out inside, and the middle of
    the penalties is taken.
    """
    n_groups = int(group_n.max()) + 1
    if n_groups < 3:
        return np.full(n_groups, PENALTIES[len(PENALTIES) // 2])
    inner_gnp = np.full((n_groups, class_n.size, len(PENALTIES)), -1, dtype=np.int64)
    for g in range(n_groups):
        for h in range(g + 1, n_groups):
            train = (group_n != g) & (group_n != h)
            tests = np.flatnonzero(~train)
            for i, penalty in enumerate(PENALTIES):
                present, probability = fit_and_predict(
                    x_nd[train], class_n[train, None], penalty, x_nd[tests]
                )
                predicted = present[probability[:, 0].argmax(axis=1)]
                of_h = group_n[tests] == h
                inner_gnp[g, tests[of_h], i] = predicted[of_h]
                inner_gnp[h, tests[~of_h], i] = predicted[~of_h]
    chosen = np.empty(n_groups)
    for g in range(n_groups):
        rest = group_n != g
        scores = [_recall(class_n[rest], inner_gnp[g, rest, i]) for i in range(len(PENALTIES))]
        chosen[g] = PENALTIES[int(np.argmax(scores))]
    return chosen


def _recall(class_n: NDArray[np.int64], predicted_n: NDArray[np.int64]) -> float:
    one_group = np.zeros(class_n.size, dtype=np.int64)
    sets = class_n[:, None], predicted_n[:, None]
    return float(fold_recalls(*sets, one_group, int(class_n.max()) + 1)[0, 0])
