"""Which sample of a plan comes next, for one rank, when some segments are durable already."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass

from .chunking import PlannedSegment
from .errors import SampleError
from .layout import SampleRows
from .ranks import Rank
from .segment import NewSample


@dataclass(frozen=True, slots=True)
class PlanOrder:
    """The segments of a plan that a rank writes; false where there is no plan."""

    plan: Sequence[Sequence[SampleRows]]
    """The samples of every segment; empty without a plan."""
    rank: Rank
    """Whose segments are written."""
    committed: Container[int]
    """Segments that are durable; grows as the writer commits."""

    def __len__(self) -> int:
        """Return the number of segments."""
        return len(self.plan)

    def size(self, segment: int) -> int:
        """Return the number of samples of a segment."""
        return len(self.plan[segment])

    def planned_segments(self) -> list[PlannedSegment]:
        """Return the segments of this rank, in order, each with whether it is durable."""
        return [
            PlannedSegment(index, tuple(s.id for s in samples), index in self.committed)
            for index, samples in enumerate(self.plan)
            if self.rank.owns(index)
        ]

    def next(self, segment: int) -> int:
        """Return the first segment from `segment` on that is this rank's and not durable."""
        while segment in self.committed or not self.rank.owns(segment):
            segment += 1
        return segment

    def check(self, samples: Sequence[NewSample], at: int, *, done: int) -> None:
        """Compare samples with the next ones of the plan, over as many segments as they span.

        Parameters
        ----------
        samples
            The samples in order.
        at
            The segment that the first of them should be in.
        done
            Samples of that segment that came already.

        Raises
        ------
        SampleError
            If another sample, or other rows, should come now.
        """
        for sample in samples:
            if at < len(self.plan) and done == len(self.plan[at]):
                at, done = self.next(at + 1), 0
            expected = self.plan[at][done] if at < len(self.plan) else None
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
