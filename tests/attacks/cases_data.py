"""Attacks by the bytes of arrays, named by forged records, and by files that lie about themselves."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np

from lorascope.store.strings import encode_strings

from .attack import Attacks
from .forge import Forge

ATTACKS = attack = Attacks()
SHARD = "captures/base/sites/resid_post/values/c.0.0.0"
IDS = "captures/base/samples/id/c.0"


def chunk(path: str, payload: bytes, **lie: object) -> Callable[[Forge], object]:
    """Return an attack that replaces a chunk, its checksum and its record."""
    return lambda forge: forge.chunk(path, payload, **lie)


def resize(path: str, size: int) -> Callable[[Forge], object]:
    """Return an attack that makes a file shorter, or larger by a hole."""

    def spoil(forge: Forge) -> None:
        with (forge.root / path).open("r+b") as file:
            file.truncate(size)

    return spoil


def strings(*values: str) -> bytes:
    return encode_strings(values)


attack.table(
    "read",
    "strings: their number is that of the slots, their lengths end with the chunk",
    {
        "strings_4e9": chunk(IDS, struct.pack("<I", 2**32 - 1)),
        "strings_4e9_of_nothing": chunk(IDS, struct.pack("<I", 2**32 - 1) + bytes(4096)),
        "strings_1e6": chunk(IDS, struct.pack("<I", 10**6) + bytes(4 * 10**6)),
        "strings_too_few": chunk(IDS, strings("utt-0")),
        "strings_too_many": chunk(IDS, strings("utt-0", "utt-1", "utt-2")),
        "strings_none": chunk(IDS, strings()),
        "strings_of_no_bytes": chunk(IDS, b""),
        "strings_cut_in_their_number": chunk(IDS, b"\x02\0"),
        "string_4_gib": chunk(IDS, struct.pack("<II", 2, 2**32 - 1) + b"utt-0" + bytes(4)),
        "string_beyond_the_end": chunk(IDS, struct.pack("<II", 2, 100) + b"utt-0" + bytes(40)),
        "string_of_bad_utf8": chunk(IDS, struct.pack("<II", 2, 5) + b"\xff" * 5 + bytes(4)),
        "string_of_a_surrogate": chunk(IDS, struct.pack("<II", 2, 3) + b"\xed\xa0\x80" + bytes(4)),
        "strings_with_a_tail": chunk(IDS, strings("utt-0", "utt-1") + b"tail"),
        "strings_overlap": chunk(IDS, struct.pack("<III", 2, 8, 4) + b"utt-"),
    },
)
attack.table(
    "read",
    "columns that a record says as well are the same there",
    {
        "ids_are_not_those_of_the_record": chunk(IDS, strings("utt-0", "utt-9")),
        "rows_are_not_those_of_the_record": chunk(
            "captures/base/samples/n_rows.tokens/c.0", np.array([5, 3], "<i8").tobytes()
        ),
        "segments_are_not_those_of_the_record": chunk(
            "captures/base/samples/segment/c.0", np.array([0, -7], "<i4").tobytes()
        ),
    },
)
attack.table(
    "open",
    "a chunk has the size that the definition gives it",
    {
        "output_of_one_byte": chunk("captures/base/outputs/loss/c.0", b"x"),
        "output_of_nothing": chunk("captures/base/outputs/loss/c.0", b""),
        "output_of_a_mib": chunk("captures/base/outputs/loss/c.0", bytes(2**20)),
        "positions_too_short": chunk("captures/base/rows/tokens/position/c.0", bytes(4)),
        "column_too_long": chunk("captures/base/samples/take/c.0", bytes(800)),
        "flags_too_short": chunk("captures/base/samples/exposed/c.0", b"\1"),
        "parameter_too_short": chunk("captures/base/parameters/head.weight/c.0.0", bytes(8)),
        "layers_are_others_on_disk": chunk(
            "captures/base/sites/resid_post/layer/c.0", np.array([7, 8], "<i8").tobytes()
        ),
        "shard_is_one_chunk": chunk(SHARD, bytes(24)),
        "shard_of_a_gib": chunk(SHARD, bytes(24), size=2**30, chunk_bytes=2**29),
        "shard_has_a_huge_chunk": chunk(SHARD, bytes(24), size=2**62, chunk_bytes=2**61),
    },
)
attack.table(
    "read",
    "nothing is allocated that the file does not hold; a file has its committed size",
    {
        "shard_is_empty": lambda f: f.put(SHARD, b""),
        "shard_is_cut": resize(SHARD, 100),
        "shard_is_a_tib_of_holes": resize(SHARD, 2**40),
        "shard_is_longer": lambda f: f.put(SHARD, (f.root / SHARD).read_bytes() + b"x"),
        "shard_is_missing": lambda f: f.clear(SHARD),
        "shard_is_of_another_layer": lambda f: f.put(
            SHARD, (f.root / SHARD.replace("c.0.", "c.1.")).read_bytes()
        ),
        "ids_are_a_gib_of_holes": resize(IDS, 2**30),
        "output_is_cut": resize("captures/live/outputs/logits/c.0.0", 3),
        "parameter_is_cut": resize("captures/live/parameters/head.weight/c.0.0", 3),
        "pooled_is_missing": lambda f: f.clear(
            "captures/live/pooled/resid_post.mean_valid/values/c.0.0.0"
        ),
    },
)
attack.table(
    "ignored",
    "control: a chunk that is written again is the same",
    {"ids_written_again": chunk(IDS, strings("utt-0", "utt-1"))},
)


@attack("read", "a changed byte is a checksum that differs")
def flipped(forge: Forge) -> None:
    content = bytearray((forge.root / SHARD).read_bytes())
    content[5] ^= 1
    forge.put(SHARD, bytes(content))


@attack("verify", "a changed byte of the index is found, though reading does not use it")
def index_of_shard(forge: Forge) -> None:
    content = bytearray((forge.root / SHARD).read_bytes())
    content[-20:] = b"\xff" * 20
    forge.put(SHARD, bytes(content))
