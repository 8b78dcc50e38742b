"""The score of an erased layer as published: accuracy, confidence and loss in one number."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from ..plan import Outcome, unexposed_samples
from ..selection import Selection
from ..source import View
from ..statistics.divergence import to_log_probabilities
from ..statistics.metrics import count_confusion, unweighted_recall
from .quantity import NAN, Part, Place, Quantity, Value

ITEMS = 50
"""Test items that the published code draws."""
FAULTS = ("mixed-units", "loss-sign", "argmax-confidence", "fifty-items")
_NAMES = {"erase": "erasure_score", "erase_cumulative": "erasure_score_cumulative"}
"""What the kinds of interventions are called here."""


def plan_erasure(selection: Selection) -> Part:
    """Return the erasures of layers in the store: their output replaced by their input."""
    erased = [view for view in selection.changed if _describe(view) is not None]
    if not erased:
        return Part(missing="erasure: `interventions: [{erase: {layer: all, how: zero}}]`")
    return Part(quantities=partial(_quantities, erased))


def _describe(view: View) -> tuple[str, int] | None:
    """Return name and layer of a published kind of erasure; None for any other intervention."""
    attrs = view.attrs["intervention"]
    name, layer = _NAMES.get(str(attrs.get("kind"))), attrs.get("layer")
    bottom = attrs.get("kind") != "erase_cumulative" or attrs.get("end") == "bottom"
    whole = isinstance(layer, int) and not isinstance(layer, bool) and 0 <= layer < 2**31
    if name is None or attrs.get("how") != "zero" or not bottom or not whole:
        return None
    return name, layer


def _quantities(erased: list[View], outcome: Outcome) -> list[Quantity]:
    quantities = []
    for view in erased:
        name, layer = _describe(view) or ("", -1)
        if outcome.selection.wants_layer(layer):
            place = Place(view.base, layer=layer)
            evaluate = partial(_evaluate, view, outcome)
            quantities.append(Quantity("erasure", name, place, FAULTS, evaluate))
    return sorted(quantities, key=lambda one: (one.name, one.place.capture, one.place.layer))


def _evaluate(view: View, outcome: Outcome, faults: frozenset[str]) -> Value:
    selection = outcome.selection
    base = selection.source.views.get(view.base)
    if base is None:
        why = f"capture {view.base!r}, which was changed, is not in the store"
        return Value(NAN, 0, "none", why)
    if any("logits" not in one.outputs for one in (base, view)):
        return Value(NAN, 0, "none", "no logits among the outputs")
    samples = np.intersect1d(
        unexposed_samples(base, through="head"), unexposed_samples(view, through="head")
    )
    labels = [str(label) for label in base.attrs.get("labels", ())]
    samples = samples[np.isin(base.label_n[samples].astype(str), labels)]
    if samples.size == 0:
        return Value(NAN, 0, "none", "no labelled sample that training did not see")
    if "fifty-items" in faults and samples.size > ITEMS:
        rng = np.random.default_rng(selection.seed)
        samples = np.sort(rng.choice(samples, ITEMS, replace=False))
    before, after = (
        selection.source.read_output(one.name, "logits", samples) for one in (base, view)
    )
    true_n = np.asarray(
        [labels.index(str(label)) for label in base.label_n[samples]], dtype=np.int64
    )
    if not (np.isfinite(before).all() and np.isfinite(after).all()):
        return Value(NAN, samples.size, "none", "NaN or infinite logits")
    if before.shape != after.shape or before.shape[1] != len(labels):
        return Value(NAN, samples.size, "none", "the logits are of other classes than the labels")
    return Value(erasure_score(before, after, true_n, faults), samples.size, "none")


def erasure_score(
    before_nk: NDArray, after_nk: NDArray, true_n: NDArray[np.int64], faults: frozenset[str]
) -> float:
    """Return how much is lost by an erasure.

    Parameters
    ----------
    before_nk, after_nk
        Logits of the unchanged and of the changed model, [samples, classes].
    true_n
        True class of each sample.
    faults
        None: the UAR that is lost. `mixed-units`: Δaccuracy + 0.5 Δconfidence + 0.1 Δloss, with the
        accuracy and confidence that are lost and the loss that is gained; with `loss-sign` the
        last term is subtracted; with `argmax-confidence` confidence is the largest probability
        instead of that of the true class.
    """
    log_before, log_after = (to_log_probabilities(x) for x in (before_nk, after_nk))
    n_classes = log_before.shape[1]
    if "mixed-units" not in faults:
        recalls = [
            unweighted_recall(count_confusion(true_n, x.argmax(axis=1), n_classes))
            for x in (log_before, log_after)
        ]
        return float(recalls[0] - recalls[1])
    at = (np.arange(true_n.size), true_n)
    accuracy = [float((x.argmax(axis=1) == true_n).mean()) for x in (log_before, log_after)]
    if "argmax-confidence" in faults:
        confidence = [float(np.exp(x.max(axis=1)).mean()) for x in (log_before, log_after)]
    else:
        confidence = [float(np.exp(x[at]).mean()) for x in (log_before, log_after)]
    gained = float((log_before[at] - log_after[at]).mean())
    sign = -1.0 if "loss-sign" in faults else 1.0
    lost = accuracy[0] - accuracy[1] + 0.5 * (confidence[0] - confidence[1])
    return lost + sign * 0.1 * gained
