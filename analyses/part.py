"""What one worker does in a pass: slab after slab, and its states kept now and then."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .memory import Pass, release_memory
from .partial import Keeper, Timer
from .slab import SlabMemory
from .source import Source

type Progress = Callable[[int, int, str], None]
"""`progress(done_bytes, total_bytes, text)`."""


class Meter:
    """Counts bytes that were read, from any thread, and tells whoever asked."""

    def __init__(self, progress: Progress | None, total_bytes: int) -> None:
        self._progress, self._total, self._done = progress, total_bytes, 0
        self._lock = threading.Lock()

    def advance(self, count: int, text: str) -> None:
        """Add bytes and report; never more than all, though a damaged state is read again."""
        with self._lock:
            self._done = min(self._done + count, self._total)
            if self._progress is not None:
                self._progress(self._done, self._total, text)


@dataclass(frozen=True, slots=True)
class Part:
    """What one worker does in a pass."""

    source: Source
    one: Pass
    slabs: Sequence[tuple[int, int]]
    size: np.ndarray
    """Bytes of every sample, [samples]."""
    told: tuple[Meter, str] | None
    """Who is told after every slab, and how the pass is called."""
    kept: tuple[Keeper, str] | None
    """Who keeps the states, and under which name."""
    readers: int
    """Pooled arrays that are read at a time."""

    def fold(self) -> list[Any]:
        """Return the states of all folds after these slabs, from where they were kept last."""
        states, done = self._begin()
        slabs, folds, needs = self.slabs[done:], self.one.folds, self.one.needs
        memory = SlabMemory(max((self._bytes(slab) for slab in slabs), default=0))
        timer = Timer()
        for number, (start, stop) in enumerate(slabs, done + 1):
            block = self.source.block(needs, start, stop, memory, readers=self.readers)
            last = number == len(self.slabs)
            if not last:  # the disk works while this one is computed
                self.source.expect(needs, *self.slabs[number])
            states = [
                fold.add(state, block.on(getattr(fold, "device", "cpu")))
                for fold, state in zip(folds, states, strict=True)
            ]
            del block  # before the next one is read
            release_memory()
            if self.told is not None:
                meter, label = self.told
                meter.advance(self._bytes((start, stop)), f"{label}: samples {start + 1} to {stop}")
            if self.kept is not None and not last and timer.is_due():
                began = time.monotonic()
                self.kept[0].save(self.kept[1], number, states)
                timer.rest(began)
        return states

    def _begin(self) -> tuple[list[Any], int]:
        """Return the states to start with and how many slabs are in them."""
        if self.kept is not None:
            keeper, name = self.kept
            done = keeper.done(name)
            states = keeper.load(name) if 0 < done <= len(self.slabs) else None
            if states is not None:
                return states, done
        return [fold.empty() for fold in self.one.folds], 0

    def _bytes(self, slab: tuple[int, int]) -> int:
        return int(self.size[slab[0] : slab[1]].sum())
