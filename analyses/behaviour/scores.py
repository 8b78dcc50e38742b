"""How well each capture's own head does on samples it was not trained on: UAR, WAR, confusion."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..errors import MissingSitesError
from ..plan import Outcome, Plan, Table, unexposed_samples
from ..selection import Selection
from ..source import View
from ..statistics.divergence import to_log_probabilities
from ..statistics.metrics import count_confusion, score_predictions
from ..statistics.resampling import cluster_bootstrap, weighted_recall


@dataclass(frozen=True, slots=True)
class Scores:
    """Tables `outputs` and `confusion`, from the stored logits."""

    name: str = "outputs"
    description: str = "UAR, WAR and confusion of each capture's own predictions"

    def plan(self, selection: Selection) -> Plan:
        """Return a plan that reads the logits alone."""
        if not any("logits" in view.outputs for view in selection.captures):
            present = sorted({name for view in selection.captures for name in view.outputs})
            msg = (
                "outputs needs the logits of at least one capture. "
                f"Present outputs: {', '.join(present) or 'none'}. Record a model with a head."
            )
            raise MissingSitesError(msg)
        return Plan(_conclude)


def _conclude(outcome: Outcome) -> dict[str, Table]:
    rows, confusions = [], []
    for view in outcome.selection.captures:
        row, confusion = _score(view, outcome)
        rows.append({"capture": view.name, "exposed": "none", **row})
        ends = {"n": row["n"], "exposed": "none", "reason": ""}
        confusions += [{"capture": view.name, **cell, **ends} for cell in confusion]
    attrs = {
        "samples": "not in the training part of head or adapter",
        "interval": "cluster bootstrap over speakers, 95 %",
    }
    columns = ["capture", "label", "predicted", "count", "n", "exposed", "reason"]
    return {
        "outputs": Table(pd.DataFrame(rows), attrs),
        "confusion": Table(pd.DataFrame(confusions, columns=columns), attrs),
    }


def _score(view: View, outcome: Outcome) -> tuple[dict[str, object], list[dict[str, object]]]:
    """Return the scores of one capture, and the cells of its confusion matrix."""
    labels = [str(label) for label in view.attrs.get("labels", ())]
    usable = unexposed_samples(view, through="head")
    samples = usable[np.isin(view.label_n[usable].astype(str), labels)]
    empty: dict[str, object] = {"n": samples.size}
    if "logits" not in view.outputs:
        return {**empty, "reason": "no logits among the outputs"}, []
    if not labels:
        return {
            **empty,
            "reason": "the capture does not say which class each logit is (labels)",
        }, []
    if usable.size == 0:
        return {**empty, "reason": "every sample was in the training part of this capture"}, []
    if samples.size == 0:
        return {**empty, "reason": "no sample has a label that is a class of the head"}, []
    logits = outcome.selection.source.read_output(view.name, "logits", samples)
    probability_nk = np.exp(to_log_probabilities(logits))
    if not np.isfinite(probability_nk).all():
        return {**empty, "reason": "NaN or infinite logits"}, []
    true_n = np.asarray([labels.index(label) for label in view.label_n[samples]], dtype=np.int64)
    predicted_n = probability_nk.argmax(axis=1)
    speaker_n = np.unique(view.group_n[samples].astype(str), return_inverse=True)[1]
    statistic = weighted_recall(true_n, (predicted_n == true_n)[:, None].astype(float), len(labels))
    low, high = cluster_bootstrap(speaker_n, statistic, seed=outcome.selection.seed)
    scores: dict[str, object] = dict(score_predictions(true_n, probability_nk))
    confusion = count_confusion(true_n, predicted_n, len(labels))
    cells = [
        {"label": labels[t], "predicted": labels[p], "count": int(confusion[t, p])}
        for t in range(len(labels))
        for p in range(len(labels))
    ]
    return {**empty, **scores, "uar_low": low[0], "uar_high": high[0], "reason": ""}, cells
