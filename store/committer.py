"""From appended arrays to a durable segment: shards in the writer threads, then the commit."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from .creation import chunk_entry, with_checksum
from .definition import CaptureDefinition
from .errors import SampleError
from .extents import make_columns, publish_shapes
from .files import disk_errors, rename, sync_directory, write_all_synced
from .layout import STAGING, Site
from .pipeline import Pipeline
from .records import RecordLog
from .segment import AnyShardWriter, NewSample, OpenSegment, open_shard, small_files
from .shards import FileEntry

GATHER_BYTES = 8 * 2**20
"""Single samples wait for company until they have so many bytes: fewer and larger writes."""
_COLUMN_DTYPES = {str: "string", bool: "bool", int: "int64", float: "float64"}


class Committer:
    """Sends samples to shards and commits whole segments.

    Every (site, layer) belongs to one lane of the pipeline, so a shard is written by one thread in
    order. The lane that ends a segment last commits it; lanes keep their order, so segments are
    committed in the order in which they were finished.

    Attributes
    ----------
    committed
        Ids of the samples that are durable.
    segments
        Numbers of the segments that are durable.
    """

    def __init__(
        self,
        root: Path,
        definition: CaptureDefinition,
        log: RecordLog,
        pipeline: Pipeline,
        gather_bytes: int,
    ) -> None:
        self._root = root
        self._staging = root / STAGING
        self._definition = definition
        self._log = log
        self._pipeline = pipeline
        self._arrays = [
            (site, layer) for site in definition.sites for layer in range(len(site.layer_labels))
        ]
        records = [r for r in log.records if r.kind == "segment" and r.capture == definition.name]
        self.committed = {sample.id for record in records for sample in record.samples}
        self.segments = {record.segment for record in records if record.segment is not None}
        self._columns: dict[str, str] = {}
        self._committed_columns: dict[str, str] = {}
        self._last: dict[str, int] = {}
        self._uncommitted: list[OpenSegment] = []
        self._gathered: list[Mapping[str, np.ndarray]] = []
        self._gathered_bytes = 0
        self._gather_bytes = gather_bytes
        for record in records:
            self._committed_columns |= record.attrs.get("columns", {})
        self._columns |= self._committed_columns
        if records:
            newest = max(records, key=lambda record: record.segment or 0)
            self._last = dict(newest.attrs.get("used", {}))
        self._publish_shapes()

    @property
    def next_segment(self) -> int:
        """The number after the highest durable segment of an unplanned capture, else 0."""
        if self._definition.plan is not None:
            return 0
        return max(self.segments, default=-1) + 1

    def settle_columns(self, samples: Sequence[NewSample]) -> None:
        """Settle the data types of the samples' columns before a thread needs them, all or none.

        Raises
        ------
        SampleError
            If a column's type is not storable, or differs from the one it had before.
        """
        settled = dict(self._columns)
        for sample in samples:
            values: dict[str, object] = {**sample.columns, **sample.groups}
            for name, value in values.items():
                dtype = _COLUMN_DTYPES.get(type(value))
                if dtype is None or dtype != settled.setdefault(name, dtype):
                    msg = (
                        f"sample {sample.id!r}: column {name!r} is {type(value).__name__}; a "
                        "column is str, bool, int or float, and always the same (it was "
                        f"{settled.get(name)})"
                    )
                    raise SampleError(msg)
        self._columns = settled

    def send(self, segment: OpenSegment, arrays: Mapping[str, np.ndarray]) -> None:
        """Take the arrays of consecutive samples; blocks while the pipeline is full.

        Small ones are gathered until they make a write worth its system call.
        """
        self._pipeline.check()
        if segment not in self._uncommitted:
            self._uncommitted.append(segment)
        self._gathered.append(arrays)
        self._gathered_bytes += sum(array.nbytes for array in arrays.values())
        if self._gathered_bytes >= self._gather_bytes:
            self._dispatch(segment)

    def _dispatch(self, segment: OpenSegment) -> None:
        """Queue the gathered samples, in order, one job a lane."""
        gathered, self._gathered, self._gathered_bytes = self._gathered, [], 0
        lanes = self._pipeline.lanes
        for lane in range(lanes):
            mine = self._arrays[lane::lanes]
            parts = [(*array, [a[array[0].name][array[1]] for a in gathered]) for array in mine]
            n_bytes = sum(part.nbytes for *_, rows in parts for part in rows)

            def job(parts: list[tuple[Site, int, list[np.ndarray]]] = parts) -> None:
                with disk_errors("writing samples"):
                    for site, layer, rows in parts if not segment.dropped else []:
                        shard = self._shard(segment, site, layer)
                        shard.write(np.ascontiguousarray(part) for part in rows)

            self._pipeline.send(lane, job, n_bytes)

    def finish(self, segment: OpenSegment) -> None:
        """Queue the end of a segment: fsync of its shards, then the commit."""
        self._dispatch(segment)
        lanes = self._pipeline.lanes
        columns = dict(self._columns)
        entries: list[FileEntry] = []
        left = [lanes]
        gate = threading.Lock()
        for lane in range(lanes):
            mine = self._arrays[lane::lanes]

            def job(mine: list[tuple[Site, int]] = mine) -> None:
                with disk_errors("committing a segment"):
                    shards = [self._shard(segment, *array) for array in mine]
                    for shard in shards:
                        shard.complete()
                    done = [shard.sync() for shard in shards]
                    with gate:
                        entries.extend(done)
                        left[0] -= 1
                        last = left[0] == 0
                    if last:
                        self._commit(segment, entries, columns)

            self._pipeline.send(lane, job)

    def drop(self) -> None:
        """Remove what uncommitted segments staged; call it after the pipeline has stopped."""
        for segment in self._uncommitted:
            for shard in segment.shards.values():
                shard.abort()
        self._uncommitted.clear()
        self._gathered.clear()

    def _shard(self, segment: OpenSegment, site: Site, layer: int) -> AnyShardWriter:
        key = (f"{site.kind}.{site.name}", layer)
        shard = segment.shards.get(key)
        if shard is None:
            shard = open_shard(self._definition, site, layer, segment.index, self._staging)
            segment.shards[key] = shard
        return shard

    def _commit(
        self, segment: OpenSegment, shards: list[FileEntry], columns: Mapping[str, str]
    ) -> None:
        renames = [(s.file.staged, s.file.final) for s in segment.shards.values()]
        entries = sorted(shards, key=lambda entry: entry.path)
        make_columns(self._root, self._definition, columns, self.segments, self._last)
        small: dict[Path, bytes] = {}
        for number, (path, content) in enumerate(small_files(self._definition, segment, columns)):
            stored = with_checksum(content)
            source = self._staging / f"{self._definition.name}.small.{segment.index}.{number}"
            small[source] = stored
            renames.append((source, path))
            entries.append(chunk_entry(path, stored))
        write_all_synced(small)
        for source, path in renames:
            rename(source, self._root / path)
        for folder in sorted({(self._root / path).parent for _, path in renames}):
            sync_directory(folder)
        used = {"sample": len(segment.samples), **segment.used}
        groups = sorted({name for sample in segment.samples for name in sample.groups})
        self._log.commit(
            "segment",
            self._definition.name,
            files=entries,
            segment=segment.index,
            samples=segment.entries(self._definition),
            attrs={
                "config_digest": self._definition.config_digest,
                "columns": columns,
                "groups": groups,
                "used": used,
            },
        )
        self.committed.update(sample.id for sample in segment.samples)
        self.segments.add(segment.index)
        self._uncommitted.remove(segment)
        self._last = used
        self._committed_columns |= columns
        if self._definition.plan is None:
            self._publish_shapes()

    def _publish_shapes(self) -> None:
        # not those that samples after this segment brought: their arrays do not exist yet
        columns = self._committed_columns
        publish_shapes(self._root, self._definition, columns, self.segments, self._last)
