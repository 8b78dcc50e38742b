"""Scores of the model's own answers as published: accuracy alone, and its spread over speakers."""

from __future__ import annotations

from functools import partial

import numpy as np

from ..plan import Outcome, unexposed_samples
from ..selection import Selection
from ..source import View
from ..statistics.metrics import count_confusion, unweighted_recall
from .quantity import NAN, Part, Place, Quantity, Value

FAULTS = {"score": ("accuracy",), "score_std": ("accuracy", "std-ddof0")}
"""Faults of each quantity."""


def plan_scores(selection: Selection) -> Part:
    """Return a part that reads the stored logits alone."""
    views = [view for view in selection.captures if "logits" in view.outputs]
    if not views:
        return Part(missing="outputs: a model with a head, whose logits are stored")
    return Part(quantities=partial(_quantities, views))


def _quantities(views: list[View], outcome: Outcome) -> list[Quantity]:
    return [
        Quantity("outputs", name, Place(view.name), faults, partial(_evaluate, view, outcome, name))
        for name, faults in FAULTS.items()
        for view in views
    ]


def _evaluate(view: View, outcome: Outcome, name: str, faults: frozenset[str]) -> Value:
    labels = [str(label) for label in view.attrs.get("labels", ())]
    usable = unexposed_samples(view, through="head")
    samples = usable[np.isin(view.label_n[usable].astype(str), labels)]
    if samples.size == 0:
        return Value(NAN, 0, "none", "no labelled sample that training did not see")
    logits = outcome.selection.source.read_output(view.name, "logits", samples)
    if not np.isfinite(logits).all():
        return Value(NAN, samples.size, "none", "NaN or infinite logits")
    true_n = np.asarray(
        [labels.index(str(label)) for label in view.label_n[samples]], dtype=np.int64
    )
    confusions = [
        count_confusion(
            true_n[mine], logits[mine].argmax(axis=1), max(len(labels), logits.shape[1])
        )
        for mine in _groups(view, samples, each=name == "score_std")
    ]
    if name == "score_std" and (len(confusions) < 2 or not view.group_name):
        why = "one speaker, or none named, among the samples that training did not see"
        return Value(NAN, samples.size, "none", why)
    found = [
        np.trace(one) / one.sum() if "accuracy" in faults else unweighted_recall(one)
        for one in confusions
    ]
    if name == "score":
        return Value(float(found[0]), samples.size, "none")
    return Value(float(np.std(found, ddof=int("std-ddof0" not in faults))), samples.size, "none")


def _groups(view: View, samples: np.ndarray, *, each: bool) -> list[np.ndarray]:
    """Return which samples belong together: all, or those of each speaker."""
    speaker_n = view.group_n[samples].astype(str)
    return [speaker_n == one for one in np.unique(speaker_n)] if each else [samples >= 0]
