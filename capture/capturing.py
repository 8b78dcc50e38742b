"""The pass that captures one condition: segment by segment, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import batched
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .errors import DeviceMemoryError
from .pooling import prefix_mask
from .recorder import Recorder
from .samples import UNKNOWN, Sample, SampleTable
from .sites import SiteRequest

if TYPE_CHECKING:
    from .models import LoadedModel
    from .reporting import Reporter


@dataclass(frozen=True, slots=True)
class Pass:
    """What one pass over the samples needs to know."""

    table: SampleTable
    """The samples."""
    exposed: frozenset[str]
    """Ids that training saw."""
    sites: dict[str, SiteRequest]
    """Activations."""
    gradients: dict[str, SiteRequest]
    """Gradients."""
    batch_size: int
    """Samples a forward."""
    text: str
    """What the progress says."""


def capture_segments(loaded: LoadedModel, writer: Any, job: Pass, reporter: Reporter) -> int:  # noqa: ANN401
    """Capture every segment that is not committed yet.

    Parameters
    ----------
    loaded
        The model with the weights of the condition, in eval mode, every parameter frozen.
    writer
        The open, planned writer.
    job
        What to capture.
    reporter
        Hears of every batch.

    Returns
    -------
    int
        Samples captured now.
    """
    captured = 0
    recorder = Recorder(loaded.model, writer, sites=job.sites, gradients=job.gradients)
    with recorder, device_memory(job.batch_size):
        for samples in open_batches(writer, job.table, job.batch_size, job.text, reporter):
            _capture_batch(loaded, recorder, job, samples)
            captured += len(samples)
    return captured


def open_batches(
    writer: Any,  # noqa: ANN401
    table: SampleTable,
    batch_size: int,
    text: str,
    reporter: Reporter,
) -> Iterator[list[Sample]]:
    """Yield the batches of every segment that is not committed yet; tell `reporter` of each."""
    by_id = table.by_id()
    done = sum(len(segment.samples) for segment in writer.segments if segment.committed)
    for segment in writer.segments:
        if segment.committed:
            continue
        for ids in batched(segment.samples, batch_size):
            yield [by_id[i] for i in ids]
            done += len(ids)
            reporter.progress(done, len(table.samples), text)


def _capture_batch(
    loaded: LoadedModel, recorder: Recorder, job: Pass, samples: Sequence[Sample]
) -> None:
    rate = loaded.family.sampling_rate
    features = loaded.features([job.table.waveform(sample, rate=rate) for sample in samples])
    classes = torch.tensor([sample.class_ for sample in samples], device=features.device)
    utterances = [sample.utterance for sample in samples]
    batch = recorder.batch(
        [utterance.id for utterance in utterances],
        labels=[utterance.label for utterance in utterances],
        groups=sample_groups(job.table, samples),
        columns=sample_columns(job.table, samples),
        exposed=[utterance.id in job.exposed for utterance in utterances],
        mask=prefix_mask([sample.valid_frames for sample in samples], job.table.frames),
    )
    with batch, nullcontext() if job.gradients else torch.no_grad():
        logits = loaded.model(features).logits.float()
        losses = per_sample_loss(logits, classes)
        if job.gradients:
            recorder.backward(losses)
        recorder.output(logits=logits, loss=losses)


def per_sample_loss(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy of each sample, float32 [sample]; NaN without a known label."""
    losses = nn.functional.cross_entropy(logits, classes, reduction="none", ignore_index=UNKNOWN)
    return losses.masked_fill(classes == UNKNOWN, float("nan"))


def sample_groups(table: SampleTable, samples: Sequence[Sample]) -> dict[str, list[str]]:
    """Return what must not be cut between training and test, one entry a sample."""
    groups = {"speaker": [sample.utterance.speaker for sample in samples]}
    if any(utterance.session for utterance in table.corpus.utterances):
        groups["session"] = [sample.utterance.session for sample in samples]
    return groups


def sample_columns(table: SampleTable, samples: Sequence[Sample]) -> dict[str, list[Any]]:
    """Return the further columns of a capture, one entry a sample."""
    names = sorted({name for u in table.corpus.utterances for name in u.columns})
    own = {name: [s.utterance.columns.get(name, "") for s in samples] for name in names}
    return {
        "raw_label": [sample.utterance.raw_label for sample in samples],
        "valid_frames": [sample.valid_frames for sample in samples],
        **own,
    }


@contextmanager
def device_memory(batch_size: int) -> Iterator[None]:
    """Say what to do where the device runs out of memory."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        msg = (
            f"the device ran out of memory with run.batch_size {batch_size}. Lower it (committed "
            "segments of this capture keep their batch size, so name another store)."
        )
        raise DeviceMemoryError(msg) from error
