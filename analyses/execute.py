"""Running what was planned: the passes over the store, then what each analysis concludes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .engine import Progress, Runner, run_passes
from .errors import MemoryBudgetError
from .fold import ArrayKey, Fold
from .masks import pooled_frames
from .memory import Pass, format_bytes, plan_passes
from .partial import Keeping
from .plan import Outcome, Plan, Table, join_tables
from .pooled import CollectFold, PooledSource
from .selection import Selection

_COLLECT_SHARE = 0.4
"""Part of the memory that pooled features may stay in; more are read again from the store."""


def execute(
    plans: dict[str, Plan],
    selection: Selection,
    runner: Runner,
    progress: Progress | None,
    keeping: Keeping,
) -> tuple[dict[str, Table], dict[str, Any]]:
    """Run all folds of all plans together, then let each plan conclude.

    Parameters
    ----------
    plans
        Plans by analysis.
    selection
        What they are about.
    runner
        Where tasks run.
    progress
        Called after every slab, and before each analysis concludes.
    keeping
        Where partial states are kept.

    Returns
    -------
    tuple
        Tables by name, and facts for their attributes: passes, slabs, bytes read.
    """
    source = selection.source
    pooled = dict.fromkeys(key for plan in plans.values() for key in plan.pooled)
    stored = {key: selection.stored_key(key) for key in pooled}
    frames = {key: pooled_frames(selection, key) for key in pooled}
    valid_n = {key: None if one is None else one.valid_n for key, one in frames.items()}
    wanted = list(dict.fromkeys(f for plan in plans.values() for f in plan.folds))
    collect, passes = _cut_passes(
        wanted, _collect_folds(stored, valid_n, selection), selection, runner
    )
    keeper = keeping.open(source, passes, selection.seed) if runner.client is None else None
    results: dict[Fold[Any, Any], Any] = run_passes(source, passes, runner, progress, keeper)
    collected = {fold.key: results.pop(fold) for fold in collect}
    outcome = Outcome(selection, results, PooledSource(source, collected, stored, valid_n), runner)
    tables: dict[str, Table] = {}
    read = sum(int(source.sizes(key).sum()) for one in passes for key in one.needs)
    for name, plan in plans.items():
        if progress is not None:
            progress(read, read, f"computing {name}")
        for table, part in plan.conclude(outcome).items():
            tables[table] = join_tables(tables[table], part) if table in tables else part
    facts = {"passes": len(passes), "slabs": sum(len(one.slabs) for one in passes)}
    return tables, {**facts, "bytes_read": format_bytes(read)}


def _cut_passes(
    wanted: list[Fold[Any, Any]],
    collect: list[CollectFold],
    selection: Selection,
    runner: Runner,
) -> tuple[list[CollectFold], list[Pass]]:
    """Return the passes; nothing is collected where a fold fits only without what that holds."""
    source = selection.source
    held = sum(fold.bytes for fold in collect)
    held += sum(getattr(fold, "result_bytes", 0) for fold in wanted)
    try:
        passes = plan_passes(
            [*wanted, *collect],
            source.sizes,
            source.borders(),
            memory_bytes=selection.memory_bytes - held,
            workers=runner.workers,
        )
    except MemoryBudgetError:
        if not collect:
            raise
        return _cut_passes(wanted, [], selection, runner)
    return collect, passes


def _collect_folds(
    stored: dict[ArrayKey, ArrayKey],
    valid_n: dict[ArrayKey, NDArray[np.int64] | None],
    selection: Selection,
) -> list[CollectFold]:
    """Return a fold that keeps each pooled array, or none when they do not fit together."""
    source = selection.source
    folds = []
    for key, where in stored.items():
        view = source.views[key.capture]
        info = view.info(where)
        item = 4 if where.pool and info.dtype != "float64" else 8
        bytes_ = view.samples.size * info.width * item
        folds.append(CollectFold(key, where, bytes_, valid_n[key]))
    fits = sum(fold.bytes for fold in folds) <= _COLLECT_SHARE * selection.memory_bytes
    return folds if fits else []
