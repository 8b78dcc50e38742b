"""Opening what lies in a store, and nothing else: no link is followed, no device or pipe opened.

A path below the root is opened one folder at a time, so that a link anywhere on the way is refused
(a symbolic link to a folder reads and writes outside otherwise). The root itself may be a link: its
name comes from the user.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import DamagedStoreError, StoreSpaceError
from .guard import MAX_METADATA_BYTES
from .layout import QUARANTINE

MAX_DEPTH = 16
"""Folders below the root, one in the other."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""Non-blocking, because opening a pipe that nobody writes to would wait for ever."""
_LINK = {errno.ELOOP, errno.ENOTDIR, errno.EMLINK}
_RESOURCES = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}


@contextmanager
def opened(root: Path, path: str) -> Iterator[tuple[int, int]]:
    """Open a regular file below the root for reading.

    Parameters
    ----------
    root
        The store's root.
    path
        Path below it, separated by `/`.

    Yields
    ------
    tuple
        Descriptor and size in bytes.

    Raises
    ------
    DamagedStoreError
        If it is absent, no regular file, or lies behind a link.
    """
    descriptor = _open(root, path, _FILE)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            msg = f"{path} cannot be read: it is not a regular file"
            raise DamagedStoreError(msg)
        yield descriptor, status.st_size
    finally:
        os.close(descriptor)


def read_inside(root: Path, path: str, most: int = MAX_METADATA_BYTES) -> bytes:
    """Return the bytes of a small file below the root; a larger one is refused unread."""
    with opened(root, path) as (descriptor, size):
        if size > most:
            msg = f"{path} cannot be read: it has {size} bytes, at most {most} are allowed"
            raise DamagedStoreError(msg)
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(size)


def list_inside(root: Path, path: str) -> list[str]:
    """Return the names in a folder below the root, which must not be a link."""
    descriptor = _open(root, path, _FOLDER)
    try:
        return os.listdir(descriptor)  # noqa: PTH208 - of an open folder, which is no link
    finally:
        os.close(descriptor)


def tree_faults(root: Path) -> Iterator[tuple[str, str]]:
    """Yield path and reason of everything below a folder that is no regular file or folder."""
    waiting = [("", 0)]
    while waiting:
        folder, depth = waiting.pop()
        try:
            with os.scandir(root / folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except FileNotFoundError:
            continue  # another process writes, and it has moved on
        except OSError as error:
            yield folder or ".", f"the folder cannot be read: {error.strerror}"
            continue
        for entry in found:
            path = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_symlink():
                yield path, "it is a symbolic link; a store holds files and folders only"
            elif path == QUARANTINE and entry.is_dir(follow_symlinks=False):
                continue  # what a repair found odd lies there, and nobody reads or writes it
            elif entry.is_dir(follow_symlinks=False):
                if depth >= MAX_DEPTH:
                    yield path, f"folders are nested deeper than {MAX_DEPTH}"
                else:
                    waiting.append((path, depth + 1))
            elif not entry.is_file(follow_symlinks=False):
                yield path, "it is a device, pipe or socket; a store holds files and folders only"


def check_tree(root: Path) -> None:
    """Refuse a folder in which anything is not a regular file or folder.

    Raises
    ------
    DamagedStoreError
        Names the first such thing: writing there could leave the store.
    """
    for path, reason in tree_faults(root):
        msg = f"{root} is not safe to use: {path!r}: {reason}. Remove it first."
        raise DamagedStoreError(msg)


def _open(root: Path, path: str, flags: int) -> int:
    """Return a descriptor of `path`, whose folders are opened one after the other."""
    *folders, last = path.split("/")
    if not all(folders) or not last or ".." in (*folders, last):
        msg = f"{path!r} does not lie below the store"
        raise DamagedStoreError(msg)
    at = None
    try:
        at = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        for folder in folders:
            below = os.open(folder, _FOLDER, dir_fd=at)
            os.close(at)
            at = below
        return os.open(last, flags, dir_fd=at)
    except OSError as error:
        reason = error.strerror
        if error.errno in _LINK:
            reason = "it is a symbolic link, or something on the way is no folder"
        msg = f"{path} cannot be read: {reason} ({root / path})"
        kind = StoreSpaceError if error.errno in _RESOURCES else DamagedStoreError
        raise kind(msg) from error
    finally:
        if at is not None:
            os.close(at)
