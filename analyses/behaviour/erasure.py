"""What a change of the model does to its answers: paired differences on the same samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..errors import MissingSitesError
from ..plan import Outcome, Plan, Table, unexposed_samples
from ..selection import Selection
from ..source import View
from ..statistics.divergence import kl_divergence, to_log_probabilities
from ..statistics.resampling import cluster_bootstrap, weighted_mean, weighted_recall

_MEANS = ("delta_war", "delta_nll", "delta_p_true")


@dataclass(frozen=True, slots=True)
class Erasure:
    """Table `erasure`: every capture of an intervention against the capture that it changed.

    Notes
    -----
    With p the stored prediction of the unchanged model and q that of the changed one, on the same
    samples, which no training of the capture saw: `delta_uar` and `delta_war` are recalls of q
    minus those of p, `delta_nll` the mean of log p(true) - log q(true) in nats (positive: worse),
    `delta_p_true` the mean of q(true) - p(true), `kl` the mean of KL(p‖q) in nats. Intervals redraw
    speakers, then their samples, the same ones for p and q (and for every intervention), so what
    makes a speaker easy or hard for both cancels.

    A difference says what the model does without the part as it is now, not what it would have
    learned without it: a later layer may be thrown off by an input that it never saw (erasure by
    zero most, by another sample least).
    """

    name: str = "erasure"
    description: str = "what erasing, switching off or patching parts does to the answers (paired)"

    def plan(self, selection: Selection) -> Plan:
        """Return a plan that reads logits alone."""
        if not selection.changed:
            msg = (
                "erasure needs captures of interventions, and the store holds none. Record them: "
                "`interventions: [{erase: {layer: all, how: mean}}]`; see docs/interventions.md."
            )
            raise MissingSitesError(msg)
        return Plan(_conclude)


def _conclude(outcome: Outcome) -> dict[str, Table]:
    selection = outcome.selection
    rows = []
    for view in selection.changed:
        layer = _layer(view)
        if selection.wants_layer(layer):
            about = {**_about(view), "layer": layer, "exposed": "none"}
            rows.append({**about, **_compare(view, outcome)})
    columns = ["capture", "intervention", "change", "layer", "n", "exposed", "reason"]
    attrs = {
        "samples": "not in the training part of head or adapter",
        "interval": "cluster bootstrap over speakers of paired differences, 95 %",
        "kl": "KL(unchanged ‖ changed)",
        "unit": "nats (delta_nll, kl)",
    }
    return {"erasure": Table(pd.DataFrame(rows, columns=None if rows else columns), attrs)}


def _about(view: View) -> dict[str, str]:
    """Return what was changed, as a stranger's attributes say it: every field may be anything."""
    attrs = view.attrs["intervention"]
    name = attrs.get("name")
    return {
        "capture": view.base,
        "intervention": name if isinstance(name, str) and name else view.name,
        "change": describe_change(attrs),
    }


def _layer(view: View) -> int:
    """Return the layer that an intervention is about; -1 where it is about several or none."""
    layer = view.attrs["intervention"].get("layer")
    if not isinstance(layer, int) or isinstance(layer, bool):
        return -1
    return layer if 0 <= layer < 2**31 else -1


def describe_change(attrs: Mapping[str, object]) -> str:
    """Return what an intervention does in words, without its layer: ``erase, mean``."""
    word = {key: str(value) for key, value in attrs.items()}
    kind, how = word.get("kind", ""), word.get("how", "")
    described = {
        "erase": f"erase, {how}",
        "erase_cumulative": f"erase from the {word.get('end')}, {how}",
        "lora_off": "LoRA off",
        "ablate": f"ablate {word.get('matrix')}, {how}",
        "scale_lora": f"LoRA times {word.get('by')}",
        "patch": f"patch {word.get('site')} from {word.get('from')}",
    }
    text = described.get(kind, kind or "unknown")
    layers = attrs.get("layers")
    if isinstance(layers, list) and len(layers) > 1 and attrs.get("layer") is None:
        listed = ", ".join(str(layer) for layer in layers[:8]) + (", …" if len(layers) > 8 else "")
        return f"{text} (layers {listed})"
    return text


