"""Attacks by forged commit records: each carries a right checksum and a right chain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .attack import Attacks
from .forge import Forge, sealed

ATTACKS = attack = Attacks()
type Body = dict[str, Any]
HUGE = 2**62


def segment(
    change: Callable[[Body], object], *, capture: str = "base"
) -> Callable[[Forge], object]:
    """Return an attack that changes the body of the first segment's record."""
    return lambda forge: forge.record("segment", change, capture=capture)


def parameters(change: Callable[[Body], object]) -> Callable[[Forge], object]:
    """Return an attack that changes the record of a parameter set."""
    return lambda forge: forge.record("parameters", change)


def put(*path: str | int, value: object) -> Callable[[Body], object]:
    """Return a change that sets one value, however deep."""

    def change(body: Any) -> None:
        for key in path[:-1]:
            body = body[key]
        body[path[-1]] = value

    return change


def drop(*path: str | int) -> Callable[[Body], object]:
    """Return a change that removes one key."""

    def change(body: Any) -> None:
        for key in path[:-1]:
            body = body[key]
        del body[path[-1]]

    return change


SHARD = "captures/base/sites/resid_post/values/c.0.0.0"


def file(key: str, value: Any, path: str = SHARD) -> Callable[[Forge], object]:
    """Return an attack that lies about one file of the first segment."""

    def change(body: Body) -> None:
        next(f for f in body["files"] if f["path"] == path)[key] = value

    return segment(change, capture=path.split("/")[1])


PACKED = "captures/packed/sites/resid_post/values/c.0.0.0"


def packed(key: str, value: Any) -> Callable[[Forge], object]:
    """Return an attack that lies about a shard of compressed chunks."""
    return file(key, value, PACKED)


def no_slots(body: Body) -> None:
    del next(f for f in body["files"] if f["path"] == PACKED)["slots"]


attack.table(
    "open",
    "compressed chunks: slots are those of the shard, sizes what the codec can make",
    {
        "slots_too_many": packed("slots", 5),
        "slots_too_few": packed("slots", 3),
        "slots_none": packed("slots", 0),
        "slots_left_out": segment(no_slots, capture="packed"),
        "slots_negative": packed("slots", -1),
        "slots_huge": packed("slots", HUGE),
        "slots_true": packed("slots", value=True),
        "slots_text": packed("slots", "1"),
        "slots_null": packed("slots", None),
        "slots_of_raw_chunks": file("slots", 1),
        "packed_chunk_bytes_huge": packed("chunk_bytes", 2**28),
        "packed_chunk_bytes_small": packed("chunk_bytes", 1),
        "packed_no_chunks": packed("chunks", []),
        "packed_more_chunks": packed("chunks", [1, 2, 3]),
        "packed_fewer_chunks": packed("chunks", [1]),
        "packed_size_huge": packed("size", 2**33),
        "packed_size_that_no_codec_makes": packed("size", 205),
        "packed_size_of_an_index": packed("size", 24),
    },
)


