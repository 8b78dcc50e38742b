"""Letting an action die at its N-th operation, at some points here and at all for a release."""

from __future__ import annotations

import os
from collections.abc import Callable

from lorascope.store.disk import use_disk

from ..proof.disks import CountingDisk, DiedError, DyingDisk

EVERY_POINT = os.environ.get("LORASCOPE_PROOF") == "release"
"""Every change takes some points, others for each case; `tests/proof` takes all of a small run."""


def crash_points(total: int, *, first: int, step: int) -> range:
    """Return the operations at which to die."""
    return range(1, total + 1) if EVERY_POINT else range(first, total + 1, step)


def count_operations(action: Callable[[], object]) -> int:
    """Return how many operations an action takes."""
    disk = CountingDisk()
    with use_disk(disk):
        action()
    return disk.done


def die_at(number: int, action: Callable[[], object]) -> None:
    """Run an action until its `number`-th operation."""
    with use_disk(DyingDisk(at=number)):
        try:
            action()
        except DiedError:
            return
    message = f"the action took fewer than {number} operations"
    raise AssertionError(message)
