"""CRC-32C of a whole from its parts equals one pass over the whole."""

from __future__ import annotations

import google_crc32c
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorascope.store.checksums import combine


def crc(data: bytes) -> int:
    return google_crc32c.extend(0, data)


@given(st.binary(max_size=400), st.binary(max_size=400))
def test_two_parts(first, second):
    assert combine(crc(first), crc(second), len(second)) == crc(first + second)


@pytest.mark.parametrize("size", [1, 4, 1000, 1 << 20, (1 << 20) + 4, 3 * 2**20 - 1])
def test_long_parts(size):
    data = np.random.default_rng(size).bytes(size)
    assert combine(crc(b"head"), crc(data), size) == crc(b"head" + data)


def test_the_check_value_of_the_standard():
    """CRC-32C of "123456789" is 0xE3069283 (RFC 3720), however it is cut."""
    for cut in range(10):
        assert combine(crc(b"123456789"[:cut]), crc(b"123456789"[cut:]), 9 - cut) == 0xE3069283
