"""The port: every operation by which the store changes a disk, one method each.

Nothing else in the store writes, renames or removes. The proofs put another `Disk` in its place:
one that records what was done, fails the N-th operation, or dies at it (`tests/store/disks.py`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


class Disk:
    """The operating system's own operations; each raises `OSError` where the disk refuses."""

    def create(self, path: Path) -> int:
        """Create a file that does not exist yet and return a descriptor to write to it."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)

    def write(self, descriptor: int, pieces: Sequence[memoryview]) -> int:
        """Write some of the pieces, in order; return the bytes that were taken."""
        return os.writev(descriptor, pieces)

    def sync(self, descriptor: int) -> None:
        """Make the content of a file durable. After a failure the descriptor is lost: no retry."""
        os.fsync(descriptor)

    def close(self, descriptor: int) -> None:
        """Close a descriptor of `create`."""
        os.close(descriptor)

    def sync_directory(self, path: Path) -> None:
        """Make the entries of a directory durable."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        """Give a file or directory another name, atomically; an existing file is replaced."""
        source.rename(target)

    def make_directory(self, path: Path) -> None:
        """Make one directory that does not exist yet."""
        path.mkdir()

    def unlink(self, path: Path) -> None:
        """Remove a file or a link."""
        path.unlink()

    def remove_directory(self, path: Path) -> None:
        """Remove an empty directory."""
        path.rmdir()


_disk = Disk()


def disk() -> Disk:
    """Return the disk that the store writes to."""
    return _disk


@contextmanager
def use_disk(other: Disk) -> Iterator[None]:
    """Let the store write to another `Disk`, in this whole process, until the block ends."""
    global _disk  # noqa: PLW0603  the one switch of the proofs; writer threads must see it too
    before, _disk = _disk, other
    try:
        yield
    finally:
        _disk = before
