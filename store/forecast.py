"""How much a planned capture takes on disk, file by file, before a byte of it is written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from .chunking import plan_segments
from .definition import CaptureDefinition
from .layout import ArraySpec, Output, SampleRows, Site, group_metadata, numpy_dtype
from .profiles import check_profile
from .record import Record, SampleEntry
from .shards import CRC_BYTES, INDEX_ENTRY_BYTES, FileEntry

BLOCK_BYTES = 4096
"""Disks give space in blocks; a folder takes one."""
_CRC = 2**32 - 1
_SHA256 = "0" * 64


@dataclass(frozen=True, slots=True)
class Forecast:
    """What files will take."""

    segments: int = 0
    """Segments: units of commit."""
    files: int = 0
    """Number of files."""
    bytes: int = 0
    """Bytes in them."""
    disk_bytes: int = 0
    """Bytes on disk, in whole blocks, folders included."""

    def __add__(self, other: Self) -> Forecast:
        return Forecast(
            self.segments + other.segments,
            self.files + other.files,
            self.bytes + other.bytes,
            self.disk_bytes + other.disk_bytes,
        )


@dataclass(slots=True)
class _Tally:
    files: int = 0
    bytes: int = 0
    disk_bytes: int = 0
    folders: set[str] = field(default_factory=set)

    def add(self, path: str, size: int, count: int = 1) -> None:
        """Count files of one size that lie in one folder."""
        self.files += count
        self.bytes += count * size
        self.disk_bytes += count * -(-size // BLOCK_BYTES) * BLOCK_BYTES
        self.folders.add(path.rpartition("/")[0])


def forecast_capture(  # noqa: PLR0913 - everything after the sites is optional and named
    name: str,
    *,
    sites: Sequence[Site],
    plan: Sequence[SampleRows],
    outputs: Sequence[Output] = (),
    columns: Mapping[str, Sequence[object]] | None = None,
    parameters: Sequence[Mapping[str, Sequence[int]]] = (),
    config: Mapping[str, Any] | None = None,
    segment_rows: int | None = None,
    segment_samples: int | None = None,
    batch_size: int = 1,
    profile: str = "fast",
) -> Forecast:
    """Return what a planned capture will take.

    Parameters
    ----------
    name, sites, plan, outputs, segment_rows, segment_samples, batch_size, profile
        What `create_store` will be given.
    columns
        Columns and groups of the samples, one value each; ``id`` and ``label`` count as well.
    parameters
        Sets of float32 parameters that will be written together: shapes by name.
    config
        About as long as configuration and attributes will be.

    Notes
    -----
    Sizes of values, indices, columns and metadata are exact. Those of commit records are right to
    some bytes a file (checksums have eight to ten digits). A compressing profile takes less.
    """
    shape, segments = plan_segments(
        plan,
        sites,
        batch_size=batch_size,
        segment_rows=segment_rows,
        segment_samples=segment_samples,
    )
    definition = CaptureDefinition(
        name=name,
        sites=tuple(sites),
        outputs=tuple(outputs),
        shape=shape,
        config=dict(config or {}),
        attrs={},
        plan=_SHA256,
        planned_sizes=tuple(map(len, segments)),
        planned_last={},
        profile=check_profile(profile),
    )
    given = {key: list(values) for key, values in (columns or {}).items()}
    dtypes = {key: _column_dtype(values[0]) for key, values in given.items() if values}
    own = {key: dtype for key, dtype in dtypes.items() if key not in definition.fixed_columns()}
    tally = _Tally()
    _count_definition(tally, definition, own)
    for together in parameters:
        _count_parameters(tally, definition, together)
    first = 0
    for index, segment in enumerate(segments):
        part = {key: values[first : first + len(segment)] for key, values in given.items()}
        _count_segment(tally, definition, own, index, segment, part)
        first += len(segment)
    disk_bytes = tally.disk_bytes + len(tally.folders) * BLOCK_BYTES
    return Forecast(len(segments), tally.files, tally.bytes, disk_bytes)


def _count_definition(
    tally: _Tally, definition: CaptureDefinition, columns: Mapping[str, str]
) -> None:
    size = len(definition.metadata())
    tally.add(f"{definition.root}/zarr.json", size)
    for group in definition.groups()[1:]:
        tally.add(f"{group}/zarr.json", len(group_metadata({})))
    for spec in definition.segmented_arrays(columns):
        tally.add(f"{spec.path}/zarr.json", len(spec.metadata(0)))
    entries = [FileEntry(f"{definition.root}/zarr.json", size, _CRC)]
    for site in definition.sites:
        spec = definition.layer_spec(site)
        tally.add(f"{spec.path}/zarr.json", len(spec.metadata()))
        entries.append(_plain_file(tally, spec, spec.chunk_path(0)))
    _count_record(tally, definition, "capture", entries)


def _count_parameters(
    tally: _Tally, definition: CaptureDefinition, parameters: Mapping[str, Sequence[int]]
) -> None:
    entries = []
    for name, shape in parameters.items():
        spec = definition.parameter_spec(name, shape, "float32")
        tally.add(f"{spec.path}/zarr.json", len(spec.metadata()))
        entries.append(_plain_file(tally, spec, spec.chunk_path(*(0 for _ in shape))))
    _count_record(tally, definition, "parameters", entries)


def _count_segment(
    tally: _Tally,
    definition: CaptureDefinition,
    columns: Mapping[str, str],
    index: int,
    segment: Sequence[SampleRows],
    values: Mapping[str, Sequence[object]],
) -> None:
    used: dict[str | None, int] = {None: len(segment)}
    for stream in definition.streams:
        used[stream] = sum(sample.rows.get(stream, 0) for sample in segment)
    entries = []
    for site in definition.sites:
        entries += _shards(tally, definition, site, index, used)
    texts = {"id": [sample.id for sample in segment], **values}
    for spec in definition.segmented_arrays(columns)[len(definition.sites) :]:
        path = spec.chunk_path(index, *(0 for _ in spec.chunk[1:]))
        column = spec.path.rpartition("/")[2]
        entries.append(_plain_file(tally, spec, path, texts.get(column, ())))
    samples = tuple(
        SampleEntry(s.id, {stream: (2**20, n) for stream, n in s.rows.items()}) for s in segment
    )
    _count_record(tally, definition, "segment", entries, index, samples)


def _shards(
    tally: _Tally,
    definition: CaptureDefinition,
    site: Site,
    index: int,
    used: Mapping[str | None, int],
) -> list[FileEntry]:
    slots, inner = definition.slots(site)
    chunks = -(-used[site.stream if site.kind == "row" else None] // inner)
    chunk_bytes = inner * site.row_bytes
    indexed = slots // inner * INDEX_ENTRY_BYTES + CRC_BYTES
    size = chunks * (chunk_bytes + CRC_BYTES) + indexed
    spec = definition.values_spec(site)
    paths = [spec.chunk_path(layer, index, 0) for layer in range(len(site.layer_labels))]
    tally.add(paths[0], size, len(paths))
    return [FileEntry(path, size, _CRC, (_CRC,) * chunks, chunk_bytes) for path in paths]


def _plain_file(
    tally: _Tally, spec: ArraySpec, path: str, texts: Sequence[object] = ()
) -> FileEntry:
    """Count the file of one chunk; `texts` are the strings in it, where it holds strings."""
    count = math.prod(spec.chunk)
    if spec.dtype == "string":
        size = 4 + 4 * count + sum(len(str(text).encode()) for text in texts)
    else:
        size = count * numpy_dtype(spec.dtype).itemsize
    tally.add(path, size + CRC_BYTES)
    return FileEntry(path, size + CRC_BYTES, _CRC, (_CRC,), size)


def _count_record(
    tally: _Tally,
    definition: CaptureDefinition,
    kind: Any,  # noqa: ANN401
    files: Sequence[FileEntry],
    segment: int | None = None,
    samples: Sequence[SampleEntry] = (),
) -> None:
    record = Record(
        kind=kind,
        capture=definition.name,
        writer="w0",
        number=segment or 0,
        previous=_SHA256,
        files=tuple(files),
        segment=segment,
        samples=tuple(samples),
        attrs={"config_digest": _SHA256},
    )
    tally.add(record.file_name, len(record.encode()))
    tally.folders.discard("")  # the folder of the records is there for all captures


def _column_dtype(value: object) -> str:
    if isinstance(value, bool):
        return "bool"
    return (
        "int64" if isinstance(value, int) else "float64" if isinstance(value, float) else "string"
    )
