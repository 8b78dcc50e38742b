"""The bytes of a committed file as they lie on disk, checked against its record block by block."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat
from pathlib import Path

import numpy as np

from .checksums import combine
from .encoded import read_spans
from .errors import DamagedStoreError
from .files import crc32c
from .shards import CRC_BYTES, FileEntry, read_range

_BLOCK_BYTES = 8 * 2**20


def checked_blocks(path: Path, entry: FileEntry) -> Iterator[np.ndarray]:
    """Yield a file's bytes in order, each block after it was checked.

    Parameters
    ----------
    path
        The file on disk.
    entry
        What its record says.

    Yields
    ------
    numpy.ndarray
        uint8; valid until the next one. A block is a chunk with its checksum where the record
        knows chunks. Only after the last one has the file as a whole been compared.

    Raises
    ------
    DamagedStoreError
        If the size, a chunk or the whole differs from the record.
    """
    try:
        size = path.lstat().st_size
    except OSError as error:
        msg = f"{entry.path} cannot be read: {error.strerror}"
        raise DamagedStoreError(msg) from error
    if size != entry.size:
        msg = f"{entry.path} has {size} bytes, {entry.size} were committed"
        raise DamagedStoreError(msg)
    lengths = _lengths(path, entry)
    if sum(lengths) > size or (lengths and min(lengths) <= CRC_BYTES):
        msg = f"{entry.path}: its {len(lengths)} chunks do not fit into its {size} bytes"
        raise DamagedStoreError(msg)
    crc = at = 0
    block = np.empty(max([min(size - sum(lengths), _BLOCK_BYTES), *lengths]), np.uint8)
    for number, length in enumerate(lengths):
        part = _read(path, entry, block[:length], at)
        chunk, trailer = part[:-CRC_BYTES], part[-CRC_BYTES:]
        found = crc32c(chunk)
        if found != entry.chunks[number] or trailer.tobytes() != found.to_bytes(4, "little"):
            msg = f"{entry.path}: the checksum of chunk {number} differs from its commit record"
            raise DamagedStoreError(msg)
        crc = crc32c(trailer, combine(crc, found, chunk.size))
        yield part
        at += length
    while at < size:
        part = _read(path, entry, block[: min(size - at, _BLOCK_BYTES)], at)
        crc = crc32c(part, crc)
        yield part
        at += part.size
    if crc != entry.crc32c:
        msg = f"{entry.path}: its checksum differs from its commit record"
        raise DamagedStoreError(msg)


def _lengths(path: Path, entry: FileEntry) -> list[int]:
    """Return the bytes of every chunk with its checksum."""
    if entry.slots:
        return [length for _, length in read_spans(path, entry)]
    return list(repeat(entry.chunk_bytes + CRC_BYTES, len(entry.chunks)))


def _read(path: Path, entry: FileEntry, block: np.ndarray, offset: int) -> np.ndarray:
    got = read_range(path, block, offset)
    if got != block.size:
        msg = f"{entry.path} is truncated: {got} of {block.size} bytes at {offset}"
        raise DamagedStoreError(msg)
    return block
