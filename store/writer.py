"""Writing a capture: bounded in memory, committed segment by segment, resumable."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from .checks import (
    ColumnValue,
    check_columns,
    check_outputs,
    check_positions,
    check_values,
    count_rows,
)
from .chunking import PlannedSegment
from .committer import Committer
from .definition import CaptureDefinition
from .errors import SampleError
from .files import disk_errors
from .layout import SampleRows
from .parameters import Parameters, ParameterWriter
from .pipeline import Pipeline
from .records import RecordLog
from .segment import OpenSegment, SampleRecord


@dataclass(frozen=True, slots=True)
class WriterRun:
    """How a writer runs; nothing here changes what is written."""

    plan: list[list[SampleRows]]
    """The samples of each planned segment; empty without a plan."""
    buffer_bytes: int
    """Bound on the bytes that wait for the disk."""
    threads: int
    """Writer threads."""
    stack: ExitStack
    """What to release when the writer ends: the store's lock."""


class Writer:
    """Appends samples to one capture of a store; made by `create_store`.

    Notes
    -----
    Use it as a context manager. Leaving the block commits what was appended (and never seals); an
    exception drops the open segment and nothing else.
    """

    def __init__(
        self, root: Path, definition: CaptureDefinition, log: RecordLog, run: WriterRun
    ) -> None:
        self._definition = definition
        self._plan = run.plan
        self._stack = run.stack
        self._pipeline = Pipeline(run.threads, run.buffer_bytes)
        self._committer = Committer(root, definition, log, self._pipeline)
        self._sites = {site.name: site for site in definition.sites}
        self._outputs = {output.name: output for output in definition.outputs}
        self._open: OpenSegment | None = None
        self._seen = set(self._committer.committed)
        self._next_segment = self._committer.next_segment
        self._parameters = ParameterWriter(root, definition, log)

    @property
    def committed(self) -> set[str]:
        """Ids of the samples that are durable."""
        return set(self._committer.committed)

    @property
    def segments(self) -> list[PlannedSegment]:
        """The plan's segments in order, each with whether it is durable; empty without a plan."""
        done = self._committer.segments
        return [
            PlannedSegment(index, tuple(s.id for s in samples), index in done)
            for index, samples in enumerate(self._plan)
        ]

    @property
    def parameters(self) -> Parameters:
        """Parameters that are durable, read on access."""
        return self._parameters.committed

    def write_parameters(
        self, values: Mapping[str, np.ndarray], *, attrs: Mapping[str, Any] | None = None
    ) -> None:
        """Make parameters (weights, norms) durable before returning.

        Parameters
        ----------
        values
            Arrays of any shape by name.
        attrs
            JSON-able facts about the set.

        Raises
        ------
        ConfigMismatchError
            If a parameter is there already with other values. Equal values: nothing happens.
        """
        with disk_errors("writing parameters"):
            self._parameters.write(values, attrs or {})

    def append(
        self,
        id: str,
        values: Mapping[str, np.ndarray],
        *,
        label: str = "",
        groups: Mapping[str, str] | None = None,
        exposed: bool = False,
        outputs: Mapping[str, Any] | None = None,
        positions: Mapping[str, np.ndarray] | None = None,
        columns: Mapping[str, ColumnValue] | None = None,
    ) -> None:
        """Append one sample.

        Parameters
        ----------
        id
            Unique in the capture.
        values
            One array per site: `[layer, row, feature]` for row sites (`[row, feature]` where the
            site has no layers), `[layer, feature]` or `[feature]` for pooled sites. They are cast
            to the site's storage type; do not change them afterwards.
        label
            Canonical label.
        groups
            Speaker, session and the like: what must not be split between training and test.
        exposed
            Whether the sample was in the training part of this capture's adapter or head.
        outputs
            One value per declared output.
        positions
            Per stream, the frame or token index of every row; default 0, 1, 2, …
        columns
            Further facts, one value each.

        Raises
        ------
        SampleError
            If the sample is there already, out of the planned order, or does not fit the sites.
        StoreSpaceError, StoreWriteError
            If the disk refused an earlier write; committed samples are safe.
        """
        if id in self._seen:
            msg = (
                f"sample {id!r} is in capture {self._definition.name!r} already: ids are unique; "
                "skip those in writer.committed"
            )
            raise SampleError(msg)
        arrays = check_values(id, self._sites, values)
        n_rows = count_rows(id, self._definition, arrays)
        check_columns(self._definition, columns or {}, groups or {})
        sample = SampleRecord(
            id=id,
            n_rows=n_rows,
            label=label,
            exposed=bool(exposed),
            groups=dict(groups or {}),
            columns=dict(columns or {}),
            outputs=check_outputs(id, self._outputs, outputs or {}),
            positions=check_positions(id, n_rows, positions or {}),
        )
        segment = self._segment_for(sample)
        self._committer.settle_columns(sample)
        self._committer.send(segment, arrays)
        segment.add(sample)
        self._seen.add(id)
        if self._plan and len(segment.samples) == len(self._plan[segment.index]):
            self._close_segment()

    def _segment_for(self, sample: SampleRecord) -> OpenSegment:
        if self._plan:
            return self._planned_segment(sample)
        shape = self._definition.shape
        if self._open is not None and (
            len(self._open.samples) >= shape.samples
            or any(self._open.used.get(s, 0) + n > shape.rows for s, n in sample.n_rows.items())
        ):
            self._close_segment()
        if self._open is None:
            self._open = OpenSegment(self._next_segment)
        return self._open

    def _planned_segment(self, sample: SampleRecord) -> OpenSegment:
        if self._open is None:
            while self._next_segment in self._committer.segments:
                self._next_segment += 1
            self._open = OpenSegment(self._next_segment)
        planned = self._plan[self._open.index] if self._open.index < len(self._plan) else []
        expected = planned[len(self._open.samples)] if planned else None
        if expected is None or expected.id != sample.id or dict(expected.rows) != sample.n_rows:
            wanted = f"{expected.id!r} with rows {dict(expected.rows)}" if expected else "nothing"
            msg = (
                f"segment {self._open.index} of the plan expects {wanted} now, "
                f"got {sample.id!r} with rows {sample.n_rows}"
            )
            raise SampleError(msg)
        return self._open

    def _close_segment(self) -> None:
        segment, self._open = self._open, None
        if segment is None or not segment.samples:
            return
        self._next_segment = segment.index + 1
        self._committer.finish(segment)

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Commit what was appended, or drop the open segment after an exception."""
        with self._stack:
            if kind is None:
                self._finish()
            else:
                self._drop()

    def _finish(self) -> None:
        segment = self._open
        if self._plan and segment is not None and segment.samples:
            self._drop()
            msg = (
                f"the block was left in the middle of planned segment {segment.index}: "
                f"{len(segment.samples)} of its {len(self._plan[segment.index])} samples came. "
                "They were dropped; the segments before it are committed."
            )
            raise SampleError(msg)
        try:
            self._close_segment()
        finally:
            self._pipeline.stop()
            self._committer.drop()
        self._pipeline.check()

    def _drop(self) -> None:
        """Let finished segments commit, drop the open one."""
        if self._open is not None:
            self._open.dropped = True
        self._pipeline.stop()
        self._committer.drop()
