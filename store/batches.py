"""Rows of a site in random order, at nearly the speed of reading them in order."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .capture import Capture
from .errors import SampleError
from .filling import widen
from .guard import ITEM_BYTES
from .layout import numpy_dtype

BUFFER_BYTES = 256 * 2**20
"""Rows that are mixed with each other, in the storage type."""
_RUN_BYTES = 2 * 2**20
"""Rows that are read in one go: enough that the disk reads in order, few enough that many such
runs fit into the buffer."""

type Batch = tuple[np.ndarray, np.ndarray]
"""Rows [row, feature], and the number of the sample that each belongs to, int64 [row]."""


@dataclass(frozen=True)
class RowBatches:
    """All rows of one site and layer in batches, each row once; made by `Store.batches`.

    Every loop over it gives the same batches.

    Notes
    -----
    Runs of consecutive samples are drawn without replacement until the buffer is full, and its rows
    are permuted. So rows of one sample meet in a batch a little more often than chance where the
    buffer holds few runs; a site that fits into the buffer is permuted as a whole. Every byte is
    read once a loop; memory is `buffer_bytes` and two batches.
    """

    capture: Capture
    site: str
    layer: int | None
    size: int
    """Rows of a batch; the last one has what is left."""
    seed: int | None
    """Of the order; None for the order of recording."""
    buffer_bytes: int
    """Memory for the rows that are mixed with each other."""

    def __post_init__(self) -> None:
        self.capture.read_stored(self.site, self.layer, slice(0, 0))  # says what there is instead
        if self.size < 1 or self.buffer_bytes < 1:
            msg = (
                f"batches of {self.size} rows from a buffer of {self.buffer_bytes} bytes: both "
                "must be positive."
            )
            raise SampleError(msg)

    def __len__(self) -> int:
        """Return the number of batches."""
        return math.ceil(int(self._counts.sum()) / self.size)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the rows of every batch: `[row, feature]`, float32 or float64."""
        return (rows for rows, _ in self.with_samples())

    def with_samples(self) -> Iterator[Batch]:
        """Yield the same with the numbers of the samples, for labels and groups.

        ``capture.samples["label"].to_numpy()[numbers]`` has the labels of the rows.
        """
        rng = None if self.seed is None else np.random.default_rng(self.seed)
        buffer = self._buffer()
        left = 0
        for group in self._fill(rng):
            n = left + int(sum(self._counts[run].sum() for run in group))
            if n > len(buffer.values):  # one run alone is larger than what was asked for
                buffer = buffer.grown(n)
            self._read(group, buffer, left)
            order = np.arange(n) if rng is None else rng.permutation(n)
            whole = n // self.size * self.size
            for start in range(0, whole, self.size):
                yield buffer.take(order[start : start + self.size])
            # what is no whole batch is mixed with the rows of the next runs
            left = n - whole
            buffer.keep(order[whole:])
        if left:
            yield buffer.take(np.arange(left))

    @cached_property
    def _counts(self) -> np.ndarray:
        return self.capture.row_counts(self.capture.sites[self.site].stream)

    @cached_property
    def _row_bytes(self) -> int:
        info = self.capture.sites[self.site]
        return info.width * ITEM_BYTES[info.dtype]

    @property
    def _room(self) -> int:
        """Rows that are mixed with each other."""
        return max(self.size, self.buffer_bytes // self._row_bytes)

    def _fill(self, rng: np.random.Generator | None) -> Iterator[list[slice]]:
        """Yield runs of samples that fill the buffer together; one run may be larger than it."""
        runs = self._runs()
        order = range(len(runs)) if rng is None else rng.permutation(len(runs))
        group: list[slice] = []
        rows = 0
        for run in (runs[i] for i in order):
            own = int(self._counts[run].sum())
            if group and rows + own > self._room:
                yield group
                group, rows = [], 0
            group.append(run)
            rows += own
        if group:
            yield group

    def _runs(self) -> list[slice]:
        """Return runs of consecutive samples that make a read worth its while."""
        wanted = max(1, _RUN_BYTES // self._row_bytes)
        ends = np.cumsum(self._counts)
        runs, start = [], 0
        while start < len(ends):
            before = ends[start - 1] if start else 0
            stop = min(int(np.searchsorted(ends, before + wanted)) + 1, len(ends))
            runs.append(slice(start, stop))
            start = stop
        return runs

    def _buffer(self) -> _Buffer:
        """Return room for the rows of a group and a batch that was not full."""
        info = self.capture.sites[self.site]
        rows = min(int(self._counts.sum()), self._room + self.size)
        values = np.empty((rows, info.width), numpy_dtype(info.dtype))
        return _Buffer(values, np.empty(rows, np.int64))

    def _read(self, group: list[slice], buffer: _Buffer, start: int) -> None:
        """Read runs into the buffer, from row `start` on."""
        for run in group:
            counts = self._counts[run]
            stop = start + int(counts.sum())
            into = buffer.values[start:stop]
            self.capture.read_stored(self.site, self.layer, run, out=into)
            buffer.samples[start:stop] = np.repeat(np.arange(run.start, run.stop), counts)
            start = stop


@dataclass(frozen=True, slots=True)
class _Buffer:
    """Rows in the storage type with the numbers of their samples, used again for every group."""

    values: np.ndarray
    samples: np.ndarray

    def take(self, chosen: np.ndarray) -> Batch:
        """Return some rows, as float32 or float64."""
        return widen(self.values[chosen]), self.samples[chosen]

    def keep(self, chosen: np.ndarray) -> None:
        """Move some rows to the front."""
        self.values[: len(chosen)], self.samples[: len(chosen)] = (
            self.values[chosen],
            self.samples[chosen],
        )

    def grown(self, rows: int) -> _Buffer:
        """Return a larger buffer with the same rows in front."""
        values = np.empty((rows, self.values.shape[1]), self.values.dtype)
        samples = np.empty(rows, np.int64)
        values[: len(self.values)], samples[: len(self.samples)] = self.values, self.samples
        return _Buffer(values, samples)
