"""How much attention, MLP and LoRA add to the residual stream, frame by frame."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..errors import MissingSitesError
from ..fold import ArrayKey
from ..masks import frames_of
from ..plan import Outcome, Plan, Table, describe_exposure
from ..selection import Selection, matches
from ..source import View
from ..statistics.resampling import cluster_bootstrap, weighted_mean
from .shares import ContributionFold, Shares


@dataclass(frozen=True, slots=True)
class Contribution:
    """Norm ratios and cosines of attention, MLP, the whole layer and LoRA."""

    name: str = "contribution"
    description: str = "what attention, MLP, each layer and LoRA add to the residual stream"

    def plan(self, selection: Selection) -> Plan:
        """Return one fold for each layer of each capture that holds its input and its parts."""
        folds: list[ContributionFold] = []
        absent: list[dict[str, object]] = []
        for view in selection.captures:
            made = _layer_folds(view, selection)
            folds += made
            lora, missing = _lora_folds(view, selection)
            folds += lora if made else []
            absent += missing if made else []
        if not folds:
            present = sorted({site for view in selection.captures for site in view.sites})
            msg = (
                "contribution needs the rows of attn_out, mlp_out and the layer's input "
                "(embed for layer 0, resid_post of the layer before otherwise) of the same layer. "
                f"Present: {', '.join(present) or 'none'}. "
                "Record them with `record.sites: [embed, resid_post, attn_out, mlp_out]`."
            )
            raise MissingSitesError(msg)
        return Plan(partial(_conclude, folds, absent), tuple(folds))


def _holds(view: View, key: ArrayKey) -> bool:
    info = view.sites.get(key.site)
    return info is not None and key.layer in ((-1,) if info.layers is None else info.layers)


def _layer_folds(view: View, selection: Selection) -> list[ContributionFold]:
    """Return the folds of the layers whose input and both parts are stored."""
    folds = []
    info = view.sites.get("attn_out")
    for layer in () if info is None or info.layers is None else info.layers:
        before = ("resid_post", layer - 1) if layer else ("embed", -1)
        keys = tuple(
            ArrayKey(view.name, *place)
            for place in (before, ("attn_out", layer), ("mlp_out", layer))
        )
        if selection.wants_layer(layer) and all(_holds(view, key) for key in keys):
            parts = ("attention", "mlp", "layer")
            size = view.samples.size, view.info(keys[0]).width
            frames = frames_of(selection, view, "attn_out")
            folds.append(ContributionFold(parts, keys, 1.0, *size, frames))
    return folds


def _lora_folds(
    view: View, selection: Selection
) -> tuple[list[ContributionFold], list[dict[str, object]]]:
    """Return the folds of LoRA against its base module, and table rows for what cannot be told."""
    folds, absent = [], []
    for site, info in view.sites.items():
        if not matches(site, "lora_b"):
            continue
        base = "base_out" + site.removeprefix("lora_b")
        scaling = (view.attrs.get("adapter") or {}).get("scaling")
        frames = frames_of(selection, view, site)
        for layer in info.layers or (-1,):
            keys = (ArrayKey(view.name, base, layer), ArrayKey(view.name, site, layer))
            if not selection.wants_layer(layer):
                continue
            if _holds(view, keys[0]) and scaling is not None:
                size = view.samples.size, info.width
                part = ("lora",)
                folds.append(ContributionFold(part, keys, float(scaling), *size, frames))
                continue
            what = (
                f"{base} was not recorded"
                if scaling is not None
                else "the adapter's scaling is unknown"
            )
            row = {"capture": view.name, "layer": layer, "component": "lora", "reason": what}
            absent.append({**row, "mask": frames.masks[0]})
    return folds, absent


def _conclude(
    folds: list[ContributionFold], absent: list[dict[str, object]], outcome: Outcome
) -> dict[str, Table]:
    rows = [row for fold in folds for row in _rows(fold, outcome)]
    rows += [{**row, "n": 0, "exposed": "none"} for row in absent]
    order = {"attention": 0, "mlp": 1, "layer": 2, "lora": 3}
    captures = list(outcome.selection.source.views)
    frame = pd.DataFrame(rows)
    component = frame["component"].map(order.__getitem__)
    place = frame.assign(capture=frame["capture"].map(captures.index), component=component)
    frame = frame.loc[place.sort_values(["capture", "layer", "component"], kind="stable").index]
    attrs = {
        "definition": "|a|/|h|, |m|/|h+a|, |a+m|/|h| and the cosines of the same pairs, per frame",
        "mean": "over the frames of a sample, then over samples",
        "median": "over frames, from bins of 0.46 % (ratios) and 0.0005 (cosines)",
        "mask": "valid: frames of audio, pad: padding of the window, all: both",
        "interval": "cluster bootstrap over speakers of the mean",
    }
    return {"contribution": Table(frame.reset_index(drop=True), attrs)}


def _rows(fold: ContributionFold, outcome: Outcome) -> list[dict[str, object]]:
    """Return a row for each component and mask."""
    shares: Shares = outcome.folds[fold]
    key = fold.arrays[-1]
    view = outcome.selection.source.views[key.capture]
    group_n = np.unique(view.group_n[shares.samples[0]].astype(str), return_inverse=True)[1]
    head = {"capture": key.capture, "layer": key.layer}
    exposed = describe_exposure(view, view.samples)
    rows = []
    for k, component in enumerate(fold.components):
        for mask, parts in fold.masks.items():
            found, reasons = shares.of(parts, k), []
            row: dict[str, object] = {**head, "component": component, "mask": mask}
            row |= {"n": found.n, "exposed": exposed}
            for i, quantity in enumerate(("ratio", "cosine")):
                mean, low, high = _average(found.means[:, i], group_n, outcome.selection.seed)
                row |= {f"{quantity}_mean": mean, f"{quantity}_mean_low": low}
                row |= {f"{quantity}_mean_high": high, f"{quantity}_median": found.medians[i]}
                reasons += [f"no frame has a {quantity}: a norm is 0"] * bool(np.isnan(mean))
            rows.append({**row, "reason": "; ".join(reasons)})
    return rows


def _average(
    values: NDArray[np.float64], group_n: NDArray[np.int64], seed: int
) -> tuple[float, float, float]:
    """Return mean over the samples that have a value, and the ends of its interval."""
    known = np.isfinite(values)
    if not known.any():
        return float("nan"), float("nan"), float("nan")
    groups = np.unique(group_n[known], return_inverse=True)[1]
    low, high = cluster_bootstrap(groups, weighted_mean(values[known, None]), seed=seed)
    return float(values[known].mean()), float(low[0]), float(high[0])
