"""Scores of one capture on its test part."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ..store import Capture


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


def score_capture(
    capture: Capture, labels: Sequence[str], *, only: Collection[str] | None = None
) -> Scores:
    """Score the samples of a capture that no training saw and whose label is known.

    Parameters
    ----------
    capture
        The capture.
    labels
        Classes, in the order of its logits.
    only
        Score these ids, and no others.
    """
    classes = {label: i for i, label in enumerate(labels)}
    table = capture.samples
    true = np.array([classes.get(label, -1) for label in table["label"]])
    kept = (true >= 0) & ~table["exposed"].to_numpy(dtype=bool)
    if only is not None:
        kept &= table["id"].isin(list(only)).to_numpy()
    return score(np.asarray(capture.read_output("logits"))[kept], true[kept])


def metric_arrays(scores: Scores) -> dict[str, np.ndarray]:
    """Return scores as the parameters that a capture keeps."""
    return {
        "metrics.confusion": scores.confusion,
        "metrics.uar": np.array(scores.uar),
        "metrics.war": np.array(scores.war),
    }
