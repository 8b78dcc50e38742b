"""One batch of a pass: its inputs, and one forward (and backward) that is recorded."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .samples import UNKNOWN, Sample, SampleTable
from .sites import SiteRequest

if TYPE_CHECKING:
    import numpy as np

    from .models import LoadedModel
    from .recorder import Recorder


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
    """Samples a forward, as long as they fit into the device."""
    text: str
    """What the progress says."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The inputs of one forward."""

    samples: Sequence[Sample]
    """The samples."""
    inputs: dict[str, torch.Tensor]
    """Inputs of the model by name, on its device."""
    classes: torch.Tensor
    """Class of each sample."""


def prepare_batch(loaded: LoadedModel, job: Pass, samples: Sequence[Sample]) -> Batch:
    """Read the audio of some samples and return the inputs of a forward."""
    rate = loaded.family.sampling_rate
    inputs = loaded.inputs([job.table.waveform(sample, rate=rate) for sample in samples])
    device = next(iter(inputs.values())).device
    classes = torch.tensor([sample.class_ for sample in samples], device=device)
    return Batch(samples, inputs, classes)


def gradient_mode(job: Pass) -> AbstractContextManager[object]:
    """Return the mode that forwards of a pass run in: with a graph where gradients are wanted."""
    return nullcontext() if job.gradients else torch.no_grad()


def record_batch(loaded: LoadedModel, recorder: Recorder, job: Pass, batch: Batch) -> np.ndarray:
    """Run one batch and record it; return its logits, float32 [sample, class_]."""
    samples = batch.samples
    utterances = [sample.utterance for sample in samples]
    named = recorder.batch(
        [utterance.id for utterance in utterances],
        labels=[utterance.label for utterance in utterances],
        groups=sample_groups(job.table, samples),
        columns=sample_columns(job.table, samples, batch_size=len(samples)),
        exposed=[utterance.id in job.exposed for utterance in utterances],
        mask=job.table.mask(samples),
    )
    with named, gradient_mode(job):
        logits = loaded.model(**batch.inputs).logits.float()
        losses = per_sample_loss(logits, batch.classes)
        if job.gradients:
            recorder.backward(losses)
        recorder.output(logits=logits, loss=losses)
    return logits.detach().cpu().numpy()


def per_sample_loss(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy of each sample, float32 [sample]; NaN without a known label."""
    losses = nn.functional.cross_entropy(logits, classes, reduction="none", ignore_index=UNKNOWN)
    return losses.masked_fill(classes == UNKNOWN, float("nan"))


def sample_groups(table: SampleTable, samples: Sequence[Sample]) -> dict[str, list[str]]:
    """Return what must not be split between training and test: group name to one entry a sample."""
    groups = {"speaker": [sample.utterance.speaker for sample in samples]}
    if any(utterance.session for utterance in table.corpus.utterances):
        groups["session"] = [sample.utterance.session for sample in samples]
    return groups


def sample_columns(
    table: SampleTable, samples: Sequence[Sample], *, batch_size: int
) -> dict[str, list[Any]]:
    """Return further facts of samples that are computed in a batch: name to one entry a sample."""
    names = sorted({name for u in table.corpus.utterances for name in u.columns})
    own = {name: [s.utterance.columns.get(name, "") for s in samples] for name in names}
    return {
        "raw_label": [sample.utterance.raw_label for sample in samples],
        "valid_frames": [sample.valid_frames for sample in samples],
        # batching may change the last bits of values: where memory was short, batches are smaller
        "batch_size": [batch_size] * len(samples),
        **own,
    }
