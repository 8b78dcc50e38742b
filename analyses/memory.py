"""The memory promise: how folds and slabs of samples are cut to fit."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import AnalysisInputError, MemoryBudgetError
from .fold import ArrayKey, Fold
from .packing import Budget, Sizes, block_bytes, fits, needs_of, pack

_UNITS = {
    "": 1,
    "b": 1,
    **{f"{prefix}b": 1000**i for i, prefix in enumerate("kmgt", start=1)},
    **{f"{prefix}ib": 1024**i for i, prefix in enumerate("kmgt", start=1)},
}
USABLE = 0.75
"""Part of the memory that is planned with; the rest is for gaps of the allocator and indexes."""
_SLAB_BYTES = 64 * 2**20
"""Slabs are not made larger than this: a smaller one is partly in the processor's cache still."""
_POOLED_BYTES = 192 * 2**20
"""The same for slabs of pooled features alone, whose arrays workers share where slabs are few."""
_SLABS_PER_WORKER = 4
"""At least this many where the samples allow, so that workers end together."""


def parse_bytes(text: str | int) -> int:
    """Return a number of bytes.

    Parameters
    ----------
    text
        `2GiB`, `500 MB`, `1.5g`-style text is not guessed: a unit of B, kB, MB, GB, TB, KiB, MiB,
        GiB, TiB, or none.

    Raises
    ------
    AnalysisInputError
        Anything else, or nothing positive.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)\s*", str(text).lower())
    if match and match[2] in _UNITS and float(match[1]) > 0:
        return int(float(match[1]) * _UNITS[match[2]])
    msg = f"memory {text!r} is not an amount. Write it like 2GiB, 500MB or a number of bytes."
    raise AnalysisInputError(msg)


def format_bytes(count: float) -> str:
    """Return an amount with a binary unit and three digits."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"


def release_memory() -> None:
    """Give freed heap pages back to the system where the C library can (glibc).

    Its allocator keeps what was freed, and after a while even large arrays: without this, a pass
    would count what the one before it used.
    """
    trim = _find_trim()
    if trim is not None:
        trim(0)


@cache
def _find_trim() -> Callable[[int], int] | None:
    """Return the C library's function that gives pages back; looking for it takes a while."""
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None


@dataclass(frozen=True, slots=True)
class Pass:
    """One reading of the store: some folds, and the slabs of samples they are fed with."""

    folds: tuple[Fold[Any, Any], ...]
    needs: tuple[ArrayKey, ...]
    slabs: tuple[tuple[int, int], ...]
    """First and one past the last sample of each slab."""
    workers: int


def plan_passes(
    folds: Sequence[Fold[Any, Any]],
    sizes: Sizes,
    borders: NDArray[np.int64],
    *,
    memory_bytes: int,
    workers: int,
) -> list[Pass]:
    """Return the readings of the store that `folds` take within `memory_bytes`.

    Parameters
    ----------
    folds
        Distinct folds.
    sizes
        Bytes of every sample of one array.
    borders
        Samples that start a stored segment; slabs end there when that wastes no more than half.
    memory_bytes
        What may be used above what is in use already.
    workers
        How many slabs are in memory at a time; fewer when not even one sample fits otherwise.

    Raises
    ------
    MemoryBudgetError
        When one sample of one fold and its accumulators do not fit with one worker.

    Notes
    -----
    Folds share a pass while accumulators stay under half of the memory and the largest single
    sample fits into the rest. An array that folds of two passes need is read twice: `pack` chooses
    who shares a pass so that this is seldom.
    """
    usable = int(memory_bytes * USABLE)
    ordered = sorted(folds, key=lambda fold: (fold.needs[0].capture, fold.needs[0].layer))
    while True:
        budget = Budget(usable, workers)
        groups = pack(ordered, sizes, budget)
        if groups is not None:
            return [_cut(group, sizes, borders, budget) for group in groups]
        if workers == 1:
            raise MemoryBudgetError(_explain(ordered, sizes, memory_bytes))
        workers //= 2


def check_fits(folds: Sequence[Fold[Any, Any]], sizes: Sizes, memory_bytes: int) -> None:
    """Raise MemoryBudgetError where one of the folds does not fit alone, with one worker."""
    budget = Budget(int(memory_bytes * USABLE), 1)
    large = [fold for fold in folds if not fits([fold], sizes, budget)]
    if large:
        raise MemoryBudgetError(_explain(large, sizes, memory_bytes))


def _cut(
    folds: list[Fold[Any, Any]], sizes: Sizes, borders: NDArray[np.int64], budget: Budget
) -> Pass:
    """Cut the samples into slabs."""
    needs = needs_of(folds)
    bytes_n = block_bytes(needs, sizes)
    total = int(bytes_n.sum())
    share = total // (budget.workers * _SLABS_PER_WORKER)
    limit = min(budget.room(folds), _SLAB_BYTES, max(share, 1))
    limit = max(limit, int(bytes_n.max(initial=0)))
    # Pooled features of a segment are one chunk, read as a whole or again and again
    most = min(budget.room(folds), _POOLED_BYTES) if all(key.pool for key in needs) else 0
    limit = total if total <= most else limit
    slabs, start, end_n = [], 0, np.concatenate([[0], np.cumsum(bytes_n)])
    while start < bytes_n.size:
        stop = int(np.searchsorted(end_n, end_n[start] + limit, side="right")) - 1
        inside = borders[(borders > start + (stop - start) // 2) & (borders <= stop)]
        stop = int(inside[-1]) if inside.size and stop < bytes_n.size else stop
        following = next((b for b in [*borders.tolist(), bytes_n.size] if b >= stop), stop)
        stop = following if end_n[following] - end_n[start] <= most else stop
        slabs.append((start, stop))
        start = stop
    return Pass(tuple(folds), needs, tuple(slabs), budget.workers)


def _explain(folds: Sequence[Fold[Any, Any]], sizes: Sizes, memory_bytes: int) -> str:
    """Return the message of a budget that nothing fits into."""
    single = Budget(0, 1)
    wanted = [-single.room([f]) + int(block_bytes(f.needs, sizes).max(initial=0)) for f in folds]
    worst = int(np.argmax(wanted))
    needed = int(wanted[worst] / USABLE) + 1
    return (
        f"memory {format_bytes(memory_bytes)} is too little: one sample of {folds[worst].needs[0]} "
        f"with what is computed from it takes {format_bytes(needed)}. "
        f"Allow at least that much (--memory), or choose fewer sites or layers."
    )
