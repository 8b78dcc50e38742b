"""Commit records: the rename of a record is the commit of what it names.

A record is one immutable JSON file `__commits__/<writer>-<number>.json`. It names every file of a
segment (or of a parameter set, or of a capture's definition) with its size and checksums, and the
SHA-256 of the record before it, so that a changed, swapped or removed record is noticed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .errors import DamagedStoreError, RecordVersionError
from .guard import BrokenRule, parse_json
from .layout import canonical, to_json
from .record_rules import check_body
from .shards import FileEntry

RECORD_FORMAT = "lorascope-commit"
RECORD_VERSION = 1
UNKNOWN_SHA256 = "0" * 64
"""What stands for the hash of a record whose bytes nobody knows any more."""

type RecordKind = Literal["capture", "segment", "parameters", "withdrawal"]


@dataclass(frozen=True, slots=True)
class SampleEntry:
    """What a segment record says of one sample."""

    id: str
    """The sample's id."""
    rows: Mapping[str, tuple[int, int]]
    """Per stream: first row slot (absolute) and number of rows."""


@dataclass(frozen=True, slots=True)
class Record:
    """One commit."""

    kind: RecordKind
    """What is committed."""
    capture: str
    """Name of the capture; empty for a withdrawal."""
    writer: str
    """Name of the writer that made it."""
    number: int
    """Running number of the writer."""
    previous: str | None
    """SHA-256 of the writer's record before this one."""
    files: tuple[FileEntry, ...] = ()
    """Every file that this commit made durable."""
    segment: int | None = None
    """Segment number, for `kind="segment"`."""
    samples: tuple[SampleEntry, ...] = ()
    """Samples in order, for `kind="segment"`."""
    attrs: Mapping[str, Any] = field(default_factory=dict)
    """Further facts: the configuration's digest, attributes of a parameter set."""
    entries: Mapping[str, FileEntry] = field(init=False, repr=False, compare=False)
    """The files by path."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "entries", {entry.path: entry for entry in self.files})

    @property
    def file_name(self) -> str:
        """Name of the record's file."""
        return record_name(self.writer, self.number)

    @property
    def withdrawn(self) -> dict[str, str]:
        """Records that a withdrawal takes back: name to SHA-256."""
        if self.kind != "withdrawal":
            return {}
        return {named["name"]: named["sha256"] for named in self.attrs["records"]}

    def encode(self) -> bytes:
        """Return the bytes of the record's file."""
        body: dict[str, Any] = {
            "format": RECORD_FORMAT,
            "version": RECORD_VERSION,
            "kind": self.kind,
            "capture": self.capture,
            "writer": self.writer,
            "number": self.number,
            "previous": self.previous,
            "files": [entry.to_dict() for entry in self.files],
            "attrs": dict(self.attrs),
        }
        if self.kind == "segment":
            body["segment"] = self.segment
            body["samples"] = [
                {"id": sample.id, "rows": {k: list(v) for k, v in sample.rows.items()}}
                for sample in self.samples
            ]
        return to_json({"body": body, "sha256": hashlib.sha256(canonical(body)).hexdigest()})


def record_name(writer: str, number: int) -> str:
    """Return the name of a record's file."""
    return f"{writer}-{number:06d}.json"


def decode_record(data: bytes, name: str) -> Record:
    """Return the record in `data`.

    Raises
    ------
    DamagedStoreError
        If the bytes are not exactly what a writer made.
    RecordVersionError
        If a newer lorascope made it.
    """
    try:
        outer = parse_json(data)
        body = outer["body"]
        intact = (
            outer["sha256"] == hashlib.sha256(canonical(body)).hexdigest()
            and to_json(outer) == data
            and body["format"] == RECORD_FORMAT
        )
        if not intact:
            msg = f"the commit record {name} was changed after it was written"
            raise DamagedStoreError(msg)
        if body["version"] != RECORD_VERSION:
            msg = (
                f"the commit record {name} has version {body['version']}; "
                f"this lorascope reads version {RECORD_VERSION}: upgrade it"
            )
            raise RecordVersionError(msg)
        return _from_body(check_body(body))
    except BrokenRule as error:
        msg = f"the commit record {name} cannot be read: {error}"
        raise DamagedStoreError(msg) from error
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        msg = f"the commit record {name} cannot be read: {type(error).__name__}"
        raise DamagedStoreError(msg) from error


def _from_body(body: Mapping[str, Any]) -> Record:
    return Record(
        kind=body["kind"],
        capture=body["capture"],
        writer=body["writer"],
        number=body["number"],
        previous=body["previous"],
        files=tuple(
            FileEntry(
                f["path"],
                f["size"],
                f["crc32c"],
                tuple(f.get("chunks", ())),
                f.get("chunk_bytes", 0),
                f.get("slots", 0),
            )
            for f in body["files"]
        ),
        segment=body.get("segment"),
        samples=tuple(
            SampleEntry(s["id"], {k: (v[0], v[1]) for k, v in s["rows"].items()})
            for s in body.get("samples", ())
        ),
        attrs=body["attrs"],
    )
