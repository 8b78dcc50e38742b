"""Contributions of layers as published: norm ratios and cosines of attention, MLP and both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ..behaviour.shares import compare_rows
from ..fold import ArrayKey, Block, Piece
from ..masks import Frames, frames_of
from ..plan import Outcome, describe_exposure
from ..selection import Selection, layers_of
from ..source import View
from .frames import note_padding
from .quantity import NAN, Part, Place, Quantity, Value

COMPONENTS = ("attention", "mlp", "layer")
_COLUMNS = (*COMPONENTS, "mlp as published")
_TILE_ROWS = 2048
"""Rows worked on at once, in float64."""


@dataclass(slots=True)
class FrameSums:
    """Sums over the frames of each sample."""

    samples: NDArray[np.int64]
    sums: NDArray[np.float64]
    """[samples, 2 (with audio, all), columns, 2 (ratio, cosine), 2 (sum, frames)]."""


@dataclass(frozen=True, slots=True)
class FrameSumsFold:
    """Ratios and cosines of one layer, summed over the frames with audio and over all.

    Notes
    -----
    ‖a‖/‖h‖, ‖m‖/‖h + a‖, ‖a + m‖/‖h‖, ‖m‖/‖h‖ and their cosines. 256 bytes a sample, one pass.
    """

    arrays: tuple[ArrayKey, ...]
    """h, a, m."""
    n_samples: int
    width: int
    frames: Frames = field(compare=False)

    @property
    def needs(self) -> tuple[ArrayKey, ...]:
        """The layer's input and what is added to it."""
        return self.arrays

    @property
    def scratch_bytes(self) -> int:
        """Float64 tiles of the inputs and their sums, and what is known of each row of a tile."""
        return 8 * _TILE_ROWS * (6 * self.width + 32)

    def state_bytes(self, workers: int) -> int:
        """Return the sums of all samples together, twice while they are joined."""
        return 2 * (8 + 8 * 2 * len(_COLUMNS) * 4) * self.n_samples

    def empty(self) -> list[FrameSums]:
        """Return no parts."""
        return []

    def add(self, state: list[FrameSums], block: Block) -> list[FrameSums]:
        """Return the parts and that of one more block."""
        pieces = [block[key] for key in self.arrays]
        piece = pieces[0]
        sums = np.zeros((piece.samples.size, 2, len(_COLUMNS), 2, 2))
        valid = self.frames.mark(piece)
        owner = np.repeat(np.arange(piece.samples.size), np.diff(piece.offsets))
        for start in range(0, owner.size, _TILE_ROWS):
            tile = slice(start, start + _TILE_ROWS)
            shares = _measure(pieces, tile)
            for i, kept in enumerate((valid[tile], np.ones_like(valid[tile]))):
                known = np.isfinite(shares) & kept[:, None, None]
                np.add.at(sums[:, i, :, :, 0], owner[tile], np.where(known, shares, 0.0))
                np.add.at(sums[:, i, :, :, 1], owner[tile], known)
        return [*state, FrameSums(piece.samples, sums)]

    def merge(self, left: list[FrameSums], right: list[FrameSums]) -> list[FrameSums]:
        """Return the parts of both."""
        return left + right

    def finish(self, state: list[FrameSums]) -> FrameSums:
        """Return the sums with the samples in the order of the axis."""
        samples = np.concatenate([part.samples for part in state])
        order = np.argsort(samples)
        return FrameSums(samples[order], np.concatenate([part.sums for part in state])[order])


def _measure(pieces: Sequence[Piece], tile: slice) -> NDArray[np.float64]:
    """Return ratio and cosine of every frame of a tile, [rows, columns, 2]."""
    h_nd, a_nd, m_nd = (piece.values[tile].astype(np.float64) for piece in pieces)
    pairs = ((a_nd, h_nd), (m_nd, h_nd + a_nd), (a_nd + m_nd, h_nd), (m_nd, h_nd))
    return np.stack([compare_rows(added, base) for added, base in pairs], axis=1)


def plan_contribution(selection: Selection) -> Part:
    """Return the folds of every layer whose input and both parts are stored."""
    folds = [
        FrameSumsFold(keys, view.samples.size, view.info(keys[0]).width, frames)
        for view in selection.captures
        for keys, frames in _layers(selection, view)
    ]
    if not folds:
        return Part(missing="contribution: `record.sites: [embed, resid_post, attn_out, mlp_out]`")
    notes = note_padding("contribution: fault padding", (fold.frames for fold in folds))
    return Part(tuple(folds), quantities=partial(_quantities, folds), notes=notes)


def _layers(selection: Selection, view: View) -> list[tuple[tuple[ArrayKey, ...], Frames]]:
    held = {(site, layer) for site in view.sites for layer in layers_of(view, site)}
    found = []
    for layer in sorted(layer for site, layer in held if site == "attn_out"):
        before = ("resid_post", layer - 1) if layer else ("embed", -1)
        places = (before, ("attn_out", layer), ("mlp_out", layer))
        if selection.wants_layer(layer) and held.issuperset(places):
            keys = tuple(ArrayKey(view.name, *place) for place in places)
            found.append((keys, frames_of(selection, view, "attn_out")))
    return found


def _quantities(folds: list[FrameSumsFold], outcome: Outcome) -> list[Quantity]:
    quantities = []
    for kind in ("ratio", "cosine"):
        for component in COMPONENTS:
            faults = ("padding", "micro-average", *["mlp-denominator"] * (component == "mlp"))
            quantities += [
                Quantity(
                    "contribution",
                    f"{kind}_{component}",
                    Place(fold.arrays[1].capture, layer=fold.arrays[1].layer),
                    faults,
                    partial(_evaluate, fold, outcome, component, kind),
                )
                for fold in folds
            ]
    return quantities


def _evaluate(
    fold: FrameSumsFold, outcome: Outcome, component: str, kind: str, faults: frozenset[str]
) -> Value:
    view = outcome.selection.source.views[fold.arrays[1].capture]
    found: FrameSums = outcome.folds[fold]
    exposed = describe_exposure(view, found.samples)
    padded = "padding" in faults
    lacking = fold.frames.lacking(padded=padded)
    if lacking:
        return Value(NAN, 0, exposed, lacking)
    name = "mlp as published" if "mlp-denominator" in faults else component
    sum_n, count_n = found.sums[:, int(padded), _COLUMNS.index(name), int(kind == "cosine")].T
    n = int(count_n.sum())
    if n == 0:
        return Value(NAN, 0, exposed, f"no frame has a {kind}: a norm is 0")
    if "micro-average" in faults:
        return Value(float(sum_n.sum() / n), n, exposed)
    known = count_n > 0
    return Value(float((sum_n[known] / count_n[known]).mean()), n, exposed)
