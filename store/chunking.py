"""How samples are cut into segments, and how large shards and inner chunks are.

A segment is the unit of commit: one whole shard per (site, layer, segment). A sample never crosses
a segment, neither does a batch, so a segment's files depend on the plan alone and not on who wrote
them or how often the run was interrupted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import batched

from .errors import SampleError
from .layout import SampleRows, Site

SHARD_BYTES = 32 * 2**20
"""Size that a shard of the widest site aims at."""
CHUNK_BYTES = 2**20
"""Size that an inner chunk aims at: a random read of 300 rows then takes some milliseconds."""
MAX_SEGMENT_SAMPLES = 256
MAX_UNPLANNED_ROWS = 16_384
MAX_CHUNK_ROWS = 4096
"""Bound for narrow sites (LoRA A), whose padded tails would otherwise outweigh their rows."""
PLANNED_SEGMENTS = 8
"""A small run is still cut into about this many segments, so that a crash costs a part of it."""
MIN_SEGMENT_SAMPLES = 32
"""Below this many samples a further segment costs more in files than it saves after a crash."""


@dataclass(frozen=True, slots=True)
class SegmentShape:
    """The slots of every segment of a capture."""

    rows: int
    """Row slots of a segment, in every stream."""
    samples: int
    """Sample slots of a segment."""


@dataclass(frozen=True, slots=True)
class PlannedSegment:
    """One segment of a plan."""

    index: int
    """Number of the segment."""
    samples: tuple[str, ...]
    """Ids in order."""
    committed: bool = False
    """Whether its record exists."""


def plan_segments(
    plan: Sequence[SampleRows],
    sites: Sequence[Site],
    *,
    batch_size: int = 1,
    segment_rows: int | None = None,
    segment_samples: int | None = None,
) -> tuple[SegmentShape, list[list[SampleRows]]]:
    """Cut a planned run into segments.

    Parameters
    ----------
    plan
        All samples in order.
    sites
        What is recorded; the widest row site sets the size of a shard.
    batch_size
        Consecutive samples that must stay in one segment.
    segment_rows, segment_samples
        Upper limits for a segment; None chooses about `SHARD_BYTES` per shard, at most
        `MAX_SEGMENT_SAMPLES` samples, and about `PLANNED_SEGMENTS` segments for a small run.

    Returns
    -------
    tuple
        The slots of a segment and the samples of each.

    Raises
    ------
    SampleError
        If one batch alone has more rows than `segment_rows`.
    """
    max_samples = segment_samples or _auto_samples(len(plan), batch_size)
    max_rows = segment_rows or max(1, SHARD_BYTES // _widest_row(sites))
    segments: list[list[SampleRows]] = []
    for batch in batched(plan, batch_size):
        rows = _stream_rows(batch)
        if segment_rows is not None and rows > segment_rows:
            msg = (
                f"segment_rows is {segment_rows}, but the batch that starts with {batch[0].id!r} "
                f"has {rows} rows: raise segment_rows or lower the batch size"
            )
            raise SampleError(msg)
        fits = (
            segments
            and len(segments[-1]) + len(batch) <= max_samples
            and _stream_rows([*segments[-1], *batch]) <= max_rows
        )
        if fits:
            segments[-1].extend(batch)
        else:
            segments.append(list(batch))
    largest = max((_stream_rows(segment) for segment in segments), default=1)
    widest_segment = max((len(segment) for segment in segments), default=1)
    return SegmentShape(_round_rows(max(1, largest), sites), widest_segment), segments


def unplanned_shape(
    sites: Sequence[Site], *, segment_rows: int | None, segment_samples: int | None
) -> SegmentShape:
    """Return the slots of a segment for a run whose samples are not known beforehand."""
    rows = segment_rows or min(MAX_UNPLANNED_ROWS, max(1, SHARD_BYTES // 2 // _widest_row(sites)))
    return SegmentShape(_round_rows(rows, sites), segment_samples or MAX_SEGMENT_SAMPLES)


def chunk_rows(site: Site, segment_rows: int) -> int:
    """Return the rows of an inner chunk: a power of two that divides `segment_rows`.

    About `CHUNK_BYTES`, but at most a quarter of the segment, so that the padded tail of a small
    segment stays small.
    """
    rows = min(_chunk_limit(site), _power_below(max(1, segment_rows // 4)))
    while segment_rows % rows:
        rows //= 2
    return rows


def _auto_samples(n_samples: int, batch_size: int) -> int:
    wanted = max(MIN_SEGMENT_SAMPLES, -(-n_samples // PLANNED_SEGMENTS))
    wanted = min(wanted, MAX_SEGMENT_SAMPLES)
    return max(1, wanted // batch_size) * batch_size


def _stream_rows(samples: Sequence[SampleRows]) -> int:
    totals: dict[str, int] = {}
    for sample in samples:
        for stream, rows in sample.rows.items():
            totals[stream] = totals.get(stream, 0) + rows
    return max(totals.values(), default=0)


def _widest_row(sites: Sequence[Site]) -> int:
    return max((site.row_bytes for site in sites if site.kind == "row"), default=4096)


def _round_rows(rows: int, sites: Sequence[Site]) -> int:
    """Round up so that every site's inner chunk (a power of two) divides the segment."""
    longest = max((_chunk_limit(site) for site in sites if site.kind == "row"), default=1)
    step = min(longest, _power_below(max(1, rows // 4)))
    return -(-rows // step) * step


def _chunk_limit(site: Site) -> int:
    return min(MAX_CHUNK_ROWS, _power_below(max(1, CHUNK_BYTES // site.row_bytes)))


def _power_below(value: int) -> int:
    return 1 << (value.bit_length() - 1)
