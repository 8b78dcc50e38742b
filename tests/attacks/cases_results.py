"""Attacks by results of analyses, which zarr and xarray read: nothing of them is signed."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from typing import Any

from numcodecs.zstd import compress

from .attack import Attacks
from .forge import Forge

ATTACKS = attack = Attacks()
ARRAY = "cka/value"


def at(forge: Forge) -> Forge:
    """Return the same tools for the folder of results."""
    return Forge(forge.results, forge.results, forge.outside)


def node(
    change: Callable[[dict[str, Any]], object], path: str = ARRAY
) -> Callable[[Forge], object]:
    """Return an attack on one `zarr.json` of the results."""
    return lambda forge: at(forge).metadata(f"{path}/zarr.json", change)


def put(path: str = ARRAY, **values: object) -> Callable[[Forge], object]:
    """Return an attack that sets keys of one `zarr.json`."""
    return node(lambda body: body.update(values), path)


def chunk(content: bytes, path: str = "cka/value/c/0") -> Callable[[Forge], object]:
    """Return an attack that replaces one chunk."""
    return lambda forge: at(forge).put(path, content)


def codec(name: str, **configuration: object) -> dict[str, object]:
    return {"name": name, "configuration": configuration}


def shard(*inner: dict[str, object], shape: tuple[int, ...] = (3,)) -> dict[str, object]:
    return codec(
        "sharding_indexed",
        chunk_shape=list(shape),
        codecs=list(inner),
        index_codecs=[BYTES, {"name": "crc32c"}],
    )


BYTES = codec("bytes", endian="little")
GRID = {"name": "regular", "configuration": {"chunk_shape": [3]}}


def grid(*shape: object) -> dict[str, object]:
    return {"name": "regular", "configuration": {"chunk_shape": list(shape)}}


def strings(data: bytes) -> Callable[[Forge], object]:
    return chunk(compress(data), "cka/word/c/0")


attack.table(
    "results",
    "codecs: only those of the list, at any depth",
    {
        "pickle_codec": put(codecs=[{"name": "numcodecs.pickle"}]),
        "wrapped_codec": put(codecs=[BYTES, codec("numcodecs.zlib", level=1)]),
        "gzip_codec": put(codecs=[BYTES, codec("gzip", level=1)]),
        "codec_by_module": put(codecs=[{"name": "os.system"}]),
        "codec_in_a_shard": put(codecs=[shard({"name": "numcodecs.pickle"})]),
        "shard_in_a_shard": put(codecs=[shard(shard(BYTES))]),
        "compressed_index": put(
            codecs=[
                codec(
                    "sharding_indexed",
                    chunk_shape=[3],
                    codecs=[BYTES],
                    index_codecs=[BYTES, codec("zstd", level=1)],
                )
            ]
        ),
        "no_codecs": put(codecs=[]),
        "codecs_is_an_object": put(codecs={}),
        "codec_is_a_number": put(codecs=[5]),
        "many_codecs": put(codecs=[BYTES] * 1000),
        "codec_with_more_keys": put(codecs=[codec("bytes", endian="little", evil=1)]),
        "codec_order_is_wrong": put(codecs=[codec("zstd", level=1), BYTES]),
    },
)
attack.table(
    "results",
    "data types: only those of the list",
    {
        "result_dtype_object": put(data_type="object"),
        "dtype_raw": put(data_type="r64"),
        "dtype_numpy_void": put(data_type={"name": "structured", "configuration": {"fields": []}}),
        "dtype_dates": put(data_type={"name": "numpy.datetime64", "configuration": {}}),
        "dtype_is_null": put(data_type=None),
        "dtype_is_a_list": put(data_type=["float64"]),
        "dtype_long_text": put(
            data_type={"name": "fixed_length_utf32", "configuration": {"length_bytes": 2**40}}
        ),
        "dtype_half_text": put(
            data_type={"name": "fixed_length_utf32", "configuration": {"length_bytes": 6}}
        ),
        "dtype_is_another": put(data_type="float32"),
    },
)
attack.table(
    "results",
    "caps before anything is allocated: rank, chunk, chunks, bytes",
    {
        "shape_of_an_exabyte": put(shape=[2**57], chunk_grid=grid(2**57)),
        "shape_of_a_gib_unwritten": put(shape=[2**27], chunk_grid=grid(2**20)),
        "chunk_of_a_gib": put(chunk_grid=grid(2**27)),
        "many_chunks": put(shape=[10**7], chunk_grid=grid(1)),
        "too_many_chunks": put(shape=[10**9], chunk_grid=grid(1)),
        "chunk_is_zero": put(chunk_grid=grid(0)),
        "chunk_is_negative": put(chunk_grid=grid(-3)),
        "chunk_is_text": put(chunk_grid=grid("3")),
        "chunk_of_another_rank": put(chunk_grid=grid(3, 1)),
        "shape_is_negative": put(shape=[-3]),
        "shape_is_true": put(shape=[True]),
        "shape_is_text": put(shape="3"),
        "shape_is_null": put(shape=None),
        "rank_9": put(shape=[1] * 9, chunk_grid=grid(*[1] * 9), dimension_names=None),
        "grid_other": put(chunk_grid={"name": "rectangular", "configuration": {}}),
        "separator_other": put(
            chunk_key_encoding={"name": "default", "configuration": {"separator": "/../"}}
        ),
        "keys_of_format_2": put(chunk_key_encoding={"name": "v2"}),
    },
)
attack.table(
    "results",
    "the rest of the metadata",
    {
        "result_format_2": put(zarr_format=2),
        "result_node_unknown": put(node_type="link"),
        "result_transformers": put(storage_transformers=[{"name": "evil"}]),
        "result_extension": put(evil={"must_understand": True}),
        "result_fill_is_an_object": put(fill_value={"a": 1}),
        "result_fill_is_another": put(fill_value="x"),
        "result_names_are_numbers": put(dimension_names=[5]),
        "result_names_are_many": put(dimension_names=["a", "b"]),
        "result_attributes_is_a_list": put(attributes=[]),
        "result_group_format_2": put("cka", zarr_format=2),
        "result_consolidated": put(
            "cka", consolidated_metadata={"kind": "inline", "metadata": {"x": {}}}
        ),
        "result_nested": lambda f: at(f).put(f"{ARRAY}/zarr.json", b"[" * 10**6),
        "result_large": lambda f: at(f).put(f"{ARRAY}/zarr.json", b" " * 17 * 2**20),
        "result_with_nan": lambda f: at(f).put(f"{ARRAY}/zarr.json", b'{"fill_value": NaN}'),
        "result_key_twice": lambda f: at(f).put("cka/zarr.json", b'{"a": 1, "a": 1}'),
        "result_root_is_an_array": lambda f: at(f).put(
            "zarr.json", (f.results / "cka/value/zarr.json").read_bytes()
        ),
        "result_of_bad_dates": put(attributes={"units": "days since the flood"}),
        "result_of_bad_scale": put(attributes={"scale_factor": "x", "add_offset": []}),
        "result_of_other_length": put(shape=[2], chunk_grid=GRID),
    },
)
attack.table(
    "results",
    "no link, pipe or other name is followed",
    {
        "result_elsewhere": lambda f: at(f).move_out("cka"),
        "result_array_elsewhere": lambda f: at(f).move_out(ARRAY),
        "result_chunk_elsewhere": lambda f: at(f).move_out("cka/value/c/0"),
        "result_metadata_elsewhere": lambda f: at(f).move_out("cka/zarr.json"),
        "result_chunk_is_a_pipe": lambda f: os.mkfifo(at(f).clear("cka/value/c/0")),
        "result_metadata_is_a_pipe": lambda f: os.mkfifo(at(f).clear("cka/zarr.json")),
        "result_chunk_is_a_folder": lambda f: at(f).clear("cka/value/c/0").mkdir(),
        "result_is_hidden": lambda f: at(f).put(".evil/zarr.json", json.dumps(GROUP).encode()),
        "result_twin": lambda f: at(f).put("CKA/zarr.json", json.dumps(GROUP).encode()),
        "result_deep": lambda f: (f.results / ("cka/" + "d/" * 40)).mkdir(parents=True),
    },
)
GROUP = {"zarr_format": 3, "node_type": "group", "attributes": {}}
attack.table(
    "results",
    "a chunk unpacks to what the metadata declare",
    {
        "bomb": lambda f: at(f).put("cka/value/c/0", bomb(2**28)),
        "bomb_without_a_size": chunk(b"\x28\xb5\x2f\xfd\x00\x58" + bytes(20)),
        "bomb_that_lies": chunk(compress(bytes(10**6)).replace(b"x", b"x")),
        "size_of_an_exabyte": chunk(b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 2**60) + bytes(9)),
        "size_is_cut": chunk(b"\x28\xb5\x2f\xfd\xe0\x01"),
        "not_zstd": chunk(b"not zstd at all, but long"),
        "empty_chunk": chunk(b""),
        "zstd_of_another_size": chunk(compress(bytes(32))),
        "zstd_damaged": chunk(compress(os.urandom(24))[:-3]),
        "strings_of_results_4e9": strings(struct.pack("<I", 2**32 - 1)),
        "strings_of_results_too_few": strings(struct.pack("<II", 1, 0)),
        "string_of_results_4_gib": strings(struct.pack("<II", 3, 2**32 - 1) + bytes(8)),
        "strings_of_results_bad_utf8": strings(struct.pack("<IIIIB", 3, 0, 0, 1, 255)),
        "strings_of_results_bomb": lambda f: at(f).put("cka/word/c/0", bomb(2**28)),
    },
)


def bomb(size: int) -> bytes:
    """Return zeros that were compressed well."""
    return bytes(compress(bytes(size // 8)))
