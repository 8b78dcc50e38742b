"""Shards whose inner chunks are compressed: one chunk of memory each, sizes that differ.

Where a chunk lies in the file is said by the shard's index. It is read from the end of the file,
and believed only after its checksum, and after its chunks were found to follow each other from the
first byte of the file to the index.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from .errors import DamagedStoreError
from .files import crc32c
from .profiles import ChunkCodec
from .shards import (
    CRC_BYTES,
    INDEX_ENTRY_BYTES,
    MISSING,
    FileEntry,
    ShardFile,
    check_chunk,
    read_range,
)


class EncodedShardWriter:
    """Append-only writer of one shard of compressed chunks; holds the open chunk in memory.

    Parameters
    ----------
    staged
        File to create; it is renamed to `final` by the committer.
    final
        Path below the store's root.
    codec
        How a chunk is compressed.
    n_chunks
        Inner chunks that the shard has room for.
    fill
        Bytes of one fill value; the tail of the last chunk is made of it.
    """

    def __init__(
        self, staged: Path, final: str, *, codec: ChunkCodec, n_chunks: int, fill: bytes
    ) -> None:
        self.file = ShardFile(staged, final)
        self._codec = codec
        self._n_chunks = n_chunks
        self._fill = fill
        self._chunk: np.ndarray | None = None
        self._in_chunk = 0

    def write(self, arrays: Iterable[np.ndarray]) -> None:
        """Append the bytes of C-contiguous arrays; whole chunks are compressed where they lie."""
        size = self._codec.chunk_bytes
        for array in arrays:
            flat = array.reshape(-1).view(np.uint8)
            while flat.size:
                if not self._in_chunk and flat.size >= size:
                    self._end_chunk(flat[:size])
                    flat = flat[size:]
                    continue
                if self._chunk is None:
                    self._chunk = np.empty(size, np.uint8)
                part = flat[: size - self._in_chunk]
                self._chunk[self._in_chunk : self._in_chunk + part.size] = part
                self._in_chunk += part.size
                flat = flat[part.size :]
                if self._in_chunk == size:
                    self._end_chunk(self._chunk)
                    self._in_chunk = 0

    def complete(self) -> None:
        """Write all that is left of the file, padding and index, without waiting for the disk."""
        if self._in_chunk:
            missing = self._codec.chunk_bytes - self._in_chunk
            self.write([np.frombuffer(self._fill * (missing // len(self._fill)), np.uint8)])
        self._chunk = None
        self.file.complete(self._n_chunks)

    def sync(self) -> FileEntry:
        """Make the completed file durable, close it and describe it."""
        return self.file.sync(self._codec.chunk_bytes, self._n_chunks)

    def abort(self) -> None:
        """Close and remove the staged file."""
        self.file.abort()

    def _end_chunk(self, chunk: np.ndarray) -> None:
        packed = self._codec.encode(chunk)
        trailer = self.file.end_chunk(crc32c(packed), packed.size)
        self.file.emit([packed, trailer])


def decode_chunk(
    descriptor: int,
    entry: FileEntry,
    number: int,
    span: tuple[int, int],
    codec: ChunkCodec,
    out: np.ndarray,
) -> None:
    """Fill `out`, uint8 `[codec.chunk_bytes]`, with a chunk of an open shard, checked.

    Parameters
    ----------
    descriptor, entry
        The open file, and what its record says of it.
    number, span
        The chunk, and where it lies: what `read_spans` gives.
    codec
        What the capture declares: nothing becomes larger than its `chunk_bytes`.
    out
        Where the values go.

    Raises
    ------
    DamagedStoreError
        If the chunk is not what the record and the capture say.
    """
    offset, length = span
    if length > codec.max_bytes + CRC_BYTES:
        msg = f"{entry.path}: chunk {number} has {length} bytes, more than its values"
        raise DamagedStoreError(msg)
    packed = np.empty(length - CRC_BYTES, np.uint8)
    read_range(descriptor, offset, packed)
    check_chunk(entry, number, packed)
    try:
        codec.decode(packed, out)
    except DamagedStoreError as error:
        error.add_note(f"in chunk {number} of {entry.path}")
        raise


def read_spans(descriptor: int, entry: FileEntry) -> list[tuple[int, int]]:
    """Return offset and length (its checksum included) of every chunk that an open shard holds.

    Raises
    ------
    DamagedStoreError
        If the index is absent or changed, or its chunks overlap, leave gaps or leave the file.
    """
    size = entry.slots * INDEX_ENTRY_BYTES + CRC_BYTES
    n_chunks = len(entry.chunks)
    if n_chunks > entry.slots or size > entry.size:
        msg = f"{entry.path}: its commit record gives it no room for an index"
        raise DamagedStoreError(msg)
    raw = np.empty(size, np.uint8)
    read_range(descriptor, entry.size - size, raw)
    if crc32c(raw[:-CRC_BYTES]) != int(raw[-CRC_BYTES:].view("<u4")[0]):
        msg = f"{entry.path}: the checksum of its index is wrong"
        raise DamagedStoreError(msg)
    index = raw[:-CRC_BYTES].view("<u8").reshape(entry.slots, 2)
    spans = [(int(offset), int(length)) for offset, length in index[:n_chunks]]
    at = 0
    for offset, length in spans:
        if offset != at or length <= CRC_BYTES:
            break
        at += length
    if at != entry.size - size or (index[n_chunks:] != MISSING).any():
        msg = f"{entry.path}: its index does not name {n_chunks} chunks that follow each other"
        raise DamagedStoreError(msg)
    return spans
