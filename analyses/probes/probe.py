"""What a linear classifier reads from each layer about speakers it has not heard."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..errors import AnalysisInputError, MemoryBudgetError, MissingSitesError
from ..fold import ArrayKey
from ..memory import USABLE, format_bytes
from ..plan import Outcome, Plan, Table, unexposed_samples
from ..selection import Selection, matches
from ..source import View
from ..statistics.metrics import score_predictions
from ..statistics.resampling import cluster_bootstrap, weighted_recall
from .logistic import count_bytes, fit_logistic

DEFAULT_SITES = ("embed", "resid_post", "encoder_out", "lora_a", "lora_b")
"""Sites that are probed unless others are asked for."""
_SPLIT = "leave-one-{}-out"
_POOLED_FOLD = "all"
"""Value of `fold` where the predictions of all folds are scored together."""
_SHARE = 0.3
"""Part of the memory that one array's probe may take, beside the pooled features that are held."""


@dataclass(frozen=True, slots=True)
class Task:
    """What is predicted in one capture, the same for all of its arrays."""

    samples: NDArray[np.int64]
    """Places on the sample axis: labelled, and not exposed where training shaped the features."""
    class_ns: NDArray[np.int64]
    """Class numbers, [samples, label sets]: the labels, then their control shuffles."""
    classes: tuple[str, ...]
    speaker_n: NDArray[np.int64]
    """Speaker numbers."""
    speakers: tuple[str, ...]
    reason: str
    """Why nothing can be predicted; empty otherwise."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Multinomial logistic regression on pooled features, leaving one speaker out.

    Notes
    -----
    Features are standardised with the mean and deviation of the training speakers of each fold. C
    is fixed beforehand, so nothing is chosen on the speaker that is left out. The control task
    permutes labels within each speaker; selectivity is UAR minus its mean UAR.
    """

    c: float = 0.01
    """Inverse weight of the squared weights, as in scikit-learn."""
    shuffles: int = 10
    """Control label sets."""
    name: str = "probe"
    description: str = (
        "logistic probe of pooled features, leaving one speaker out: UAR, selectivity"
    )

    def plan(self, selection: Selection) -> Plan:
        """Return the pooled arrays to probe."""
        if self.c <= 0 or self.shuffles < 0:
            msg = f"probe needs C > 0 and shuffles >= 0, not {self.c} and {self.shuffles}."
            raise AnalysisInputError(msg)
        chosen = selection.sites is not None
        keys = tuple(
            key
            for view in selection.captures
            for key in selection.pooled_keys(view)
            if chosen or any(matches(key.site, site) for site in DEFAULT_SITES)
        )
        views = selection.captures
        if not keys:
            msg = (
                "probe needs pooled features (mean_valid) or rows of one of "
                f"{', '.join(DEFAULT_SITES)}, and the store holds none of them. "
                "Record them: `record.pool: [mean_valid]`, or name --sites."
            )
            raise MissingSitesError(msg)
        if not any(view.group_name and (view.label_n != "").any() for view in views):
            msg = (
                "probe needs a label and a group (speaker) for every sample; the store holds none. "
                'Record them: `append(..., label="anger", groups={"speaker": "01"})`.'
            )
            raise MissingSitesError(msg)
        for key in keys:
            needed = _count_bytes(self, key, selection)
            if needed > _SHARE * selection.memory_bytes:
                msg = (
                    f"memory {format_bytes(selection.memory_bytes)} is too little: the probe of "
                    f"{key} takes {format_bytes(needed)}, and {_SHARE:.0%} of the memory is there "
                    f"for it. Allow at least {format_bytes(needed / _SHARE)} (--memory)."
                )
                raise MemoryBudgetError(msg)
        return Plan(partial(_conclude, self, keys), (), keys)


def _count_bytes(probe: Probe, key: ArrayKey, selection: Selection) -> int:
    """Return the memory that the probe of one array takes: its features five times, and the fit."""
    view = selection.source.views[key.capture]
    n, width = view.samples.size, view.info(selection.stored_key(key)).width
    n_classes = len(set(view.label_n[view.samples].tolist()))
    return 5 * 8 * n * width + count_bytes(n, width, (probe.shuffles + 1) * n_classes)


