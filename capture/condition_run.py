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
from .capturing import Pass, capture_segments
from .condition_store import RunContext, open_writer
from .conditions import wanted_sites
from .errors import CaptureError
from .lora import attach_adapter, extract_weights, named_weights, restore_weights
from .metrics import Scores, score
from .models import LoadedModel, load_model
from .training import Examples, train
from .trajectory import GRADIENT, StepState, Trajectory

if TYPE_CHECKING:
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
    """Samples captured now; the others were there."""
    seconds: float
    """Wall time; training counts for the first capture of a condition."""
    weights: Mapping[str, np.ndarray]
    """Head, final norm and adapter by stored name."""


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
    trained = _settle_weights(context, prepared, loaded, head)
    results = []
    for state in prepared.states:
        captured = _capture(context, prepared, state, loaded)
        scores = _score(context, state)
        _settle_scores(context, prepared, state, loaded, scores)
        ended = time.perf_counter()
        weights = extract_weights(loaded.model, loaded.family)
        n = len(state.table.samples)
        results.append(
            ConditionResult(state.name, scores, n, trained, captured, ended - began, weights)
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
    # every writer is opened before anything is trained: another run's store is refused here
    for state in prepared.states:
        with open_writer(context, prepared, state, loaded) as writer:
            if needed <= set(writer.parameters):
                there[state.name] = {name: writer.parameters[name] for name in needed}
    if len(there) == len(prepared.states):
        return False
    trains = prepared.condition.spec.train is not None
    if trains:
        made = _train(context, prepared, loaded)
    else:
        if head is not None:
            restore_weights(loaded.model, loaded.family, head, prefix="head.")
        made = {state.name: _final(context, state, loaded, None) for state in prepared.states}
    _check_agreement(prepared, there, made)
    for state in prepared.states:
        with open_writer(context, prepared, state, loaded) as writer:
            writer.write_parameters(made[state.name].values, attrs=made[state.name].attrs)
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


def _capture(
    context: RunContext, prepared: PreparedCondition, state: CaptureState, loaded: LoadedModel
) -> int:
    context.reporter.stage(f"{state.name}: capturing")
    sites, gradients = wanted_sites(context.config, state.condition)
    job = Pass(
        table=state.table,
        exposed=context.split.train_ids if state.trained else frozenset(),
        sites=sites,
        gradients=gradients,
        batch_size=context.config.run.batch_size,
        text=f"capturing {state.name}",
    )
    with open_writer(context, prepared, state, loaded) as writer:
        restore_weights(loaded.model, loaded.family, writer.parameters)
        return capture_segments(loaded, writer, job, context.reporter)


def _score(context: RunContext, state: CaptureState) -> Scores:
    capture = open_store(context.store_path).capture(state.name)
    classes = {label: i for i, label in enumerate(context.table.corpus.labels)}
    table = capture.samples
    true = np.array([classes.get(label, -1) for label in table["label"]])
    held_out = ~table["exposed"].to_numpy(dtype=bool)
    if state.step == 0:
        # nothing is exposed before the first update; scored are the samples of the other steps
        held_out = table["id"].isin(list(context.split.test_ids)).to_numpy()
    kept = (true >= 0) & held_out
    return score(np.asarray(capture.read_output("logits"))[kept], true[kept])


def _settle_scores(
    context: RunContext,
    prepared: PreparedCondition,
    state: CaptureState,
    loaded: LoadedModel,
    scores: Scores,
) -> None:
    """Store the scores; the last segment was committed when the writer closed, so only now."""
    metrics = {
        "metrics.confusion": scores.confusion,
        "metrics.uar": np.array(scores.uar),
        "metrics.war": np.array(scores.war),
    }
    with open_writer(context, prepared, state, loaded) as writer:
        if "metrics.uar" not in writer.parameters:
            attrs = {"n": scores.n, "speakers": list(context.split.test)}
            writer.write_parameters(metrics, attrs=attrs)
