"""Pooled features, one vector a sample: collected in the pass, or read again if they do not fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .fold import ArrayKey, Block, Piece
from .source import Source
from .statistics.means import column_means

DEFAULT_POOL = "mean_valid"
"""Pool of geometry and probes; where it was not recorded, the mean of the rows with audio, or of
all stored rows where the store does not say which have some."""
_READ_BYTES = 64 * 2**20
"""Rows read at a time when their mean is taken outside of a pass."""


@dataclass(frozen=True, slots=True)
class Collected:
    """One pooled array of a whole capture."""

    samples: NDArray[np.int64]
    """Places on the sample axis, ascending."""
    values: NDArray
    """[samples, features]."""


@dataclass(frozen=True, slots=True)
class CollectFold:
    """Keeps one pooled array, or the mean of the rows of each sample where it was not recorded."""

    key: ArrayKey
    """What is kept."""
    stored: ArrayKey
    """What is read: `key`, or the rows behind it."""
    bytes: int
    """Size of the whole."""
    valid_n: NDArray[np.int64] | None = field(default=None, compare=False, repr=False)
    """Rows of each sample of the axis that a mean is of, from its first; None: all."""

    @property
    def needs(self) -> tuple[ArrayKey, ...]:
        """The one array that is read."""
        return (self.stored,)

    @property
    def scratch_bytes(self) -> int:
        """One sample in float64 is all that a mean needs."""
        return 0

    def state_bytes(self, workers: int) -> int:
        """Return 0: `analyze` takes `bytes` from the budget of all passes, as the result stays."""
        return 0

    def empty(self) -> list[tuple[NDArray[np.int64], NDArray]]:
        """Return no parts."""
        return []

    def add(
        self, state: list[tuple[NDArray[np.int64], NDArray]], block: Block
    ) -> list[tuple[NDArray[np.int64], NDArray]]:
        """Return the parts and one more."""
        piece = block[self.stored]
        values = piece.values if self.stored.pool else mean_rows(piece, self.valid_n)
        return [*state, (piece.samples, values)]

    def merge(
        self,
        left: list[tuple[NDArray[np.int64], NDArray]],
        right: list[tuple[NDArray[np.int64], NDArray]],
    ) -> list[tuple[NDArray[np.int64], NDArray]]:
        """Return the parts of both."""
        return left + right

    def finish(self, state: list[tuple[NDArray[np.int64], NDArray]]) -> Collected:
        """Return the whole array in the order of the axis."""
        state = sorted(state, key=lambda part: part[0][:1].tolist())
        samples = np.concatenate([part for part, _ in state])
        if (np.diff(samples) > 0).all():  # as a rule: slabs are runs of the axis
            return Collected(samples, _join([values for _, values in state]))
        order = np.argsort(samples)
        place = np.argsort(order)
        whole = np.empty((samples.size, state[0][1].shape[1]), dtype=state[0][1].dtype)
        start = 0
        for part, values in state:
            whole[place[start : start + part.size]] = values
            start += part.size
        return Collected(samples[order], whole)


def _join(parts: list[NDArray]) -> NDArray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def mean_rows(piece: Piece, valid_n: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
    """Return the float64 mean of the rows of each sample, [samples, features]; NaN without rows.

    Parameters
    ----------
    piece
        Rows of some samples.
    valid_n
        How many rows of each sample of the axis count, from its first; None: all.
    """
    out = np.full((piece.samples.size, piece.values.shape[1]), np.nan)
    start_n = piece.offsets[:-1]
    runs = zip(start_n, start_n + piece.count_rows(valid_n), strict=True)
    with np.errstate(invalid="ignore"):  # infinities of both signs have no mean
        for i, (start, stop) in enumerate(runs):
            if stop > start:
                out[i] = column_means(piece.values[start:stop])
    return out


@dataclass(frozen=True, slots=True)
class PooledSource:
    """Pooled features of any samples: from what the pass collected, else from the store."""

    source: Source
    collected: Mapping[ArrayKey, Collected]
    stored: Mapping[ArrayKey, ArrayKey]
    """What is read for each pooled array: itself, or the rows behind it."""
    valid_n: Mapping[ArrayKey, NDArray[np.int64] | None] = field(default_factory=dict)
    """Rows of each sample of the axis that a mean is of, for each pooled array; None: all."""

    @property
    def in_memory(self) -> bool:
        """Whether reading costs nothing."""
        return bool(self.collected)

    @property
    def held_bytes(self) -> int:
        """Memory of what was collected."""
        return sum(part.values.nbytes for part in self.collected.values())

    def width(self, key: ArrayKey) -> int:
        """Return the number of features of a pooled array."""
        return self.source.views[key.capture].info(self.stored[key]).width

    def dtype(self, key: ArrayKey) -> np.dtype:
        """Return the type in which a pooled array is given: float64 where it is a mean of rows."""
        stored = self.stored[key]
        double = not stored.pool or self.source.views[key.capture].info(stored).dtype == "float64"
        return np.dtype(np.float64 if double else np.float32)

    def matrix(self, key: ArrayKey, samples: NDArray[np.int64]) -> NDArray:
        """Return the pooled features of given samples, [samples, features].

        Parameters
        ----------
        key
            A pooled array.
        samples
            Places on the sample axis, in any order, all of which the capture has.

        Returns
        -------
        numpy.ndarray
            Not to be written to: consecutive samples are those that are held, without a copy.
        """
        if key in self.collected:
            held = self.collected[key]
            place = np.searchsorted(held.samples, samples)
            if place.size and (np.diff(place) == 1).all():
                view = held.values[place[0] : place[-1] + 1]
                view.flags.writeable = False
                return view
            return held.values.take(place, axis=0)
        wanted, back = np.unique(samples, return_inverse=True)
        stored = self.stored[key]
        parts = [self._read(key, run) for run in runs_of(wanted, self.source.sizes(stored))]
        return np.concatenate(parts)[back]

    def _read(self, key: ArrayKey, run: tuple[int, int]) -> NDArray:
        stored = self.stored[key]
        piece = self.source.read(stored, *run)
        return piece.values if stored.pool else mean_rows(piece, self.valid_n.get(key))


def runs_of(samples: NDArray[np.int64], sizes: NDArray[np.int64]) -> Sequence[tuple[int, int]]:
    """Return runs (first, one past the last) of consecutive samples, each within `_READ_BYTES`."""
    runs: list[tuple[int, int]] = []
    held = 0
    for sample in samples.tolist():
        size = int(sizes[sample])
        if runs and runs[-1][1] == sample and held + size <= _READ_BYTES:
            runs[-1] = (runs[-1][0], sample + 1)
            held += size
        else:
            runs.append((sample, sample + 1))
            held = size
    return runs
