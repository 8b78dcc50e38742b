"""The logit lens: what the classifier would say if the model ended after each layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..errors import MissingSitesError
from ..fold import ArrayKey
from ..plan import Outcome, Plan, Table, unexposed_samples
from ..selection import Selection
from ..source import Source, View
from ..statistics.divergence import (
    chance_overlap,
    js_divergence,
    kl_divergence,
    to_log_probabilities,
)
from ..statistics.metrics import count_confusion, unweighted_recall
from ..statistics.resampling import cluster_bootstrap, weighted_mean, weighted_recall

POOL = "mean_all_normed"
"""Final norm per frame, then the mean over all frames: norm and mean do not commute."""
_MEANS = ("kl_final_layer", "kl_layer_final", "js", "overlap")


@dataclass(frozen=True, slots=True)
class Lens:
    """Distance of each layer's prediction from the final one, and its recall.

    Notes
    -----
    p_ℓ = softmax(W_c (W_p x_ℓ + b_p) + b_c) with x_ℓ the mean over all frames of the final norm of
    the residual stream after layer ℓ. `kl_final_layer` = KL(p_L‖p_ℓ), `kl_layer_final` =
    KL(p_ℓ‖p_L), means over samples in nats; `overlap` how often both choose the same class,
    `chance_overlap` how often they would if they were independent. p_L is the stored logits'. At
    the last layer KL is 0 and overlap 1.
    """

    name: str = "lens"
    description: str = "logit lens: KL to the final prediction, overlap and UAR of every layer"

    def plan(self, selection: Selection) -> Plan:
        """Return the pooled arrays behind the lens."""
        keys = choose_lens_arrays(selection, self.name)
        return Plan(partial(_conclude, keys), (), keys)


def choose_lens_arrays(selection: Selection, name: str) -> tuple[ArrayKey, ...]:
    """Return the pooled, normed arrays that the head can read.

    Raises
    ------
    MissingSitesError
        No capture has `resid_post` of them, the logits and a head; `name` is who needs them.
    """
    keys = tuple(
        key
        for view in selection.captures
        for key in selection.pooled_keys(view, POOL)
        if key.site in {"resid_post", "embed"} and not _lacks_head(view, selection)
    )
    if not any(key.site == "resid_post" for key in keys):
        raise MissingSitesError(_explain(selection, name))
    return keys


def _lacks_head(view: View, selection: Selection) -> str:
    """Return why the head cannot be applied in a capture; empty when it can."""
    names = set(selection.source.capture(view.name).parameters)
    if "head.classifier.weight" not in names:
        return "no head.classifier.weight among the parameters"
    return "" if "logits" in view.outputs else "no logits among the outputs"


def _explain(selection: Selection, name: str) -> str:
    pools = sorted({name for view in selection.captures for name in view.pooled})
    heads = {v.name: _lacks_head(v, selection) for v in selection.captures}
    lacking = "; ".join(f"capture {name!r}: {why}" for name, why in heads.items() if why)
    return (
        f"{name} needs resid_post.{POOL}, the logits and the head parameters of the same capture. "
        f"Present: {', '.join(pools) or 'no pooled sites'}{'; ' + lacking if lacking else ''}. "
        f"Record them: `record.sites: [resid_post]`, `record.pool: [{POOL}]`, with a head."
    )


def apply_head(parameters: Mapping[str, NDArray], x_nd: NDArray) -> NDArray[np.float64]:
    """Return the logits of pooled, normed features in float64, [samples, classes].

    Parameters
    ----------
    parameters
        `head.classifier.weight` [classes, features] and, where the head has them,
        `head.classifier.bias`, `head.projector.weight`, `head.projector.bias`.
    x_nd
        [samples, features].
    """
    x_nd = x_nd.astype(np.float64)
    for part in ("projector", "classifier"):
        weight, bias = f"head.{part}.weight", f"head.{part}.bias"
        if weight in parameters:
            x_nd = x_nd @ parameters[weight].astype(np.float64).T
        if bias in parameters:
            x_nd = x_nd + parameters[bias].astype(np.float64)
    return x_nd


def _conclude(keys: Sequence[ArrayKey], outcome: Outcome) -> dict[str, Table]:
    rows: list[dict[str, object]] = []
    for view in outcome.selection.captures:
        mine = [key for key in keys if key.capture == view.name]
        samples = unexposed_samples(view, through="head")
        lacking = why_dark(view, mine, samples, outcome.selection)
        if lacking:
            rows.append(explain_capture(view, lacking))
        else:
            rows += _look(view, mine, samples, outcome)
    attrs = {
        "final": "softmax of the stored logits",
        "norm": "final norm per frame, then the mean over all frames",
        "interval": "cluster bootstrap over speakers, 95 %",
        "unit": "nats",
    }
    return {"lens": Table(pd.DataFrame(rows), attrs)}


def why_dark(
    view: View, keys: Sequence[ArrayKey], samples: NDArray[np.int64], selection: Selection
) -> str:
    """Return why the head reads nothing of a capture; empty where it does."""
    lacking = _lacks_head(view, selection)
    if not lacking and not keys:
        lacking = f"resid_post.{POOL} was not recorded"
    if not lacking and samples.size == 0:
        lacking = "every sample was in the training part of this capture"
    return lacking


def explain_capture(view: View, reason: str) -> dict[str, object]:
    """Return the one row of a capture without values."""
    empty = {"capture": view.name, "site": "resid_post", "layer": -1, "n": 0}
    return {**empty, "exposed": "none", "reason": reason}


@dataclass(frozen=True, slots=True)
class Answers:
    """What the model and the labels say of the samples of one capture."""

    log_final_nk: NDArray[np.float64]
    """Log-probabilities of the stored logits, [samples, classes]."""
    speaker_n: NDArray[np.int64]
    """Number of the speaker of each sample."""
    true_n: NDArray[np.int64]
    """Class of each sample, -1 where its label is none of the head's."""


