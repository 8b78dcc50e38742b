"""From sample numbers to files: which segments, which slots, which inner chunks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .definition import CaptureDefinition
from .errors import DamagedStoreError, SampleError
from .filling import expect_rows, fill_rows
from .inside import opened
from .layout import ArraySpec, Site, fill_bytes, numpy_dtype
from .record import Record
from .records import RecordLog
from .shards import FileEntry, read_shard_bytes
from .strings import decode_strings


@dataclass(frozen=True, slots=True)
class Piece:
    """The part of a window that lies in one segment."""

    record: Record
    """The segment's record."""
    start: int
    """First slot within the segment."""
    stop: int
    """One past the last slot within the segment."""


type Window = list[Piece]

_SMALL_BYTES = 2**24
"""Memory that is taken for a window before its files were seen to be of their size."""


class SegmentIndex:
    """The committed segments of one capture and where their samples are."""

    def __init__(self, definition: CaptureDefinition, log: RecordLog) -> None:
        self._definition = definition
        records = [r for r in log.records if r.kind == "segment" and r.capture == definition.name]
        self.records = sorted(records, key=lambda record: record.segment or 0)
        numbers = [record.segment for record in self.records]
        if len(set(numbers)) != len(numbers):
            msg = f"capture {definition.name!r}: a segment was committed twice"
            raise DamagedStoreError(msg)
        sizes = [len(record.samples) for record in self.records]
        self._first = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        self.columns: dict[str, str] = {}
        self.groups: tuple[str, ...] = ()
        for record in self.records:
            self.columns |= record.attrs["columns"]
            self.groups = tuple(dict.fromkeys([*self.groups, *record.attrs["groups"]]))

    def __len__(self) -> int:
        """Return the number of committed segments."""
        return len(self.records)

    @property
    def n_samples(self) -> int:
        """Number of committed samples."""
        return int(self._first[-1])

    def row_counts(self, stream: str) -> np.ndarray:
        """Return the rows of every sample in a stream."""
        counts = [s.rows[stream][1] for record in self.records for s in record.samples]
        return np.array(counts, np.int64)

    def derived_columns(self) -> dict[str, list[str] | list[int]]:
        """Return those columns of `samples` that the records say as well."""
        samples = [(r.segment or 0, s) for r in self.records for s in r.samples]
        columns: dict[str, list[str] | list[int]] = {
            "id": [sample.id for _, sample in samples],
            "segment": [segment for segment, _ in samples],
        }
        for stream in self._definition.streams:
            columns[f"start_row.{stream}"] = [s.rows[stream][0] for _, s in samples]
            columns[f"n_rows.{stream}"] = [s.rows[stream][1] for _, s in samples]
        return columns

    def window(self, samples: slice, stream: str | None = None) -> Window:
        """Return the pieces that hold consecutive samples, in order.

        Parameters
        ----------
        samples
            A slice of sample numbers, step 1.
        stream
            Count slots in rows of this stream; None counts in samples.
        """
        start, stop, step = samples.indices(self.n_samples)
        if step != 1:
            msg = f"samples must be consecutive, got {samples}"
            raise SampleError(msg)
        return [
            _piece(record, max(start - first, 0), min(stop, last) - first, stream)
            for record, first, last in self._spans()
            if max(start, first) < min(stop, last)
        ]

    def holding(self, spec: ArraySpec) -> set[int]:
        """Return the numbers of the segments that have a chunk of an array."""
        return {
            record.segment
            for record in self.records
            if record.segment is not None and spec.chunk_path(record.segment) in record.entries
        }

    def _spans(self) -> Iterator[tuple[Record, int, int]]:
        return zip(self.records, self._first[:-1].tolist(), self._first[1:].tolist(), strict=True)


def _piece(record: Record, first: int, last: int, stream: str | None) -> Piece:
    if stream is None:
        return Piece(record, first, last)
    origin = record.samples[0].rows[stream][0]
    start = record.samples[first].rows[stream][0] - origin
    end, count = record.samples[last - 1].rows[stream]
    return Piece(record, start, end + count - origin)


