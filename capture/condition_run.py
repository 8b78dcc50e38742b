"""One condition from its model to its scores: adapt, train or restore, capture, score.

A condition is one capture, or, where steps of its training are asked for, one capture a step and
the final one. All weights are durable before the first sample is captured, so a run that was
stopped later never trains again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..store import open_store
from .batching import Pass
from .capturing import capture_segments
from .condition_store import RunContext, is_settled, open_writer
from .conditions import wanted_sites
from .errors import CaptureError
from .fidelity import certify, check_restored, describe_doubt
from .lora import attach_adapter, base_weights, extract_weights, named_weights, restore_weights
from .metrics import Scores, metric_arrays, score_capture
from .models import LoadedModel, load_model
from .sites import store_sites
from .statistics import Extent, describe_nonfinite, summarise
from .training import Examples, train
from .trajectory import GRADIENT, StepState, Trajectory

if TYPE_CHECKING:
    from ..store import Capture
    from .conditions import Condition
    from .preparing import PreparedCondition
    from .steps import CaptureState


@dataclass(frozen=True, slots=True)
class ConditionResult:
    """What one capture gave."""

    name: str
    """Name of the capture."""
    scores: Scores
    """On the test part; of an untrained head, chance."""
    samples: int
    """Samples of the capture."""
    trained: bool
    """Whether it was trained now (and not restored from the store)."""
    captured: int
    """Samples captured now, by all processes of the run; the others were there."""
    seconds: float
    """Wall time; training counts for the first capture of a condition."""
    weights: Mapping[str, np.ndarray]
    """Head, final norm and adapter by stored name."""
    certificate: Mapping[str, Any]
    """How faithful the recording is; see `certify`."""
    extents: tuple[Extent, ...]
    """How large the recorded values are, one entry a site and layer."""


@dataclass(frozen=True, slots=True)
class _Parameters:
    """What one capture holds besides its samples."""

    values: Mapping[str, np.ndarray]
    """Arrays by stored name."""
    attrs: Mapping[str, Any]
    """Facts about them."""


def run_condition(
    context: RunContext, prepared: PreparedCondition, head: Mapping[str, np.ndarray] | None
) -> list[ConditionResult]:
    """Carry out one condition; what the store holds of it already is not done again.

    Parameters
    ----------
    context
        What all conditions share.
    prepared
        The condition, its sites and its captures.
    head
        Weights of the capture that gives the head; None where the condition trains its own or no
        capture is trained.

    Returns
    -------
    list of ConditionResult
        One a capture, in the order of its steps, the final one last.
    """
    began = time.perf_counter()
    loaded = prepare_model(context, prepared.condition)
    trained = _settle(context, prepared, loaded, head)
    results = []
    for state in prepared.states:
        before = context.crew.recorded(state.name)
        _capture(context, prepared, state, loaded)
        capture = open_store(context.store_path).capture(state.name)
        scores = _settle_scores(context, prepared, state, loaded, capture)
        certificate = capture.parameter_attrs.get("certificate", {})
        extents = tuple(summarise(capture))
        doubt = describe_doubt(certificate, context.config.model.dtype)
        for note in filter(None, (doubt, describe_nonfinite(extents))):
            context.reporter.note(f"{state.name}: {note}")
        ended = time.perf_counter()
        results.append(
            ConditionResult(
                name=state.name,
                scores=scores,
                samples=len(state.table.samples),
                trained=trained,
                captured=len(capture) - before,
                seconds=ended - began,
                weights=extract_weights(loaded.model, loaded.family),
                certificate=certificate,
                extents=extents,
            )
        )
        began = ended
    return results


def prepare_model(context: RunContext, condition: Condition) -> LoadedModel:
    """Load the base model of a run and attach the adapter of `condition`, seeded and untrained."""
    config = context.config
    n_labels = len(context.table.corpus.labels)
    loaded = load_model(config.model, n_labels, seed=config.seed, device=context.device)
    if condition.spec.adapter is not None:
        attach_adapter(loaded.model, loaded.family, condition.spec.adapter, seed=config.seed)
        loaded.model.requires_grad_(requires_grad=False)
    return loaded


def _settle(
    context: RunContext,
    prepared: PreparedCondition,
    loaded: LoadedModel,
    head: Mapping[str, np.ndarray] | None,
) -> bool:
    """Have every capture and its weights in the store; True if they were trained for that now.

    Rank 0 alone does it, and alone has the store open meanwhile: only so can a capture be made.
    """
    crew, names = context.crew, [state.name for state in prepared.states]
    if all(crew.settled(name) for name in names):
        return False
    if not crew.leads:
        for name in names:
            crew.wait_settled(name)
        return False
    return _settle_weights(context, prepared, loaded, head)


def _settle_weights(
    context: RunContext,
    prepared: PreparedCondition,
    loaded: LoadedModel,
    head: Mapping[str, np.ndarray] | None,
) -> bool:
    """Make the weights of every capture durable; True if they were trained for that.

    Training again could differ in the last bit where what is committed cannot, so it is done only
    where weights are missing, and then has to agree with those that are there.
    """
    needed = set(named_weights(loaded.model, loaded.family))
    there: dict[str, dict[str, np.ndarray]] = {}

    def open_alone(state: CaptureState) -> Any:  # noqa: ANN401  a writer
        return context.crew.wait_unlocked(
            lambda: open_writer(context, prepared, state, loaded, alone=True)
        )

    # every writer is opened before anything is trained: another run's store is refused here
    for state in prepared.states:
        with open_alone(state) as writer:
            if is_settled(writer.parameters):
                there[state.name] = {name: writer.parameters[name] for name in needed}
    trains = prepared.condition.spec.train is not None
    if trains:
        made = _train(context, prepared, loaded)
    else:
        if head is not None:
            restore_weights(loaded.model, loaded.family, head, prefix="head.")
        made = {state.name: _final(context, state, loaded, None) for state in prepared.states}
    _check_agreement(prepared, there, made)
    for state in prepared.states:
        if state.name in there:
            continue
        values, attrs = made[state.name].values, made[state.name].attrs
        restore_weights(loaded.model, loaded.family, values)
        certificate = certify(loaded, _pass(context, state), context.reporter)
        with open_alone(state) as writer:
            writer.write_parameters(values, attrs={**attrs, "certificate": certificate})
    return trains


def _train(
    context: RunContext, prepared: PreparedCondition, loaded: LoadedModel
) -> dict[str, _Parameters]:
    """Train, and return what each capture of the condition has to hold."""
    condition = prepared.condition
    spec = condition.spec.train
    assert spec is not None
    context.reporter.stage(f"{condition.name}: training")
    samples = [s for s in context.table.samples if s.utterance.id in context.split.train_ids]
    rate = loaded.family.sampling_rate
    examples = Examples(
        read=lambda i: context.table.waveform(samples[i], rate=rate),
        classes=[sample.class_ for sample in samples],
    )
    trajectory = train(
        loaded,
        examples,
        spec,
        adapter=condition.spec.adapter is not None,
        seed=context.config.seed,
        reporter=context.reporter,
        at=[state.step for state in prepared.states if not state.final and state.step is not None],
    )
    ids = [sample.utterance.id for sample in samples]
    made: dict[str, _Parameters] = {}
    for state in prepared.states:
        if state.final:
            made[state.name] = _final(context, state, loaded, trajectory)
        else:
            moment = trajectory.states[state.step or 0]
            made[state.name] = _moment(context, state, moment, trajectory, ids)
    return made


def _final(
    context: RunContext, state: CaptureState, loaded: LoadedModel, trajectory: Trajectory | None
) -> _Parameters:
    weights = extract_weights(loaded.model, loaded.family)
    if context.config.record.base_weights:
        weights |= base_weights(loaded.model, loaded.family)
    attrs = _about_weights(context, state)
    if trajectory is None:
        return _Parameters(weights, attrs)
    curves = {"before": "each update", "loss": "mean of its batch"}
    attrs |= {"curves": {**curves, "clipped_at": trajectory.clipped_at}}
    return _Parameters({**weights, **trajectory.curves()}, attrs)


def _moment(
    context: RunContext,
    state: CaptureState,
    moment: StepState,
    trajectory: Trajectory,
    ids: list[str],
) -> _Parameters:
    gradients = {f"{GRADIENT}{name}": value for name, value in moment.gradients.items()}
    gradient = {
        "loss": "mean of the batch of the next update",
        "batch": [ids[i] for i in moment.examples],
        "clipped": False,
        "clipped_at": trajectory.clipped_at,
    }
    attrs = {**_about_weights(context, state), "gradient": gradient}
    return _Parameters({**moment.weights, **gradients}, attrs)


def _about_weights(context: RunContext, state: CaptureState) -> dict[str, Any]:
    return {"trained": list(state.trained), "labels": list(context.table.corpus.labels)}


def _check_agreement(
    prepared: PreparedCondition,
    there: Mapping[str, Mapping[str, np.ndarray]],
    made: Mapping[str, _Parameters],
) -> None:
    """Refuse to put states of two different trainings beside each other."""
    for capture, weights in there.items():
        for name, value in weights.items():
            if not np.array_equal(value, made[capture].values[name]):
                condition = prepared.condition.name
                lacking = ", ".join(s.name for s in prepared.states if s.name not in there)
                msg = (
                    f"{condition!r} was trained again, because the store lacks {lacking}, and "
                    f"{name} differs from what {capture!r} holds: other libraries, another device "
                    "or another number of threads round differently. Run it where the store was "
                    f"made, leave those steps out of captures.{condition}.at_steps, or name "
                    "another store."
                )
                raise CaptureError(msg)


def _pass(context: RunContext, state: CaptureState) -> Pass:
    sites, gradients = wanted_sites(context.config, state.condition)
    return Pass(
        table=state.table,
        exposed=context.split.train_ids if state.trained else frozenset(),
        sites=sites,
        gradients=gradients,
        batch_size=context.config.run.batch_size,
        text=f"capturing {state.name}",
    )


def _capture(
    context: RunContext, prepared: PreparedCondition, state: CaptureState, loaded: LoadedModel
) -> None:
    """Record the samples of this process, and wait until those of the others are there."""
    job = _pass(context, state)
    with open_writer(context, prepared, state, loaded) as writer:
        # trained again they could differ in the last bit; what is committed cannot
        restore_weights(loaded.model, loaded.family, dict(writer.parameters))
        if not all(segment.committed for segment in writer.segments):
            there = open_store(context.store_path).capture(state.name)
            check_restored(loaded, job, there, context.reporter)
        context.reporter.stage(f"{state.name}: capturing")
        capture_segments(loaded, writer, store_sites(prepared.recorded), job, context.reporter)
    context.crew.wait_complete(state.name)


def _settle_scores(
    context: RunContext,
    prepared: PreparedCondition,
    state: CaptureState,
    loaded: LoadedModel,
    capture: Capture,
) -> Scores:
    """Return the scores, stored; the last segment was committed when the writer closed."""
    # nothing is exposed before the first update; scored are the samples of the other steps
    only = context.split.test_ids if state.step == 0 else None
    scores = score_capture(capture, context.table.corpus.labels, only=only)
    if context.crew.leads and "metrics.uar" not in capture.parameters:
        attrs = {"n": scores.n, "speakers": list(context.split.test)}
        with open_writer(context, prepared, state, loaded) as writer:
            writer.write_parameters(metric_arrays(scores), attrs=attrs)
    return scores