def make_task(view: View, ids: NDArray[np.object_], *, shuffles: int, seed: int) -> Task:
    """Return what is predicted in one capture.

    Parameters
    ----------
    view
        The capture.
    ids
        Sample ids along the axis; control shuffles depend on them, not on the order of the samples.
    shuffles, seed
        How many control label sets, and their seed.
    """
    samples = unexposed_samples(view, through="adapter")
    kept = samples[(view.label_n[samples] != "") & (view.group_n[samples] != "")]
    present = set(view.label_n[kept].tolist())
    known = [name for name in view.attrs.get("labels", ()) if name in present]
    classes = (*known, *sorted(present - set(known)))
    true_n = np.asarray([classes.index(label) for label in view.label_n[kept]], dtype=np.int64)
    speakers, speaker_n = np.unique(view.group_n[kept].astype(str), return_inverse=True)
    reason = ""
    if kept.size == 0 and samples.size < view.samples.size:
        reason = "every labelled sample was in the training part of this capture"
    elif len(classes) < 2:
        reason = f"{len(classes)} class among {kept.size} samples; at least 2 are needed"
    elif speakers.size < 2:
        reason = f"{speakers.size} {view.group_name or 'group'}; leaving one out needs at least 2"
    sets = [true_n]
    for shuffle in range(0 if reason else shuffles):
        sets.append(_shuffle_within(true_n, speaker_n, ids[kept], f"{seed}/{shuffle}"))
    return Task(kept, np.stack(sets, axis=1), classes, speaker_n, tuple(speakers.tolist()), reason)


def _shuffle_within(
    true_n: NDArray[np.int64], speaker_n: NDArray[np.int64], ids: NDArray, seed: str
) -> NDArray[np.int64]:
    """Return the labels permuted among the samples of each speaker."""
    shuffled = true_n.copy()
    digest = hashlib.blake2b(seed.encode(), digest_size=8).digest()
    rng = np.random.default_rng(int.from_bytes(digest, "little"))
    for speaker in range(int(speaker_n.max()) + 1):
        members = np.flatnonzero(speaker_n == speaker)
        members = members[np.argsort(ids[members])]
        shuffled[members] = true_n[members][rng.permutation(members.size)]
    return shuffled


def predict_left_out(x_nd: NDArray, task: Task, c: float) -> NDArray[np.float64]:
    """Return the probabilities that probes give to samples of the speaker they were not trained on.

    Parameters
    ----------
    x_nd
        Pooled features, [samples, features].
    task
        Labels and speakers of the same samples.
    c
        Inverse penalty.

    Returns
    -------
    numpy.ndarray
        [samples, label sets, classes]; 0 for a class that the training speakers never show.
    """
    x_nd = x_nd.astype(np.float64)
    out = np.zeros((*task.class_ns.shape, len(task.classes)))
    for speaker in range(len(task.speakers)):
        test = task.speaker_n == speaker
        train_nd, train_ns = x_nd[~test], task.class_ns[~test]
        mean_d, deviation_d = train_nd.mean(axis=0), train_nd.std(axis=0)
        deviation_d[deviation_d <= 1e-12 * np.abs(mean_d)] = 1.0  # constant up to rounding
        deviation_d[deviation_d == 0] = 1.0
        present = np.unique(train_ns)  # shuffles within speakers keep each speaker's labels
        compact_ns = np.searchsorted(present, train_ns)
        if present.size == 1:
            out[test, :, present[0]] = 1.0
            continue
        model = fit_logistic((train_nd - mean_d) / deviation_d, compact_ns, 1 / c)
        predicted = np.exp(model.predict((x_nd[test] - mean_d) / deviation_d))
        out[np.ix_(np.flatnonzero(test), np.arange(out.shape[1]), present)] = predicted
    return out


