"""Storage profiles: how the values of a capture become bytes, and back within declared bounds.

`fast` and `portable` store raw values; `compact` and `archive` compress every inner chunk with
Blosc. A compressed chunk says itself how large it will become; that is compared with what the
capture declares before a byte is decompressed, so that a small file cannot fill the memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any, Literal

import numpy as np

from .errors import DamagedStoreError, SampleError

type ProfileName = Literal["fast", "compact", "archive", "portable"]

PROFILES: tuple[ProfileName, ...] = ("fast", "compact", "archive", "portable")
"""Raw; lz4; transposed and zstd (for copies only); raw in float32 for any reader."""
BLOSC_HEADER_BYTES = 16
_BLOSC_FORMAT = 2
_BLOSC_NUMBERS = {"lz4": 1, "zstd": 4}
"""Number of each library in the upper three bits of the header's flags."""
_BITSHUFFLE = 2
WIDENED = ("float16", "bfloat16")
"""What `portable` stores as float32."""


def check_profile(name: str) -> ProfileName:
    """Return a profile's name; raises `SampleError` if there is none of this name."""
    for known in PROFILES:
        if name == known:
            return known
    msg = f"no storage profile {name!r}. There are: {', '.join(PROFILES)}."
    raise SampleError(msg)


def stored_dtype(profile: ProfileName, dtype: str) -> str:
    """Return the data type in which a profile stores a site.

    `portable` widens float16 and bfloat16 to float32, which loses nothing; float64 stays.
    """
    return "float32" if profile == "portable" and dtype in WIDENED else dtype


@dataclass(frozen=True, slots=True)
class ChunkCodec:
    """How a compressing profile stores one inner chunk."""

    compressor: Literal["lz4", "zstd"]
    """Library inside Blosc."""
    level: int
    """Effort, 1 to 9."""
    transposed: bool
    """Whether all values of a feature stand together, not all features of a row."""
    rows: int
    """Rows of the chunk."""
    width: int
    """Features."""
    itemsize: int
    """Bytes of one value."""

    @property
    def chunk_bytes(self) -> int:
        """Bytes of the chunk before compression."""
        return self.rows * self.width * self.itemsize

    @property
    def max_bytes(self) -> int:
        """Most bytes that a compressed chunk can have without its checksum."""
        return self.chunk_bytes + BLOSC_HEADER_BYTES

    @property
    def min_bytes(self) -> int:
        """Fewest bytes that a compressed chunk can have without its checksum."""
        return BLOSC_HEADER_BYTES

    def metadata(self, plain: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the Zarr codecs around `plain`, the codec from values to bytes."""
        configuration = {
            "typesize": self.itemsize,
            "cname": self.compressor,
            "clevel": self.level,
            "shuffle": "bitshuffle",
            "blocksize": 0,
        }
        codecs = [plain, {"name": "blosc", "configuration": configuration}]
        if self.transposed:
            codecs.insert(0, {"name": "transpose", "configuration": {"order": [0, 2, 1]}})
        return codecs

    def encode(self, chunk: np.ndarray) -> np.ndarray:
        """Return a whole chunk, uint8 `[chunk_bytes]`, compressed."""
        if self.transposed:
            chunk = self._turned(chunk, self.rows, self.width)
        packed = _blosc().compress(
            chunk,
            self.compressor.encode(),
            self.level,
            shuffle=_BITSHUFFLE,
            blocksize=0,
            typesize=self.itemsize,
        )
        return np.frombuffer(packed, np.uint8)

    def decode(self, packed: np.ndarray, out: np.ndarray) -> None:
        """Decompress a chunk into `out`, uint8 `[chunk_bytes]`.

        Raises
        ------
        DamagedStoreError
            If the chunk is not one of this profile, or would become larger or smaller.
        """
        self._check_header(packed)
        target = np.empty_like(out) if self.transposed else out
        try:
            _blosc().decompress(packed, target)
        except (RuntimeError, ValueError) as error:
            msg = f"a compressed chunk cannot be decompressed: {error}"
            raise DamagedStoreError(msg) from error
        if self.transposed:
            out[:] = self._turned(target, self.width, self.rows)

    def _turned(self, chunk: np.ndarray, rows: int, columns: int) -> np.ndarray:
        """Return the bytes of a matrix of values with its axes exchanged."""
        values = chunk.view(f"u{self.itemsize}").reshape(rows, columns)
        return np.ascontiguousarray(values.T).reshape(-1).view(np.uint8)

    def _check_header(self, packed: np.ndarray) -> None:
        if packed.size < BLOSC_HEADER_BYTES:
            msg = f"a compressed chunk has {packed.size} bytes, less than its header"
            raise DamagedStoreError(msg)
        version, _, flags, typesize = packed[:4].tolist()
        size, block, packed_size = packed[4:BLOSC_HEADER_BYTES].view("<u4").tolist()
        if size != self.chunk_bytes:
            msg = (
                f"a compressed chunk would become {size} bytes, the capture declares "
                f"{self.chunk_bytes}: it was not decompressed"
            )
            raise DamagedStoreError(msg)
        sound = (
            version == _BLOSC_FORMAT
            and flags >> 5 == _BLOSC_NUMBERS[self.compressor]
            and typesize == self.itemsize
            and 0 < block <= size
            and packed_size == packed.size
        )
        if not sound:
            msg = "the header of a compressed chunk is not one that this profile writes"
            raise DamagedStoreError(msg)


def chunk_codec(profile: ProfileName, *, rows: int, width: int, itemsize: int) -> ChunkCodec | None:
    """Return how a profile compresses chunks of this size; None where it stores them raw."""
    if profile == "compact":
        return ChunkCodec("lz4", 5, transposed=False, rows=rows, width=width, itemsize=itemsize)
    if profile == "archive":
        return ChunkCodec("zstd", 5, transposed=True, rows=rows, width=width, itemsize=itemsize)
    return None


@cache
def _blosc() -> ModuleType:
    """Return numcodecs' Blosc, set to work in the calling thread.

    Its own threads share one state under one lock; ours each compress for themselves. zarr sets
    the same switch when it is imported.
    """
    blosc = import_module("numcodecs.blosc")
    blosc.use_threads = False  # pyright: ignore[reportAttributeAccessIssue]
    return blosc
