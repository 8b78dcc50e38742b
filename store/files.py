"""Durable file operations: what a power cut must not undo goes through here.

Order is everything: data are fsynced before they are renamed into place, directories after, and a
commit record is renamed last. A failed fsync is never retried on the same descriptor (the kernel
may have dropped the dirty pages and would report success).
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import google_crc32c
import numpy as np

from .errors import LockedStoreError, StoreError, StoreSpaceError, StoreWriteError

_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE}


def crc32c(data: bytes | np.ndarray, crc: int = 0) -> int:
    """Return the CRC-32C (Castagnoli) of `data`, continuing from `crc`."""
    return google_crc32c.extend(crc, data)


def write_durable(path: Path, data: bytes, *, staging: Path) -> None:
    """Write a small file atomically: staged, fsynced, renamed, directory fsynced."""
    staged = staging / f"file-{os.getpid()}-{time.monotonic_ns()}"
    write_synced(staged, data)
    staged.rename(path)
    sync_directory(path.parent)


def write_synced(path: Path, data: bytes) -> None:
    """Write and fsync a file that nobody reads yet."""
    write_all_synced({path: data})


def write_all_synced(files: Mapping[Path, bytes]) -> None:
    """Write files that nobody reads yet, then fsync them: one transaction for all, mostly."""
    with ExitStack() as stack:
        opened = []
        for path, data in files.items():
            file = stack.enter_context(path.open("wb", buffering=0))
            view = memoryview(data)
            while view:
                view = view[file.write(view) :]
            opened.append(file)
        for file in opened:
            os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Make the entries of a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_file(path: Path) -> bytes:
    """Return the bytes of a regular file; symbolic links are refused."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    with os.fdopen(descriptor, "rb") as file:
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


@contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Hold the store's writer lock; a crash frees it.

    Raises
    ------
    LockedStoreError
        If another process holds it; says which one and since when.
    """
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            owner = file.read(200).strip() or "another process"
            msg = f"{path.parent.parent} is being written by {owner}: wait for it or stop it first."
            raise LockedStoreError(msg) from error
        file.seek(0)
        file.truncate()
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        file.write(f"process {os.getpid()} since {started}\n")
        file.flush()
        try:
            yield
        finally:
            with suppress(OSError):
                file.seek(0)
                file.truncate()