def _conclude(probe: Probe, keys: Sequence[ArrayKey], outcome: Outcome) -> dict[str, Table]:
    selection = outcome.selection
    tasks = {
        view.name: make_task(
            view, selection.source.ids, shuffles=probe.shuffles, seed=selection.seed
        )
        for view in selection.captures
    }

    def work(key: ArrayKey) -> tuple[NDArray | None, str]:
        task = tasks[key.capture]
        if task.reason:
            return None, task.reason
        x_nd = outcome.pooled.matrix(key, task.samples)
        if not np.isfinite(x_nd).all():
            return None, "NaN or infinite features"
        if (x_nd == x_nd[:1]).all():
            return None, "constant features"
        return predict_left_out(x_nd, task, probe.c), ""

    largest = max(_count_bytes(probe, key, selection) for key in keys)
    room = int(USABLE * selection.memory_bytes) - outcome.pooled.held_bytes
    at_a_time = max(1, min(outcome.runner.workers, room // max(largest, 1)))
    predictions = dict(zip(keys, outcome.runner.map(work, keys, at_a_time), strict=True))
    rows: list[dict[str, object]] = []
    for name, task in tasks.items():
        mine = [key for key in keys if key.capture == name]
        rows += _score(mine, predictions, task, selection)
    attrs = {
        "classifier": f"multinomial logistic, L2, C = {probe.c}, standardised on training speakers",
        "control": f"labels permuted within speaker, mean of {probe.shuffles} shuffles",
        "interval": "cluster bootstrap over speakers of the pooled predictions, 95 %",
        "ece": "10 equal bins of the top probability",
    }
    return {"probe": Table(pd.DataFrame(rows), attrs)}


def _score(
    keys: Sequence[ArrayKey],
    predictions: dict[ArrayKey, tuple[NDArray | None, str]],
    task: Task,
    selection: Selection,
) -> list[dict[str, object]]:
    """Return the rows of one capture: all folds together, then each fold."""
    rows: list[dict[str, object]] = []
    true_n = task.class_ns[:, 0]
    done = [key for key in keys if predictions[key][0] is not None]
    hits = [_hits(predictions[key][0], true_n) for key in done]
    low = high = np.empty(0)
    if done:
        statistic = weighted_recall(true_n, np.stack(hits, axis=1), len(task.classes))
        low, high = cluster_bootstrap(task.speaker_n, statistic, seed=selection.seed)
    for key in keys:
        view = selection.source.views[key.capture]
        split = _SPLIT.format(view.group_name or "group")
        head = {"capture": key.capture, "site": key.site, "layer": key.layer, "probe": "logistic"}
        head |= {"split": split, "exposed": "none"}
        probability, reason = predictions[key]
        pooled = {**head, "fold": _POOLED_FOLD, "n": task.samples.size, "reason": reason}
        if probability is None:
            rows.append(pooled)
            continue
        at = done.index(key)
        pooled |= score_predictions(true_n, probability[:, 0])
        pooled |= {"uar_low": low[at], "uar_high": high[at]} | _control(probability, task, pooled)
        rows.append(pooled)
        rows += [{**head, **row} for row in _score_folds(probability[:, 0], true_n, task)]
    return rows


def _hits(probability: NDArray | None, true_n: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return 1 where the real labels' prediction was right, [samples]."""
    assert probability is not None
    return (probability[:, 0].argmax(axis=1) == true_n).astype(np.float64)


def _control(probability: NDArray, task: Task, pooled: dict[str, object]) -> dict[str, object]:
    """Return the mean UAR of the control label sets, and how much better the real labels do."""
    recalls = [
        score_predictions(task.class_ns[:, s], probability[:, s])["uar"]
        for s in range(1, task.class_ns.shape[1])
    ]
    control = float(np.mean(recalls)) if recalls else float("nan")
    return {"control_uar": control, "selectivity": float(str(pooled["uar"])) - control}


def _score_folds(
    probability_nk: NDArray, true_n: NDArray[np.int64], task: Task
) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for number, speaker in enumerate(task.speakers):
        test = task.speaker_n == number
        absent = [c for k, c in enumerate(task.classes) if k not in true_n[test]]
        untrained = [c for k, c in enumerate(task.classes) if k not in true_n[~test]]
        notes = [f"not in this fold: {', '.join(absent)}"] * bool(absent)
        notes += [f"only in this fold: {', '.join(untrained)}"] * bool(untrained)
        row: dict[str, object] = {"fold": speaker, "n": int(test.sum()), "reason": "; ".join(notes)}
        rows.append(row | score_predictions(true_n[test], probability_nk[test]))
    return rows
