"""Durable file operations: what a power cut must not undo goes through here.

Order is everything: data are fsynced before they are renamed into place, directories after, and a
commit record is renamed last. A failed fsync is never retried on the same descriptor (the kernel
may have dropped the dirty pages and would report success).
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from itertools import batched
from pathlib import Path

import google_crc32c
import numpy as np

from .disk import disk
from .errors import (
    DamagedStoreError,
    LockedStoreError,
    StoreError,
    StoreSpaceError,
    StoreWriteError,
)

MAX_GATHERED = 512
"""Pieces of one gathered write; systems allow 1024 (IOV_MAX)."""
FILES_AT_ONCE = 128
"""Files that are open together; limits of 1024 are common."""
LOCK_SECONDS = 0.02
"""Wait before a taken lock is tried again."""
_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE}


def crc32c(data: bytes | np.ndarray, crc: int = 0) -> int:
    """Return the CRC-32C (Castagnoli) of `data`, continuing from `crc`."""
    return google_crc32c.extend(crc, data)


class NewFile:
    """A file that is written once, in order, and that nobody reads yet.

    Parameters
    ----------
    path
        Where; nothing may be there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = disk().create(path)

    @property
    def descriptor(self) -> int:
        """The open descriptor."""
        assert self._descriptor is not None, "the file is closed"
        return self._descriptor

    def write(self, pieces: Iterable[bytes | np.ndarray]) -> None:
        """Append pieces with as few system calls as possible."""
        left = [view for piece in pieces if (view := memoryview(piece))]
        while left:
            written = disk().write(self.descriptor, left[:MAX_GATHERED])
            while left and written >= len(left[0]):
                written -= len(left.pop(0))
            if written:
                left[0] = left[0][written:]

    def sync(self) -> None:
        """Make the content durable; a failure is final."""
        disk().sync(self.descriptor)

    def close(self) -> None:
        """Close the file; closing twice does nothing."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            disk().close(descriptor)


def write_durable(path: Path, data: bytes, *, staging: Path) -> None:
    """Write a small file atomically: staged, fsynced, renamed, directory fsynced."""
    staged = staging / f"file-{os.getpid()}-{time.monotonic_ns()}"
    write_all_synced({staged: data})
    rename(staged, path)
    sync_directory(path.parent)


def write_all_synced(files: Mapping[Path, bytes]) -> None:
    """Write files that nobody reads yet, then fsync them: one transaction for many of them."""
    for group in batched(files.items(), FILES_AT_ONCE):
        with ExitStack() as stack:
            opened = []
            for path, data in group:
                file = NewFile(path)
                stack.callback(file.close)
                file.write([data])
                opened.append(file)
            for file in opened:
                file.sync()


def sync_directory(path: Path) -> None:
    """Make the entries of a directory durable."""
    disk().sync_directory(path)


def rename(source: Path, target: Path) -> None:
    """Give a file or directory another name, atomically; durable after `sync_directory`."""
    disk().rename(source, target)


def make_directories(path: Path) -> None:
    """Make a directory and those above it, where they are not there yet."""
    missing = []
    while not path.exists():
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        with suppress(FileExistsError):  # another process made it in the meantime
            disk().make_directory(folder)


def remove(path: Path) -> None:
    """Remove a file or a link, if it is there."""
    with suppress(FileNotFoundError):
        disk().unlink(path)


def remove_tree(path: Path) -> None:
    """Remove a directory with all that is in it; links are removed, not followed."""
    for entry in sorted(path.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            remove_tree(entry)
        else:
            remove(entry)
    disk().remove_directory(path)


def read_file(path: Path) -> bytes:
    """Return the bytes of a regular file; links, pipes and devices are refused by `OSError`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        return file.read()


@contextmanager
def disk_errors(action: str) -> Iterator[None]:
    """Turn an `OSError` of the disk into the store's own error that says what was being done."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        if error.errno in _SPACE:
            msg = (
                f"no room while {action}: {error.strerror}. Committed samples are safe; free some "
                "space (or raise the limit on open files) and run the same command again."
            )
            raise StoreSpaceError(msg) from error
        msg = f"the disk refused {action}: {error}. Committed samples are safe."
        raise StoreWriteError(msg) from error


class LockFile:
    """A lock between processes, with words about its owner; a crash frees it.

    Raises
    ------
    DamagedStoreError
        If the lock is not a file of its own: what it is linked to would be overwritten.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = _open_lock(path)

    def take(self, *, shared: bool) -> bool:
        """Take the lock if it is free, alone or together with others; return whether it was."""
        try:
            fcntl.flock(
                self._descriptor, fcntl.LOCK_NB | (fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
            )
        except BlockingIOError:
            return False
        return True

    def share(self) -> None:
        """Hold the lock together with others from now on; waits while somebody has it alone."""
        fcntl.flock(self._descriptor, fcntl.LOCK_SH)

    def free(self) -> None:
        """Give the lock back, and keep its file open."""
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def sign(self, role: str) -> None:
        """Write down who holds the lock: for people, and for who is refused."""
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        self._write(f"process {os.getpid()} since {started}{role and f', {role}'}\n")

    def clear(self) -> None:
        """Take back the words of `sign`."""
        with suppress(OSError):
            self._write("")

    @property
    def owner(self) -> str:
        """What the owner wrote down."""
        words = os.pread(self._descriptor, 200, 0).decode(errors="replace").strip()
        return words or "another process"

    def close(self) -> None:
        """Free the lock."""
        os.close(self._descriptor)

    def _write(self, words: str) -> None:
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, words.encode(), 0)


def is_locked(path: Path) -> bool:
    """Whether a writer holds the lock now; writers that come later are not kept out."""
    if not path.exists():
        return False
    try:
        lock = LockFile(path)
    except (OSError, DamagedStoreError):
        return False
    try:
        return not lock.take(shared=False)
    finally:
        lock.close()


@contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Hold a lock alone; a crash frees it.

    Raises
    ------
    LockedStoreError
        If another process holds it; says which one and since when.
    DamagedStoreError
        If the lock is not a file of its own: what it is linked to would be overwritten.
    """
    lock = LockFile(path)
    try:
        if not lock.take(shared=False):
            # Once more: `is_locked` of another process holds it for a moment.
            time.sleep(LOCK_SECONDS)
        if not lock.take(shared=False):
            store = path.parent.parent
            msg = f"{store} is being written by {lock.owner}: wait for it or stop it first."
            raise LockedStoreError(msg)
        lock.sign("")
        try:
            yield
        finally:
            lock.clear()
    finally:
        lock.close()


def _open_lock(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise
        msg = f"{path} is not a regular file: remove it if no capture runs"
        raise DamagedStoreError(msg) from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        os.close(descriptor)
        msg = f"{path} is not a regular file of its own: remove it if no capture runs"
        raise DamagedStoreError(msg)
    return descriptor
