"""Commit records: the rename of a record is the commit of what it names.

A record is one immutable JSON file `__commits__/<writer>-<number>.json`. It names every file of a
segment (or of a parameter set, or of a capture's definition) with its size and checksums, and the
SHA-256 of the record before it, so that a changed, swapped or removed record is noticed.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .errors import DamagedStoreError
from .files import read_file, write_durable
from .layout import COMMITS, NAME_PATTERN, STAGING, canonical, check_name, to_json
from .shards import FileEntry

RECORD_FORMAT = "lorascope-commit"
RECORD_VERSION = 1
MAX_RECORD_BYTES = 64 * 2**20
_RECORD_NAME = re.compile(r"([A-Za-z0-9]+)-(\d{6,})\.json")

_PATH = re.compile(rf"captures(/{NAME_PATTERN})+")

type RecordKind = Literal["capture", "segment", "parameters"]


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
    """Name of the capture."""
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

    @property
    def file_name(self) -> str:
        """Name of the record's file."""
        return f"{self.writer}-{self.number:06d}.json"

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


def decode_record(data: bytes, name: str) -> Record:
    """Return the record in `data`.

    Raises
    ------
    DamagedStoreError
        If the bytes are not exactly what a writer made.
    """
    try:
        outer = json.loads(data)
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
            raise DamagedStoreError(msg)
        return _from_body(body)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        msg = f"the commit record {name} cannot be read: {type(error).__name__}"
        raise DamagedStoreError(msg) from error


def _inside(path: str) -> str:
    """Return a path if it stays below the store's captures; a record may come from anybody."""
    if not _PATH.fullmatch(path):
        msg = f"path {path!r} does not lie below captures/"
        raise ValueError(msg)
    return path


def _count(value: object) -> int:
    if not isinstance(value, int) or value < 0:
        msg = f"{value!r} is not a count"
        raise ValueError(msg)
    return value


def _from_body(body: Mapping[str, Any]) -> Record:
    return Record(
        kind=body["kind"],
        capture=check_name("capture", body["capture"]),
        writer=body["writer"],
        number=body["number"],
        previous=body["previous"],
        files=tuple(
            FileEntry(
                _inside(f["path"]),
                f["size"],
                f["crc32c"],
                tuple(f.get("chunks", ())),
                f.get("chunk_bytes", 0),
                _count(f.get("slots", 0)),
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


class RecordLog:
    """All records of a store, in order, and the way to add one.

    Parameters
    ----------
    root
        The store's root.
    writer
        Name under which new records are written; may be changed between them.

    Raises
    ------
    DamagedStoreError
        If a record was changed, or one is missing from the chain.
    """

    def __init__(self, root: Path, writer: str = "w0") -> None:
        self._root = root
        self.writer = writer
        self.records: list[Record] = []
        self._last: dict[str, tuple[int, str]] = {}
        self._committing = threading.Lock()
        for path in sorted(self._paths(), key=_record_key):
            self._replay(path)

    def _paths(self) -> Sequence[Path]:
        folder = self._root / COMMITS
        if not folder.is_dir():
            return []
        return [path for path in folder.iterdir() if _RECORD_NAME.fullmatch(path.name)]

    def _replay(self, path: Path) -> None:
        if path.lstat().st_size > MAX_RECORD_BYTES:
            msg = f"the commit record {path.name} is larger than {MAX_RECORD_BYTES} bytes"
            raise DamagedStoreError(msg)
        try:
            data = read_file(path)
        except OSError as error:
            msg = f"the commit record {path.name} cannot be read: {error.strerror}"
            raise DamagedStoreError(msg) from error
        record = decode_record(data, path.name)
        number, digest = self._last.get(record.writer, (-1, None))
        chained = record.number == number + 1 and record.previous == digest
        if record.file_name != path.name or not chained:
            msg = f"the chain of commit records is broken at {path.name}: one is missing or changed"
            raise DamagedStoreError(msg)
        self._accept(record, data)

    def _accept(self, record: Record, data: bytes) -> None:
        self.records.append(record)
        self._last[record.writer] = (record.number, hashlib.sha256(data).hexdigest())

    def commit(
        self,
        kind: RecordKind,
        capture: str,
        *,
        files: Sequence[FileEntry],
        segment: int | None = None,
        samples: Sequence[SampleEntry] = (),
        attrs: Mapping[str, Any] | None = None,
    ) -> Record:
        """Write the record that commits `files`; they must be durable already."""
        with self._committing:
            number, previous = self._last.get(self.writer, (-1, None))
            record = Record(
                kind=kind,
                capture=capture,
                writer=self.writer,
                number=number + 1,
                previous=previous,
                files=tuple(files),
                segment=segment,
                samples=tuple(samples),
                attrs=dict(attrs or {}),
            )
            data = record.encode()
            write_durable(
                self._root / COMMITS / record.file_name, data, staging=self._root / STAGING
            )
            self._accept(record, data)
        return record


def _record_key(path: Path) -> tuple[str, int]:
    match = _RECORD_NAME.fullmatch(path.name)
    assert match is not None
    return match[1], int(match[2])
