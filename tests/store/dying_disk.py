"""A disk that dies at its N-th operation: what came before is there, nothing comes after."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from lorascope.store.disk import Disk, use_disk

EVERY_POINT = os.environ.get("LORASCOPE_EVERY_CRASH_POINT") == "1"
"""Set for a release; every change takes some points, others for each case."""


def crash_points(total: int, *, first: int, step: int) -> range:
    """Return the operations at which to die."""
    return range(1, total + 1) if EVERY_POINT else range(first, total + 1, step)


class DiedError(BaseException):
    """The process died; nobody catches it."""


class DyingDisk(Disk):
    """Counts operations that change the disk and dies at one of them, in the middle of a write."""

    def __init__(self, dies_at: int = 10**9) -> None:
        self.dies_at = dies_at
        self.operations = 0

    def _step(self) -> bool:
        self.operations += 1
        if self.operations > self.dies_at:
            raise DiedError
        return self.operations == self.dies_at

    def _die(self) -> None:
        if self._step():
            raise DiedError

    def create(self, path: Path) -> int:
        self._die()
        return super().create(path)

    def write(self, descriptor: int, pieces: Sequence[memoryview]) -> int:
        if self._step():
            first = pieces[0]
            super().write(descriptor, [first[: len(first) // 2]])
            raise DiedError
        return super().write(descriptor, pieces)

    def sync(self, descriptor: int) -> None:
        self._die()

    def sync_directory(self, path: Path) -> None:
        self._die()

    def rename(self, source: Path, target: Path) -> None:
        self._die()
        super().rename(source, target)

    def make_directory(self, path: Path) -> None:
        self._die()
        super().make_directory(path)

    def unlink(self, path: Path) -> None:
        self._die()
        super().unlink(path)

    def remove_directory(self, path: Path) -> None:
        self._die()
        super().remove_directory(path)


def count_operations(action: Callable[[], object]) -> int:
    """Return how many operations an action takes."""
    disk = DyingDisk()
    with use_disk(disk):
        action()
    return disk.operations


def die_at(number: int, action: Callable[[], object]) -> None:
    """Run an action until its `number`-th operation."""
    disk = DyingDisk(number)
    with use_disk(disk):
        try:
            action()
        except DiedError:
            return
    message = f"the action took fewer than {number} operations"
    raise AssertionError(message)
