"""Which scatter folds a selection takes: the same ones for every analysis that asks."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from ..fold import ArrayKey
from ..lora.projection import find_projection
from ..masks import Frames, frames_of
from ..selection import Selection, matches
from ..source import View
from .blocks import Jackknife, Load, choose_blocks
from .scatter_fold import ScatterFold, count_scratch

DIRECTIONS = 32
"""Leading directions kept of each array that another capture has too."""
_RESULT_SHARE = 0.05
"""Part of the memory that the directions of all arrays may stay in."""


@dataclass(frozen=True, slots=True)
class ScatterPlan:
    """What all scatter folds of one selection have in common."""

    selection: Selection
    frames: dict[ArrayKey, Frames]
    """Which rows hold audio, of every row array of the captures."""
    jackknife: Jackknife
    directions: int
    """Leading directions that are kept of arrays that several captures have."""
    shared: frozenset[tuple[str, int]]
    """Sites and layers that several captures have."""
    notes: tuple[str, ...]
    """Why intervals or directions are missing."""

    def masks(self, key: ArrayKey) -> tuple[str, ...]:
        """Return the masks of the rows of an array, the one to look at first."""
        return tuple(mask for mask in self.frames[key].masks if mask != "pad")

    def fold(self, key: ArrayKey, mask: str = "") -> ScatterFold:
        """Return the fold of one array; B outputs span no more than the adapter's rank.

        Parameters
        ----------
        key
            A row array of the selection.
        mask
            `valid` for the rows with audio of an array with padding; else all that were recorded.
        """
        view = self.selection.source.views[key.capture]
        info = view.info(key)
        frames = self.frames[key]
        part = "valid" if mask == "valid" and frames.has_padding else ""
        lead = (part or frames.mask) == self.masks(key)[0]
        several = (key.site, key.layer) in self.shared
        return ScatterFold(
            key,
            info.width,
            find_rank(view, key),
            find_itemsize(view, key),
            find_projection(self.selection.source, key),
            self.selection.device,
            mask=part,
            frames=frames if part else None,
            blocks=self.jackknife.blocks[key.capture],
            directions=self.directions if lead and several else 0,
        )


def plan_scatters(selection: Selection) -> ScatterPlan:
    """Return what the scatter folds of a selection are, from all its arrays and its memory."""
    frames = {
        key: frames_of(selection, view, key.site)
        for view in selection.captures
        for key in selection.row_keys(view)
    }
    views = selection.source.views
    loads: dict[ArrayKey, Load] = {}
    for key, one in frames.items():
        view = views[key.capture]
        info = view.info(key)
        masks = len(one.masks) - ("pad" in one.masks)
        rows = int(view.rows[info.stream].sum())
        scratch = count_scratch(info.width, find_itemsize(view, key), picked=True)
        loads[key] = Load(info.width, rows, masks, scratch)
    jackknife = choose_blocks(selection, loads)
    places = Counter((key.site, key.layer) for key in frames)
    shared = frozenset(place for place, count in places.items() if count > 1)
    kept = sum(
        8 * one.width * DIRECTIONS for key, one in loads.items() if (key.site, key.layer) in shared
    )
    fits = kept <= _RESULT_SHARE * selection.memory_bytes
    notes = [jackknife.note] if jackknife.note else []
    if not fits:
        notes.append(
            "svd: no angles between captures: the directions of all arrays do not fit. Choose "
            "fewer --sites or --layers for them, or more --memory."
        )
    return ScatterPlan(
        selection, frames, jackknife, DIRECTIONS if fits else 0, shared, tuple(notes)
    )


def find_rank(view: View, key: ArrayKey) -> int:
    """Return how many singular values an array can have."""
    width = view.info(key).width
    adapter = view.attrs.get("adapter") or {}
    if matches(key.site, "lora_b") and adapter.get("r"):
        return min(width, int(adapter["r"]))
    return width


def find_itemsize(view: View, key: ArrayKey) -> int:
    """Return the bytes of one value of an array in memory."""
    return 8 if view.info(key).dtype == "float64" else 4
