"""Writing a capture: bounded in memory, committed segment by segment, resumable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from .checks import (
    ColumnValue,
    check_columns,
    check_outputs,
    check_positions,
    check_row_counts,
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
from .ranks import Rank
from .records import RecordLog
from .segment import NewSample, OpenSegment


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
        self._plan = run.plan
        self._rank = run.rank
        self._stack = run.stack
        gather_bytes = min(GATHER_BYTES, run.buffer_bytes // 4)
        self._pipeline = Pipeline(run.threads, run.buffer_bytes - gather_bytes)
        self._committer = Committer(root, definition, log, self._pipeline, gather_bytes)
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
        """Segments of the plan that this rank writes, in order, each with whether it is durable.

        Empty without a plan.
        """
        done = self._committer.segments
        return [
            PlannedSegment(index, tuple(s.id for s in samples), index in done)
            for index, samples in enumerate(self._plan)
            if self._rank.owns(index)
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
        self._check_new(samples)
        checked = [self._checked(sample) for sample in samples]
        if self._plan:
            self._check_planned(checked)
        self._committer.settle_columns(checked)
        start = 0
        for number, sample in enumerate(checked):
            if self._open is not None and not self._has_room(self._open, sample):
                self._send(checked, arrays, start, number)
                self._close_segment()
                start = number
            if self._open is None:
                index = self._next_segment
                self._open = OpenSegment(self._next_planned(index) if self._plan else index)
            self._open.add(sample)
            self._seen.add(sample.id)
        self._send(checked, arrays, start, len(checked))
        if self._open is not None and self._plan and not self._has_room(self._open):
            self._close_segment()

    def _has_room(self, segment: OpenSegment, sample: NewSample | None = None) -> bool:
        """Whether a segment can take one more sample."""
        if self._plan:
            return len(segment.samples) < len(self._plan[segment.index])
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
            cut: dict[str | None, tuple[int, int]] = {None: (start, stop)}
            for stream in self._definition.streams:
                ends = np.cumsum([0, *(sample.n_rows.get(stream, 0) for sample in samples)])
                cut[stream] = (int(ends[start]), int(ends[stop]))
            spans = {n: cut[s.stream if s.kind == "row" else None] for n, s in self._sites.items()}
            arrays = {name: array[:, slice(*spans[name])] for name, array in arrays.items()}
        self._committer.send(self._open, arrays)

    def _check_new(self, samples: Sequence[NewSample]) -> None:
        seen: set[str] = set()
        for sample in samples:
            if sample.id in self._seen or sample.id in seen:
                msg = (
                    f"sample {sample.id!r} is in capture {self._definition.name!r} already: ids "
                    "are unique; skip those in writer.committed"
                )
                raise SampleError(msg)
            seen.add(sample.id)

    def _checked(self, sample: NewSample) -> NewSample:
        check_columns(self._definition, sample.columns, sample.groups)
        return replace(
            sample,
            exposed=bool(sample.exposed),
            outputs=check_outputs(sample.id, self._outputs, sample.outputs),
            positions=check_positions(sample.id, sample.n_rows, sample.positions),
        )

    def _check_planned(self, samples: Sequence[NewSample]) -> None:
        """Compare samples with the next ones of the plan, over as many segments as they span."""
        at = self._open.index if self._open else self._next_planned(self._next_segment)
        done = len(self._open.samples) if self._open else 0
        for sample in samples:
            if at < len(self._plan) and done == len(self._plan[at]):
                at, done = self._next_planned(at + 1), 0
            expected = self._plan[at][done] if at < len(self._plan) else None
            if (
                expected is None
                or expected.id != sample.id
                or dict(expected.rows) != dict(sample.n_rows)
            ):
                wanted = (
                    f"{expected.id!r} with rows {dict(expected.rows)}" if expected else "nothing"
                )
                msg = (
                    f"segment {at} of the plan expects {wanted} now, "
                    f"got {sample.id!r} with rows {dict(sample.n_rows)}"
                )
                raise SampleError(msg)
            done += 1

    def _next_planned(self, segment: int) -> int:
        """Return the first segment from `segment` on that is this rank's and not durable."""
        while segment in self._committer.segments or not self._rank.owns(segment):
            segment += 1
        return segment

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