attack.table(
    "open",
    "every field of a record has its type and its limits",
    {
        "kind_unknown": segment(put("kind", value="evil")),
        "kind_is_a_list": segment(put("kind", value=["segment"])),
        "capture_is_a_number": segment(put("capture", value=7)),
        "capture_goes_up": segment(put("capture", value="../base")),
        "capture_is_hidden": segment(put("capture", value=".base")),
        "capture_is_unknown": segment(put("capture", value="nobody")),
        "version_is_true": segment(put("version", value=[1])),
        "version_is_newer": segment(put("version", value=2)),
        "writer_is_a_list": segment(put("writer", value=["w0"])),
        "writer_is_a_path": segment(put("writer", value="../w0")),
        "number_is_negative": segment(put("number", value=-1)),
        "number_is_huge": segment(put("number", value=HUGE)),
        "number_is_true": segment(put("number", value=True)),
        "number_is_text": segment(put("number", value="2")),
        "no_number": lambda f: f.sign([{**f.bodies()[0], "number": None}]),
        "no_files": segment(drop("files")),
        "files_is_an_object": segment(put("files", value={})),
        "a_file_is_a_list": segment(put("files", 0, value=["path"])),
        "no_attrs": segment(drop("attrs")),
        "attrs_is_a_list": segment(put("attrs", value=[])),
        "no_samples": segment(drop("samples")),
        "samples_are_empty": segment(put("samples", value=[])),
        "samples_is_an_object": segment(put("samples", value={"id": "x", "rows": {}})),
        "a_sample_is_text": segment(put("samples", 0, value="utt-0")),
        "id_is_a_number": segment(put("samples", 0, "id", value=5)),
        "id_is_null": segment(put("samples", 0, "id", value=None)),
        "id_twice": segment(put("samples", 0, "id", value="utt-1")),
        "id_of_another_segment": segment(put("samples", 0, "id", value="utt-3")),
        "no_rows": segment(drop("samples", 0, "rows")),
        "rows_is_a_list": segment(put("samples", 0, "rows", value=[0, 3])),
        "rows_are_text": segment(put("samples", 0, "rows", "tokens", value="03")),
        "rows_have_one_number": segment(put("samples", 0, "rows", "tokens", value=[0])),
        "rows_have_three_numbers": segment(put("samples", 0, "rows", "tokens", value=[0, 3, 9])),
        "rows_are_true": segment(put("samples", 0, "rows", "tokens", value=[False, 3])),
        "rows_are_half": segment(put("samples", 0, "rows", "tokens", value=[0, 3.5])),
        "rows_are_null": segment(put("samples", 0, "rows", "tokens", value=[0, None])),
        "rows_are_negative": segment(put("samples", 0, "rows", "tokens", value=[0, -3])),
        "rows_overflow": segment(put("samples", 0, "rows", "tokens", value=[0, HUGE])),
        "rows_overflow_together": segment(put("samples", 0, "rows", "tokens", value=[HUGE, HUGE])),
        "segment_is_negative": segment(put("segment", value=-1)),
        "segment_is_absurd": segment(put("segment", value=HUGE)),
        "segment_is_text": segment(put("segment", value="0")),
        "segment_is_null": segment(put("segment", value=None)),
        "segment_is_a_float": segment(put("segment", value=0.0)),
        "segment_is_true": segment(put("segment", value=False)),
        "columns_is_a_list": segment(put("attrs", "columns", value=["take"])),
        "no_columns": segment(drop("attrs", "columns")),
        "a_column_goes_up": segment(put("attrs", "columns", "../x", value="string")),
        "a_column_of_objects": segment(put("attrs", "columns", "take", value="object")),
        "a_column_of_lists": segment(put("attrs", "columns", "take", value=["int64"])),
        "a_column_twin": segment(put("attrs", "columns", "TAKE", value="int64")),
        "many_columns": segment(
            put("attrs", "columns", value={f"c{n}": "int64" for n in range(200_000)})
        ),
        "groups_is_text": segment(put("attrs", "groups", value="speaker")),
        "groups_are_numbers": segment(put("attrs", "groups", value=[1])),
        "groups_are_lists": segment(put("attrs", "groups", value=[["speaker"]])),
        "no_groups": segment(drop("attrs", "groups")),
        "used_is_a_list": segment(put("attrs", "used", value=[8])),
        "used_is_negative": segment(put("attrs", "used", "tokens", value=-8)),
        "used_is_text": segment(put("attrs", "used", "tokens", value="8")),
        "no_used": segment(drop("attrs", "used")),
        "no_previous": segment(drop("previous")),
        "previous_is_a_number": lambda f: f.sign(
            [f.bodies()[0], {**f.bodies()[1], "previous": "keep"}]
        ),
    },
)
attack.table(
    "open",
    "sizes and checksums of files are whole numbers within limits",
    {
        "size_is_negative": file("size", -1),
        "size_is_huge": file("size", HUGE),
        "size_is_text": file("size", "208"),
        "size_is_true": file("size", value=True),
        "size_is_null": file("size", None),
        "crc_is_negative": file("crc32c", -5),
        "crc_is_too_large": file("crc32c", 2**32),
        "crc_is_text": file("crc32c", "0"),
        "chunks_is_text": file("chunks", "123"),
        "chunks_is_a_number": file("chunks", 3),
        "chunks_is_empty": file("chunks", []),
        "chunks_are_text": file("chunks", ["1"]),
        "chunks_are_true": file("chunks", [True]),
        "chunks_are_negative": file("chunks", [-1]),
        "chunks_are_many": file("chunks", [1] * 100_000),
        "chunks_are_too_many": file("chunks", [1] * 600_000),
        "chunk_bytes_is_negative": file("chunk_bytes", -4),
        "chunk_bytes_is_huge": file("chunk_bytes", HUGE),
        "chunk_bytes_is_zero": file("chunk_bytes", 0),
        "chunk_bytes_is_text": file("chunk_bytes", "24"),
        "path_is_a_list": file("path", [SHARD]),
        "path_is_absolute": file("path", "/etc/passwd"),
        "path_goes_up": file("path", "captures/base/../../../etc/passwd"),
        "path_has_a_zero": file("path", "captures/base/x\0y"),
        "path_has_an_escape": file("path", "captures/base/\x1b[2J"),
        "path_is_long": file("path", "captures/base/" + "/".join(["x" * 100] * 12)),
        "path_is_deep": file("path", "captures/base/" + "/".join("x" * 30)),
        "path_of_another_capture": file("path", SHARD.replace("base", "live")),
        "path_of_a_record": file("path", "__commits__/w0-000000.json"),
        "path_twice": segment(lambda b: b["files"].append(b["files"][0])),
        "path_with_other_case": segment(
            lambda b: b["files"].append({**b["files"][0], "path": b["files"][0]["path"].upper()})
        ),
    },
)
attack.table(
    "open",
    "records fit the definition of their capture",
    {
        "segment_twice": lambda f: f.sign([*f.bodies(), {**last(f), "number": len(f.bodies())}]),
        "segment_beyond_the_plan": segment(put("segment", value=5)),
        "capture_twice": lambda f: f.sign(
            [*f.bodies(), {**f.bodies()[0], "number": len(f.bodies())}]
        ),
        "no_capture": lambda f: f.sign([{**b, "number": n} for n, b in enumerate(f.bodies()[1:])]),
        "other_configuration": segment(put("attrs", "config_digest", value="0" * 64)),
        "capture_of_other_configuration": lambda f: f.record(
            "capture", put("attrs", "config_digest", value="0" * 64)
        ),
        "rows_outside_the_segment": segment(put("samples", 0, "rows", "tokens", value=[0, 10**6])),
        "rows_of_another_segment": segment(put("samples", 0, "rows", "tokens", value=[10**6, 3])),
        "rows_overlap": segment(put("samples", 1, "rows", "tokens", value=[0, 5])),
        "rows_of_no_stream": segment(put("samples", 0, "rows", "frames", value=[0, 3])),
        "no_stream": segment(put("samples", 0, "rows", value={})),
        "more_samples_than_slots": segment(
            lambda b: b["samples"].extend(
                {"id": f"x{n}", "rows": {"tokens": [8, 0]}} for n in range(1000)
            ),
            capture="live",
        ),
        "fewer_samples_than_planned": segment(lambda b: b["samples"].pop()),
        "used_differs": segment(put("attrs", "used", "tokens", value=4)),
        "used_samples_differ": segment(put("attrs", "used", "sample", value=10**9)),
        "used_of_no_stream": segment(put("attrs", "used", "frames", value=4)),
        "group_is_no_column": segment(put("attrs", "groups", value=["nothing"])),
        "a_fixed_column": segment(put("attrs", "columns", "label", value="int64")),
        "a_column_changes_its_type": segment(put("attrs", "columns", "take", value="float64")),
        "a_column_without_a_file": segment(put("attrs", "columns", "extra", value="int64")),
        "a_file_is_not_named": segment(lambda b: b["files"].pop()),
        "a_file_of_no_array": segment(
            lambda b: b["files"].append({"path": f"{SHARD}.0", "size": 4, "crc32c": 0})
        ),
        "a_shard_without_chunks": segment(
            lambda b: [f.pop("chunks") and f.pop("chunk_bytes") for f in b["files"]]
        ),
        "a_capture_with_more_files": lambda f: f.record(
            "capture",
            lambda b: b["files"].append({"path": "captures/base/x", "size": 1, "crc32c": 0}),
        ),
        "a_capture_with_a_segment": lambda f: f.record("capture", put("segment", value=0)),
    },
)
attack.table(
    "open",
    "shapes and types of parameters are checked before anything is allocated",
    {
        "parameter_shape_is_huge": parameters(
            put("attrs", "arrays", "head.weight", "shape", value=[2**40, 2**20])
        ),
        "parameter_shape_overflows": parameters(
            put("attrs", "arrays", "head.weight", "shape", value=[2**32, 2**32])
        ),
        "parameter_shape_is_negative": parameters(
            put("attrs", "arrays", "head.weight", "shape", value=[-1])
        ),
        "parameter_shape_is_text": parameters(
            put("attrs", "arrays", "head.weight", "shape", value="34")
        ),
        "parameter_shape_is_true": parameters(
            put("attrs", "arrays", "head.weight", "shape", value=[True, 12])
        ),
        "parameter_rank_9": parameters(
            put("attrs", "arrays", "head.weight", "shape", value=[1] * 9)
        ),
        "parameter_rank_1000": parameters(
            put("attrs", "arrays", "head.weight", "shape", value=[1] * 1000)
        ),
        "parameter_dtype_object": parameters(
            put("attrs", "arrays", "head.weight", "dtype", value="object")
        ),
        "parameter_dtype_numpy": parameters(
            put("attrs", "arrays", "head.weight", "dtype", value="|O")
        ),
        "parameter_dtype_string": parameters(
            put("attrs", "arrays", "head.weight", "dtype", value="string")
        ),
        "parameter_dtype_is_a_list": parameters(
            put("attrs", "arrays", "head.weight", "dtype", value=["float32"])
        ),
        "parameter_other_dtype": parameters(
            put("attrs", "arrays", "head.weight", "dtype", value="float32")
        ),
        "parameter_is_text": parameters(put("attrs", "arrays", "head.weight", value="x")),
        "parameter_goes_up": parameters(
            put("attrs", "arrays", value={"../x": {"shape": [], "dtype": "bool"}})
        ),
        "parameters_is_a_list": parameters(put("attrs", "arrays", value=[])),
        "no_parameters": parameters(drop("attrs", "arrays")),
        "parameter_attrs_is_a_list": parameters(put("attrs", "attrs", value=[1])),
        "parameter_without_a_file": parameters(put("files", value=[])),
        "parameter_twice": lambda f: f.sign(
            [*f.bodies(), {**f.bodies()[1], "number": len(f.bodies())}]
        ),
    },
)


