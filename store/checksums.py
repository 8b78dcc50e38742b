"""CRC-32C of bytes that were checked in parts: the whole follows from the parts.

A CRC is linear over GF(2): to append n bytes is to multiply the register by a 32 x 32 bit matrix
that depends on n alone, and to add the CRC of what was appended. The matrices for 1, 2, 4, … bytes
are made once; a shard of many chunks then has its checksum without a second pass over its bytes.
"""

from __future__ import annotations

from functools import cache

_POLYNOMIAL = 0x82F63B78
"""Castagnoli, reflected."""

type _Matrix = tuple[int, ...]
"""Images of the 32 single bits."""


def combine(first: int, second: int, second_bytes: int) -> int:
    """Return the CRC-32C of A followed by B, from the CRC of A, that of B and the bytes of B."""
    power = 0
    while second_bytes:
        if second_bytes & 1:
            first = _times(_append_zeros(power), first)
        second_bytes >>= 1
        power += 1
    return first ^ second


@cache
def _append_zeros(power: int) -> _Matrix:
    """Return what 2 ** power bytes of zeros do to the register."""
    if power == 0:
        one_bit: _Matrix = (_POLYNOMIAL, *(1 << bit for bit in range(31)))
        two_bits = _squared(one_bit)
        return _squared(_squared(two_bits))
    return _squared(_append_zeros(power - 1))


def _squared(matrix: _Matrix) -> _Matrix:
    return tuple(_times(matrix, image) for image in matrix)


def _times(matrix: _Matrix, vector: int) -> int:
    total = 0
    for image in matrix:
        if vector & 1:
            total ^= image
        vector >>= 1
    return total
