"""The seam of every out-of-core statistic: empty, add, merge, finish.

A fold says which arrays it reads; the engine gives it the same samples of all of them, block by
block, in any number of partial states that it merges in the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .backend import to_device


@dataclass(frozen=True, slots=True, order=True)
class ArrayKey:
    """Name of one array: the rows, or a pooled vector for each sample, of one layer of one site."""

    capture: str
    """Name of the capture; `against:<capture>` for one of the other store."""
    site: str
    layer: int
    """Layer number, -1 for a site without layers."""
    pool: str = ""
    """Name of the pool (`mean_valid`); empty for rows."""

    def __str__(self) -> str:
        """Return the name as it stands in messages."""
        layer = "" if self.layer < 0 else f" layer {self.layer}"
        return f"{self.site}{'.' * bool(self.pool)}{self.pool}{layer} of capture {self.capture!r}"


@dataclass(frozen=True, slots=True)
class Piece:
    """The values of one array in one block."""

    values: NDArray
    """[rows, features] of all samples that the capture has, one row a sample when pooled."""
    samples: NDArray[np.int64]
    """Which samples, as places on the common sample axis, [samples]."""
    offsets: NDArray[np.int64]
    """Where each sample's rows start in `values`, and where the last ends, [samples + 1]."""

    def count_rows(self, valid_n: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        """Return the rows of each sample, [samples]; of `valid_n`, [axis], no more than it says."""
        count_n = np.diff(self.offsets)
        return count_n if valid_n is None else np.minimum(count_n, valid_n[self.samples])


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive samples of every array that the folds of a pass need."""

    start: int
    """First sample, as a place on the common sample axis."""
    stop: int
    """One past the last sample."""
    pieces: Mapping[ArrayKey, Piece]
    device: str = "cpu"
    """Where the values of its pieces are given."""
    _moved: dict[ArrayKey, Piece] = field(default_factory=dict, repr=False)

    def __getitem__(self, key: ArrayKey) -> Piece:
        """Return one array's values; those for another device are moved there once."""
        if self.device == "cpu":
            return self.pieces[key]
        if key not in self._moved:
            piece = self.pieces[key]
            self._moved[key] = replace(piece, values=to_device(piece.values, self.device))
        return self._moved[key]

    def on(self, device: str) -> Block:
        """Return the same block with its values given on a device."""
        return self if device == self.device else replace(self, device=device)


class Fold[State, Result](Protocol):
    """One statistic that is computed from blocks in any order and any grouping.

    A fold is a value: frozen, hashable, picklable; equal folds of several analyses are run once.
    One with an attribute `device` of `cuda` gets its blocks as cupy arrays; one with an attribute
    `result_bytes` has a result that takes so much until all analyses have concluded.
    `merge` is associative up to rounding: merge(merge(a, b), c) = merge(a, merge(b, c)).
    """

    @property
    def needs(self) -> tuple[ArrayKey, ...]:
        """Arrays that every block must hold."""
        ...

    @property
    def scratch_bytes(self) -> int:
        """Working memory of one `add`, beyond block and state, in bytes."""
        ...

    def state_bytes(self, workers: int) -> int:
        """Return the memory of all states together when `workers` of them exist, in bytes."""
        ...

    def empty(self) -> State:
        """Return the state of no samples."""
        ...

    def add(self, state: State, block: Block) -> State:
        """Return the state with one more block; `state` may be changed and reused."""
        ...

    def merge(self, left: State, right: State) -> State:
        """Return the state of both; `left` may be changed and reused, `right` may not."""
        ...

    def finish(self, state: State) -> Result:
        """Return the statistic."""
        ...
