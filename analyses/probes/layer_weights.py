"""One probe of all layers of a site together, and how much it takes from each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..errors import AnalysisInputError, MissingSitesError
from ..fold import ArrayKey
from ..plan import Outcome, Plan, Table
from ..selection import Selection
from .left_out import Predicted
from .probe import (
    Probe,
    check_memory,
    choose_arrays,
    count_together,
    describe_probe,
    make_tasks,
    why_unreadable,
)
from .scoring import Row, score_probe
from .task import Task, check_grouping
from .weighted import count_bytes, predict_weighted

type Sites = Mapping[ArrayKey, tuple[ArrayKey, ...]]
"""The layers of each site; the site's own key has layer -1."""
type Found = tuple[Predicted | None, NDArray[np.float64], str]
"""Predictions, weights [folds, layers], and why there are none."""


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """A logistic probe of the weighted sum of all layers of a site, as in SUPERB.

    Notes
    -----
    Weights are a softmax that is fitted with the classifier. They say what the probe takes from a
    layer only where layers have one scale: each is standardised on the training speakers unless
    `normalise` is False. Even so, layers that say the same share their weight in any proportion.
    """

    c: float = 0.01
    """Inverse weight of the squared weights of the classifier."""
    layer_penalty: float = 1.0
    """Weight of the squares of what the softmax is taken of; 0 is what SUPERB minimises."""
    normalise: bool = True
    """Whether each layer is standardised."""
    by: str | None = None
    """Group column of which one is left out; None: the speaker, else the first one."""
    name: str = "layer_weights"
    description: str = "one probe of the weighted sum of all layers (SUPERB), and the weights"
    by_default: bool = False

    def plan(self, selection: Selection) -> Plan:
        """Return the pooled arrays of every site with at least two layers."""
        if self.c <= 0 or self.layer_penalty < 0:
            msg = f"layer_weights needs C > 0 and a penalty >= 0: {self.c}, {self.layer_penalty}."
            raise AnalysisInputError(msg)
        check_grouping(selection.source, selection.captures, self.by)
        sites: dict[ArrayKey, tuple[ArrayKey, ...]] = {}
        for key in choose_arrays(selection):
            head = ArrayKey(key.capture, key.site, -1, key.pool)
            sites[head] = (*sites.get(head, ()), key)
        sites = {head: keys for head, keys in sites.items() if len(keys) > 1}
        if not sites:
            msg = "layer_weights needs a site with at least two layers among those chosen."
            raise MissingSitesError(msg)
        for head, keys in sites.items():
            check_memory(f"the probe of all layers of {head}", _count(keys, selection), selection)
        every = tuple(key for keys in sites.values() for key in keys)
        return Plan(partial(_conclude, self, sites), (), every)


def _count(keys: tuple[ArrayKey, ...], selection: Selection) -> int:
    """Return the memory of one probe, with the copy of its layers as they are gathered."""
    view = selection.source.views[keys[0].capture]
    info = view.info(selection.stored_key(keys[0]))
    n, item = (
        view.samples.size,
        8 if info.dtype == "float64" or not _is_pooled(keys, selection) else 4,
    )
    classes = len(set(view.label_n[view.samples].tolist()))
    fit = count_bytes(len(keys), n, info.width, item, classes)
    return fit + len(keys) * n * info.width * item


def _is_pooled(keys: tuple[ArrayKey, ...], selection: Selection) -> bool:
    return bool(selection.stored_key(keys[0]).pool)


def _conclude(analysis: LayerWeights, sites: Sites, outcome: Outcome) -> dict[str, Table]:
    selection = outcome.selection
    tasks = make_tasks(selection, shuffles=0, by=analysis.by)

    def work(head: ArrayKey) -> Found:
        task, nothing = tasks[head.capture], np.empty((0, len(sites[head])))
        if task.reason:
            return None, nothing, task.reason
        layers = [outcome.pooled.matrix(key, task.samples) for key in sites[head]]
        reasons = [reason for reason in map(why_unreadable, layers) if reason]
        if reasons:
            return None, nothing, f"{len(reasons)} of {len(layers)} layers: {reasons[0]}"
        found = predict_weighted(
            layers,
            task,
            1 / analysis.c,
            normalise=analysis.normalise,
            layer_penalty=analysis.layer_penalty,
        )
        return *found, ""

    together = count_together(max(_count(keys, selection) for keys in sites.values()), outcome)
    heads = list(sites)
    found = dict(zip(heads, outcome.runner.map(work, heads, together), strict=True))
    rows: list[Row] = []
    weights: list[Row] = []
    for capture, task in tasks.items():
        mine = [head for head in heads if head.capture == capture]
        predictions = {head: said for head in mine if (said := found[head][0]) is not None}
        reasons = {head: found[head][2] for head in mine}
        rows += score_probe(
            "weighted", mine, predictions, reasons, task, selection, single_folds=False
        )
        for head in mine:
            weights += _tabulate(sites[head], found[head], task)
    attrs = _describe(analysis)
    spread = {"weight": "mean over folds; low and high: the smallest and largest of them"}
    return {
        "probe": Table(pd.DataFrame(rows), attrs),
        "probe_weights": Table(pd.DataFrame(weights), {**attrs, **spread}),
    }


def _describe(analysis: LayerWeights) -> dict[str, object]:
    """Return how the tables were made."""
    scale = "each layer standardised on the training part" if analysis.normalise else "one for all"
    return {
        **describe_probe(Probe(c=analysis.c, by=analysis.by)),
        "weighted": f"logistic on Σ softmax(w)_l x_l, penalty of w {analysis.layer_penalty}, "
        f"scale: {scale}; no control sets",
    }


def _tabulate(keys: tuple[ArrayKey, ...], found: Found, task: Task) -> list[Row]:
    """Return the weight of every layer, and how far it lies apart over folds."""
    _, weight_gl, reason = found
    known_gl = weight_gl[np.isfinite(weight_gl).all(axis=1)]
    rows: list[Row] = []
    for i, key in enumerate(keys):
        row: Row = {"capture": key.capture, "site": key.site, "layer": key.layer}
        row |= {"n": task.samples.size, "exposed": "none", "reason": reason}
        if len(known_gl):
            one = known_gl[:, i]
            row |= {"weight": one.mean(), "weight_low": one.min(), "weight_high": one.max()}
            row |= {"weight_sd": one.std(ddof=1) if one.size > 1 else float("nan")}
        elif not reason:
            row["reason"] = "one class in the training part of every fold"
        rows.append(row)
    return rows
