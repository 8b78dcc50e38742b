"""CKA of LoRA A with LoRA B as published: flattened, biased, other kernels, other pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ..fold import ArrayKey, Block
from ..masks import Frames, frames_of
from ..memory import format_bytes
from ..plan import Outcome, describe_exposure, most_exposed
from ..selection import Selection, matches
from ..source import View
from .captures import baseline_of, has_adapter, is_trained_adapter
from .frames import note_padding
from .grams import cka, flattened_gram, permuted_cka, rbf_kernel
from .quantity import NAN, Part, Place, Quantity, Value

PER_CLASS = 10
"""Items of each class that are compared, as in the paper (40 of four classes)."""
_DRAWS = 20
"""Random pairings whose mean is shown."""
_ROOM = 0.25
"""Part of the memory that flattened samples may take, all workers together."""
_FORWARD = ("padding", "flattened", "biased", "float32", "wrong-pair")
_BACKWARD = ("padding", "flattened", "biased", "float32", "rbf-gamma")


@dataclass(frozen=True, slots=True)
class ItemMeansFold:
    """Means of the rows of the compared items: over those with audio, and over all."""

    key: ArrayKey
    items: tuple[int, ...]
    """Places on the sample axis."""
    width: int
    frames: Frames = field(compare=False)

    @property
    def needs(self) -> tuple[ArrayKey, ...]:
        """The one array."""
        return (self.key,)

    @property
    def scratch_bytes(self) -> int:
        """Return the size of one sum."""
        return 8 * self.width

    def state_bytes(self, workers: int) -> int:
        """Return two float64 vectors for each item, all workers together."""
        return 16 * len(self.items) * self.width

    def empty(self) -> dict[int, NDArray[np.float64]]:
        """Return no items."""
        return {}

    def add(self, state: dict[int, NDArray[np.float64]], block: Block) -> dict[int, NDArray]:
        """Return the items and those of one more block."""
        piece = block[self.key]
        marked = self.frames.mark(piece)
        for i in np.flatnonzero(np.isin(piece.samples, self.items)):
            start, stop = piece.offsets[i], piece.offsets[i + 1]
            rows = piece.values[start:stop]
            audio = rows[: int(marked[start:stop].sum())]
            means = [
                part.mean(axis=0, dtype=np.float64) if len(part) else np.full(self.width, np.nan)
                for part in (audio, rows)
            ]
            state[int(piece.samples[i])] = np.stack(means)
        return state

    def merge(
        self, left: dict[int, NDArray[np.float64]], right: dict[int, NDArray[np.float64]]
    ) -> dict[int, NDArray[np.float64]]:
        """Return the items of both."""
        return left | right

    def finish(self, state: dict[int, NDArray[np.float64]]) -> NDArray[np.float64]:
        """Return the means, [items, 2 (with audio, all), features]."""
        return np.stack([state[item] for item in self.items])


@dataclass(frozen=True, slots=True)
class _Pair:
    """The two sides of one comparison, and whose curve it belongs to."""

    view: View
    a: ArrayKey
    b: ArrayKey
    partner: View | None
    """The other adapter of `wrong-pair`."""

    @property
    def trained(self) -> bool:
        """Whether it belongs to the trained curve."""
        return is_trained_adapter(self.view)


def plan_similarity(selection: Selection) -> Part:
    """Return the means of the items of every LoRA output and gradient that has a partner."""
    views = [view for view in selection.captures if has_adapter(view)]
    pairs = [pair for view in views for pair in _pairs(selection, view, views)]
    items = choose_items(views)
    if not pairs:
        missing = "cka: `record.sites: [lora_a, lora_b]`, `record.gradients: [lora_a, lora_b]`"
        return Part(missing=missing)
    keys = dict.fromkeys(key for pair in pairs for key in (pair.a, pair.b))
    known = selection.source.views
    folds = {}
    for key in keys:
        view = known[key.capture]
        frames = frames_of(selection, view, key.site)
        folds[key] = ItemMeansFold(key, tuple(items.tolist()), view.info(key).width, frames)
    notes = note_padding("cka: faults padding, flattened", (fold.frames for fold in folds.values()))
    return Part(
        tuple(folds.values()), quantities=partial(_quantities, pairs, folds, items), notes=notes
    )


def choose_items(views: Sequence[View]) -> NDArray[np.int64]:
    """Return the first items of each class that every adapted capture has, in order."""
    if not views:
        return np.zeros(0, np.int64)
    common = views[0].samples
    for view in views[1:]:
        common = np.intersect1d(common, view.samples)
    labels = views[0].label_n[common].astype(str)
    chosen = [common[labels == label][:PER_CLASS] for label in np.unique(labels) if label]
    return np.sort(np.concatenate(chosen)) if chosen else common[: 4 * PER_CLASS]


def _pairs(selection: Selection, view: View, views: Sequence[View]) -> list[_Pair]:
    held = dict.fromkeys(selection.row_keys(view))
    if is_trained_adapter(view):
        partner = baseline_of(views, drawn=True) or baseline_of(views, drawn=False)
    else:
        partner = next((one for one in reversed(views) if is_trained_adapter(one)), None)
    found = []
    for key in held:
        for family in ("lora_a", "grad.lora_a"):
            if matches(key.site, family):
                site = key.site.replace("lora_a", "lora_b", 1)
                other = ArrayKey(view.name, site, key.layer)
                found += [_Pair(view, key, other, partner)] if other in held else []
    return found


def _quantities(
    pairs: Sequence[_Pair],
    folds: Mapping[ArrayKey, ItemMeansFold],
    items: NDArray[np.int64],
    outcome: Outcome,
) -> list[Quantity]:
    flattened = _flatten_all(folds, items, outcome)
    quantities = []
    for pair in pairs:
        backward = pair.a.site.startswith("grad.")
        mixed = () if backward or pair.trained else ("mixed-kernels",)
        table = _Table(folds, items, outcome, flattened)
        quantities.append(
            Quantity(
                "cka",
                "cka_backward" if backward else "cka_forward",
                Place(pair.view.name, pair.a.site, pair.a.layer, pair.view.name, pair.b.site),
                (*(_BACKWARD if backward else _FORWARD), *mixed),
                partial(table.evaluate, pair),
            )
        )
    return sorted(quantities, key=lambda one: (one.name != "cka_forward", one.place.capture))


@dataclass(frozen=True, slots=True)
class _Flattened:
    """The Gram matrix of flattened items, or why there is none."""

    gram_nn: NDArray[np.float64] | None
    columns: int
    reason: str


def _flatten_all(
    folds: Mapping[ArrayKey, ItemMeansFold], items: NDArray[np.int64], outcome: Outcome
) -> dict[ArrayKey, _Flattened]:
    room = int(_ROOM * outcome.selection.memory_bytes / outcome.runner.workers)
    made = outcome.runner.map(lambda key: _flatten(folds[key], items, outcome, room), list(folds))
    return dict(zip(folds, made, strict=True))


def _flatten(
    fold: ItemMeansFold, items: NDArray[np.int64], outcome: Outcome, room: int
) -> _Flattened:
    """Return X X' of the items with all frames as columns, read a second time from the store."""
    source, key = outcome.selection.source, fold.key
    sizes = source.sizes(key)[items]
    if reason := fold.frames.lacking(padded=True):
        return _Flattened(None, 0, reason)
    if np.unique(sizes).size != 1 or not sizes.any():
        return _Flattened(None, 0, "the items have different numbers of frames")
    # what is being read has a stored form beside it
    if 3 * int(sizes[0]) > room:
        need = format_bytes(3 * int(sizes[0]) * outcome.runner.workers / _ROOM)
        return _Flattened(None, 0, f"flattened items do not fit: allow --memory {need}")

    def read(i: int) -> NDArray:
        return source.read(key, int(items[i]), int(items[i]) + 1).values

    gram_nn = flattened_gram(read, items.size, room - int(sizes[0]), int(sizes[0]))
    rows = int(source.views[key.capture].rows[source.views[key.capture].info(key).stream][items[0]])
    if not np.isfinite(gram_nn).all():
        return _Flattened(None, 0, "NaN or infinite features")
    return _Flattened(gram_nn, rows * fold.width, "")


