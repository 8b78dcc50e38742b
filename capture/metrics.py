"""Scores of one capture on its test part."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Scores:
    """How well the logits of a capture name the labels of unseen speakers."""

    n: int
    """Scored samples."""
    uar: float
    """Unweighted average recall, over the classes that occur; NaN without samples."""
    war: float
    """Accuracy; NaN without samples."""
    confusion: np.ndarray
    """Counts [true class, predicted class]."""


def score(logits: np.ndarray, classes: np.ndarray) -> Scores:
    """Score logits [sample, class_] against true classes [sample]."""
    n_classes = logits.shape[1]
    predicted = logits.argmax(axis=1)
    confusion = np.zeros((n_classes, n_classes), dtype=np.int64)
    np.add.at(confusion, (classes, predicted), 1)
    totals = confusion.sum(axis=1)
    there = totals > 0
    if not there.any():
        return Scores(0, float("nan"), float("nan"), confusion)
    recalls = np.diag(confusion)[there] / totals[there]
    war = float(np.trace(confusion) / totals.sum())
    return Scores(int(totals.sum()), float(recalls.mean()), war, confusion)