class SegmentReader:
    """Reads windows of a capture's arrays, checking every byte against the records."""

    def __init__(self, root: Path, definition: CaptureDefinition) -> None:
        self._root = root
        self._definition = definition

    def sharded(
        self,
        site: Site,
        layer: int,
        window: Window,
        *,
        wide: bool = False,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return rows or pooled values, `[row, feature]`, in `out` where that is given.

        As stored, or `wide`: float32, and float64 as it is.
        """
        spec = self._definition.values_spec(site)
        inner = self._definition.slots(site)[1]
        pieces = [
            (piece, find_entry(piece.record, spec.chunk_path(layer, piece.record.segment or 0, 0)))
            for piece in window
            if piece.stop > piece.start
        ]
        total = sum(piece.stop - piece.start for piece, _ in pieces)
        stored = numpy_dtype(site.dtype)
        dtype = np.dtype(np.float32) if wide and stored.itemsize < 4 else stored
        shape = (total, site.width)
        if out is None:
            if total * site.width * dtype.itemsize > _SMALL_BYTES:
                for _, entry in pieces:
                    self._check_size(entry)
            out = np.empty(shape, dtype)
        elif out.shape != shape or out.dtype != dtype or not out.flags.c_contiguous:
            msg = (
                f"{site.name} gives {shape} {dtype}; the array that should take it is {out.shape} "
                f"{out.dtype}, and must be C-contiguous."
            )
            raise SampleError(msg)
        at = 0
        for piece, entry in pieces:
            count = piece.stop - piece.start
            fill_rows(
                self._root,
                entry,
                out[at : at + count],
                dtype=stored,
                codec=spec.codec,
                first=piece.start,
                inner=inner,
            )
            at += count
        return out

    def expect(self, site: Site, layer: int, window: Window) -> None:
        """Tell the system that a window of a site is read soon."""
        spec = self._definition.values_spec(site)
        slots = self._definition.slots(site)[0]
        for piece in window:
            path = spec.chunk_path(layer, piece.record.segment or 0, 0)
            if piece.stop > piece.start:
                entry = find_entry(piece.record, path)
                count = piece.stop - piece.start
                expect_rows(self._root, entry, first=piece.start, count=count, slots=slots)

    def _check_size(self, entry: FileEntry) -> None:
        """Refuse a file that is not as large as its record says, before memory is taken for it."""
        with opened(self._root, entry.path) as (_, size):
            if size != entry.size:
                word = "truncated" if size < entry.size else "changed"
                msg = f"{entry.path} is {word}: it has {size} bytes, {entry.size} were committed"
                raise DamagedStoreError(msg)

    def plain(self, spec: ArraySpec, window: Window, holders: set[int] | None = None) -> np.ndarray:
        """Return a window of an array that has one chunk per segment.

        Where `holders` are given, segments that are not among them come out as fill values.
        """
        native = numpy_dtype(spec.dtype)
        fill = np.frombuffer(fill_bytes(spec.dtype), native)[0]
        parts: list[np.ndarray] = [np.empty((0, *spec.chunk[1:]), native)]
        for piece in window:
            if holders is not None and piece.record.segment not in holders:
                shape = (piece.stop - piece.start, *spec.chunk[1:])
                parts.append(np.full(shape, fill, native))
                continue
            index = [piece.record.segment or 0, *(0 for _ in spec.chunk[1:])]
            entry = find_entry(piece.record, spec.chunk_path(*index))
            values = np.frombuffer(read_checked(self._root, entry), native)
            parts.append(values.reshape(spec.chunk)[piece.start : piece.stop])
        return np.concatenate(parts)

    def strings(self, spec: ArraySpec, window: Window, holders: set[int]) -> list[str]:
        """Return a window of a column of strings; empty where a segment has no such column."""
        values: list[str] = []
        for piece in window:
            if piece.record.segment not in holders:
                values += [""] * (piece.stop - piece.start)
                continue
            entry = find_entry(piece.record, spec.chunk_path(piece.record.segment))
            used = len(piece.record.samples)
            content = read_checked(self._root, entry)
            strings = decode_strings(content, slots=spec.chunk[0], used=used)
            values += strings[piece.start : piece.stop]
        return values


def find_entry(record: Record, path: str) -> FileEntry:
    """Return what a record says of a file; raises `DamagedStoreError` if it does not name it."""
    if path in record.entries:
        return record.entries[path]
    msg = f"{path} is not named by the commit record {record.file_name}"
    raise DamagedStoreError(msg)


def read_checked(root: Path, entry: FileEntry) -> bytes:
    """Return the only chunk of a file, without its checksum, after comparing with the record."""
    return read_shard_bytes(root, entry, range(1))[0].tobytes()
