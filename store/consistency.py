"""Do the records of a store fit the definitions of its captures? Checked when a store is opened.

A record may be forged together with its checksum. After these checks every row of a sample lies in
its segment, every file has exactly the chunks that the definition gives it, and so every read is
bounded by what the files hold.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from .creation import chunk_entry, file_entry, with_checksum
from .definition import CaptureDefinition
from .errors import DamagedStoreError
from .guard import BrokenRule, no_twins, parse_json, require
from .inside import read_inside
from .layout import ArraySpec, numpy_dtype
from .node_rules import check_group
from .record import Record
from .record_rules import check_parameter
from .records import RecordLog
from .shards import CRC_BYTES, INDEX_ENTRY_BYTES, FileEntry


def load_definitions(root: Path, log: RecordLog) -> dict[str, CaptureDefinition]:
    """Return the definitions of all captures, in the order of recording, all records checked.

    Raises
    ------
    DamagedStoreError
        If a definition is not the committed one, or a record does not fit it.
    """
    definitions: dict[str, CaptureDefinition] = {}
    checks: dict[str, _Records] = {}
    for record in log.records:
        if record.kind == "capture":
            with _named(record):
                no_twins([*definitions, record.capture], "captures")
            definitions[record.capture] = _load(root, record)
            checks[record.capture] = _Records(definitions[record.capture])
    for record in log.records:
        with _named(record):
            require(record.capture in definitions, f"there is no capture {record.capture}")
            checks[record.capture].check(record)
    return definitions


def read_definition(root: Path, name: str, log: RecordLog) -> CaptureDefinition:
    """Return the committed definition of a capture; raises `DamagedStoreError` if it changed."""
    return _load(root, next(r for r in log.records if r.kind == "capture" and r.capture == name))


class _named:
    """Turn a broken rule into an error that names the record."""

    def __init__(self, record: Record) -> None:
        self._record = record

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, BrokenRule):
            msg = (
                f"the commit record {self._record.file_name} does not fit capture "
                f"{self._record.capture!r}: {error}"
            )
            raise DamagedStoreError(msg) from error


def _load(root: Path, record: Record) -> CaptureDefinition:
    path = f"captures/{record.capture}/zarr.json"
    content = read_inside(root, path)
    if record.entries.get(path) != file_entry(path, content):
        msg = (
            f"{path} was changed after the capture was made: restore it from a copy, or let "
            "lorascope repair withdraw the capture"
        )
        raise DamagedStoreError(msg)
    try:
        attributes = check_group(parse_json(content))
    except BrokenRule as error:
        msg = f"{path} cannot be used: {error}"
        raise DamagedStoreError(msg) from error
    return CaptureDefinition.from_attributes(record.capture, attributes)


class _Records:
    """Checks the records of one capture, one after the other."""

    def __init__(self, definition: CaptureDefinition) -> None:
        self._definition = definition
        self._digest = definition.config_digest
        self._streams = {
            definition.values_spec(site).path: site.stream
            for site in definition.sites
            if site.kind == "row"
        }
        self._columns: dict[str, str] = {}
        self._parameters: set[str] = set()
        self._segments: set[int] = set()
        self._ids: set[str] = set()
        self._expected: dict[tuple[tuple[str, str], ...], list[_Expected]] = {}

    def check(self, record: Record) -> None:
        """Raise `BrokenRule` if a record does not fit."""
        if record.kind == "capture":
            self._check_capture(record)
        elif record.kind == "parameters":
            self._check_parameters(record)
        else:
            self._check_segment(record)

    def _check_capture(self, record: Record) -> None:
        definition = self._definition
        same = record.attrs["config_digest"] == self._digest
        require(same, "it was made with another configuration")
        expected = [record.entries[f"{definition.root}/zarr.json"]]
        for site in definition.sites:
            labels = with_checksum(np.array(site.layer_labels, "<i8").tobytes())
            expected.append(chunk_entry(definition.layer_spec(site).chunk_path(0), labels))
        named = {entry.path: entry for entry in expected}
        require(record.entries == named, "its files are not those of the definition")

    def _check_parameters(self, record: Record) -> None:
        arrays = record.attrs["arrays"]
        no_twins([*self._parameters, *arrays], "parameters")
        self._parameters.update(arrays)
        require(len(record.files) == len(arrays), "its files are not its parameters")
        for name, value in arrays.items():
            spec = self._definition.parameter_spec(name, value["shape"], value["dtype"])
            size = check_parameter(name, value["shape"], value["dtype"])
            entry = record.entries.get(spec.chunk_path(*(0 for _ in value["shape"])))
            fits = entry is not None and _is_chunk(entry, size)
            require(fits, f"the file of parameter {name} is not named, or has another size")

    def _check_segment(self, record: Record) -> None:
        definition, segment = self._definition, record.segment or 0
        same = record.attrs["config_digest"] == self._digest
        require(same, "it was made with another configuration")
        require(segment not in self._segments, f"segment {segment} was committed twice")
        self._segments.add(segment)
        count = len(record.samples)
        if definition.plan is not None:
            planned = definition.planned_sizes
            require(segment < len(planned), f"segment {segment} is not planned")
            require(count == planned[segment], f"segment {segment} has not its planned samples")
        require(count <= definition.shape.samples, "it has more samples than a segment holds")
        ids = {sample.id for sample in record.samples}
        require(len(ids) == count and not ids & self._ids, "a sample was committed twice")
        self._ids |= ids
        used = self._check_rows(record, segment)
        columns = record.attrs["columns"]
        fixed = definition.fixed_columns()
        require(not fixed.keys() & columns.keys(), "a column has the name of a fixed one")
        for name, dtype in columns.items():
            known = self._columns.setdefault(name, dtype)
            require(known == dtype, f"column {name} is {dtype}, and was {known}")
        no_twins([*self._columns, *fixed], "columns")
        self._check_files(record, segment, used)

    def _check_rows(self, record: Record, segment: int) -> dict[str, int]:
        """Return the slots used; rows follow each other from the first slot of the segment."""
        definition = self._definition
        first = segment * definition.shape.rows
        used = dict.fromkeys(definition.streams, 0)
        for sample in record.samples:
            require(sample.rows.keys() == used.keys(), f"sample {sample.id[:80]!r}: other streams")
            for stream, (start, count) in sample.rows.items():
                at = first + used[stream]
                require(start == at, f"rows of sample {sample.id[:80]!r} are not where they follow")
                used[stream] += count
        fits = all(count <= definition.shape.rows for count in used.values())
        require(fits, "its samples have more rows than a segment holds")
        said = record.attrs["used"]
        same = said.get("sample") == len(record.samples) and all(
            said.get(stream, 0) == count for stream, count in used.items()
        )
        require(same and said.keys() <= {"sample", *used}, "used differs from its samples")
        return used

    def _check_files(self, record: Record, segment: int, used: Mapping[str, int]) -> None:
        key = tuple(record.attrs["columns"].items())
        if key not in self._expected:
            specs = self._definition.segmented_arrays(record.attrs["columns"])
            self._expected[key] = [_Expected(spec, self._streams.get(spec.path)) for spec in specs]
        count = 0
        for expected in self._expected[key]:
            for path in expected.paths(segment):
                count += 1
                entry = record.entries.get(path)
                fits = entry is not None and expected.fits(entry, used)
                require(fits, f"{path} is not named, or its size is not that of its chunks")
        require(count == len(record.files), "it names files of no array")


class _Expected:
    """What a record must say of the files of one array."""

    def __init__(self, spec: ArraySpec, stream: str | None) -> None:
        self._spec = spec
        self._stream = stream
        item = 1 if spec.dtype == "string" else numpy_dtype(spec.dtype).itemsize
        self._chunk_bytes = math.prod(spec.inner or spec.chunk) * item
        self._slots = 0 if spec.inner is None else spec.chunk[1] // spec.inner[1]

    def paths(self, segment: int) -> Iterator[str]:
        """Yield the files of a segment."""
        spec = self._spec
        if spec.inner is None:
            yield spec.chunk_path(segment, *(0 for _ in spec.chunk[1:]))
            return
        for layer in range(spec.shape[0]):
            yield spec.chunk_path(layer, segment, 0)

    def fits(self, entry: FileEntry, used: Mapping[str, int]) -> bool:
        """Whether size and chunks of a file are those of the definition."""
        if self._spec.dtype == "string":
            return _is_chunk(entry, entry.size - CRC_BYTES)
        if not self._slots:
            return _is_chunk(entry, self._chunk_bytes)
        inner = self._spec.inner
        rows = 1 if self._stream is None else used[self._stream]
        count = -(-rows // inner[1]) if inner is not None else 0
        least = most = self._chunk_bytes
        slots, codec = 0, self._spec.codec
        if codec is not None:
            least, most = codec.min_bytes, codec.max_bytes
            slots = self._slots if count else 0
        rest = count * CRC_BYTES + self._slots * INDEX_ENTRY_BYTES + CRC_BYTES
        fits = count * least <= entry.size - rest <= count * most
        fits = fits and len(entry.chunks) == count and entry.slots == slots
        return fits and (entry.chunk_bytes == self._chunk_bytes or not count)


def _is_chunk(entry: FileEntry, size: int) -> bool:
    """Whether a file is one chunk of so many bytes with its checksum."""
    one = len(entry.chunks) == 1 and entry.chunk_bytes == size and not entry.slots
    return one and entry.size == size + CRC_BYTES
