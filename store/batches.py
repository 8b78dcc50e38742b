"""Rows of a site in random order, at nearly the speed of reading them in order."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from .capture import Capture
from .errors import SampleError
from .filling import widen_into
from .guard import ITEM_BYTES
from .layout import numpy_dtype

BUFFER_BYTES = 256 * 2**20
"""Rows that are mixed with each other, in the storage type."""
_RUN_BYTES = 2 * 2**20
"""Rows that are read in one go: enough that the disk reads in order, few enough that many such
runs fit into the buffer."""
_MOST_THREADS = 4
"""Threads that read runs and put batches together; a core each, and memory serves no more."""
_BLOCK_BYTES = 2**19
"""Rows that are put together at a time, as they are given."""

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
    read once a loop, by up to four threads; memory is `buffer_bytes` and two batches.
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
        with ThreadPoolExecutor(_count_threads()) as pool:
            yield from self._mix(pool)

    def _mix(self, pool: ThreadPoolExecutor) -> Iterator[Batch]:
        """Yield the batches of one group of runs after the other."""
        rng = None if self.seed is None else np.random.default_rng(self.seed)
        buffer = self._buffer()
        left = 0
        for group in self._fill(rng):
            n = left + int(sum(self._counts[run].sum() for run in group))
            if n > len(buffer.values):  # one run alone is larger than what was asked for
                buffer = buffer.grown(n)
            self._read(group, buffer, left, pool)
            order = np.arange(n) if rng is None else rng.permutation(n)
            whole = n // self.size * self.size
            for start in range(0, whole, self.size):
                yield buffer.take(order[start : start + self.size], pool)
            # what is no whole batch is mixed with the rows of the next runs
            left = n - whole
            buffer.keep(order[whole:])
        if left:
            yield buffer.take(np.arange(left), pool)

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

    def _read(
        self, group: list[slice], buffer: _Buffer, start: int, pool: ThreadPoolExecutor
    ) -> None:
        """Read runs into the buffer, from row `start` on, some at a time."""
        parts = []
        for run in group:
            counts = self._counts[run]
            stop = start + int(counts.sum())
            buffer.samples[start:stop] = np.repeat(np.arange(run.start, run.stop), counts)
            parts.append(buffer.values[start:stop])
            start = stop
        list(pool.map(self._read_run, group, parts))  # the list raises what a reader raised

    def _read_run(self, run: slice, into: np.ndarray) -> None:
        self.capture.read_stored(self.site, self.layer, run, out=into)


def _count_threads() -> int:
    """Return one for each core that this process may use, up to four."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(cores or 1, _MOST_THREADS)


@dataclass(frozen=True, slots=True)
class _Buffer:
    """Rows in the storage type with the numbers of their samples, used again for every group."""

    values: np.ndarray
    samples: np.ndarray

    def take(self, chosen: np.ndarray, pool: ThreadPoolExecutor) -> Batch:
        """Return some rows, as float32 or float64, put together by all threads of the pool."""
        stored = self.values.dtype
        wide = stored if stored in (np.float32, np.float64) else np.float32
        rows = np.empty((len(chosen), self.values.shape[1]), wide)
        ends = np.linspace(0, len(chosen), _count_threads() + 1).astype(int).tolist()
        parts = [slice(*part) for part in pairwise(ends)]
        list(pool.map(self._gather, (chosen[p] for p in parts), (rows[p] for p in parts)))
        return rows, self.samples[chosen]

    def _gather(self, chosen: np.ndarray, out: np.ndarray) -> None:
        """Copy rows; those that get wider, in blocks that stay in the processor's cache."""
        # `clip` needs no second copy, which numpy makes where an index may turn out to be wrong
        if self.values.dtype == out.dtype:
            np.take(self.values, chosen, axis=0, out=out, mode="clip")
            return
        step = max(1, _BLOCK_BYTES // max(out[:1].nbytes, 1))
        spare = np.empty((step, out.shape[1]), self.values.dtype)
        for start in range(0, len(chosen), step):
            some = chosen[start : start + step]
            found = np.take(self.values, some, axis=0, out=spare[: len(some)], mode="clip")
            widen_into(found, out[start : start + step])

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
