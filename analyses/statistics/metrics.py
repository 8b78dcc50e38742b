"""Scores of class predictions: recalls, F1, likelihood and calibration."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ECE_BINS = 10
"""Equal bins of confidence that the calibration error averages over."""
SMALLEST_PROBABILITY = 1e-15
"""Floor of p(true) in `nll`: a class that is absent from the training part has 0."""


def count_confusion(
    true_n: NDArray[np.int64], predicted_n: NDArray[np.int64], n_classes: int
) -> NDArray[np.int64]:
    """Return how often each class was predicted as each, [true, predicted]."""
    flat = np.bincount(true_n * n_classes + predicted_n, minlength=n_classes**2)
    return flat.reshape(n_classes, n_classes)


def unweighted_recall(confusion_kk: NDArray) -> NDArray[np.float64]:
    """Return the mean recall over the classes that occur (UAR), over leading axes; NaN of nothing.

    A class without samples has no recall and is left out of the mean.
    """
    support = confusion_kk.sum(axis=-1)
    hits = np.diagonal(confusion_kk, axis1=-2, axis2=-1)
    with np.errstate(invalid="ignore"):
        recall = np.where(support > 0, hits / np.maximum(support, 1e-300), 0.0)
        return recall.sum(axis=-1) / (support > 0).sum(axis=-1)


def score_predictions(
    true_n: NDArray[np.int64], probability_nk: NDArray[np.float64]
) -> dict[str, float]:
    """Return the scores of predicted class probabilities.

    Parameters
    ----------
    true_n
        True class numbers, [samples].
    probability_nk
        Predicted probabilities, [samples, classes].

    Returns
    -------
    dict
        `uar` mean recall of the classes that occur, `war` accuracy, `macro_f1` mean F1 of those
        classes (all 0 … 1), `nll` mean -log p(true) in nats, `ece` expected calibration error: mean
        |accuracy - confidence| over equal bins of the top probability, weighted by their samples.
    """
    n, n_classes = probability_nk.shape
    predicted_n = probability_nk.argmax(axis=1)
    confusion_kk = count_confusion(true_n, predicted_n, n_classes)
    support_k, claimed_k = confusion_kk.sum(axis=1), confusion_kk.sum(axis=0)
    hits_k = np.diagonal(confusion_kk)
    occurs = support_k > 0
    f1_k = 2 * hits_k / np.maximum(support_k + claimed_k, 1)
    likelihood_n = np.maximum(probability_nk[np.arange(n), true_n], SMALLEST_PROBABILITY)
    return {
        "uar": float(unweighted_recall(confusion_kk)),
        "war": float(hits_k.sum() / n),
        "macro_f1": float(f1_k[occurs].mean()),
        "nll": float(-np.log(likelihood_n).mean()),
        "ece": _calibration_error(predicted_n == true_n, probability_nk.max(axis=1)),
    }


def _calibration_error(hit_n: NDArray[np.bool_], confidence_n: NDArray[np.float64]) -> float:
    bin_n = np.minimum((confidence_n * ECE_BINS).astype(np.int64), ECE_BINS - 1)
    gaps = np.bincount(bin_n, weights=hit_n - confidence_n, minlength=ECE_BINS)
    return float(np.abs(gaps).sum() / hit_n.size)


def fold_recalls(
    class_ns: NDArray[np.int64],
    predicted_ns: NDArray[np.int64],
    group_n: NDArray[np.int64],
    n_classes: int,
) -> NDArray[np.float64]:
    """Return the UAR within each group, [groups, label sets].

    Parameters
    ----------
    class_ns, predicted_ns
        True and predicted class numbers, [samples, label sets].
    group_n
        Group numbers 0 … G-1.
    n_classes
        Number of classes.
    """
    n_groups, n_sets = int(group_n.max()) + 1, class_ns.shape[1]
    cell_ns = (group_n[:, None] * n_sets + np.arange(n_sets)) * n_classes + class_ns
    shape = (n_groups, n_sets, n_classes)
    size = n_groups * n_sets * n_classes
    support = np.bincount(cell_ns.ravel(), minlength=size).reshape(shape)
    right = (class_ns == predicted_ns).ravel().astype(np.float64)
    hits = np.bincount(cell_ns.ravel(), weights=right, minlength=size).reshape(shape)
    occurs = support > 0
    recall = np.where(occurs, hits / np.maximum(support, 1), 0.0)
    return recall.sum(axis=2) / np.maximum(occurs.sum(axis=2), 1)
