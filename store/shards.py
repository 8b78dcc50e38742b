"""Streamed shards: a Zarr v3 shard with its index at the end, written in one go with no buffer.

The inner chunks of a shard follow each other in the file, each with its CRC-32C. Raw rows go to
the file as they come, gathered from where they lie; the checksum of the open chunk is carried
along, so a shard costs no memory however large it is (`encoded.py` has the shards whose chunks are
compressed). The index (offset and length of every inner chunk, then a CRC-32C) is written at the
end; inner chunks that were never reached are marked missing and read as NaN.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .checksums import combine
from .errors import DamagedStoreError
from .files import NewFile, crc32c, remove
from .inside import opened

MISSING = np.uint64(2**64 - 1)
"""Offset and length of an inner chunk that is not there."""
CRC_BYTES = 4
INDEX_ENTRY_BYTES = 16
"""Offset and length of one inner chunk in the index of a shard."""
WRITEBACK_BYTES = 2**20
"""After so many bytes the disk is asked to begin, so that the last fsync finds little left."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """What a commit record says of one file."""

    path: str
    """Path below the store's root."""
    size: int
    """Bytes."""
    crc32c: int
    """CRC-32C of the whole file: any flipped bit changes it."""
    chunks: tuple[int, ...] = ()
    """CRC-32C of every chunk without its own checksum; empty for a file of metadata.

    A chunk followed by its CRC has the same CRC whatever the chunk holds, so the CRC of the file
    cannot tell a sound chunk from another sound one that was put in its place; these can.
    """
    chunk_bytes: int = 0
    """Bytes of one chunk without its checksum, before compression."""
    slots: int = 0
    """Entries of the index at the file's end, for a shard whose chunks are compressed; else 0.

    Raw chunks have one size, so their places follow from it.
    """

    def to_dict(self) -> dict[str, object]:
        """Return the JSON form."""
        body: dict[str, object] = {"path": self.path, "size": self.size, "crc32c": self.crc32c}
        if self.chunks:
            body |= {"chunks": list(self.chunks), "chunk_bytes": self.chunk_bytes}
        if self.slots:
            body["slots"] = self.slots
        return body


class ShardFile:
    """The staged file of a shard: chunks in order, then their index, synced once.

    Parameters
    ----------
    staged
        File to create.
    final
        Path below the store's root.
    """

    def __init__(self, staged: Path, final: str) -> None:
        self.staged = staged
        self.final = final
        self._file = NewFile(staged)
        self._crc = 0
        self._size = 0
        self._begun = 0
        self._crcs: list[int] = []
        self._lengths: list[int] = []

    def emit(self, pieces: Sequence[np.ndarray]) -> None:
        """Append bytes, with as few system calls as possible; `end_chunk` accounts for them."""
        self._size += sum(piece.size for piece in pieces)
        self._file.write(pieces)
        if self._size - self._begun >= WRITEBACK_BYTES:
            self._begin_writeback()

    def end_chunk(self, crc: int, length: int) -> np.ndarray:
        """Account for a chunk of `length` bytes; return the checksum that must follow it.

        The checksum of the file comes from those of its chunks, not from a second look at them.
        """
        trailer = _crc_array(crc)
        self._crcs.append(crc)
        self._lengths.append(length + CRC_BYTES)
        self._crc = crc32c(trailer, combine(self._crc, crc, length))
        return trailer

    def complete(self, n_chunks: int) -> None:
        """Write the index of a shard with room for `n_chunks`, without waiting for the disk."""
        index = np.full((n_chunks, 2), MISSING, "<u8")
        ends = np.cumsum([0, *self._lengths], dtype="<u8")
        index[: len(self._lengths), 0] = ends[:-1]
        index[: len(self._lengths), 1] = self._lengths
        pieces = [index.reshape(-1).view(np.uint8), _crc_array(crc32c(index))]
        for piece in pieces:
            self._crc = crc32c(piece, self._crc)
        self.emit(pieces)
        self._begin_writeback()

    def sync(self, chunk_bytes: int, slots: int = 0) -> FileEntry:
        """Make the completed file durable, close it and describe it."""
        self._file.sync()
        self._file.close()
        crcs = tuple(self._crcs)
        slots = slots if crcs else 0
        return FileEntry(self.final, self._size, self._crc, crcs, chunk_bytes, slots)

    def abort(self) -> None:
        """Close and remove the staged file; where the disk refuses, the next writer sweeps it."""
        with suppress(OSError):
            self._file.close()
        with suppress(OSError):
            remove(self.staged)

    def _begin_writeback(self) -> None:
        """Let the kernel write what came so far, while the model computes what comes next.

        Otherwise dirty pages wait in memory until the fsync, and a capture ends with the time that
        the disk needs for a whole segment. Nothing is promised here: the fsync still is.
        """
        if hasattr(os, "posix_fadvise"):
            length = self._size - self._begun
            os.posix_fadvise(self._file.descriptor, self._begun, length, os.POSIX_FADV_DONTNEED)
            self._begun = self._size


