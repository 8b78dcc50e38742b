"""The rules for results of analyses: the whole folder is checked before zarr and xarray see it.

Results have no commit records, and zarr unpacks what a chunk says. So every chunk is measured
first: a compressed one must say its size, which must be the one that the metadata declare (1.8 kB
of zstd can hold 2 GB).
"""

from __future__ import annotations

import math
import re
from itertools import product
from pathlib import Path

import numpy as np

from .errors import DamagedStoreError
from .guard import (
    MAX_ARRAYS,
    BrokenRule,
    no_twins,
    parse_json,
    require,
)
from .inside import check_tree, opened, read_inside
from .layout import NAME_PATTERN
from .node_rules import ArrayRules, check_array, check_group
from .shards import CRC_BYTES
from .strings import decode_strings

MAX_UNWRITTEN_BYTES = 64 * 2**20
"""Of all chunks that are not there (they read as the fill value), over all arrays."""
MAX_RESULTS_BYTES = 2**30
"""Of all arrays, uncompressed."""
MAX_RESULTS_CHUNKS = 10**5
"""Of all arrays; zarr asks for each, whether it is there or not."""
MAX_STRING_BYTES = 64 * 2**20
"""Of one chunk of strings, uncompressed."""
_NAME = re.compile(NAME_PATTERN)
_ZSTD = b"\x28\xb5\x2f\xfd"
_SERIALIZERS = {"bytes", "vlen-utf8"}


def check_results(root: Path) -> list[str]:
    """Return the names of the tables in a folder of results, everything in it checked.

    Raises
    ------
    DamagedStoreError
        Names the file and the rule that it breaks.
    """
    check_tree(root)
    budget = _Budget()
    try:
        _check_folder(root, "", budget)
    except BrokenRule as error:
        msg = f"{root} does not hold results of lorascope: {error}"
        raise DamagedStoreError(msg) from error
    return sorted(p.name for p in root.iterdir() if (p / "zarr.json").is_file())


class _Budget:
    """What all arrays together may still take."""

    def __init__(self) -> None:
        self.arrays = MAX_ARRAYS
        self.chunks = MAX_RESULTS_CHUNKS
        self.bytes = MAX_RESULTS_BYTES
        self.unwritten = MAX_UNWRITTEN_BYTES

    def take_chunks(self, array: str, count: int) -> None:
        """Count the chunks of one array."""
        self.chunks -= count
        require(self.chunks >= 0, f"{array}: results have more than {MAX_RESULTS_CHUNKS} chunks")

    def take(self, array: str, *, there: int, absent: int) -> None:
        """Count one array."""
        self.arrays -= 1
        self.bytes -= there + absent
        self.unwritten -= absent
        require(self.arrays >= 0, f"there are more than {MAX_ARRAYS} arrays")
        require(self.bytes >= 0, f"{array}: results have more than {MAX_RESULTS_BYTES} bytes")
        limit = f"{array}: more than {MAX_UNWRITTEN_BYTES} bytes of results are not written"
        require(self.unwritten >= 0, limit)


def _check_folder(root: Path, folder: str, budget: _Budget) -> None:
    below = f"{folder}/" if folder else ""
    node = _node(root, f"{below}zarr.json")
    if folder and isinstance(node, dict) and node.get("node_type") == "array":
        try:
            rules = check_array(node)
        except BrokenRule as error:
            msg = f"{folder}: {error}"
            raise BrokenRule(msg) from error
        _check_chunks(root, folder, rules, budget)
        return
    check_group(node)
    consolidated = node.get("consolidated_metadata") if isinstance(node, dict) else None
    require(consolidated is None, f"{below}zarr.json holds consolidated metadata")
    names = [path.name for path in (root / folder).iterdir() if path.is_dir()]
    for name in names:
        require(_NAME.fullmatch(name), f"{below}{name} is not an allowed name")
    no_twins(names, f"folders in {folder or 'the root'}")
    for name in sorted(names):
        if (root / below / name / "zarr.json").exists():
            _check_folder(root, f"{below}{name}", budget)


def _node(root: Path, path: str) -> object:
    try:
        return parse_json(read_inside(root, path))
    except BrokenRule as error:
        msg = f"{path}: {error}"
        raise BrokenRule(msg) from error


def _check_chunks(root: Path, folder: str, rules: ArrayRules, budget: _Budget) -> None:
    serializer, *packing = rules.codecs
    plain = serializer in _SERIALIZERS and packing in ([], ["zstd"], ["crc32c"])
    require(plain, f"{folder}: codecs {', '.join(rules.codecs)} are not those of results")
    strings = rules.dtype == "string"
    require((serializer == "vlen-utf8") == strings, f"{folder}: codecs and data type do not fit")
    declared = math.prod(rules.chunk) * rules.item_bytes
    budget.take_chunks(folder, math.prod(rules.grid))
    there = absent = 0
    for index in product(*map(range, rules.grid)):
        path = f"{folder}/{rules.separator.join(['c', *map(str, index)])}"
        if not (root / path).exists():
            absent += declared
            require(absent <= budget.unwritten, f"{folder}: too much of it is not written")
        else:
            there += _check_chunk(root, path, rules, None if strings else declared)
    budget.take(folder, there=there, absent=absent)


def _check_chunk(root: Path, path: str, rules: ArrayRules, declared: int | None) -> int:
    """Return the bytes of a chunk when it is unpacked; `declared` is None for strings."""
    with opened(root, path) as (_, stored):
        size = stored
    if "crc32c" in rules.codecs:
        size -= CRC_BYTES
    if "zstd" in rules.codecs:
        size = _zstd_size(read_inside(root, path, MAX_STRING_BYTES), path)
    if declared is not None:
        require(size == declared, f"{path} holds {size} bytes, the metadata say {declared}")
        return size
    require(size <= MAX_STRING_BYTES, f"{path} has more than {MAX_STRING_BYTES} bytes of strings")
    content = read_inside(root, path, MAX_STRING_BYTES)
    if "zstd" in rules.codecs:
        content = _unpack(content, path, size)
    elif "crc32c" in rules.codecs:
        content = content[:-CRC_BYTES]
    slots = math.prod(rules.chunk)
    decode_strings(content, slots=slots, used=slots)
    return size + slots * rules.item_bytes


def _zstd_size(content: bytes, path: str) -> int:
    """Return what the header of the only zstd frame says its content has (RFC 8878, 3.1.1)."""
    require(content[:4] == _ZSTD and len(content) > 5, f"{path} is not zstd")
    descriptor = content[4]
    flag, single = descriptor >> 6, descriptor >> 5 & 1
    length = (1 if single else 0, 2, 4, 8)[flag]
    require(length, f"{path} does not say how large it is")
    start = 5 + (0 if single else 1) + (0, 1, 2, 4)[descriptor & 3]
    field = content[start : start + length]
    require(len(field) == length, f"{path} is cut off")
    return int.from_bytes(field, "little") + (256 if length == 2 else 0)


def _unpack(content: bytes, path: str, size: int) -> bytes:
    from numcodecs.zstd import decompress

    out = np.empty(size, np.uint8)
    try:
        decompress(content, out)
    except (RuntimeError, ValueError) as error:
        msg = f"{path} cannot be unpacked"
        raise BrokenRule(msg) from error
    return out.tobytes()
