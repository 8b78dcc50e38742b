"""Chunks of strings: the encoding `vlen-utf8`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .errors import DamagedStoreError


def encode_strings(values: Sequence[str]) -> bytes:
    """Return the `vlen-utf8` encoding: count, then length and bytes of each string."""
    parts = [np.uint32(len(values)).tobytes()]
    for value in values:
        data = value.encode()
        parts += [np.uint32(len(data)).tobytes(), data]
    return b"".join(parts)


def decode_strings(data: bytes, *, slots: int, used: int) -> list[str]:
    """Return the first strings of a `vlen-utf8` chunk.

    Parameters
    ----------
    data
        The chunk.
    slots
        Strings that a chunk has.
    used
        Strings that are wanted; those after them must be empty.

    Raises
    ------
    DamagedStoreError
        If it is no such chunk.
    """
    if len(data) < 4 + 4 * slots or int.from_bytes(data[:4], "little") != slots:
        msg = f"a chunk of strings does not hold {slots} strings"
        raise DamagedStoreError(msg)
    values, at = [], 4
    try:
        for _ in range(used):
            size = int.from_bytes(data[at : at + 4], "little")
            values.append(data[at + 4 : at + 4 + size].decode())
            at += 4 + size
    except UnicodeDecodeError as error:
        msg = "a chunk of strings is not UTF-8"
        raise DamagedStoreError(msg) from error
    if at + 4 * (slots - used) != len(data) or data[at:].strip(b"\0"):
        msg = "a chunk of strings has a wrong length"
        raise DamagedStoreError(msg)
    return values
