"""Speakers in blocks: what is left out in turn for intervals of spectra, and whether it fits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..fold import ArrayKey
from ..memory import USABLE, format_bytes
from ..packing import STATE_SHARE
from ..selection import Selection
from ..source import View
from ..statistics.resampling import MIN_GROUPS

COUNTS = (12, 6)
"""Blocks that speakers are put into where there are more of them; fewer where twelve do not fit."""
_WORKERS = 2
"""Workers that the memory is reckoned for, so that results do not depend on their number."""
_PASSES = 2
"""Passes that the scatters of all arrays may take: the arrays of one are not read in the other."""
_SINGLE = 0.25
"""Part of the room for scatters that those of one array may take: more would leave many workers
without room of their own where speakers alternate."""
_FREE_OPERATIONS = 2e12
"""Operations of leaving out that are always taken: about a minute of one core."""
_SOLVES = 18
"""Features³ operations of the eigenvalues, centred and not, of one array."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """Which block of whole speakers every sample is in."""

    count: int
    """Blocks with samples."""
    runs: int
    """How often the block changes along the axis, and one: workers take contiguous samples."""
    speakers: int
    """Speakers in all of them."""
    name: str
    """What the store calls them (`speaker`)."""
    block_n: NDArray[np.int64] = field(compare=False, repr=False)
    """Number of the block of each sample of the axis."""

    def parts(self, workers: int) -> int:
        """Return how many scatters there are at most when each worker keeps its own."""
        return min(workers * self.count, self.runs + workers - 1)


def make_blocks(view: View, most: int) -> Blocks | None:
    """Return the speakers of a capture in up to `most` blocks; None below 3 or without any.

    Notes
    -----
    Neighbours in the order of the names are together: speakers of one session or one language stay
    so, and speakers whose samples follow each other make few scatters. Nothing is drawn. Blocks
    hold equally many speakers, but for the rest of the division.
    """
    samples = view.samples
    names, speaker_n = np.unique(view.group_n[samples].astype(str), return_inverse=True)
    if not view.group_name or names.size < MIN_GROUPS:
        return None
    count = -(-names.size // -(-names.size // most))
    own_n = speaker_n * count // names.size
    block_n = np.zeros(view.group_n.size, dtype=np.int64)
    block_n[samples] = own_n
    runs = int(np.count_nonzero(np.diff(own_n))) + 1
    return Blocks(count, runs, int(names.size), view.group_name, block_n)


@dataclass(frozen=True, slots=True)
class Jackknife:
    """How the intervals of all spectra of a selection come about."""

    blocks: Mapping[str, Blocks | None]
    """Of each capture."""
    note: str
    """Why there are none where speakers are known; empty otherwise."""

    def describe(self) -> str:
        """Return the method in a few words; empty without intervals."""
        known = [one for one in self.blocks.values() if one is not None]
        if not known:
            return ""
        merged = [one for one in known if one.speakers > one.count]
        if not merged:
            return f"delete-one-{known[0].name} jackknife, 95 %"
        one = merged[0]
        blocks = f"{one.count} blocks of whole {one.name}s ({one.speakers} in the order of names)"
        return f"delete-one-block jackknife, 95 %, {blocks}"


@dataclass(frozen=True, slots=True)
class Load:
    """What the spectra of one array take."""

    width: int
    """Features."""
    rows: int
    masks: int
    """Scatters of it: of all rows, and of those with audio."""
    scratch: int
    """Bytes of working memory with blocks."""


def choose_blocks(selection: Selection, loads: Mapping[ArrayKey, Load]) -> Jackknife:
    """Return the most blocks whose scatters fit, and whose spectra take no longer than the pass.

    Parameters
    ----------
    selection
        Half of its memory is for scatters; those of all arrays may take two passes.
    loads
        All row arrays of the selection.
    """
    views = {view.name: view for view in selection.captures}
    room = STATE_SHARE * USABLE * selection.memory_bytes
    passed = sum(2 * one.masks * one.rows * one.width**2 for one in loads.values())
    note = ""
    for most in COUNTS:
        blocks = {name: make_blocks(view, most) for name, view in views.items()}
        taken = _count(loads, blocks)
        fits = (
            taken.held <= _PASSES * room
            and taken.largest <= _SINGLE * room
            and taken.worked <= room
        )
        if fits and taken.operations <= max(_FREE_OPERATIONS, passed):
            return Jackknife(blocks, "")
        note = f"{taken.operations:.0e} operations, the scatter matrices themselves {passed:.0e}"
        if not fits:
            note = (
                f"{format_bytes(taken.held)} of scatter matrices, {format_bytes(taken.largest)} "
                f"for one array; there is room for {format_bytes(_PASSES * room)} and "
                f"{format_bytes(_SINGLE * room)}"
            )
    note = (
        f"svd: no intervals: leaving out speakers takes {note}. Choose fewer --captures, --sites "
        "or --layers for them, or more --memory."
    )
    return Jackknife(dict.fromkeys(views), note)


@dataclass(frozen=True, slots=True)
class _Taken:
    """What leaving out the blocks of all arrays takes."""

    held: int
    """Bytes of all scatters."""
    largest: int
    """Bytes of the scatters of one array."""
    worked: int
    """The same with its working memory."""
    operations: int


def _count(loads: Mapping[ArrayKey, Load], blocks: Mapping[str, Blocks | None]) -> _Taken:
    held, largest, worked, operations = 0, 0, 0, 0
    for key, one in loads.items():
        found = blocks[key.capture]
        if found is not None:
            single = 8 * found.parts(_WORKERS) * one.width**2
            held += one.masks * single
            largest, worked = max(largest, single), max(worked, single + one.scratch)
            operations += _SOLVES * one.masks * found.count * one.width**3
    return _Taken(held, largest, worked, operations)
