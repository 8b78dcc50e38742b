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
from .inside import opened
from .shards import CRC_BYTES, FileEntry, read_range

_BLOCK_BYTES = 8 * 2**20


def checked_blocks(root: Path, entry: FileEntry) -> Iterator[np.ndarray]:
    """Yield a file's bytes in order, each block after it was checked.

    Parameters
    ----------
    root
        The store's root.
    entry
        What a record says of the file.

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
    with opened(root, entry.path) as (descriptor, size):
        if size != entry.size:
            msg = f"{entry.path} has {size} bytes, {entry.size} were committed"
            raise DamagedStoreError(msg)
        lengths = _lengths(descriptor, entry)
        if sum(lengths) > size or (lengths and min(lengths) <= CRC_BYTES):
            msg = f"{entry.path}: its {len(lengths)} chunks do not fit into its {size} bytes"
            raise DamagedStoreError(msg)
        yield from _blocks(descriptor, entry, lengths)


def _blocks(descriptor: int, entry: FileEntry, lengths: list[int]) -> Iterator[np.ndarray]:
    """Yield the chunks, and what follows them, of an open file."""
    crc, at, size = 0, 0, entry.size
    block = np.empty(max([min(size - sum(lengths), _BLOCK_BYTES), *lengths]), np.uint8)
    for number, length in enumerate(lengths):
        part = block[:length]
        read_range(descriptor, at, part)
        chunk, trailer = part[:-CRC_BYTES], part[-CRC_BYTES:]
        found = crc32c(chunk)
        if found != entry.chunks[number] or trailer.tobytes() != found.to_bytes(4, "little"):
            msg = f"{entry.path}: the checksum of chunk {number} differs from its commit record"
            raise DamagedStoreError(msg)
        crc = crc32c(trailer, combine(crc, found, chunk.size))
        yield part
        at += length
    while at < size:
        part = block[: min(size - at, _BLOCK_BYTES)]
        read_range(descriptor, at, part)
        crc = crc32c(part, crc)
        yield part
        at += part.size
    if crc != entry.crc32c:
        msg = f"{entry.path}: its checksum differs from its commit record"
        raise DamagedStoreError(msg)


def _lengths(descriptor: int, entry: FileEntry) -> list[int]:
    """Return the bytes of every chunk with its checksum."""
    if entry.slots:
        return [length for _, length in read_spans(descriptor, entry)]
    return list(repeat(entry.chunk_bytes + CRC_BYTES, len(entry.chunks)))
