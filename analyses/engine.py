"""One pass over slabs of samples for all folds together, run by dask.

Each worker takes a contiguous part of the slabs, reads a slab of every needed array once, feeds it
to all folds and drops it; the partial states are merged in a tree. So memory is workers × (slab +
states).
"""

from __future__ import annotations

import os
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
from .part import Meter, Part, Progress
from .partial import Keeper
from .source import Source
from .threads import threadpool_limits


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


def run_passes(
    source: Source,
    passes: Sequence[Pass],
    runner: Runner,
    progress: Progress | None = None,
    keeper: Keeper | None = None,
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
    keeper
        Keeps partial states and finds those of an earlier start; threads only.
    """
    sizes = [sum(source.sizes(key) for key in one.needs) for one in passes]
    meter = Meter(progress, int(sum(np.sum(size) for size in sizes)))
    kept = 0 if keeper is None else _count_kept(keeper, passes, sizes)
    if kept:
        meter.advance(kept, "read before")
    results: dict[Fold[Any, Any], Any] = {}
    for number, (one, size) in enumerate(zip(passes, sizes, strict=True), start=1):
        label = f"pass {number} of {len(passes)}" if len(passes) > 1 else "reading"
        name = f"pass-{number}"
        finished = None if keeper is None else keeper.load(name)
        if finished is None:
            told = meter, label
            finished = _run_pass(source, one, np.asarray(size), runner, told, (keeper, name))
        results |= dict(zip(one.folds, finished, strict=True))
    return results


def _count_kept(keeper: Keeper, passes: Sequence[Pass], sizes: Sequence[Any]) -> int:
    """Return the bytes that need not be read, since states of them were kept."""
    total = 0
    for number, (one, size) in enumerate(zip(passes, sizes, strict=True), start=1):
        name = f"pass-{number}"
        if keeper.done(name):
            total += int(np.sum(size))
            continue
        for part, slabs in enumerate(split_slabs(one.slabs, size, one.workers)):
            done = slabs[: keeper.done(f"{name}-part-{part}")]
            total += sum(int(size[start:stop].sum()) for start, stop in done)
    return total


def _run_pass(
    source: Source,
    one: Pass,
    size: np.ndarray,
    runner: Runner,
    told: tuple[Meter, str],
    kept: tuple[Keeper | None, str],
) -> list[Any]:
    """Run one pass: parts of slabs, a tree of merges, one finish for each fold."""
    (meter, label), (keeper, name) = told, kept
    parts = split_slabs(one.slabs, size, one.workers)
    here = runner.client is None
    # Workers that have no part of their own read arrays for those that have
    readers = max(1, one.workers // len(parts)) if here else 1
    tasks = [
        Part(
            source,
            one,
            slabs,
            size,
            told if here else None,
            (keeper, f"{name}-part-{number}") if here and keeper is not None else None,
            readers,
        )
        for number, slabs in enumerate(parts)
    ]
    if here and len(tasks) == 1:
        merged = runner.map(Part.fold, tasks, 1)[0]
    else:
        merged = runner.compute([_merge_tree(one.folds, tasks)], one.workers)[0]
    if runner.client is not None:
        meter.advance(
            int(size.sum()), f"{label}: {format_bytes(int(size.sum()))} read by the cluster"
        )
    finished = runner.map(partial(_finish, one.folds, merged), range(len(one.folds)))
    release_memory()
    if keeper is not None and keeper.lasts:
        keeper.save(name, len(one.slabs), finished)
        keeper.drop([f"{name}-part-{number}" for number in range(len(parts))])
    return finished


def _merge_tree(folds: Sequence[Fold[Any, Any]], parts: Sequence[Part]) -> Any:  # noqa: ANN401 - dask is untyped
    """Return the task that merges the states of all parts, two at a time."""
    states = [_delay(part.fold) for part in parts]
    while len(states) > 1:
        pairs = [states[i : i + 2] for i in range(0, len(states), 2)]
        states = [_delay(partial(_merge_states, folds), *p) if len(p) == 2 else p[0] for p in pairs]
    return states[0]


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


def _merge_states(folds: Sequence[Fold[Any, Any]], left: list[Any], right: list[Any]) -> list[Any]:
    return [fold.merge(a, b) for fold, a, b in zip(folds, left, right, strict=True)]


def _finish(folds: Sequence[Fold[Any, Any]], states: list[Any], number: int) -> Any:  # noqa: ANN401 - a fold's result
    state, states[number] = states[number], None  # freed as soon as its statistic is there
    return folds[number].finish(state)
