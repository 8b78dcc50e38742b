"""The rules for one `zarr.json`: what Zarr and xarray may see of a store that anybody has made."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .guard import (
    INT64,
    ITEM_BYTES,
    MAX_CHUNK_BYTES,
    MAX_CHUNKS,
    MAX_RANK,
    items,
    require,
    table,
    text,
    whole,
)

_NODE_KEYS = {
    "group": {"zarr_format", "node_type", "attributes", "consolidated_metadata"},
    "array": {
        "zarr_format",
        "node_type",
        "shape",
        "data_type",
        "chunk_grid",
        "chunk_key_encoding",
        "fill_value",
        "codecs",
        "attributes",
        "dimension_names",
        "storage_transformers",
    },
}
_CODEC_KEYS = {
    "bytes": {"endian"},
    "transpose": {"order"},
    "blosc": {"typesize", "cname", "clevel", "shuffle", "blocksize"},
    "zstd": {"level", "checksum"},
    "crc32c": set(),
    "sharding_indexed": {"chunk_shape", "codecs", "index_codecs", "index_location"},
    "vlen-utf8": set(),
}
"""The codecs that may stand in a store, with the keys of their configuration."""


@dataclass(frozen=True, slots=True)
class ArrayRules:
    """What `check_array` learned of an array."""

    shape: tuple[int, ...]
    """Shape."""
    chunk: tuple[int, ...]
    """Shape of one file."""
    dtype: str
    """Name of the data type."""
    item_bytes: int
    """Bytes of one value."""
    codecs: tuple[str, ...]
    """Names of the codecs, in order."""
    separator: str
    """Separator of chunk keys."""

    @property
    def grid(self) -> tuple[int, ...]:
        """Chunks along each axis."""
        return tuple(-(-size // part) for size, part in zip(self.shape, self.chunk, strict=True))


def check_group(node: object) -> dict[str, Any]:
    """Return the attributes of a group's metadata."""
    body = _check_head(node, "group")
    return table(body.get("attributes", {}), "attributes")


def check_array(node: object) -> ArrayRules:
    """Return what matters of an array's metadata, all of it checked."""
    body = _check_head(node, "array")
    shape = _sizes(body.get("shape"), "shape", low=0)
    dtype, item_bytes = _check_dtype(body.get("data_type"))
    grid = _named(body.get("chunk_grid"), "chunk_grid", {"regular"}, {"chunk_shape"})
    chunk = _sizes(grid[1].get("chunk_shape"), "chunk_shape", low=1)
    require(len(chunk) == len(shape), "chunk_shape and shape differ in rank")
    keys = _named(body.get("chunk_key_encoding"), "chunk_key_encoding", {"default"}, {"separator"})
    separator = keys[1].get("separator", "/")
    require(separator in ("/", "."), "the separator is neither / nor .")
    codecs = _check_codecs(body.get("codecs"), chunk, item_bytes)
    table(body.get("attributes", {}), "attributes")
    names = body.get("dimension_names")
    for dimension in [] if names is None else items(names, "dimension_names", MAX_RANK):
        require(dimension is None or type(dimension) is str, "a dimension name is not a string")
    require(names is None or len(names) == len(shape), "dimension_names and shape differ in rank")
    fill = body.get("fill_value")
    require(type(fill) in (bool, int, float, str), "fill_value is not a scalar")
    require(not body.get("storage_transformers"), "storage transformers are not allowed")
    rules = ArrayRules(shape, chunk, dtype, item_bytes, codecs, separator)
    require(math.prod(rules.grid) <= MAX_CHUNKS, f"it has more than {MAX_CHUNKS} chunks")
    return rules


def _check_head(node: object, kind: str) -> dict[str, Any]:
    body = table(node, "the metadata")
    require(type(body.get("zarr_format")) is int and body["zarr_format"] == 3, "zarr_format not 3")
    require(body.get("node_type") == kind, f"node_type is not {kind!r}")
    unknown = body.keys() - _NODE_KEYS[kind]
    require(not unknown, f"the metadata have an unknown key {min(unknown, default='')!r}")
    return body