def read_answers(view: View, samples: NDArray[np.int64], source: Source) -> Answers:
    """Return what the layers of a capture are compared with."""
    final_nk = to_log_probabilities(source.read_output(view.name, "logits", samples))
    speaker_n = np.unique(view.group_n[samples].astype(str), return_inverse=True)[1]
    labels = list(view.attrs.get("labels", ()))
    true = [labels.index(t) if t in labels else -1 for t in view.label_n[samples]]
    return Answers(final_nk, speaker_n, np.asarray(true, dtype=np.int64))


def _look(
    view: View, keys: Sequence[ArrayKey], samples: NDArray[np.int64], outcome: Outcome
) -> list[dict[str, object]]:
    """Return one row for each layer of a capture."""
    source, seed = outcome.selection.source, outcome.selection.seed
    parameters = dict(source.capture(view.name).parameters)
    answers = read_answers(view, samples, source)
    final_nk, speaker_n = answers.log_final_nk, answers.speaker_n
    rows = []
    for key in keys:
        row: dict[str, object] = {"capture": view.name, "site": key.site, "layer": key.layer}
        row |= {"n": samples.size, "exposed": "none"}
        layer_nk = to_log_probabilities(apply_head(parameters, outcome.pooled.matrix(key, samples)))
        if not (np.isfinite(layer_nk).all() and np.isfinite(final_nk).all()):
            rows.append({**row, "reason": "NaN or infinite features or logits"})
            continue
        row |= _compare(final_nk, layer_nk, speaker_n, seed)
        row |= _recall(layer_nk.argmax(axis=1), answers.true_n, speaker_n, seed)
        rows.append(row)
    return rows


def _compare(
    final_nk: NDArray[np.float64],
    layer_nk: NDArray[np.float64],
    speaker_n: NDArray[np.int64],
    seed: int,
) -> dict[str, object]:
    """Return the mean divergences and overlaps with their intervals."""
    final_n, layer_n = final_nk.argmax(axis=1), layer_nk.argmax(axis=1)
    values_nm = np.stack(
        [
            kl_divergence(final_nk, layer_nk),
            kl_divergence(layer_nk, final_nk),
            js_divergence(final_nk, layer_nk),
            (final_n == layer_n).astype(np.float64),
        ],
        axis=1,
    )
    low, high = cluster_bootstrap(speaker_n, weighted_mean(values_nm), seed=seed)
    out: dict[str, object] = {}
    for i, name in enumerate(_MEANS):
        out |= {name: values_nm[:, i].mean(), f"{name}_low": low[i], f"{name}_high": high[i]}
    return out | {"chance_overlap": chance_overlap(final_n, layer_n, final_nk.shape[1])}


def _recall(
    predicted_n: NDArray[np.int64],
    true_n: NDArray[np.int64],
    speaker_n: NDArray[np.int64],
    seed: int,
) -> dict[str, object]:
    """Return the UAR over the labelled samples with its interval."""
    known = true_n >= 0
    if not known.any():
        return {"uar": np.nan, "reason": "no label is a class of the head: no UAR"}
    n_classes = int(max(true_n.max(), predicted_n.max())) + 1
    confusion = count_confusion(true_n[known], predicted_n[known], n_classes)
    hits = (predicted_n[known] == true_n[known]).astype(np.float64)[:, None]
    groups = np.unique(speaker_n[known], return_inverse=True)[1]
    statistic = weighted_recall(true_n[known], hits, n_classes)
    low, high = cluster_bootstrap(groups, statistic, seed=seed)
    recall = float(unweighted_recall(confusion))
    return {"uar": recall, "uar_low": low[0], "uar_high": high[0], "reason": ""}
