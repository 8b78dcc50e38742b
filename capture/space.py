"""Whether the disk has room for a run, told before anything is computed, with what would fit."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..store import LorascopeError, StoreSpaceError, open_store
from .planning import RunPlan, plan_run

if TYPE_CHECKING:
    from .config_models import CaptureConfig
    from .preparing import PreparedRun

STEPS = (2, 3, 5, 10, 20, 50, 100)
"""Choices of ``frames: every:K`` that are tried."""


def check_space(
    config: CaptureConfig, run: PreparedRun, store_path: Path, plan: RunPlan | None = None
) -> None:
    """Refuse a run that the disk of its store has no room for.

    Parameters
    ----------
    config, run
        The run.
    store_path
        Where the store is or will be; what it holds already needs no room.
    plan
        Of this run, where it was made already.

    Raises
    ------
    StoreSpaceError
        Says what is needed, what is free, and what would fit.
    """
    plan = plan_run(config, run) if plan is None else plan
    free = shutil.disk_usage(_existing(store_path)).free
    held = _held(store_path)
    needed = _needed(plan, held)
    if needed <= free:
        return
    at_most = " at most" if config.run.profile == "compact" else ""
    msg = (
        f"the run needs{at_most} {_spell(needed)} on the disk of {store_path}, which has "
        f"{_spell(free)} free. {_what_fits(config, run, held, free)}"
    )
    raise StoreSpaceError(msg)


def _needed(plan: RunPlan, held: Mapping[str, int]) -> int:
    return sum(
        condition.forecast.disk_bytes * (plan.samples - held.get(condition.name, 0)) // plan.samples
        for condition in plan.conditions
    )


def _held(store_path: Path) -> dict[str, int]:
    """Return how many samples of each capture are there; none of a store that cannot be read."""
    try:
        store = open_store(store_path)
        return {name: len(store.capture(name)) for name in store.captures}
    except LorascopeError:
        return {}  # whoever opens it to write says what is wrong


def _what_fits(config: CaptureConfig, run: PreparedRun, held: Mapping[str, int], free: int) -> str:
    """Say which smaller choices of frames fit: a capture that was begun keeps its own, though."""
    if any(held.get(prepared.condition.name) for prepared in run.conditions):
        return "Free some space and run the same command again: it goes on where it was."
    fits = []
    for frames in (f"every:{step}" for step in STEPS):
        size = _needed(plan_run(config, run, frames=frames), held)
        if size <= free:
            fits.append(f"record.frames={frames} takes {_spell(size)}")
            break
    if all(site.pools for prepared in run.conditions for site in prepared.recorded):
        size = _needed(plan_run(config, run, frames="none"), held)
        if size <= free:
            fits.append(f"record.frames=none (pooled only) takes {_spell(size)}")
    if not fits:
        return "Record fewer sites, layers or captures, or name another disk."
    choices = " and ".join(fits)
    return f"What fits: {choices}; so may fewer sites, layers or captures, or another disk."


def _existing(path: Path) -> Path:
    """Return the nearest folder that exists."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def _spell(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
