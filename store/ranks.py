"""Several processes that write one capture: who prepares the store, and who may write when.

Each rank writes whole segments of its own (segment k belongs to rank k modulo the number of ranks)
and records of its own, so that no two processes ever touch the same file.

One lock, freed by a crash, decides: whoever holds ``store.lock`` alone may create and sweep. A
single writer keeps it so. The first of several ranks prepares the store and then shares the lock;
the others join it. Nobody sweeps while somebody writes, nobody writes before the sweep is over, and
a rank that comes when the others have ended simply is the first again.

A rank that could not have the lock alone, but share it, may still be the first: who had it alone
may have died in between, or only have looked. So a rank takes ``writer-<rank>.lock`` alone when it
has joined, and not before, and who shares ``store.lock`` without seeing such a rank tries again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from .creation import prepare_folder
from .errors import LockedStoreError, SampleError
from .files import LockFile, disk_errors
from .layout import COMMITS
from .root import refuse_sealed

_POLL_SECONDS = 0.02
_PROBED_SECONDS = 0.5
"""How long a lock may seem taken by others that only look at it."""


@dataclass(frozen=True, slots=True)
class Rank:
    """The place of this process among those that write a capture together."""

    number: int = 0
    """From 0; rank 0 writes the parameters."""
    of: int = 1
    """Number of processes."""

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.of:
            msg = f"rank {self.number} of {self.of} ranks: ranks count from 0"
            raise SampleError(msg)

    @property
    def writer(self) -> str:
        """Name of this rank's commit records."""
        return f"w{self.number}"

    def owns(self, segment: int) -> bool:
        """Whether a segment is written by this rank."""
        return segment % self.of == self.number


def join_ranks(
    stack: ExitStack,
    root: Path,
    rank: Rank,
    prepare: Callable[[], None],
    *,
    wait_seconds: float,
) -> None:
    """Hold a place among the ranks until `stack` ends.

    Parameters
    ----------
    stack
        Releases the locks.
    root
        The store's root; its folder of commits is there.
    rank
        This process.
    prepare
        Called, with the store locked alone, by the rank that is there first.
    wait_seconds
        How long to wait for a writer that is not one of the ranks, or for the one that prepares.

    Raises
    ------
    LockedStoreError
        Another process writes to the store, or has this rank.
    """
    # Opened before the store's lock, and freed before it, because a killed process closes its files
    # in the order in which they were opened: a place that is held means that the store is held too.
    place = LockFile(root / COMMITS / f"writer-{rank.number}.lock")
    stack.callback(place.close)
    lock = LockFile(root / COMMITS / "store.lock")
    stack.callback(lock.close)
    deadline = time.monotonic() + wait_seconds
    while not _enter(lock, root, rank, prepare):
        if time.monotonic() >= deadline:
            msg = f"{root} is being written by {lock.owner}: wait for it or stop it first."
            raise LockedStoreError(msg)
        time.sleep(_POLL_SECONDS)
    if f" of {rank.of} ranks" not in lock.owner:
        msg = (
            f"{root} is being written by {lock.owner}, this is rank {rank.number} of {rank.of}: "
            "start all ranks with the same number of ranks, or wait until the others have ended."
        )
        raise LockedStoreError(msg)
    stack.callback(place.free)
    _take_alone(place, root)
    place.sign("")
    stack.callback(place.clear)


def _enter(lock: LockFile, root: Path, rank: Rank, prepare: Callable[[], None]) -> bool:
    """Share the store's lock if the store is prepared, or prepare it; whether that was possible."""
    if lock.take(shared=False):
        lock.sign(f"the first of {rank.of} ranks")
        prepare()
        lock.share()
        return True
    if not lock.take(shared=True):
        return False
    if any(_is_held(path) for path in (root / COMMITS).glob("writer-*.lock")):
        return True
    lock.free()
    return False


def attend_run(stack: ExitStack, root: Path, rank: int) -> None:
    """Tell the other ranks of a run that this process lives, until `stack` ends.

    Unlike its places among the writers of each capture, a rank holds this lock for the whole run,
    also while it trains or waits. The store's folder is made where it is not there yet.

    Raises
    ------
    LockedStoreError
        Another process runs under this rank.
    InvalidStoreError, SealedStoreError
        The path holds something that cannot be written to.
    """
    with disk_errors(f"opening {root} for writing"):
        refuse_sealed(root)
        prepare_folder(root)
        lock = LockFile(_attendance(root, rank))
    stack.callback(lock.close)
    _take_alone(lock, root)
    lock.sign(f"rank {rank} of a run")
    stack.callback(lock.clear)


def is_attending(root: Path, rank: int) -> bool:
    """Whether the process with this rank lives (see `attend_run`)."""
    path = _attendance(root, rank)
    return path.exists() and _is_held(path)


def _attendance(root: Path, rank: int) -> Path:
    return root / COMMITS / f"run-{rank}.lock"


def _take_alone(lock: LockFile, root: Path) -> None:
    """Take a lock that others hold for a moment to look at it; LockedStoreError if they stay."""
    deadline = time.monotonic() + _PROBED_SECONDS
    while not lock.take(shared=False):
        if time.monotonic() >= deadline:
            msg = f"{root} is being written by {lock.owner}: wait for it or stop it first."
            raise LockedStoreError(msg)
        time.sleep(_POLL_SECONDS)


def _is_held(path: Path) -> bool:
    """Whether a process holds a lock alone; others may look at the same time."""
    lock = LockFile(path)
    try:
        return not lock.take(shared=True)
    finally:
        lock.close()
