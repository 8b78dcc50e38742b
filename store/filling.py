"""Checked rows of one shard, straight into the array that takes them.

A chunk is read, compared with its record and, where it is stored as something narrower than
float32, widened while it is still in the processor's cache: the rows of a window are in memory
once, and once only do they pass through it. Of a raw chunk that is wanted in part, that part lands
where it belongs too; the rest is read beside it for the checksum.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from .encoded import decode_chunk, read_spans
from .errors import DamagedStoreError
from .inside import opened
from .profiles import ChunkCodec
from .shards import CRC_BYTES, FileEntry, check_chunk, read_range

type ReadChunk = Callable[[int, Sequence[np.ndarray]], None]
"""Fills uint8 arrays, one after the other, with the values of the chunk of this number, checked.

A compressed chunk fills a single one.
"""


def widen(values: np.ndarray) -> np.ndarray:
    """Return float32, or float64 as it is; bfloat16 by bits, which is several times faster."""
    if values.dtype in (np.float32, np.float64):
        return values
    if values.dtype == np.float16:
        return values.astype(np.float32)
    wide = values.view(np.uint16).astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


def widen_into(values: np.ndarray, out: np.ndarray) -> None:
    """Copy values to an array of their type, or of float32; bfloat16 by bits, which is faster."""
    if values.dtype in (out.dtype, np.float16):
        out[...] = values
        return
    wide = out.view(np.uint32)
    wide[...] = values.view(np.uint16)
    wide <<= 16


def fill_rows(
    root: Path,
    entry: FileEntry,
    out: np.ndarray,
    *,
    dtype: np.dtype,
    codec: ChunkCodec | None,
    first: int,
    inner: int,
) -> None:
    """Fill `out`, `[row, feature]`, with consecutive rows of a shard.

    Parameters
    ----------
    root
        The store's root.
    entry
        What the record says of the file.
    out
        C-contiguous, of the stored type or float32.
    dtype
        The stored type.
    codec
        How chunks are compressed; None: they are raw.
    first
        First row, counted in the shard.
    inner
        Rows of a chunk.

    Raises
    ------
    DamagedStoreError
        If the file or a chunk is not what the record says; `out` is then worth nothing.

    Notes
    -----
    Memory: one chunk, with `codec` two or three.
    """
    with opened(root, entry.path) as (descriptor, size):
        if size != entry.size:
            word = "truncated" if size < entry.size else "changed"
            msg = f"{entry.path} is {word}: it has {size} bytes, {entry.size} were committed"
            raise DamagedStoreError(msg)
        stop = -(-(first + len(out)) // inner)
        read = _chunk_reader(descriptor, entry, stop, codec)
        spare: np.ndarray | None = None
        done = 0
        for number in range(first // inner, stop):
            skip = max(first - number * inner, 0)
            target = out[done : done + inner - skip]
            done += len(target)
            own = target.reshape(-1).view(np.uint8)
            as_stored = out.dtype == dtype
            if as_stored and len(target) == inner:
                read(number, [own])
                continue
            spare = np.empty(entry.chunk_bytes, np.uint8) if spare is None else spare
            if as_stored and codec is None:
                before = skip * out.shape[1] * dtype.itemsize
                read(number, [spare[:before], own, spare[before + own.size :]])
                continue
            read(number, [spare])
            rows = spare.view(dtype).reshape(inner, out.shape[1])
            widen_into(rows[skip : skip + len(target)], target)


def _chunk_reader(
    descriptor: int, entry: FileEntry, stop: int, codec: ChunkCodec | None
) -> ReadChunk:
    """Return what reads and checks single chunks of an open shard, up to `stop`."""
    if codec is None:
        stride = entry.chunk_bytes + CRC_BYTES
        if stop * stride > entry.size:
            msg = f"{entry.path} is too short for chunk {stop - 1}, which its record names"
            raise DamagedStoreError(msg)

        def read_raw(number: int, pieces: Sequence[np.ndarray]) -> None:
            read_range(descriptor, number * stride, *pieces)
            check_chunk(entry, number, *pieces)

        return read_raw
    spans = read_spans(descriptor, entry)
    if stop > len(spans):
        msg = f"{entry.path} has {len(spans)} chunks, chunk {stop - 1} was asked for"
        raise DamagedStoreError(msg)

    def read_packed(number: int, pieces: Sequence[np.ndarray]) -> None:
        decode_chunk(descriptor, entry, number, spans[number], codec, *pieces)

    return read_packed


def expect_rows(root: Path, entry: FileEntry, *, first: int, count: int, slots: int) -> None:
    """Tell the system that rows of a shard are read soon; does nothing where it cannot be told.

    Where compressed chunks lie is only estimated from their number.
    """
    if not hasattr(os, "posix_fadvise") or not slots:
        return
    with opened(root, entry.path) as (descriptor, size):
        start, stop = size * first // slots, -(-size * (first + count) // slots)
        os.posix_fadvise(descriptor, start, stop - start, os.POSIX_FADV_WILLNEED)
