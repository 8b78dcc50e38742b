"""Predictions for groups that were left out: logistic, ridge and linear discriminants."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .closed_form import fit_lda, fit_ridge, posterior, train_folds
from .logistic import Logistic, fit_logistic
from .nested import Inner, choose_logistic, choose_ridge
from .scaling import Scaling
from .task import Task


@dataclass(frozen=True, slots=True)
class Predicted:
    """What one probe says of every sample, trained without its group."""

    score_nsk: NDArray[np.float64]
    """[samples, label sets, classes]: probabilities, or ridge's scores."""
    penalty_g: NDArray[np.float64]
    """Penalty (or shrinkage) of each fold."""
    probabilities: bool
    """Whether the scores are probabilities."""


def predict_left_out(x_nd: NDArray, task: Task, c: float) -> NDArray[np.float64]:
    """Return the probabilities of the logistic probe with a fixed C, as `predict_logistic` does."""
    return predict_logistic(x_nd, task, c).score_nsk


def predict_logistic(x_nd: NDArray, task: Task, c: float | None) -> Predicted:
    """Return the probabilities that probes give to samples of the group they were not trained on.

    Parameters
    ----------
    x_nd
        Pooled features, [samples, features].
    task
        Labels and groups of the same samples.
    c
        Inverse penalty; None: chosen within each training part by leaving one more group out.

    Returns
    -------
    Predicted
        0 for a class that the training groups never show.
    """
    x_nd = x_nd.astype(np.float64)
    out = np.zeros((*task.class_ns.shape, len(task.classes)))
    n_groups = len(task.speakers)
    penalty_g = np.full(n_groups, np.nan if c is None else 1 / c)
    if c is None:
        penalty_g = choose_logistic(x_nd, task.speaker_n, task.class_ns[:, 0], _fit_and_predict)
    for group in range(n_groups):
        test = task.speaker_n == group
        predicted = _fit_and_predict(
            x_nd[~test], task.class_ns[~test], penalty_g[group], x_nd[test]
        )
        present, probability = predicted
        out[np.ix_(np.flatnonzero(test), np.arange(out.shape[1]), present)] = probability
    return Predicted(out, penalty_g, probabilities=True)


def _fit_and_predict(
    train_nd: NDArray[np.float64],
    train_ns: NDArray[np.int64],
    penalty: float,
    test_nd: NDArray[np.float64],
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the classes of the training part, and test probabilities [samples, sets, classes]."""
    present = np.unique(train_ns)  # shuffles within groups keep each group's labels
    if present.size == 1:
        return present, np.ones((len(test_nd), train_ns.shape[1], 1))
    scaling = Scaling.of(train_nd)
    compact_ns = np.searchsorted(present, train_ns)
    model: Logistic = fit_logistic(scaling.apply(train_nd), compact_ns, penalty)
    return present, np.exp(model.predict(scaling.apply(test_nd)))


def predict_closed_form(
    x_nd: NDArray, task: Task, *, penalty: float | None, shrinkage: float | None
) -> dict[str, Predicted]:
    """Return what ridge and LDA say of samples of the group they were not trained on, by name.

    Parameters
    ----------
    x_nd
        Pooled features, [samples, features].
    task
        Labels and groups of the same samples.
    penalty
        Of ridge; None: chosen within each training part by leaving one more group out.
    shrinkage
        Of LDA; None: oracle approximating shrinkage of each training part.
    """
    x_nd = x_nd.astype(np.float64)
    n_groups, shape = len(task.speakers), (*task.class_ns.shape, len(task.classes))
    ridge, lda = np.full(shape, -np.inf), np.zeros(shape)
    chosen = np.full((2, n_groups), np.nan)
    folds = train_folds(x_nd, task.speaker_n, task.class_ns)
    for group, (test, present, training) in enumerate(folds):
        at = np.ix_(np.flatnonzero(test), np.arange(shape[1]), present)
        if present.size == 1:
            ridge[at] = lda[at] = 1.0
            continue
        of_fold = penalty
        if of_fold is None:
            compact_n = np.searchsorted(present, task.class_ns[~test, 0])
            inner = Inner.of(x_nd[~test], training, task.speaker_n[~test], compact_n)
            of_fold = choose_ridge(inner)
        linear = fit_ridge(training, of_fold)
        discriminant = fit_lda(training, shrinkage)
        ridge[at] = linear.score(x_nd[test])
        lda[at] = posterior(discriminant.score(x_nd[test]))
        chosen[:, group] = linear.penalty, discriminant.penalty
    return {
        "ridge": Predicted(ridge, chosen[0], probabilities=False),
        "lda": Predicted(lda, chosen[1], probabilities=True),
    }