def _compare(view: View, outcome: Outcome) -> dict[str, object]:
    """Return the differences of one intervention, or why there are none."""
    source, seed = outcome.selection.source, outcome.selection.seed
    base = source.views.get(view.base)
    if base is None:
        return {"n": 0, "reason": f"capture {view.base!r}, which was changed, is not in the store"}
    samples = np.intersect1d(
        unexposed_samples(base, through="head"), unexposed_samples(view, through="head")
    )
    lacking = [one.name for one in (base, view) if "logits" not in one.outputs]
    if lacking:
        return {"n": samples.size, "reason": f"no logits among the outputs of {lacking[0]!r}"}
    if samples.size == 0:
        why = "every sample was in the training part of this capture, or is in one of the two alone"
        return {"n": 0, "reason": why}
    before, after = (source.read_output(one.name, "logits", samples) for one in (base, view))
    reason = _unusable(before, after)
    if reason:
        return {"n": samples.size, "reason": reason}
    before_nk, after_nk = to_log_probabilities(before), to_log_probabilities(after)
    speaker_n = np.unique(base.group_n[samples].astype(str), return_inverse=True)[1]
    found = _means(("kl",), kl_divergence(before_nk, after_nk)[:, None], speaker_n, seed)
    true_n = _classes(base, samples, before_nk.shape[1])
    known = true_n >= 0
    if known.any():
        groups = np.unique(speaker_n[known], return_inverse=True)[1]
        found |= _differences(before_nk[known], after_nk[known], true_n[known], groups, seed)
    reason = "" if known.any() else "no label is a class of the head: only kl"
    return {"n": samples.size, **found, "reason": reason}


def _unusable(before: NDArray, after: NDArray) -> str:
    """Return why two sets of logits cannot be compared; empty when they can."""
    if before.shape != after.shape or before.ndim != 2:
        return "the two captures have logits of other classes"
    finite = np.isfinite(before).all() and np.isfinite(after).all()
    return "" if finite else "NaN or infinite logits"


def _classes(view: View, samples: NDArray[np.int64], n_classes: int) -> NDArray[np.int64]:
    """Return the true class of each sample, -1 where its label is no class of the head."""
    labels = [str(label) for label in view.attrs.get("labels", ())][:n_classes]
    known = view.label_n[samples].astype(str)
    return np.asarray([labels.index(t) if t in labels else -1 for t in known], dtype=np.int64)


def _differences(
    before_nk: NDArray[np.float64],
    after_nk: NDArray[np.float64],
    true_n: NDArray[np.int64],
    group_n: NDArray[np.int64],
    seed: int,
) -> dict[str, object]:
    """Return the differences of scores of labelled samples, with their intervals."""
    hit_nm = np.stack([x.argmax(axis=1) == true_n for x in (before_nk, after_nk)], axis=1)
    hit_nm = hit_nm.astype(np.float64)
    at = (np.arange(true_n.size), true_n)
    values_nm = np.stack(
        [
            hit_nm[:, 1] - hit_nm[:, 0],
            before_nk[at] - after_nk[at],
            np.exp(after_nk[at]) - np.exp(before_nk[at]),
        ],
        axis=1,
    )
    recalls = weighted_recall(true_n, hit_nm, before_nk.shape[1])

    def difference(weights_bn: NDArray[np.float64]) -> NDArray[np.float64]:
        both = recalls(weights_bn)
        return both[:, 1] - both[:, 0]

    low, high = cluster_bootstrap(group_n, difference, seed=seed)
    value = float(difference(np.ones((1, true_n.size)))[0])
    found: dict[str, object] = {
        "delta_uar": value,
        "delta_uar_low": float(low),
        "delta_uar_high": float(high),
    }
    return found | _means(_MEANS, values_nm, group_n, seed)


def _means(
    names: tuple[str, ...],
    values_nm: NDArray[np.float64],
    group_n: NDArray[np.int64],
    seed: int,
) -> dict[str, object]:
    """Return the mean of each column with its interval."""
    low, high = cluster_bootstrap(group_n, weighted_mean(values_nm), seed=seed)
    found: dict[str, object] = {}
    for i, name in enumerate(names):
        value = float(values_nm[:, i].mean())
        found |= {name: value, f"{name}_low": float(low[i]), f"{name}_high": float(high[i])}
    return found
