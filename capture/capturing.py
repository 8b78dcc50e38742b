"""The pass that captures one condition: segment by segment, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from .batching import Pass, prepare_batch, record_batch
from .memory import BatchSizer
from .recorder import Recorder
from .statistics import Watcher

if TYPE_CHECKING:
    from ..store import Site
    from .models import LoadedModel
    from .reporting import Reporter
    from .samples import Sample, SampleTable


def capture_segments(
    loaded: LoadedModel,
    writer: Any,  # noqa: ANN401
    sites: Sequence[Site],
    job: Pass,
    reporter: Reporter,
) -> None:
    """Capture every segment of this process that is not committed yet.

    A batch that does not fit into the device is halved, and so are those after it. A batch that
    failed leaves nothing: the writer gets a batch when all of it was computed.

    Parameters
    ----------
    loaded
        The model with the weights of the condition, in eval mode, every parameter frozen.
    writer
        The open, planned writer.
    sites
        What the writer was opened with.
    job
        What to capture.
    reporter
        Hears of every batch.
    """
    sizer = BatchSizer(job.batch_size, reporter)
    watched = Watcher(writer, sites)
    with Recorder(loaded.model, watched, sites=job.sites, gradients=job.gradients) as recorder:

        def record(samples: Sequence[Sample]) -> None:
            record_batch(loaded, recorder, job, prepare_batch(loaded, job, samples))

        for samples in open_batches(writer, job.table, job.batch_size, job.text, reporter):
            sizer.act(samples, record)


def open_batches(
    writer: Any,  # noqa: ANN401
    table: SampleTable,
    batch_size: int,
    text: str,
    reporter: Reporter,
) -> Iterator[list[Sample]]:
    """Yield the batches of every segment that is not committed yet; tell `reporter` of each."""
    by_id = table.by_id()
    total = sum(len(segment.samples) for segment in writer.segments)
    done = sum(len(segment.samples) for segment in writer.segments if segment.committed)
    for segment in writer.segments:
        if segment.committed:
            continue
        for samples in table.batches((by_id[i] for i in segment.samples), batch_size):
            yield samples
            done += len(samples)
            reporter.progress(done, total, text)
