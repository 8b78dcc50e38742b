"""The logit lens as published: without the final norm, in float32, one divergence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ..behaviour.lens import POOL, apply_head
from ..fold import ArrayKey, Block
from ..masks import Frames, frames_of
from ..plan import Outcome, unexposed_samples
from ..pooled import mean_rows
from ..selection import Selection
from ..source import View
from ..statistics.divergence import kl_divergence, to_log_probabilities
from .frames import note_padding
from .quantity import NAN, Part, Place, Quantity, Value

FAULTS = {"kl": ("no-final-norm", "kl-direction", "softmax-log"), "overlap": ("no-final-norm",)}
"""Faults of each quantity."""


@dataclass(frozen=True, slots=True)
class HeadFold:
    """Logits that the head gives for the mean of all rows, without the final norm.

    The head is linear, so a number for each class and sample is all that is kept.
    """

    key: ArrayKey
    n_samples: int
    n_classes: int
    width: int
    head: Mapping[str, NDArray] = field(compare=False, repr=False)

    @property
    def needs(self) -> tuple[ArrayKey, ...]:
        """The one array."""
        return (self.key,)

    @property
    def scratch_bytes(self) -> int:
        """Means of samples in float64 and what the head makes of them."""
        return 8 * self.n_samples * (2 * self.width + self.n_classes)

    def state_bytes(self, workers: int) -> int:
        """Return the logits of all samples together, twice while they are joined."""
        return 2 * 8 * self.n_samples * (1 + self.n_classes)

    def empty(self) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
        """Return no parts."""
        return []

    def add(
        self, state: list[tuple[NDArray[np.int64], NDArray[np.float64]]], block: Block
    ) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
        """Return the parts and that of one more block."""
        piece = block[self.key]
        return [*state, (piece.samples, apply_head(self.head, mean_rows(piece)))]

    def merge(
        self,
        left: list[tuple[NDArray[np.int64], NDArray[np.float64]]],
        right: list[tuple[NDArray[np.int64], NDArray[np.float64]]],
    ) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
        """Return the parts of both."""
        return left + right

    def finish(
        self, state: list[tuple[NDArray[np.int64], NDArray[np.float64]]]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return samples in the order of the axis, and their logits."""
        samples = np.concatenate([part for part, _ in state])
        order = np.argsort(samples)
        return samples[order], np.concatenate([logits for _, logits in state])[order]


@dataclass(frozen=True, slots=True)
class _Layer:
    """One layer of one capture."""

    normed: ArrayKey
    """Pool that the corrected lens reads."""
    frames: Frames
    raw: HeadFold | None
    """Logits without the norm; None where not all frames were recorded."""


def plan_lens(selection: Selection) -> Part:
    """Return, for every layer, the pool of the lens and a fold of the rows without the norm."""
    layers = [layer for view in selection.captures for layer in _layers(selection, view)]
    if not layers:
        missing = f"lens: `record.sites: [resid_post]`, `record.pool: [{POOL}]`, with a head"
        return Part(missing=missing)
    folds = tuple(layer.raw for layer in layers if layer.raw is not None)
    notes = note_padding("lens: fault no-final-norm", (layer.frames for layer in layers))
    pooled = tuple(layer.normed for layer in layers)
    return Part(folds, pooled, partial(_quantities, layers), notes=notes)


def _layers(selection: Selection, view: View) -> list[_Layer]:
    head = dict(selection.source.capture(view.name).parameters)
    if "head.classifier.weight" not in head or "logits" not in view.outputs:
        return []
    head = {name: value for name, value in head.items() if name.startswith("head.")}
    found = []
    for key in selection.pooled_keys(view, POOL):
        if key.site != "resid_post":
            continue
        frames, fold = frames_of(selection, view, key.site), None
        if key.site in view.sites and frames.has_padding:
            rows = ArrayKey(view.name, key.site, key.layer)
            n_classes = len(head["head.classifier.weight"])
            fold = HeadFold(rows, view.samples.size, n_classes, view.info(rows).width, head)
        found.append(_Layer(key, frames, fold))
    return found


def _quantities(layers: list[_Layer], outcome: Outcome) -> list[Quantity]:
    return [
        Quantity(
            "lens",
            f"lens_{name}",
            Place(layer.normed.capture, "resid_post", layer.normed.layer),
            faults,
            partial(_evaluate, layer, outcome, name),
        )
        for name, faults in FAULTS.items()
        for layer in layers
    ]


def _evaluate(layer: _Layer, outcome: Outcome, name: str, faults: frozenset[str]) -> Value:
    source = outcome.selection.source
    view = source.views[layer.normed.capture]
    samples = unexposed_samples(view, through="head")
    if samples.size == 0:
        return Value(NAN, 0, "none", "every sample was in the training part of this capture")
    final_nk = source.read_output(view.name, "logits", samples)
    if "no-final-norm" not in faults:
        head = dict(source.capture(view.name).parameters)
        layer_nk = apply_head(head, outcome.pooled.matrix(layer.normed, samples))
    elif layer.raw is None:
        return Value(NAN, 0, "none", layer.frames.lacking(padded=True) or "no rows of resid_post")
    else:
        held, logits_nk = outcome.folds[layer.raw]
        layer_nk = logits_nk[np.searchsorted(held, samples)]
    if not (np.isfinite(final_nk).all() and np.isfinite(layer_nk).all()):
        return Value(NAN, samples.size, "none", "NaN or infinite features or logits")
    if name == "overlap":
        same = final_nk.argmax(axis=1) == layer_nk.argmax(axis=1)
        return Value(float(same.mean()), samples.size, "none")
    value = mean_divergence(final_nk, layer_nk, faults)
    reason = "" if np.isfinite(value) else "infinite: a probability underflows to 0 in float32"
    return Value(value if np.isfinite(value) else NAN, samples.size, "none", reason)


def mean_divergence(final_nk: NDArray, layer_nk: NDArray, faults: frozenset[str]) -> float:
    """Return the mean KL divergence of samples in nats, as the faults have it.

    Parameters
    ----------
    final_nk, layer_nk
        Logits, [samples, classes].
    faults
        `kl-direction` and `softmax-log`, where they are on.

    Notes
    -----
    With `softmax-log` it is what `F.kl_div(softmax(x).log(), softmax(y))` gives in float32:
    Σ p (log p - log q), a term with p = 0 counting 0, infinite where q underflows and p does not.
    """
    first, second = (final_nk, layer_nk) if "kl-direction" in faults else (layer_nk, final_nk)
    if "softmax-log" not in faults:
        return float(kl_divergence(*map(to_log_probabilities, (first, second))).mean())
    p_nk, q_nk = (_softmax32(x) for x in (first, second))
    with np.errstate(divide="ignore", invalid="ignore"):
        terms_nk = np.where(p_nk > 0, p_nk * (np.log(p_nk) - np.log(q_nk)), np.float32(0))
    return float(terms_nk.sum(axis=1).mean())


def _softmax32(logits_nk: NDArray) -> NDArray[np.float32]:
    x_nk = np.asarray(logits_nk, dtype=np.float32)
    e_nk = np.exp(x_nk - x_nk.max(axis=1, keepdims=True))
    return (e_nk / e_nk.sum(axis=1, keepdims=True)).astype(np.float32)