@dataclass(frozen=True, slots=True)
class _Table:
    """What comparisons are computed from."""

    folds: Mapping[ArrayKey, ItemMeansFold]
    items: NDArray[np.int64]
    outcome: Outcome
    flattened: Mapping[ArrayKey, _Flattened]

    def evaluate(self, pair: _Pair, faults: frozenset[str]) -> Value:
        """Return the similarity of a pair under some faults."""
        a, b, why = _sides(pair, faults)
        views = self.outcome.selection.source.views
        exposed = most_exposed(
            *(describe_exposure(views[key.capture], self.items) for key in (a, b))
        )
        place = Place(a.capture, a.site, a.layer, b.capture, b.site)
        n = self.items.size
        if why or b not in self.folds or a not in self.folds:
            why = why or f"{b.site if a in self.folds else a.site} was not recorded"
            return Value(NAN, n, exposed, why, place=place)
        if n < 4:
            return Value(NAN, n, exposed, f"{n} common samples; HSIC needs at least 4", place=place)
        kernels: list[NDArray] = []
        for key in (a, b):
            kernel, why = self._kernel(key, faults)
            if kernel is None:
                return Value(NAN, n, exposed, why, place=place)
            kernels.append(kernel)
        biased = "biased" in faults
        value = cka(kernels[0], kernels[1], biased=biased)
        if np.isnan(value):
            return Value(NAN, n, exposed, self._why_none(a, b, kernels, views), place=place)
        seed = self.outcome.selection.seed
        mean = permuted_cka(kernels[0], kernels[1], biased=biased, draws=_DRAWS, seed=seed)
        return Value(value, n, exposed, "", mean, place)

    def _kernel(self, key: ArrayKey, faults: frozenset[str]) -> tuple[NDArray | None, str]:
        """Return the kernel matrix of one side, or why there is none."""
        fold = self.folds[key]
        if "flattened" in faults:
            flat = self.flattened[key]
            if flat.gram_nn is None:
                return None, flat.reason
            gram_nn, columns = flat.gram_nn, flat.columns
        else:
            padded = "padding" in faults
            if reason := fold.frames.lacking(padded=padded):
                return None, reason
            x_nd = self.outcome.folds[fold][:, int(padded)]
            if not np.isfinite(x_nd).all():
                return None, "NaN or infinite features, or an item without frames"
            gram_nn, columns = x_nd @ x_nd.T, fold.width
        single = "float32" in faults
        if faults & {"rbf-gamma", "mixed-kernels"}:
            return rbf_kernel(gram_nn, columns, single=single), ""
        return gram_nn.astype(np.float32) if single else gram_nn, ""

    def _why_none(
        self, a: ArrayKey, b: ArrayKey, kernels: Sequence[NDArray], views: Mapping[str, View]
    ) -> str:
        zero = [
            key
            for key in (a, b)
            if not self.outcome.folds[self.folds[key]].any()
            and not is_trained_adapter(views[key.capture])
        ]
        if zero:
            return f"all values of {zero[0].site} in {zero[0].capture} are 0: B = 0"
        if any((one == one[0, 0]).all() for one in kernels):
            return "every value of the kernel is the same number: 0 / 0"
        return "self-similarity not positive"


def _sides(pair: _Pair, faults: frozenset[str]) -> tuple[ArrayKey, ArrayKey, str]:
    """Return what is compared, and why that cannot be."""
    if "wrong-pair" not in faults:
        return pair.a, pair.b, ""
    key = pair.a if pair.trained else pair.b
    if pair.partner is None:
        kind = "untrained" if pair.trained else "trained"
        return key, key, f"no capture with the {kind} adapter in the store"
    return key, ArrayKey(pair.partner.name, key.site, key.layer), ""