class ShardWriter:
    """Append-only writer of one shard of raw chunks.

    Parameters
    ----------
    staged
        File to create; it is renamed to `final` by the committer.
    final
        Path below the store's root.
    chunk_bytes
        Bytes of one inner chunk without its checksum.
    n_chunks
        Inner chunks that the shard has room for.
    fill
        Bytes of one fill value; the tail of the last chunk is made of it.
    """

    def __init__(
        self, staged: Path, final: str, *, chunk_bytes: int, n_chunks: int, fill: bytes
    ) -> None:
        self.file = ShardFile(staged, final)
        self._chunk_bytes = chunk_bytes
        self._n_chunks = n_chunks
        self._fill = fill
        self._in_chunk = 0
        self._chunk_crc = 0

    def write(self, arrays: Iterable[np.ndarray]) -> None:
        """Append the bytes of C-contiguous arrays, with as few system calls as possible."""
        pieces: list[np.ndarray] = []
        for array in arrays:
            flat = array.reshape(-1).view(np.uint8)
            while flat.size:
                part = flat[: self._chunk_bytes - self._in_chunk]
                self._chunk_crc = crc32c(part, self._chunk_crc)
                self._in_chunk += part.size
                pieces.append(part)
                flat = flat[part.size :]
                if self._in_chunk == self._chunk_bytes:
                    pieces.append(self.file.end_chunk(self._chunk_crc, self._chunk_bytes))
                    self._in_chunk = self._chunk_crc = 0
        self.file.emit(pieces)

    def complete(self) -> None:
        """Write all that is left of the file, padding and index, without waiting for the disk.

        Completing all shards of a segment before the first `sync` lets the file system allocate
        them in one transaction; otherwise every fsync would commit one of its own.
        """
        if self._in_chunk:
            missing = self._chunk_bytes - self._in_chunk
            self.write([np.frombuffer(self._fill * (missing // len(self._fill)), np.uint8)])
        self.file.complete(self._n_chunks)

    def sync(self) -> FileEntry:
        """Make the completed file durable, close it and describe it."""
        return self.file.sync(self._chunk_bytes)

    def abort(self) -> None:
        """Close and remove the staged file."""
        self.file.abort()


def read_shard_bytes(root: Path, entry: FileEntry, chunks: range) -> np.ndarray:
    """Return the bytes of consecutive chunks, each checked against the commit record.

    Parameters
    ----------
    root
        The store's root.
    entry
        What its record says.
    chunks
        Consecutive chunks to read.

    Returns
    -------
    numpy.ndarray
        uint8 `[len(chunks), entry.chunk_bytes]`.

    Raises
    ------
    DamagedStoreError
        If the file is absent, has another size, or a chunk's checksum differs from the record's.
    """
    stride = entry.chunk_bytes + CRC_BYTES
    with opened(root, entry.path) as (descriptor, size):
        # Before anything is allocated: what a record says may be larger than any memory.
        if size != entry.size or chunks.stop * stride > size:
            word = "truncated" if size < entry.size else "changed"
            msg = f"{entry.path} is {word}: it has {size} bytes, {entry.size} were committed"
            raise DamagedStoreError(msg)
        data = np.empty(len(chunks) * stride, np.uint8)
        read_range(descriptor, chunks.start * stride, data)
    table = data.reshape(len(chunks), stride)[:, : entry.chunk_bytes]
    for number, chunk in zip(chunks, table, strict=True):
        check_chunk(entry, number, chunk)
    return table


def check_chunk(entry: FileEntry, number: int, *pieces: np.ndarray) -> None:
    """Raise `DamagedStoreError` where a chunk, as it is stored, is not what the record names.

    Parameters
    ----------
    entry, number
        What the record says of the file, and which of its chunks is meant.
    pieces
        The chunk's bytes, in as many arrays as they lie in.
    """
    crc = 0
    for piece in pieces:
        crc = crc32c(piece, crc)
    if number >= len(entry.chunks) or crc != entry.chunks[number]:
        msg = (
            f"{entry.path}: the checksum of chunk {number} differs from its commit record. "
            "lorascope verify names all damage, lorascope repair takes it back."
        )
        raise DamagedStoreError(msg)


def read_range(descriptor: int, offset: int, *pieces: np.ndarray) -> None:
    """Fill uint8 arrays, one after the other, from an open file at `offset`.

    Raises
    ------
    DamagedStoreError
        If the file ends before, or the disk refuses to read it.
    """
    wanted, at = [piece for piece in pieces if piece.size], offset
    while wanted:
        try:
            count = os.preadv(descriptor, [piece.data for piece in wanted], at)
        except OSError as error:
            msg = f"the disk refuses to read byte {at} of a file: {error.strerror}"
            raise DamagedStoreError(msg) from error
        if count == 0:
            total = sum(piece.size for piece in pieces)
            msg = f"a file is truncated: {at - offset} of {total} bytes at {offset}"
            raise DamagedStoreError(msg)
        at += count
        while wanted and count >= wanted[0].size:
            count -= wanted.pop(0).size
        if count:
            wanted[0] = wanted[0][count:]


def _crc_array(value: int) -> np.ndarray:
    return np.array([value], "<u4").view(np.uint8)
