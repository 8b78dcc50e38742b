"""One condition from its model to its scores: adapt, train or restore, capture, score."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..store import Output, create_store, open_store
from .capturing import Pass, capture_segments
from .conditions import Condition, fingerprint, wanted_sites
from .lora import adapter_scaling, attach_adapter, extract_weights, restore_weights
from .metrics import Scores, score
from .models import LoadedModel, load_model
from .pooling import final_norm
from .sites import POOLS, row_frames, store_sites
from .training import Examples, train

if TYPE_CHECKING:
    from .config_models import CaptureConfig
    from .preparing import PreparedCondition
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
    """Samples captured now; the others were there."""
    seconds: float
    """Wall time."""
    weights: Mapping[str, np.ndarray]
    """Head, final norm and adapter by stored name."""


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
    loaded = prepare_model(context, condition)
    with _open_writer(context, prepared, loaded) as writer:
        done_before = "metrics.uar" in writer.parameters
        trained = _settle_weights(context, condition, loaded, writer, head)
        captured = capture_segments(loaded, writer, _pass(context, condition), context.reporter)
        weights = extract_weights(loaded.model, loaded.family)
    scores = score_capture(context, condition.name)
    if not done_before:
        # the writer commits the last segment when it closes, so scores are known only now
        with _open_writer(context, prepared, loaded) as writer:
            writer.write_parameters(_metric_arrays(scores), attrs=_metric_attrs(context, scores))
    seconds = time.perf_counter() - began
    return ConditionResult(condition.name, scores, trained, captured, seconds, weights)


def prepare_model(context: RunContext, condition: Condition) -> LoadedModel:
    """Load the base model of a run and attach the adapter of `condition`, seeded and untrained."""
    config = context.config
    n_labels = len(context.table.corpus.labels)
    loaded = load_model(config.model, n_labels, seed=config.seed, device=context.device)
    if condition.spec.adapter is not None:
        attach_adapter(loaded.model, loaded.family, condition.spec.adapter, seed=config.seed)
        loaded.model.requires_grad_(requires_grad=False)
    return loaded


def _open_writer(context: RunContext, prepared: PreparedCondition, loaded: LoadedModel) -> Any:  # noqa: ANN401
    config, table = context.config, context.table
    condition, recorded = prepared.condition, prepared.recorded
    stream = loaded.family.stream
    return create_store(
        context.store_path,
        capture=condition.name,
        sites=store_sites(recorded, stream),
        outputs=[Output("logits", (len(table.corpus.labels),)), Output("loss")],
        config=fingerprint(
            config,
            condition,
            context.split,
            model=loaded.description,
            data=context.data,
            device=context.device,
        ),
        attrs=capture_attributes(context, condition, loaded),
        plan=table.rows(stream, row_frames(recorded)),
        segment_rows=config.run.segment_rows,
        segment_samples=config.run.segment_samples,
        batch_size=config.run.batch_size,
        buffer_bytes=config.run.buffer,
        profile=config.run.profile,
    )


def capture_attributes(
    context: RunContext, condition: Condition, loaded: LoadedModel
) -> dict[str, Any]:
    """Return what a capture says of itself beside its values (JSON)."""
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
    if "head.classifier.weight" in writer.parameters:
        # a resumed run: training again could differ in the last bit, what is committed cannot
        restore_weights(loaded.model, loaded.family, dict(writer.parameters))
        return False
    trains = condition.spec.train is not None
    if trains:
        _train(context, condition, loaded)
    elif head is not None:
        restore_weights(loaded.model, loaded.family, head, prefix="head.")
    writer.write_parameters(
        extract_weights(loaded.model, loaded.family),
        attrs={"trained": list(condition.trained), "labels": list(context.table.corpus.labels)},
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
    context.reporter.stage(f"{condition.name}: capturing")
    sites, gradients = wanted_sites(context.config, condition)
    return Pass(
        table=context.table,
        exposed=context.split.train_ids if condition.trained else frozenset(),
        sites=sites,
        gradients=gradients,
        batch_size=context.config.run.batch_size,
        text=f"capturing {condition.name}",
    )


def score_capture(context: RunContext, name: str) -> Scores:
    """Score the stored logits of a capture on its samples that no training saw."""
    capture = open_store(context.store_path).capture(name)
    classes = {label: i for i, label in enumerate(context.table.corpus.labels)}
    table = capture.samples
    true = np.array([classes.get(label, -1) for label in table["label"]])
    kept = (true >= 0) & ~table["exposed"].to_numpy(dtype=bool)
    return score(np.asarray(capture.read_output("logits"))[kept], true[kept])


def _metric_arrays(scores: Scores) -> dict[str, np.ndarray]:
    return {
        "metrics.confusion": scores.confusion,
        "metrics.uar": np.array(scores.uar),
        "metrics.war": np.array(scores.war),
    }


def _metric_attrs(context: RunContext, scores: Scores) -> dict[str, Any]:
    return {"n": scores.n, "speakers": list(context.split.test)}
