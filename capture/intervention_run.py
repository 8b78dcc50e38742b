"""Running the interventions of one capture: each gives a capture of outputs beside it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..store import NewSample, Output, create_store, open_store
from .batch import to_numpy
from .batching import per_sample_loss, sample_columns, sample_groups
from .capturing import open_batches
from .condition_run import prepare_model
from .condition_store import RunContext, capture_attributes
from .conditions import Condition, fingerprint
from .intervention import Intervention
from .intervention_material import Change, Material, make_change
from .lora import restore_weights
from .memory import BatchSizer
from .metrics import score_capture

if TYPE_CHECKING:
    from .metrics import Scores
    from .models import LoadedModel
    from .preparing import PreparedCondition
    from .samples import Sample

MEAN_PARAMETER = "intervention.mean"
"""Parameter of an erasure by means: the updates that were put in, [layer, feature]."""


@dataclass(frozen=True, slots=True)
class InterventionResult:
    """What one intervention gave."""

    name: str
    """Name of the capture that holds it."""
    of: str
    """Name of the capture that was changed."""
    intervention: Intervention
    """What was done."""
    scores: Scores
    """On the test part."""
    captured: int
    """Samples captured now; the others were there."""
    seconds: float
    """Wall time."""


def run_interventions(
    context: RunContext,
    prepared: PreparedCondition,
    weights: Mapping[str, np.ndarray],
    others: Mapping[str, Condition],
) -> list[InterventionResult]:
    """Carry out the interventions of one capture; what the store holds already is not done again.

    Parameters
    ----------
    context
        What all captures of the run share.
    prepared
        The condition that is changed.
    weights
        Its head, norm and adapter by stored name.
    others
        All conditions by name: a patch depends on the one that it reads from.

    Notes
    -----
    Of several processes rank 0 alone does it: most of what is to compute is the captures.
    """
    if not (prepared.interventions and context.crew.leads):
        return []
    loaded = prepare_model(context, prepared.condition)
    restore_weights(loaded.model, loaded.family, weights)
    train_ids = context.split.train_ids
    ids = frozenset(sample.utterance.id for sample in context.table.samples)
    material = Material(
        loaded,
        context.table,
        # of what is scored, nothing enters a mean
        reference_ids=(train_ids & ids) or ids,
        seed=context.config.seed,
        batch_size=context.config.run.batch_size,
        open_capture=lambda name: open_store(context.store_path).capture(name),
    )
    return [
        _run_one(context, prepared, intervention, material, others)
        for intervention in prepared.interventions
    ]


def _run_one(
    context: RunContext,
    prepared: PreparedCondition,
    intervention: Intervention,
    material: Material,
    others: Mapping[str, Condition],
) -> InterventionResult:
    condition = prepared.condition
    began = time.perf_counter()
    name = f"{condition.name}.{intervention.name}"
    context.reporter.stage(f"{name}: intervening")
    captured = 0
    writer = context.crew.wait_unlocked(
        lambda: _open_writer(context, prepared, intervention, material.loaded, others)
    )
    with writer:
        if not all(segment.committed for segment in writer.segments):
            means = _settle_means(writer, intervention, material)
            change = make_change(intervention, material, means)
            captured = _capture(context, condition, change, material, writer, name)
    capture = open_store(context.store_path).capture(name)
    scores = score_capture(capture, context.table.corpus.labels)
    seconds = time.perf_counter() - began
    return InterventionResult(name, condition.name, intervention, scores, captured, seconds)


def _open_writer(
    context: RunContext,
    prepared: PreparedCondition,
    intervention: Intervention,
    loaded: LoadedModel,
    others: Mapping[str, Condition],
) -> Any:  # noqa: ANN401
    config, table, condition = context.config, context.table, prepared.condition
    about = {"intervention": intervention.describe(), "of": condition.name}
    attributes = capture_attributes(context, prepared.states[-1], loaded)
    return create_store(
        context.store_path,
        capture=f"{condition.name}.{intervention.name}",
        sites=[],
        outputs=[Output("logits", (len(table.corpus.labels),)), Output("loss")],
        config=_fingerprint(context, condition, intervention, loaded, others) | about,
        # nothing is recorded inside the model
        attrs={k: v for k, v in attributes.items() if k not in ("record", "pools")} | about,
        plan=table.rows(loaded.family.stream, "none"),
        segment_samples=config.run.segment_samples,
        batch_size=config.run.batch_size,
        buffer_bytes=config.run.buffer,
        profile=config.run.profile,
    )


def _fingerprint(
    context: RunContext,
    condition: Condition,
    intervention: Intervention,
    loaded: LoadedModel,
    others: Mapping[str, Condition],
) -> dict[str, Any]:
    """Return what determines the logits: that of the capture, and of the one a patch reads."""

    def of(one: Condition) -> dict[str, Any]:
        return fingerprint(
            context.config,
            one,
            context.split,
            model=loaded.description,
            data=context.data,
            device=context.device,
        )

    own = of(condition)
    record = own.pop("record")
    if not intervention.source:
        return own
    source = of(others[intervention.source])
    return own | {
        "source": {key: source[key] for key in ("adapter", "train", "head")},
        "record": record,
    }


def _settle_means(
    writer: Any,  # noqa: ANN401
    intervention: Intervention,
    material: Material,
) -> dict[int, torch.Tensor] | None:
    """Return the updates of an erasure by means, the durable ones where there are any."""
    if intervention.how != "mean":
        return None
    layers = intervention.layers or ()
    if MEAN_PARAMETER not in writer.parameters:
        references = material.references()
        writer.write_parameters(
            {MEAN_PARAMETER: material.mean_updates()[list(layers)].numpy()},
            attrs={
                "layers": list(layers),
                "reference_samples": len(references),
                "reference_frames": sum(sample.valid_frames for sample in references),
            },
        )
    stored = np.array(writer.parameters[MEAN_PARAMETER], dtype=np.float32)
    return dict(zip(layers, torch.from_numpy(stored), strict=True))


def _capture(
    context: RunContext,
    condition: Condition,
    change: Change,
    material: Material,
    writer: Any,  # noqa: ANN401
    name: str,
) -> int:
    """Capture the segments that are not committed yet; return the number of samples."""
    captured, size = 0, context.config.run.batch_size
    exposed = context.split.train_ids if condition.trained else frozenset()
    sizer = BatchSizer(size, context.reporter)

    def intervene(samples: Sequence[Sample]) -> None:
        outputs = _forward(material, change, samples)
        writer.append_batch(_rows(context, samples, exposed, outputs), {})

    with torch.no_grad():
        text = f"intervening {name}"
        for samples in open_batches(writer, context.table, size, text, context.reporter):
            sizer.act(samples, intervene)
            captured += len(samples)
    return captured


def _forward(
    material: Material, change: Change, samples: Sequence[Sample]
) -> dict[str, np.ndarray]:
    inputs = material.inputs(samples)
    device = next(iter(inputs.values())).device
    classes = torch.tensor([sample.class_ for sample in samples], device=device)
    with change(samples):
        logits = material.loaded.model(**inputs).logits.float()
    outputs = {"logits": logits, "loss": per_sample_loss(logits, classes)}
    return {name: to_numpy(value.cpu()) for name, value in outputs.items()}


def _rows(
    context: RunContext,
    samples: Sequence[Sample],
    exposed: frozenset[str],
    outputs: Mapping[str, np.ndarray],
) -> list[NewSample]:
    """Return the samples as the changed capture has them, with these outputs."""
    groups = sample_groups(context.table, samples)
    columns = sample_columns(context.table, samples, batch_size=len(samples))
    return [
        NewSample(
            sample.utterance.id,
            {},
            sample.utterance.label,
            sample.utterance.id in exposed,
            groups={name: values[i] for name, values in groups.items()},
            columns={name: values[i] for name, values in columns.items()},
            outputs={name: values[i] for name, values in outputs.items()},
            positions={},
        )
        for i, sample in enumerate(samples)
    ]
