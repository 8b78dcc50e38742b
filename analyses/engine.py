"""One pass over slabs of samples for all folds together, run by dask.

Each worker takes a contiguous part of the slabs, reads a slab of every needed array once, feeds it
to all folds and drops it; the partial states are merged in a tree. So memory is workers × (slab +
states).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from dask.base import compute
from dask.delayed import delayed as dask_delayed

from .backend import check_device, device_memory
from .errors import AnalysisInputError
from .fold import Fold
from .memory import Pass, format_bytes, release_memory
from .source import Source
from .threads import threadpool_limits

type Progress = Callable[[int, int, str], None]
"""`progress(done_bytes, total_bytes, text)`."""


@dataclass(frozen=True, slots=True)
class Runner:
    """Where tasks run: threads of this process, or the workers of a dask.distributed cluster."""

    workers: int
    """Tasks at a time."""
    client: Any = None
    """A connected dask.distributed client; None: threads."""
    device: str = "cpu"
    """Where products of arrays are computed: `cpu` or `cuda`."""

    def compute(self, tasks: Sequence[Any], at_a_time: int | None = None) -> list[Any]:
        """Return the results of delayed tasks, in order; as many at a time as there are workers."""
        if self.client is not None:
            return list(self.client.gather(self.client.compute(list(tasks))))
        together = at_a_time or self.workers
        with device_memory(self.device), threadpool_limits(max(1, self.workers // together)):
            return list(compute(*tasks, scheduler="threads", num_workers=together))

    def map(
        self, function: Callable[[Any], Any], items: Sequence[Any], at_a_time: int | None = None
    ) -> list[Any]:
        """Return `function(item)` of every item, in order, several at a time, in this process."""
        together = at_a_time or self.workers
        # BLAS gets the workers that have no task of their own: never more threads than workers
        with device_memory(self.device), threadpool_limits(max(1, self.workers // together)):
            if together == 1:
                return [function(item) for item in items]
            with ThreadPoolExecutor(together) as pool:
                return list(pool.map(function, items))


def _delay(function: Callable[..., Any], *delayed: Any) -> Any:  # noqa: ANN401 - dask is untyped
    """Return a task; what is bound by `partial` is opaque to dask, which would walk through it."""
    return dask_delayed(function, pure=False, traverse=False)(*delayed)


def count_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def open_runner(
    workers: int | None, scheduler: str | None, device: str = "cpu"
) -> Iterator[Runner]:
    """Yield where tasks run.

    Parameters
    ----------
    workers
        Slabs at a time; None: one for each core, or each thread of the cluster.
    scheduler
        Address of a dask.distributed scheduler whose workers see the store under the same path.
    device
        `cpu` or `cuda`; with a scheduler, each worker needs a CUDA device too.

    Raises
    ------
    AnalysisInputError
        No positive number of workers, an unknown device, or a scheduler that does not answer.
    DeviceError
        A device that is not there.
    """
    if workers is not None and workers < 1:
        msg = f"{workers} workers were asked for; at least 1 is needed."
        raise AnalysisInputError(msg)
    device = check_device(device)
    if scheduler is None:
        yield Runner(workers or count_cores(), device=device)
        return
    from distributed import Client

    try:
        client: Any = Client(scheduler, timeout=30, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        msg = f"no dask scheduler at {scheduler!r} ({error}). Start one with `dask scheduler`."
        raise AnalysisInputError(msg) from error
    try:
        threads = sum(client.nthreads().values())
        yield Runner(workers or max(1, threads), client, device)
    finally:
        client.close()


class Meter:
    """Counts bytes that were read, from any thread, and tells whoever asked."""

    def __init__(self, progress: Progress | None, total_bytes: int) -> None:
        self._progress, self._total, self._done = progress, total_bytes, 0
        self._lock = threading.Lock()

    def advance(self, count: int, text: str) -> None:
        """Add bytes and report."""
        with self._lock:
            self._done += count
            if self._progress is not None:
                self._progress(self._done, self._total, text)


def run_passes(
    source: Source, passes: Sequence[Pass], runner: Runner, progress: Progress | None = None
) -> dict[Fold[Any, Any], Any]:
    """Return what every fold gives.

    Parameters
    ----------
    source
        Where blocks are read.
    passes
        What `plan_passes` gave.
    runner
        Where tasks run.
    progress
        Called after every slab (threads) or every part (cluster).
    """
    sizes = [sum(source.sizes(key) for key in one.needs) for one in passes]
    meter = Meter(progress, int(sum(np.sum(size) for size in sizes)))
    results: dict[Fold[Any, Any], Any] = {}
    for number, (one, size) in enumerate(zip(passes, sizes, strict=True), start=1):
        label = f"pass {number} of {len(passes)}" if len(passes) > 1 else "reading"
        results |= _run_pass(source, one, np.asarray(size), runner, (meter, label))
    return results


def _run_pass(
    source: Source, one: Pass, size: np.ndarray, runner: Runner, told: tuple[Meter, str]
) -> dict[Fold[Any, Any], Any]:
    """Run one pass: parts of slabs, a tree of merges, one finish for each fold."""
    meter, label = told
    parts = split_slabs(one.slabs, size, one.workers)
    report = None if runner.client is not None else (meter, label, size)
    # Workers that have no part of their own read arrays for those that have
    readers = 1 if runner.client is not None else max(1, one.workers // len(parts))
    states = [_delay(partial(_fold_part, source, one, part, report, readers)) for part in parts]
    while len(states) > 1:
        pairs = [states[i : i + 2] for i in range(0, len(states), 2)]
        states = [
            _delay(partial(_merge_states, one.folds), *p) if len(p) == 2 else p[0] for p in pairs
        ]
    merged = runner.compute(states, one.workers)[0]
    if runner.client is not None:
        meter.advance(
            int(size.sum()), f"{label}: {format_bytes(int(size.sum()))} read by the cluster"
        )
    finished = runner.map(partial(_finish, one.folds, merged), range(len(one.folds)))
    release_memory()
    return dict(zip(one.folds, finished, strict=True))


def split_slabs(
    slabs: Sequence[tuple[int, int]], size: np.ndarray, parts: int
) -> list[tuple[tuple[int, int], ...]]:
    """Return up to `parts` contiguous runs of slabs of about equal bytes.

    A slab is of the part in which the first quarter of it ends.
    """
    bytes_s = np.asarray([int(size[start:stop].sum()) for start, stop in slabs])
    ends = np.cumsum(bytes_s)
    share = (ends - bytes_s + bytes_s // 4) * parts // max(int(ends[-1]), 1)
    share = np.clip(share, 0, parts - 1)  # 0 bytes: first
    runs = [
        tuple(slab for slab, at in zip(slabs, share, strict=True) if at == p) for p in range(parts)
    ]
    return [run for run in runs if run]


def _fold_part(
    source: Source,
    one: Pass,
    slabs: Sequence[tuple[int, int]],
    report: tuple[Meter, str, np.ndarray] | None,
    readers: int,
) -> list[Any]:
    """Return the states of all folds after one worker's slabs."""
    states = [fold.empty() for fold in one.folds]
    for start, stop in slabs:
        block = source.block(one.needs, start, stop, readers=readers)
        states = [
            fold.add(state, block.on(getattr(fold, "device", "cpu")))
            for fold, state in zip(one.folds, states, strict=True)
        ]
        del block  # before the next one is read
        release_memory()
        if report is not None:
            meter, label, size = report
            meter.advance(int(size[start:stop].sum()), f"{label}: samples {start + 1} to {stop}")
    return states


def _merge_states(folds: Sequence[Fold[Any, Any]], left: list[Any], right: list[Any]) -> list[Any]:
    return [fold.merge(a, b) for fold, a, b in zip(folds, left, right, strict=True)]


def _finish(folds: Sequence[Fold[Any, Any]], states: list[Any], number: int) -> Any:  # noqa: ANN401 - a fold's result
    state, states[number] = states[number], None  # freed as soon as its statistic is there
    return folds[number].finish(state)
