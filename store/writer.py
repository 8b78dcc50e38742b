"""Writing a capture: bounded in memory, committed segment by segment, resumable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from .checks import (
    ColumnValue,
    check_new_ids,
    check_row_counts,
    check_sample,
    check_values,
    count_rows,
)
from .chunking import PlannedSegment
from .committer import GATHER_BYTES, Committer
from .definition import CaptureDefinition
from .errors import SampleError
from .files import disk_errors
from .layout import SampleRows
from .parameters import Parameters, ParameterWriter
from .pipeline import Pipeline
from .plan_order import PlanOrder
from .ranks import Rank
from .records import RecordLog
from .segment import NewSample, OpenSegment, cut_arrays


@dataclass(frozen=True, slots=True)
class WriterRun:
    """How a writer runs; nothing here changes what is written."""

    plan: list[list[SampleRows]]
    """The samples of each planned segment; empty without a plan."""
    buffer_bytes: int
    """Bound on the bytes that wait for the disk."""
    threads: int
    """Writer threads."""
    rank: Rank
    """Whose segments are written."""
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
        self._rank = run.rank
        self._stack = run.stack
        gather_bytes = min(GATHER_BYTES, run.buffer_bytes // 4)
        self._pipeline = Pipeline(run.threads, run.buffer_bytes - gather_bytes)
        self._committer = Committer(root, definition, log, self._pipeline, gather_bytes)
        self._plan = PlanOrder(run.plan, run.rank, self._committer.segments)
        self._sites = {site.name: site for site in definition.sites}
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
        """Segments of the plan that this rank writes, in order, each with whether it is durable.

        Empty without a plan.
        """
        return self._plan.planned_segments()

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

        Notes
        -----
        Where several ranks write, rank 0 writes the parameters; of the others nothing is kept.
        """
        if self._rank.number:
            return
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
        subject = f"sample {id!r}"
        arrays = check_values(subject, self._sites, values, n_samples=1)
        sample = NewSample(
            id,
            count_rows(subject, self._definition.sites, arrays),
            label,
            exposed,
            groups=groups or {},
            columns=columns or {},
            outputs=outputs or {},
            positions=positions or {},
        )
        self._append(subject, [sample], arrays)

    def append_batch(self, samples: Sequence[NewSample], values: Mapping[str, np.ndarray]) -> None:
        """Append consecutive samples whose arrays lie together: the cheapest way to write.

        Parameters
        ----------
        samples
            The samples in order, each with its rows per stream.
        values
            One array per site: `[layer, row, feature]` for row sites, the rows of one sample after
            those of the other; `[layer, sample, feature]` for pooled sites; without the first axis
            where the site has no layers. They are cast to the site's storage type; do not change
            them afterwards.

        Raises
        ------
        SampleError
            As `append`, for any of the samples; then none of them is taken.
        StoreSpaceError, StoreWriteError
            If the disk refused an earlier write; committed samples are safe.
        """
        if not samples:
            return
        subject = f"the batch of {len(samples)} samples from {samples[0].id!r}"
        arrays = check_values(subject, self._sites, values, n_samples=len(samples))
        self._append(subject, samples, arrays)

    def _append(
        self, subject: str, samples: Sequence[NewSample], arrays: Mapping[str, np.ndarray]
    ) -> None:
        """Check everything, then take all samples: an error leaves the writer as it was."""
        check_row_counts(subject, self._definition, samples, arrays)
        check_new_ids(self._definition, samples, self._seen)
        checked = [check_sample(self._definition, sample) for sample in samples]
        if self._plan:
            opened = self._open
            at = opened.index if opened else self._plan.next(self._next_segment)
            self._plan.check(checked, at, done=len(opened.samples) if opened else 0)
        self._committer.settle_columns(checked)
        start = 0
        for number, sample in enumerate(checked):
            if self._open is not None and not self._has_room(self._open, sample):
                self._send(checked, arrays, start, number)
                self._close_segment()
                start = number
            if self._open is None:
                index = self._next_segment
                self._open = OpenSegment(self._plan.next(index) if self._plan else index)
            self._open.add(sample)
            self._seen.add(sample.id)
        self._send(checked, arrays, start, len(checked))
        if self._open is not None and self._plan and not self._has_room(self._open):
            self._close_segment()

    def _has_room(self, segment: OpenSegment, sample: NewSample | None = None) -> bool:
        """Whether a segment can take one more sample."""
        if self._plan:
            return len(segment.samples) < self._plan.size(segment.index)
        shape, rows = self._definition.shape, sample.n_rows if sample else {}
        return len(segment.samples) < shape.samples and all(
            segment.used.get(stream, 0) + count <= shape.rows for stream, count in rows.items()
        )

    def _send(
        self,
        samples: Sequence[NewSample],
        arrays: Mapping[str, np.ndarray],
        start: int,
        stop: int,
    ) -> None:
        """Hand the arrays of samples `start` to `stop` of a batch to the committer."""
        if self._open is None or start == stop:
            return
        if (start, stop) != (0, len(samples)):
            arrays = cut_arrays(self._definition, samples, arrays, start, stop)
        self._committer.send(self._open, arrays)

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
                f"{len(segment.samples)} of its {self._plan.size(segment.index)} samples came. "
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
