"""Disks that record what the store does to them, fail at an operation, or die at it."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lorascope.store.disk import Disk

type Kind = Literal[
    "create", "write", "sync", "close", "sync_directory", "rename", "mkdir", "unlink", "rmdir"
]


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation that succeeded."""

    kind: Kind
    """What was done."""
    path: Path
    """To what; for `rename` the old name."""
    target: Path | None = None
    """The new name of a `rename`."""
    data: bytes = b""
    """What a `write` took."""


@dataclass
class CountingDisk(Disk):
    """Does what it is told, and counts; subclasses interfere before an operation."""

    done: int = 0
    """Operations that were begun."""
    _lock: threading.RLock = field(default_factory=threading.RLock, repr=False)
    _open: dict[int, Path] = field(default_factory=dict, repr=False)

    def before(self, kind: Kind, path: Path) -> None:
        """Interfere with an operation that is about to happen, by an exception."""

    def after(self, operation: Operation) -> None:
        """See an operation that succeeded."""

    def _begin(self, kind: Kind, path: Path) -> None:
        self.done += 1
        self.before(kind, path)

    def create(self, path: Path) -> int:
        with self._lock:
            self._begin("create", path)
            descriptor = super().create(path)
            self._open[descriptor] = path
            self.after(Operation("create", path))
            return descriptor

    def write(self, descriptor: int, pieces: Sequence[memoryview]) -> int:
        with self._lock:
            path = self._open[descriptor]
            self._begin("write", path)
            taken = super().write(descriptor, pieces)
            whole = b"".join(bytes(piece) for piece in pieces)
            self.after(Operation("write", path, data=whole[:taken]))
            return taken

    def sync(self, descriptor: int) -> None:
        with self._lock:
            path = self._open[descriptor]
            self._begin("sync", path)
            self.after(Operation("sync", path))

    def close(self, descriptor: int) -> None:
        # Not an operation on the disk: it changes nothing, and a dead process closes its files too.
        with self._lock:
            self._open.pop(descriptor, None)
        super().close(descriptor)

    def sync_directory(self, path: Path) -> None:
        with self._lock:
            self._begin("sync_directory", path)
            self.after(Operation("sync_directory", path))

    def rename(self, source: Path, target: Path) -> None:
        with self._lock:
            self._begin("rename", source)
            super().rename(source, target)
            self.after(Operation("rename", source, target))

    def make_directory(self, path: Path) -> None:
        with self._lock:
            self._begin("mkdir", path)
            super().make_directory(path)
            self.after(Operation("mkdir", path))

    def unlink(self, path: Path) -> None:
        with self._lock:
            self._begin("unlink", path)
            super().unlink(path)
            self.after(Operation("unlink", path))

    def remove_directory(self, path: Path) -> None:
        with self._lock:
            self._begin("rmdir", path)
            super().remove_directory(path)
            self.after(Operation("rmdir", path))


class QuickDisk(Disk):
    """Does not wait for the device: for tests of anything but durability."""

    def sync(self, descriptor: int) -> None:
        """Do nothing."""

    def sync_directory(self, path: Path) -> None:
        """Do nothing but open the folder."""
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW))


@dataclass
class RecordingDisk(CountingDisk):
    """Keeps every operation in order. Its syncs are recorded, not carried out: they cost time."""

    trace: list[Operation] = field(default_factory=list)
    """What was done."""

    def after(self, operation: Operation) -> None:
        self.trace.append(operation)


class DiedError(BaseException):
    """The process is dead: no code of the store may take it for an error of the disk."""


@dataclass
class DyingDisk(CountingDisk):
    """Dies at an operation: it and all later ones do not happen, as after `kill -9`.

    A write is cut in the middle: a part of it reaches the file.
    """

    at: int = 1
    """Number of the operation, from 1."""

    def before(self, kind: Kind, path: Path) -> None:
        if self.done >= self.at:
            raise DiedError

    def write(self, descriptor: int, pieces: Sequence[memoryview]) -> int:
        with self._lock:
            if self.done + 1 == self.at:
                first = memoryview(pieces[0]).cast("B")
                os.write(descriptor, first[: len(first) // 2])
            return super().write(descriptor, pieces)


@dataclass
class FailingDisk(CountingDisk):
    """Refuses one operation, once or from then on."""

    at: int = 1
    """Number of the operation, from 1."""
    code: int = errno.EIO
    """What the disk says."""
    sticky: bool = False
    """Whether all later operations of this kind fail too (a full disk stays full)."""
    _kind: Kind | None = field(default=None, repr=False)

    def before(self, kind: Kind, path: Path) -> None:
        hit = self.done == self.at
        if hit:
            self._kind = kind
        if hit or (self.sticky and kind == self._kind and self.done > self.at):
            raise OSError(self.code, os.strerror(self.code))


@dataclass
class ShortDisk(FailingDisk):
    """A disk that fills up: one write takes a part of what it was given, the next ones nothing."""

    code: int = errno.ENOSPC

    def before(self, kind: Kind, path: Path) -> None:
        if kind == "write" and self.done > self.at:
            raise OSError(self.code, os.strerror(self.code))

    def write(self, descriptor: int, pieces: Sequence[memoryview]) -> int:
        with self._lock:
            if self.done + 1 == self.at:
                first = pieces[0]
                pieces = [first[: max(1, len(first) // 2)]]
            return super().write(descriptor, pieces)


def open_files(below: Path) -> list[str]:
    """Return the files below a folder that this process has open (none where /proc is not there)."""
    found = []
    for link in Path("/proc/self/fd").glob("*"):
        with suppress(OSError):
            found.append(str(link.readlink()))
    return [path for path in found if path.startswith(f"{below}/")]
