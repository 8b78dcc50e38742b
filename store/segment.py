"""The segment that is being written: its shards, and the small columns beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .definition import CaptureDefinition
from .encoded import EncodedShardWriter
from .layout import ArraySpec, Site, fill_bytes, numpy_dtype
from .record import SampleEntry
from .shards import ShardWriter
from .strings import encode_strings

type AnyShardWriter = ShardWriter | EncodedShardWriter


@dataclass(frozen=True, slots=True)
class NewSample:
    """What a producer says of one sample besides its activations."""

    id: str
    """Unique in the capture."""
    n_rows: Mapping[str, int] = field(default_factory=dict)
    """Rows per stream."""
    label: str = ""
    """Canonical label, or an empty string."""
    exposed: bool = False
    """Whether the sample was in the training part of the capture's adapter or head."""
    groups: Mapping[str, str] = field(default_factory=dict)
    """Speaker, session and the like: what must not be split between training and test."""
    columns: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    """Further facts, one value each."""
    outputs: Mapping[str, Any] = field(default_factory=dict)
    """One value per declared output."""
    positions: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Per stream, the frame or token index of every row; 0, 1, 2, … where it is left out."""


@dataclass(slots=True, eq=False)
class OpenSegment:
    """Rows and samples that came since the last commit."""

    index: int
    """Number of the segment."""
    samples: list[NewSample] = field(default_factory=list)
    """Samples in order."""
    used: dict[str, int] = field(default_factory=dict)
    """Rows used per stream."""
    shards: dict[tuple[str, int], AnyShardWriter] = field(default_factory=dict)
    """One shard per site and layer position; opened by the writer threads."""
    dropped: bool = False
    """Set when the segment will not be committed: queued arrays of it are skipped."""

    def add(self, sample: NewSample) -> None:
        """Count a sample in."""
        self.samples.append(sample)
        for stream, rows in sample.n_rows.items():
            self.used[stream] = self.used.get(stream, 0) + rows

    def entries(self, definition: CaptureDefinition) -> list[SampleEntry]:
        """Return the samples as the commit record names them."""
        cursor = {stream: self.index * definition.shape.rows for stream in definition.streams}
        entries = []
        for sample in self.samples:
            rows = {s: (cursor[s], sample.n_rows.get(s, 0)) for s in definition.streams}
            entries.append(SampleEntry(sample.id, rows))
            for stream, (start, count) in rows.items():
                cursor[stream] = start + count
        return entries


def cut_arrays(
    definition: CaptureDefinition,
    samples: Sequence[NewSample],
    arrays: Mapping[str, np.ndarray],
    start: int,
    stop: int,
) -> dict[str, np.ndarray]:
    """Return the part of samples `start` to `stop` of the arrays of a batch, by name of site."""
    cut: dict[str | None, tuple[int, int]] = {None: (start, stop)}
    for stream in definition.streams:
        ends = np.cumsum([0, *(sample.n_rows.get(stream, 0) for sample in samples)])
        cut[stream] = (int(ends[start]), int(ends[stop]))
    sites = definition.sites
    spans = {site.name: cut[site.stream if site.kind == "row" else None] for site in sites}
    return {name: array[:, slice(*spans[name])] for name, array in arrays.items()}


def open_shard(
    definition: CaptureDefinition, site: Site, layer: int, segment: int, staging: Path
) -> AnyShardWriter:
    """Open the staged shard of one site, layer position and segment."""
    spec = definition.values_spec(site)
    slots, inner = definition.slots(site)
    staged = staging / f"{definition.name}.{site.kind}.{site.name}.{layer}.{segment}"
    final = spec.chunk_path(layer, segment, 0)
    fill, n_chunks = fill_bytes(site.dtype), slots // inner
    codec = definition.chunk_codec(site)
    if codec is not None:
        return EncodedShardWriter(staged, final, codec=codec, n_chunks=n_chunks, fill=fill)
    size = inner * site.row_bytes
    return ShardWriter(staged, final, chunk_bytes=size, n_chunks=n_chunks, fill=fill)


def small_files(
    definition: CaptureDefinition, segment: OpenSegment, columns: Mapping[str, str]
) -> list[tuple[str, bytes]]:
    """Return path and content of the segment's outputs, row columns and sample columns.

    Parameters
    ----------
    definition
        The capture.
    segment
        The complete segment.
    columns
        Sample columns beyond the fixed ones, with their data types.
    """
    files: list[tuple[str, bytes]] = []
    for output in definition.outputs:
        spec = definition.output_spec(output)
        files.append(
            (
                spec.chunk_path(segment.index, *(0 for _ in output.shape)),
                _plain_chunk(spec, [s.outputs.get(output.name) for s in segment.samples]),
            )
        )
    for stream in definition.streams:
        files += _row_columns(definition, segment, stream)
    for name, dtype in (definition.fixed_columns() | dict(columns)).items():
        spec = definition.column_spec(name, dtype)
        values = _column_values(definition, segment, name)
        content = _string_chunk(spec, values) if dtype == "string" else _plain_chunk(spec, values)
        files.append((spec.chunk_path(segment.index), content))
    return files


def _row_columns(
    definition: CaptureDefinition, segment: OpenSegment, stream: str
) -> list[tuple[str, bytes]]:
    counts = [sample.n_rows.get(stream, 0) for sample in segment.samples]
    first = segment.index * definition.shape.samples
    slots = np.repeat(np.arange(first, first + len(counts)), counts)
    positions = [s.positions[stream] for s in segment.samples if s.n_rows.get(stream, 0)]
    values = {"sample": slots, "position": np.concatenate(positions) if positions else slots}
    files = []
    for column, rows in values.items():
        spec = definition.row_column_spec(stream, column)
        files.append((spec.chunk_path(segment.index), _plain_chunk(spec, rows)))
    return files


def _column_values(definition: CaptureDefinition, segment: OpenSegment, name: str) -> list[Any]:
    if name == "segment":
        return [segment.index] * len(segment.samples)
    kind, _, stream = name.partition(".")
    if kind in {"start_row", "n_rows"} and stream in definition.streams:
        at = 0 if kind == "start_row" else 1
        return [entry.rows[stream][at] for entry in segment.entries(definition)]
    if name in {"id", "label", "exposed"}:
        return [getattr(sample, name) for sample in segment.samples]
    return [s.groups.get(name, s.columns.get(name)) for s in segment.samples]


def _plain_chunk(spec: ArraySpec, values: list[Any] | np.ndarray) -> bytes:
    native = numpy_dtype(spec.dtype)
    chunk = np.full(spec.chunk, np.frombuffer(fill_bytes(spec.dtype), native)[0], native)
    if isinstance(values, np.ndarray):
        chunk[: len(values)] = values
        return chunk.tobytes()
    for slot, value in enumerate(values):
        if value is not None:
            chunk[slot] = value
    return chunk.tobytes()


def _string_chunk(spec: ArraySpec, values: list[Any]) -> bytes:
    texts = ["" if value is None else str(value) for value in values]
    return encode_strings(texts + [""] * (spec.chunk[0] - len(texts)))