def last(forge: Forge) -> Body:
    return forge.bodies()[-1]


attack.table(
    "ignored",
    "control: what is forged without a change is sound",
    {
        "record_signed_again": lambda f: f.sign(f.bodies()),
        "record_put_unchanged": segment(put("kind", value="segment")),
        "parameters_put_unchanged": parameters(lambda _: None),
    },
)
RAW = "the JSON of a record is strict"
attack.table(
    "open",
    RAW,
    {
        "record_unsigned_change": lambda f: f.raw_record(lambda d: d.replace(b"utt-", b"ut_-")),
        "record_is_empty": lambda f: f.raw_record(lambda _: b""),
        "record_is_a_list": lambda f: f.raw_record(lambda _: b"[]"),
        "record_is_null": lambda f: f.raw_record(lambda _: b"null"),
        "record_body_is_a_list": lambda f: f.raw_record(lambda _: sealed([])),
        "record_body_is_text": lambda f: f.raw_record(lambda _: sealed("body")),
        "record_is_no_utf8": lambda f: f.raw_record(lambda d: d + b"\xff"),
        "record_is_utf16": lambda f: f.raw_record(lambda d: d.decode().encode("utf-16")),
        "record_with_nan": lambda f: f.raw_record(lambda _: b'{"body": NaN, "sha256": ""}'),
        "record_nested": lambda f: f.raw_record(lambda _: b"[" * 10**6),
        "record_nested_in_objects": lambda f: f.raw_record(lambda _: b'{"a":' * 10**5),
        "record_of_many_lists": lambda f: f.raw_record(
            lambda _: b"[" + b"[],[]," * 2_500_000 + b"0]"
        ),
        "record_of_17_mib": lambda f: f.raw_record(lambda d: d + b" " * 17 * 2**20),
        "record_with_a_long_number": lambda f: f.raw_record(
            lambda _: b'{"body": 1' + b"0" * 10**6 + b"}"
        ),
        "record_number_missing": lambda f: f.clear("__commits__/w0-000001.json"),
        "record_under_another_name": lambda f: f.sign(f.bodies(), name="w0-000099.json"),
        "record_with_a_longer_name": lambda f: f.sign(f.bodies(), name="w0-0000099.json"),
        "record_of_another_writer": lambda f: f.sign(f.bodies(), name="w1-000000.json"),
    },
)


@attack("open", "the chain of records is whole")
def records_swapped(forge: Forge) -> None:
    one, two = (forge.root / f"__commits__/w0-00000{n}.json" for n in (2, 3))
    first = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(first)


@attack("open", "a sparse file is not read")
def record_is_sparse(forge: Forge) -> None:
    with (forge.root / "__commits__/w0-000001.json").open("r+b") as file:
        file.truncate(200 * 2**20)


@attack("open", "a record says every key once")
def record_says_a_key_twice(forge: Forge) -> None:
    forge.raw_record(lambda data: data.replace(b'{\n "body"', b'{\n "sha256": 1,\n "body"'))
