"""Rows of the table `probe`: scores over all folds, of each fold, and tests over layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..fold import ArrayKey
from ..selection import Selection
from ..statistics.corrected import compare_folds, correct_holm
from ..statistics.metrics import fold_recalls, score_predictions
from ..statistics.resampling import cluster_bootstrap, weighted_recall
from .left_out import Predicted
from .task import Task

POOLED_FOLD = "all"
"""Value of `fold` where the predictions of all folds are scored together."""
_OF_PROBABILITIES = ("nll", "ece")

type Row = dict[str, object]


def score_probe(
    name: str,
    keys: Sequence[ArrayKey],
    predictions: Mapping[ArrayKey, Predicted],
    reasons: Mapping[ArrayKey, str],
    task: Task,
    selection: Selection,
    *,
    single_folds: bool,
) -> list[Row]:
    """Return the rows of one probe of one capture.

    Parameters
    ----------
    name
        Of the probe.
    keys
        Arrays, in the order of the rows.
    predictions, reasons
        What the probe says of each array, or why it says nothing.
    task
        What is predicted.
    selection
        Gives the seed of the bootstrap.
    single_folds
        Whether each fold has a row, too.
    """
    true_n, n_classes = task.class_ns[:, 0], len(task.classes)
    done = [key for key in keys if key in predictions]
    low, high = np.empty((2, len(done)))
    recalls: dict[ArrayKey, NDArray] = {}
    if done:
        hits = []
        for key in done:
            predicted_ns = predictions[key].score_nsk.argmax(axis=2)
            hits.append((predicted_ns[:, 0] == true_n).astype(np.float64))
            recalls[key] = fold_recalls(task.class_ns, predicted_ns, task.speaker_n, n_classes)
        statistic = weighted_recall(true_n, np.stack(hits, axis=1), n_classes)
        low, high = cluster_bootstrap(task.speaker_n, statistic, seed=selection.seed)
    tested = _test_layers(recalls, task)
    rows: list[Row] = []
    for key in keys:
        head: Row = {"capture": key.capture, "site": key.site, "layer": key.layer, "probe": name}
        head |= {"split": f"leave-one-{task.group}-out", "exposed": "none"}
        pooled: Row = {**head, "fold": POOLED_FOLD, "n": task.samples.size}
        pooled |= {"reason": reasons.get(key, "")}
        rows.append(pooled)
        if key not in predictions:
            continue
        at, predicted = done.index(key), predictions[key]
        pooled |= _score(true_n, predicted, slice(None))
        pooled |= {"uar_low": low[at], "uar_high": high[at]} | _control(predicted, task, pooled)
        pooled |= {"penalty": _median(predicted.penalty_g)} | tested[key]
        if single_folds:
            rows += [{**head, **row} for row in _score_folds(predicted, true_n, task)]
    return rows


def _score(true_n: NDArray[np.int64], predicted: Predicted, part: slice | NDArray) -> Row:
    """Return the scores of some samples; those of probabilities only where there are any."""
    scores = score_predictions(true_n[part], predicted.score_nsk[part, 0])
    kept = scores if predicted.probabilities else _without(scores, _OF_PROBABILITIES)
    return dict(kept)


def _without(scores: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    return {name: value for name, value in scores.items() if name not in names}


def _median(values: NDArray[np.float64]) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if known.size else float("nan")


def _control(predicted: Predicted, task: Task, pooled: Row) -> Row:
    """Return the mean UAR of the control label sets, and how much better the real labels do."""
    class_ns = task.class_ns[:, 1:]
    guess_ns = predicted.score_nsk[:, 1:].argmax(axis=2)
    together = np.zeros(len(class_ns), dtype=np.int64)
    recalls = fold_recalls(class_ns, guess_ns, together, len(task.classes))
    control = float(recalls.mean()) if recalls.size else float("nan")
    return {"control_uar": control, "selectivity": float(str(pooled["uar"])) - control}


def _test_layers(recalls: Mapping[ArrayKey, NDArray], task: Task) -> dict[ArrayKey, Row]:
    """Return spread over folds and tests of each array, corrected over the layers of its site."""
    size_g = np.bincount(task.speaker_n) if recalls else np.ones(1)
    ratio = float(np.mean(size_g / np.maximum(size_g.sum() - size_g, 1)))
    by_site: dict[str, list[ArrayKey]] = {}
    for key in recalls:
        by_site.setdefault(key.site, []).append(key)
    rows: dict[ArrayKey, Row] = {}
    for keys in by_site.values():
        ordered = sorted(keys, key=lambda key: key.layer)
        real_gm = np.stack([recalls[key][:, 0] for key in ordered], axis=1)
        base_gm = np.stack([_baseline(recalls[key], task) for key in ordered], axis=1)
        p = compare_folds(real_gm - base_gm, ratio, two_sided=False)
        from_first_gm = real_gm - real_gm[:, :1]
        p_first = compare_folds(from_first_gm, ratio, two_sided=True)
        holm, holm_first = correct_holm(p), correct_holm(p_first)
        alone = len(size_g) < 2
        for i, key in enumerate(ordered):
            rows[key] = {
                "uar_fold_mean": real_gm[:, i].mean(),
                "uar_fold_sd": float("nan") if alone else real_gm[:, i].std(ddof=1),
                "p_value": p[i],
                "p_holm": holm[i],
                "delta_first": from_first_gm[:, i].mean() if i else float("nan"),
                "p_first": p_first[i],
                "p_first_holm": holm_first[i],
            }
    return rows


def _baseline(recall_gs: NDArray[np.float64], task: Task) -> NDArray[np.float64]:
    """Return what each fold's UAR is compared with: its control sets, else guessing, [folds]."""
    if recall_gs.shape[1] > 1:
        return recall_gs[:, 1:].mean(axis=1)
    shown = [np.unique(task.class_ns[task.speaker_n == g, 0]).size for g in range(len(recall_gs))]
    return 1 / np.asarray(shown, dtype=np.float64)


def _score_folds(predicted: Predicted, true_n: NDArray[np.int64], task: Task) -> list[Row]:
    rows: list[Row] = []
    for number, group in enumerate(task.speakers):
        test = task.speaker_n == number
        absent = [c for k, c in enumerate(task.classes) if k not in true_n[test]]
        untrained = [c for k, c in enumerate(task.classes) if k not in true_n[~test]]
        notes = [f"not in this fold: {', '.join(absent)}"] * bool(absent)
        notes += [f"only in this fold: {', '.join(untrained)}"] * bool(untrained)
        row: Row = {"fold": group, "n": int(test.sum()), "reason": "; ".join(notes)}
        row |= {"penalty": predicted.penalty_g[number]}
        rows.append(row | _score(true_n, predicted, test))
    return rows
