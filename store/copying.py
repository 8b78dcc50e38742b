"""Taking over one commit of a store into a copy: its files first, its record last."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from itertools import batched
from pathlib import Path

import numpy as np

from .blocks import checked_blocks
from .create import raise_open_files
from .creation import make_array, make_capture, make_capture_files
from .definition import CaptureDefinition
from .errors import DamagedStoreError
from .extents import make_columns, publish_shapes
from .files import FILES_AT_ONCE, NewFile, remove, rename, sync_directory
from .filling import widen
from .inside import read_inside
from .layout import COMMITS, STAGING, Site
from .reader import Store
from .record import Record, decode_record
from .records import RecordLog
from .segment import AnyShardWriter, open_shard
from .segments import Piece, SegmentReader, find_entry
from .shards import FileEntry

_PIECE_BYTES = 8 * 2**20
"""Rows are read in pieces of about this size."""

type _Shard = tuple[Site, Site, int]
"""A shard to be written anew: its site in the source and in the copy, and the layer position."""


class _FileCopy:
    """A file that is taken over byte for byte."""

    def __init__(self, staged: Path, entry: FileEntry) -> None:
        self.staged = staged
        self.entry = entry
        self._file = NewFile(staged)

    def fill(self, source: Path) -> None:
        """Copy the content from the store at `source`, checking it."""
        for block in checked_blocks(source, self.entry):
            self._file.write([block])

    def sync(self) -> FileEntry:
        """Make the file durable, close it and describe it."""
        self._file.sync()
        self._file.close()
        return self.entry

    def abort(self) -> None:
        """Close and remove the file; where the disk refuses, the next writer sweeps it."""
        with suppress(OSError):
            self._file.close()
        with suppress(OSError):
            remove(self.staged)


class CommitCopier:
    """Copies commits of one store into another, in the definitions that the copy has.

    Parameters
    ----------
    store
        The source.
    root
        Root of the copy, which is locked.
    log
        Records of the copy.
    definitions
        The captures as the copy has them.
    same
        Whether the copy is the same store: then its records are taken over byte for byte.
    """

    def __init__(
        self,
        store: Store,
        root: Path,
        log: RecordLog,
        definitions: Mapping[str, CaptureDefinition],
        *,
        same: bool,
    ) -> None:
        self._same = same
        self._store = store
        self._root = root
        self._staging = root / STAGING
        self._log = log
        self._definitions = definitions
        raise_open_files(FILES_AT_ONCE)

    def settle(self) -> None:
        """Publish the lengths of what was copied before: a crash may have left them behind."""
        for record in self._log.records:
            if record.kind == "capture":
                self._publish(record.capture)

    def copy(self, record: Record) -> Record:
        """Copy one commit and return its record in the copy."""
        if record.kind == "withdrawal":
            return self._commit(record, record.files)
        definition = self._definitions[record.capture]
        if record.kind == "capture":
            return self._copy_capture(definition, record)
        if record.kind == "parameters":
            self._copy_parameters(definition, record)
        else:
            self._copy_segment(definition, record)
        return self._log.records[-1]

    def _commit(self, record: Record, files: Sequence[FileEntry]) -> Record:
        """Write the record of what is durable."""
        if self._same:
            data = read_inside(self._store.path, f"{COMMITS}/{record.file_name}")
            if decode_record(data, record.file_name) != record:
                msg = f"the commit record {record.file_name} changed while it was copied"
                raise DamagedStoreError(msg)
            return self._log.adopt(record, data)
        self._log.writer = record.writer
        return self._log.commit(
            record.kind,
            record.capture,
            files=files,
            segment=record.segment,
            samples=record.samples,
            attrs=dict(record.attrs),
        )

    def _copy_capture(self, definition: CaptureDefinition, record: Record) -> Record:
        if self._same:
            make_capture_files(self._root, definition)
            return self._commit(record, record.files)
        self._log.writer = record.writer
        make_capture(self._root, definition, self._log)
        return self._log.records[-1]

    def _copy_parameters(self, definition: CaptureDefinition, record: Record) -> None:
        for name, described in record.attrs["arrays"].items():
            shape, dtype = described["shape"], described["dtype"]
            spec = definition.parameter_spec(name, shape, dtype)
            entry = find_entry(record, spec.chunk_path(*(0 for _ in shape)))
            blocks = checked_blocks(self._store.path, entry)
            make_array(self._root, spec, None, b"".join(block.tobytes() for block in blocks))
        self._commit(record, record.files)

    def _copy_segment(self, definition: CaptureDefinition, record: Record) -> None:
        columns = record.attrs["columns"]
        make_columns(self._root, definition, columns, *self._extent(record.capture))
        arrays = {spec.path for spec in definition.segmented_arrays(columns)}
        strays = [e.path for e in record.files if str(Path(e.path).parent) not in arrays]
        if strays:
            msg = f"{strays[0]} is named by {record.file_name}, but the capture has no such array"
            raise DamagedStoreError(msg)
        with ExitStack() as undo:
            renames, entries = self._stage(definition, record, undo)
            for staged, path in renames:
                rename(staged, self._root / path)
            undo.pop_all()
        for folder in sorted({(self._root / path).parent for _, path in renames}):
            sync_directory(folder)
        self._commit(record, entries)
        if definition.plan is None:
            self._publish(record.capture)

    def _stage(
        self, definition: CaptureDefinition, record: Record, undo: ExitStack
    ) -> tuple[list[tuple[Path, str]], list[FileEntry]]:
        """Write all files of a segment and make them durable, some at a time."""
        anew = self._written_anew(definition, record)
        renames: list[tuple[Path, str]] = []
        entries: list[FileEntry] = []
        for group in batched(enumerate(record.files), FILES_AT_ONCE):
            opened: list[AnyShardWriter | _FileCopy] = []
            for number, entry in group:
                if entry.path in anew:
                    source, site, layer = anew[entry.path]
                    shard = open_shard(definition, site, layer, record.segment or 0, self._staging)
                    undo.callback(shard.abort)
                    for rows in self._rows(record, source, layer):
                        shard.write([widen(rows) if site.dtype != source.dtype else rows])
                    shard.complete()
                    renames.append((shard.file.staged, entry.path))
                    opened.append(shard)
                    continue
                file = _FileCopy(self._staging / f"copy.{number}", entry)
                undo.callback(file.abort)
                file.fill(self._store.path)
                renames.append((file.staged, entry.path))
                opened.append(file)
            entries += [file.sync() for file in opened]
        return renames, entries

    def _written_anew(self, definition: CaptureDefinition, record: Record) -> dict[str, _Shard]:
        """Return the shards, by path, whose bytes differ between source and copy."""
        before = self._store.capture(record.capture).definition
        shards: dict[str, _Shard] = {}
        for old, new in zip(before.sites, definition.sites, strict=True):
            spec = definition.values_spec(new)
            if spec == before.values_spec(old):
                continue
            for layer in range(len(new.layer_labels)):
                shards[spec.chunk_path(layer, record.segment or 0, 0)] = (old, new, layer)
        return shards

    def _rows(self, record: Record, site: Site, layer: int) -> Iterator[np.ndarray]:
        """Yield what a shard holds as stored, in whole inner chunks, the last one excepted."""
        definition = self._store.capture(record.capture).definition
        reader = SegmentReader(self._store.path, definition)
        inner = definition.slots(site)[1]
        step = max(1, _PIECE_BYTES // (inner * site.row_bytes)) * inner
        total = len(record.samples)
        if site.kind == "row":
            total = sum(sample.rows[site.stream][1] for sample in record.samples)
        for start in range(0, total, step):
            yield reader.sharded(site, layer, [Piece(record, start, min(start + step, total))])

    def _segments(self, capture: str) -> list[Record]:
        return [r for r in self._log.records if r.kind == "segment" and r.capture == capture]

    def _extent(self, capture: str) -> tuple[set[int], Mapping[str, int]]:
        """Return the segments that the copy has, and the slots that the last one uses."""
        records = self._segments(capture)
        if not records:
            return set(), {}
        newest = max(records, key=lambda record: record.segment or 0)
        return {record.segment or 0 for record in records}, newest.attrs["used"]

    def _publish(self, capture: str) -> None:
        columns: dict[str, str] = {}
        for record in self._segments(capture):
            columns |= record.attrs["columns"]
        definition = self._definitions[capture]
        publish_shapes(self._root, definition, columns, *self._extent(capture))


def in_order(log: RecordLog) -> list[Record]:
    """Return records in an order in which they can be committed.

    Those of a writer follow each other, and a capture comes before what belongs to it, whichever
    writer made it.
    """
    waiting: dict[str, list[Record]] = {}
    for record in reversed(log.records):
        waiting.setdefault(record.writer, []).append(record)
    made: set[str] = set()
    ordered: list[Record] = []
    while waiting:
        before = len(ordered)
        for writer, left in list(waiting.items()):
            while left and (left[-1].kind == "capture" or left[-1].capture in made):
                record = left.pop()
                made.add(record.capture)
                ordered.append(record)
            if not left:
                del waiting[writer]
        if len(ordered) == before:
            msg = "the commit records name a capture before it was made"
            raise DamagedStoreError(msg)
    return ordered