def _named(
    value: object, what: str, names: set[str], keys: set[str]
) -> tuple[str, Mapping[str, Any]]:
    """Return name and configuration of one of Zarr's extension points."""
    if type(value) is str:
        value = {"name": value}
    body = table(value, what)
    require(body.keys() <= {"name", "configuration"}, f"{what} has unknown keys")
    known = text(body.get("name"), f"the name of {what}")
    require(known in names, f"{what} {known[:80]!r} is not allowed")
    configuration = table(body.get("configuration", {}), f"the configuration of {what}")
    require(configuration.keys() <= keys, f"{what} has unknown configuration keys")
    return known, configuration


def _check_dtype(value: object) -> tuple[str, int]:
    if type(value) is dict:
        known, configuration = _named(value, "data_type", {"fixed_length_utf32"}, {"length_bytes"})
        size = whole(configuration.get("length_bytes"), "length_bytes", 4, 2**20)
        require(size % 4 == 0, "length_bytes is no multiple of 4")
        return known, size
    known = text(value, "data_type")
    require(known in ITEM_BYTES, f"data type {known[:80]!r} is not allowed")
    return known, ITEM_BYTES[known]


def _check_codecs(
    value: object, chunk: Sequence[int], item_bytes: int, *, inside: bool = False
) -> tuple[str, ...]:
    names = []
    for codec in items(value, "codecs", 8):
        known, configuration = _named(codec, "codec", set(_CODEC_KEYS), _codec_keys(codec))
        names.append(known)
        for key, option in configuration.items():
            plain = type(option) in (int, str, bool)
            require(plain or known in ("transpose", "sharding_indexed"), f"{known}: bad {key}")
        if known == "transpose":
            order = items(configuration.get("order"), "order", MAX_RANK)
            axes = [whole(axis, "an axis", 0, MAX_RANK) for axis in order]
            require(sorted(axes) == list(range(len(chunk))), "order is no permutation of the axes")
        if known == "sharding_indexed":
            require(not inside, "a shard inside a shard is not allowed")
            _check_shard(configuration, chunk, item_bytes)
    require(names, "there is no codec")
    if "sharding_indexed" not in names:
        size = math.prod(chunk) * item_bytes
        require(size <= MAX_CHUNK_BYTES, f"a chunk has more than {MAX_CHUNK_BYTES} bytes")
    return tuple(names)


def _codec_keys(codec: object) -> set[str]:
    known = codec.get("name") if type(codec) is dict else None
    return _CODEC_KEYS.get(known, set()) if type(known) is str else set()


def _check_shard(configuration: Mapping[str, Any], chunk: Sequence[int], item_bytes: int) -> None:
    inner = _sizes(configuration.get("chunk_shape"), "chunk_shape of the shard", low=1)
    divides = len(inner) == len(chunk) and not any(a % b for a, b in zip(chunk, inner, strict=True))
    require(divides, "the inner chunk does not divide the shard")
    count = math.prod(a // b for a, b in zip(chunk, inner, strict=True))
    require(count <= MAX_CHUNKS, f"a shard has more than {MAX_CHUNKS} chunks")
    _check_codecs(configuration.get("codecs"), inner, item_bytes, inside=True)
    index = _check_codecs(configuration.get("index_codecs"), (count, 2), 8, inside=True)
    require(set(index) <= {"bytes", "crc32c"}, "the index of a shard may not be compressed")
    where = configuration.get("index_location", "end")
    require(where in ("start", "end"), "index_location is neither start nor end")


def _sizes(value: object, what: str, *, low: int) -> tuple[int, ...]:
    sizes = items(value, what, MAX_RANK)
    return tuple(whole(size, f"a size in {what}", low, INT64) for size in sizes)
