"""The rules for one commit record: every field has its type and its limits.

What a record says about its capture (rows within segments, files of the right size) is the matter
of `consistency.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .guard import (
    INT64,
    ITEM_BYTES,
    MAX_CHUNK_BYTES,
    MAX_CHUNKS,
    MAX_RANK,
    digest,
    items,
    name,
    no_twins,
    require,
    table,
    text,
    whole,
)
from .inside import MAX_DEPTH
from .layout import NAME_PATTERN

CRC_BYTES = 4
INDEX_ENTRY_BYTES = 16
MAX_COLUMNS = 4096
MAX_SEGMENTS = 10**7
MAX_RECORDS = 10**9
MAX_PATH = 1024
CRC = 2**32 - 1
_PATH = re.compile(rf"captures(/{NAME_PATTERN})+")
RECORD_NAME = re.compile(r"([A-Za-z0-9]{1,64})-([0-9]{6,18})\.json")
_WRITER = re.compile(r"[A-Za-z0-9]{1,64}")


def check_body(body: object) -> Mapping[str, Any]:
    """Return the body of a record if every field is what a writer could have written.

    Raises
    ------
    BrokenRule
        Names the field.
    """
    fields = table(body, "body")
    kind = text(fields.get("kind"), "kind")
    require(kind in _ATTRS, f"kind {kind[:40]!r} is unknown")
    withdrawal = kind == "withdrawal"
    capture = "" if withdrawal else name(fields.get("capture"), "capture")
    require(fields.get("capture") == capture, "a withdrawal is of no capture")
    require(_WRITER.fullmatch(text(fields.get("writer"), "writer")), "writer is not a name")
    whole(fields.get("number"), "number", 0, MAX_RECORDS)
    require("previous" in fields, "previous is missing")
    if fields["previous"] is not None:
        digest(fields["previous"], "previous")
    paths = [_check_file(entry, capture) for entry in items(fields.get("files"), "files")]
    no_twins(paths, "files")
    require(not (withdrawal and paths), "a withdrawal commits no files")
    attrs = table(fields.get("attrs"), "attrs")
    _ATTRS[kind](attrs)
    if kind == "segment":
        whole(fields.get("segment"), "segment", 0, MAX_SEGMENTS)
        _check_samples(fields.get("samples"))
    else:
        require("segment" not in fields and "samples" not in fields, f"a {kind} has no samples")
    return fields


def _check_file(value: object, capture: str) -> str:
    entry = table(value, "a file")
    path = text(entry.get("path"), "path")
    within = len(path) <= MAX_PATH and path.count("/") < MAX_DEPTH and _PATH.fullmatch(path)
    require(within, f"path {path[:200]!r} does not lie below captures/")
    require(path.startswith(f"captures/{capture}/"), f"path {path!r} is of another capture")
    size = whole(entry.get("size"), f"size of {path}")
    whole(entry.get("crc32c"), f"crc32c of {path}", 0, CRC)
    require(("chunks" in entry) == ("chunk_bytes" in entry), f"{path}: chunks or chunk_bytes alone")
    if "chunks" in entry:
        chunks = items(entry["chunks"], f"chunks of {path}", MAX_CHUNKS)
        for crc in chunks:
            whole(crc, f"a checksum of {path}", 0, CRC)
        each = whole(entry["chunk_bytes"], f"chunk_bytes of {path}", 0, MAX_CHUNK_BYTES)
        require(chunks, f"{path} has an empty list of chunks")
        needed = len(chunks) * (each + CRC_BYTES)
        if "slots" in entry:  # compressed chunks: how small they are is said by the index alone
            slots = whole(entry["slots"], f"slots of {path}", 1, MAX_CHUNKS)
            require(len(chunks) <= slots, f"{path} has more chunks than slots")
            needed = slots * INDEX_ENTRY_BYTES + (len(chunks) + 1) * CRC_BYTES
        require(needed <= size, f"{path} is too small for its chunks")
    require("chunks" in entry or "slots" not in entry, f"{path}: slots without chunks")
    return path


def _check_samples(value: object) -> None:
    samples = items(value, "samples")
    require(samples, "a segment has no samples")
    for sample in samples:
        text(table(sample, "a sample").get("id"), "the id of a sample")
        for stream, span in table(sample.get("rows"), "the rows of a sample").items():
            name(stream, "a stream")
            require(len(items(span, "rows", 2)) == 2, "rows are not a pair")
            start, count = (whole(number, "rows") for number in span)
            require(start + count <= INT64, "rows lie beyond int64")


def _check_capture(attrs: Mapping[str, Any]) -> None:
    digest(attrs.get("config_digest"), "config_digest")
    text(attrs.get("store", ""), "store")


def _check_withdrawal(attrs: Mapping[str, Any]) -> None:
    for value in items(attrs.get("records"), "records"):
        named = table(value, "a withdrawn record")
        known = RECORD_NAME.fullmatch(text(named.get("name"), "name"))
        require(known, "a withdrawn record has no name of a record")
        digest(named.get("sha256"), "sha256 of a withdrawn record")


def _check_segment(attrs: Mapping[str, Any]) -> None:
    digest(attrs.get("config_digest"), "config_digest")
    columns = table(attrs.get("columns"), "columns")
    require(len(columns) <= MAX_COLUMNS, f"there are more than {MAX_COLUMNS} columns")
    for column, dtype in columns.items():
        name(column, "a column")
        require(text(dtype, f"type of column {column}") in _COLUMN_TYPES, f"{column}: unknown type")
    no_twins(list(columns), "columns")
    groups = items(attrs.get("groups"), "groups")
    known = all(type(group) is str and columns.get(group) == "string" for group in groups)
    require(known, "a group is not a column of strings")
    for slot, count in table(attrs.get("used"), "used").items():
        whole(count, f"used {slot[:40]!r}")


def _check_parameters(attrs: Mapping[str, Any]) -> None:
    table(attrs.get("attrs"), "attrs of parameters")
    arrays = table(attrs.get("arrays"), "arrays")
    no_twins(list(arrays), "parameters")
    for parameter, value in arrays.items():
        name(parameter, "a parameter")
        described = table(value, f"parameter {parameter}")
        check_parameter(parameter, described.get("shape"), described.get("dtype"))


def check_parameter(parameter: str, shape: object, dtype: object) -> int:
    """Return the bytes of a parameter whose shape and data type are allowed."""
    known = text(dtype, f"data type of {parameter}")
    require(known in _PARAMETER_TYPES, f"data type of {parameter} is unknown")
    size = ITEM_BYTES[known]
    for length in items(shape, f"shape of {parameter}", MAX_RANK):
        size *= whole(length, f"a length of {parameter}", low=1)
    require(size <= MAX_CHUNK_BYTES, f"parameter {parameter} has more than {MAX_CHUNK_BYTES} bytes")
    return size


_COLUMN_TYPES = {"string", "bool", "int64", "float64"}
_PARAMETER_TYPES = {"float16", "bfloat16", "float32", "float64", "int32", "int64", "bool"}
_ATTRS = {
    "capture": _check_capture,
    "segment": _check_segment,
    "parameters": _check_parameters,
    "withdrawal": _check_withdrawal,
}
