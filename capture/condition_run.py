"""One condition from its model to its scores: adapt, train or restore, capture, score."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..store import Output, create_store, open_store
from .batching import Pass
from .capturing import capture_segments
from .conditions import Condition, condition_products, fingerprint, wanted_sites
from .fidelity import certify, check_restored, describe_doubt
from .lora import adapter_scaling, attach_adapter, extract_weights, restore_weights
from .metrics import Scores, metric_arrays, score_capture
from .models import LoadedModel, load_model
from .pooling import final_norm
from .sites import POOLS, row_frames, store_sites
from .statistics import (
    FIGURES,
    Extent,
    describe_nonfinite,
    places,
    statistics_output,
    summarise,
)
from .training import Examples, train

if TYPE_CHECKING:
    from ..store import Capture, Site
    from .config_models import CaptureConfig
    from .preparing import PreparedCondition
    from .ranks import Crew
    from .reporting import Reporter
    from .samples import SampleTable
    from .split import Split


@dataclass(frozen=True, slots=True)
class RunContext:
    """What all conditions of a run share."""

    config: CaptureConfig
    """The configuration."""
    store_path: Path
    """Where the store is."""
    device: str
    """Device to compute on."""
    table: SampleTable
    """The samples."""
    split: Split
    """Which of them training may see."""
    data: Mapping[str, Any]
    """What identifies the corpus."""
    provenance: Mapping[str, Any]
    """Versions and the command."""
    reporter: Reporter
    """Hears of everything."""
    crew: Crew
    """The processes that carry out the run."""


@dataclass(frozen=True, slots=True)
class ConditionResult:
    """What one condition gave."""

    name: str
    """Name of the capture."""
    scores: Scores
    """On the test part; of an untrained head, chance."""
    trained: bool
    """Whether it was trained now (and not restored from the store)."""
    captured: int
    """Samples captured now, by all processes of the run; the others were there."""
    seconds: float
    """Wall time."""
    weights: Mapping[str, np.ndarray]
    """Head, final norm and adapter by stored name."""
    certificate: Mapping[str, Any]
    """How faithful the recording is; see `certify`."""
    extents: tuple[Extent, ...]
    """How large the recorded values are, one entry a site and layer."""


def run_condition(
    context: RunContext, prepared: PreparedCondition, head: Mapping[str, np.ndarray] | None
) -> ConditionResult:
    """Carry out one condition; what the store holds of it already is not done again.

    Parameters
    ----------
    context
        What all conditions share.
    prepared
        The condition and its sites.
    head
        Weights of the capture that gives the head; None where the condition trains its own or no
        capture is trained.
    """
    began = time.perf_counter()
    condition = prepared.condition
    crew, name = context.crew, condition.name
    recorded_before = crew.recorded(name)
    loaded = prepare_model(context, condition)
    trained = _settle(context, prepared, loaded, head)
    with _open_writer(context, prepared, loaded) as writer:
        # trained again they could differ in the last bit; what is committed cannot
        restore_weights(loaded.model, loaded.family, dict(writer.parameters))
        done_before = "metrics.uar" in writer.parameters
        job = _pass(context, condition)
        if not all(segment.committed for segment in writer.segments):
            check_restored(loaded, job, _read(context, name), context.reporter)
        context.reporter.stage(f"{name}: capturing")
        sites = store_sites(prepared.recorded)
        capture_segments(loaded, writer, sites, job, context.reporter)
        weights = extract_weights(loaded.model, loaded.family)
    crew.wait_complete(name)
    capture = _read(context, name)
    scores = score_capture(capture, context.table.corpus.labels)
    if crew.leads and not done_before:
        # the writer commits the last segment when it closes, so scores are known only now
        with _open_writer(context, prepared, loaded) as writer:
            attrs = {"n": scores.n, "speakers": list(context.split.test)}
            writer.write_parameters(metric_arrays(scores), attrs=attrs)
    certificate = capture.parameter_attrs.get("certificate", {})
    extents = tuple(summarise(capture))
    doubts = describe_doubt(certificate, context.config.model.dtype), describe_nonfinite(extents)
    for doubt in filter(None, doubts):
        context.reporter.note(f"{name}: {doubt}")
    return ConditionResult(
        name=name,
        scores=scores,
        trained=trained,
        captured=len(capture) - recorded_before,
        seconds=time.perf_counter() - began,
        weights=weights,
        certificate=certificate,
        extents=extents,
    )


def is_settled(parameters: Mapping[str, Any]) -> bool:
    """Whether the parameters of a capture hold the weights that it is recorded with."""
    return "head.classifier.weight" in parameters


def _settle(
    context: RunContext,
    prepared: PreparedCondition,
    loaded: LoadedModel,
    head: Mapping[str, np.ndarray] | None,
) -> bool:
    """Have the capture and its weights in the store; True if they were trained for that now.

    Rank 0 alone does it, and alone has the store open meanwhile: only so can a capture be made.
    """
    crew, name = context.crew, prepared.condition.name
    if crew.settled(name):
        return False
    if not crew.leads:
        crew.wait_settled(name)
        return False
    with crew.wait_unlocked(lambda: _open_writer(context, prepared, loaded, alone=True)) as writer:
        return _settle_weights(context, prepared.condition, loaded, writer, head)


def prepare_model(context: RunContext, condition: Condition) -> LoadedModel:
    """Load the base model of a run and attach the adapter of `condition`, seeded and untrained."""
    config = context.config
    n_labels = len(context.table.corpus.labels)
    loaded = load_model(config.model, n_labels, seed=config.seed, device=context.device)
    if condition.spec.adapter is not None:
        attach_adapter(loaded.model, loaded.family, condition.spec.adapter, seed=config.seed)
        loaded.model.requires_grad_(requires_grad=False)
    return loaded


def capture_outputs(n_labels: int, sites: Sequence[Site]) -> list[Output]:
    """Return the outputs that every sample of a capture has."""
    return [Output("logits", (n_labels,)), Output("loss"), statistics_output(sites)]


def _open_writer(
    context: RunContext, prepared: PreparedCondition, loaded: LoadedModel, *, alone: bool = False
) -> Any:  # noqa: ANN401
    """Open the capture of a condition, together with the other ranks or alone."""
    config, table, place = context.config, context.table, context.crew.place
    condition, recorded = prepared.condition, prepared.recorded
    stream = loaded.family.stream
    sites = store_sites(recorded)
    return create_store(
        context.store_path,
        capture=condition.name,
        sites=sites,
        products=condition_products(loaded.model, loaded.family, config, recorded),
        outputs=capture_outputs(len(table.corpus.labels), sites),
        config=fingerprint(
            config,
            condition,
            context.split,
            model=loaded.description,
            data=context.data,
            device=context.device,
        ),
        attrs=_attributes(context, condition, loaded)
        | {"statistics": {"places": places(sites), "figures": FIGURES}},
        plan=table.rows(stream, row_frames(recorded, stream)),
        segment_rows=config.run.segment_rows,
        segment_samples=config.run.segment_samples,
        batch_size=config.run.batch_size,
        buffer_bytes=config.run.buffer,
        profile=config.run.profile,
        rank=0 if alone else place.rank,
        ranks=1 if alone else place.of,
        wait_seconds=place.wait_seconds,
    )


def _attributes(context: RunContext, condition: Condition, loaded: LoadedModel) -> dict[str, Any]:
    adapter = condition.spec.adapter
    split = context.split
    described = None
    if adapter is not None:
        scaling = adapter_scaling(loaded.model, loaded.family)
        described = {**adapter.model_dump(mode="json"), "scaling": scaling}
    norm = final_norm(loaded.model, loaded.family)
    return {
        "model": loaded.description,
        "corpus": context.config.data.corpus,
        "adapter": described,
        "trained": list(condition.trained),
        "head": {"from": condition.head_from},
        "labels": list(context.table.corpus.labels),
        "seed": context.config.seed,
        "pools": dict(POOLS),
        "final_norm": {"kind": "layer_norm", "eps": norm.eps},
        "split": {"by": split.by, "test": list(split.test)} if condition.trained else None,
        "record": context.config.resolved()["record"],
        **context.provenance,
    }


def _settle_weights(
    context: RunContext,
    condition: Condition,
    loaded: LoadedModel,
    writer: Any,  # noqa: ANN401
    head: Mapping[str, np.ndarray] | None,
) -> bool:
    """Give the model its final weights and make them durable; True if it was trained for that."""
    trains = condition.spec.train is not None
    if trains:
        _train(context, condition, loaded)
    elif head is not None:
        restore_weights(loaded.model, loaded.family, head, prefix="head.")
    writer.write_parameters(
        extract_weights(loaded.model, loaded.family),
        attrs={
            "trained": list(condition.trained),
            "labels": list(context.table.corpus.labels),
            "certificate": certify(loaded, _pass(context, condition), context.reporter),
        },
    )
    return trains


def _train(context: RunContext, condition: Condition, loaded: LoadedModel) -> None:
    spec = condition.spec.train
    assert spec is not None
    context.reporter.stage(f"{condition.name}: training")
    samples = [s for s in context.table.samples if s.utterance.id in context.split.train_ids]
    rate = loaded.family.sampling_rate
    examples = Examples(
        read=lambda i: context.table.waveform(samples[i], rate=rate),
        classes=[sample.class_ for sample in samples],
    )
    adapter = condition.spec.adapter is not None
    seed = context.config.seed
    train(loaded, examples, spec, adapter=adapter, seed=seed, reporter=context.reporter)


def _pass(context: RunContext, condition: Condition) -> Pass:
    sites, gradients = wanted_sites(context.config, condition)
    return Pass(
        table=context.table,
        exposed=context.split.train_ids if condition.trained else frozenset(),
        sites=sites,
        gradients=gradients,
        batch_size=context.config.run.batch_size,
        text=f"capturing {condition.name}",
    )


def _read(context: RunContext, name: str) -> Capture:
    return open_store(context.store_path).capture(name)
