"""CKA of frames from every pair of rows, on request: which tiles, and how often they are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from ..errors import MissingSitesError
from ..fold import ArrayKey
from ..memory import plan_passes
from ..selection import Selection
from .exact_fold import ExactFold, find_origin
from .pairs import jackknife_groups
from .row_groups import Refused, RowGroup, match_rows
from .row_sums import Layout

_SHARE = 0.25
"""Part of the memory that the sums of one tile may take, those of all workers together; sums of
rows with their padding as much again, so that those of audio are the same where there is none."""
_TILE_BYTES = 16 * 2**20
"""Rows side by side that are multiplied at a time, at most."""
_TILE_ROWS = 8192
"""The same in rows: bounds the length of a float32 sum."""


@dataclass(frozen=True, slots=True)
class ExactGroup:
    """Arrays of one site with the same rows, and the tiles of their pairs."""

    rows: RowGroup
    tiles: tuple[ExactFold, ...]


@dataclass(frozen=True, slots=True)
class ExactPlan:
    """What is compared, and which pairs cannot be."""

    groups: tuple[ExactGroup, ...] = ()
    refused: tuple[Refused, ...] = ()
    notes: tuple[str, ...] = ()
    """What it costs."""

    @property
    def folds(self) -> tuple[ExactFold, ...]:
        """The tiles of all groups."""
        return tuple(tile for group in self.groups for tile in group.tiles)


def plan_exact(selection: Selection) -> ExactPlan:
    """Return the tiles of every site, cut so that each fits, and a note of what they cost.

    Raises
    ------
    MissingSitesError
        No site has rows.
    MemoryBudgetError
        Not even the sums of one pair of arrays fit.
    """
    groups, refused = match_rows(selection)
    if not groups and not refused:
        msg = (
            "exact CKA compares rows (frames), and what was asked for holds pooled features alone. "
            "Record rows of a site (`record.sites`), or leave --exact out."
        )
        raise MissingSitesError(msg)
    room = int(_SHARE * selection.memory_bytes) // selection.workers
    tiles = [
        _cut(selection, group, group_n, room)
        for group, group_n in zip(groups, _split_groups(selection, groups, room), strict=True)
    ]
    source = selection.source
    passes = plan_passes(
        [fold for folds in tiles for fold in folds],
        source.sizes,
        source.borders(),
        memory_bytes=selection.memory_bytes,
        workers=selection.workers,
    )
    found = tuple(
        ExactGroup(group, _with_origins(selection, group, folds))
        for group, folds in zip(groups, tiles, strict=True)
    )
    return ExactPlan(found, refused, (_describe(selection, groups, len(passes)),) if groups else ())


def _widths(selection: Selection, arrays: Sequence[ArrayKey]) -> tuple[int, ...]:
    return tuple(selection.source.views[key.capture].info(key).width for key in arrays)


def _split_groups(
    selection: Selection, groups: Sequence[RowGroup], room: int
) -> list[NDArray[np.int64]]:
    """Return the jackknife group of every sample; one group where more would not fit into `room`.

    The narrowest sites come first, and what they leave goes to the others.
    """
    sizes = [8 * Layout(_widths(selection, group.arrays)).size for group in groups]
    found: dict[int, NDArray[np.int64]] = {}
    for whole in (False, True):
        kind = [at for at, group in enumerate(groups) if group.whole == whole]
        left = room
        for number, at in enumerate(sorted(kind, key=sizes.__getitem__)):
            one = groups[at]
            most = left // (len(kind) - number) // sizes[at]
            view = selection.source.views[one.arrays[0].capture]
            found[at] = jackknife_groups(view, one.samples, selection.seed, most)
            left -= sizes[at] * (int(found[at].max()) + 1)
    return [found[at] for at in range(len(groups))]


def _cut(
    selection: Selection, group: RowGroup, group_n: NDArray[np.int64], room: int
) -> list[ExactFold]:
    """Return the tiles of all pairs of a group, as few as fit into `room` one by one."""
    infos = [selection.source.views[key.capture].info(key) for key in group.arrays]
    wide = any(info.dtype == "float64" for info in infos)
    together = min(_TILE_BYTES, selection.memory_bytes // (32 * selection.workers))
    tiles = []
    single = int(group_n.max()) == 0
    for members, n_left in cut_pairs(_widths(selection, group.arrays), room if single else None):
        layout = Layout(tuple(infos[a].width for a in members), n_left)
        most = together // (sum(layout.widths) * (8 if wide else 4))
        rows = max(64, min(_TILE_ROWS, most, int(group.counts.sum())))
        arrays = tuple(group.arrays[a] for a in members)
        tiles.append(
            ExactFold(
                *(arrays, layout, group.samples, group.counts, group_n, wide, rows),
                device=selection.device,
            )
        )
    return tiles


def cut_pairs(widths: Sequence[int], room: int | None) -> list[tuple[tuple[int, ...], int]]:
    """Return tiles that hold every pair of arrays once: their arrays, and how many are left sides.

    Parameters
    ----------
    widths
        Features of every array.
    room
        Bytes that the sums of one tile may take; None: any. A single pair may take more.
    """
    count = 1
    blocks = _split(widths, count)
    while room is not None and count < len(widths) and 8 * _largest_tile(widths, blocks) > room:
        count += 1
        blocks = _split(widths, count)
    tiles = [(block, 0) for block in blocks]
    return sorted([*tiles, *(((*a, *b), len(a)) for a, b in combinations(blocks, 2))])


def _split(widths: Sequence[int], count: int) -> list[tuple[int, ...]]:
    return [tuple(part.tolist()) for part in np.array_split(np.arange(len(widths)), count)]


def _largest_tile(widths: Sequence[int], blocks: Sequence[tuple[int, ...]]) -> int:
    """Return the numbers in the sums of the widest block with itself, or with the next."""
    first, *others = sorted(blocks, key=lambda block: -sum(widths[a] for a in block))
    tiles = [(first, 0), *(((*first, *other), len(first)) for other in others[:1])]
    return max(Layout(tuple(widths[a] for a in tile), n).size for tile, n in tiles)


def _with_origins(
    selection: Selection, group: RowGroup, tiles: Sequence[ExactFold]
) -> tuple[ExactFold, ...]:
    """Return the tiles with the origin of every array, for which rows of few samples are read."""
    found = {
        key: find_origin(selection.source, key, group.samples, group.counts) for key in group.arrays
    }
    return tuple(replace(tile, origins=tuple(found[k] for k in tile.arrays)) for tile in tiles)


def _describe(selection: Selection, groups: Sequence[RowGroup], passes: int) -> str:
    """Return what exact CKA costs, before anything is read."""
    multiplications = 0.0
    for group in groups:
        widths = np.asarray(_widths(selection, group.arrays), dtype=np.float64)
        pairs = (widths.sum() ** 2 + np.square(widths).sum()) / 2
        multiplications += pairs * float(group.counts.sum())
    arrays = max(len(group.arrays) for group in groups)
    rows = max(int(group.counts.sum()) for group in groups)
    fits = f"alone take at least {passes} passes: more --memory makes them fewer"
    fits = "alone fit into one pass" if passes == 1 else fits
    return (
        f"exact CKA of frames: {len(groups)} {'site' if len(groups) == 1 else 'groups of rows'}, "
        f"up to {arrays} arrays of {rows:,} rows, {multiplications:.1e} multiplications; "
        f"its sums {fits}."
    )
