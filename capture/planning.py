"""`plan_capture`: what a run will write, before a model is loaded or a file is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..store import Forecast, SampleRows, Site, forecast_capture
from .batching import sample_columns, sample_groups
from .condition_store import capture_outputs
from .footprint import DTYPE_BYTES, estimate_memory
from .lora import BASE
from .preparing import PreparedCondition, PreparedRun, prepare_run
from .sites import row_frames, store_sites
from .statistics import places
from .trajectory import CURVES, GRADIENT

if TYPE_CHECKING:
    from .config_models import CaptureConfig
    from .steps import CaptureState


@dataclass(frozen=True, slots=True)
class SitePlan:
    """What one site of one capture will take."""

    name: str
    """Name in the store."""
    kind: str
    """``row`` or ``sample`` (pooled)."""
    layers: int
    """Number of layers; 1 for a site without layers."""
    width: int
    """Features."""
    dtype: str
    """Storage dtype."""
    rows: int
    """Rows (of a pooled site: samples)."""
    bytes: int
    """Bytes of values, without padding of the last chunk."""


@dataclass(frozen=True, slots=True)
class ConditionPlan:
    """What one capture will take."""

    name: str
    """Name of the capture."""
    trains: str
    """What is trained: empty, ``head`` or ``head and adapter``."""
    head_from: str | None
    """Whose head it uses."""
    step: int | None
    """Updates before it; None where nothing is trained."""
    samples: int
    """Its samples."""
    sites: tuple[SitePlan, ...]
    """Its sites."""
    forecast: Forecast
    """What its files will take."""
    memory_bytes: int
    """About the most memory it needs at once, `run.buffer` included; with CUDA, of both sides."""

    @property
    def bytes(self) -> int:
        """Bytes of the values of all its sites."""
        return sum(site.bytes for site in self.sites)

    @property
    def segments(self) -> int:
        """Units of commit; a crash costs at most the open one."""
        return self.forecast.segments


@dataclass(frozen=True, slots=True)
class InterventionPlan:
    """What one intervention will take; it records logits and losses alone."""

    name: str
    """Name of its capture."""
    of: str
    """The capture that is changed."""
    change: dict[str, Any]
    """What is done, as its attributes will say."""
    forwards: int
    """Samples that run through the model: each once, or with another one before it."""


@dataclass(frozen=True, slots=True)
class RunPlan:
    """What a run will take."""

    samples: int
    """Samples of each capture (those during training may have fewer)."""
    train_samples: int
    """Samples that training sees."""
    test_speakers: tuple[str, ...]
    """Speakers that it does not see."""
    seconds: float
    """Audio, in seconds, before cutting to the window."""
    rows: int
    """Rows of each capture with all samples."""
    conditions: tuple[ConditionPlan, ...]
    """One plan a capture, in the order in which they run."""
    interventions: tuple[InterventionPlan, ...] = ()
    """One plan an intervention, in the order in which they run, after all captures."""

    @property
    def bytes(self) -> int:
        """Bytes of the values of all captures."""
        return sum(condition.bytes for condition in self.conditions)

    @property
    def forecast(self) -> Forecast:
        """What the files of all captures will take."""
        return sum((condition.forecast for condition in self.conditions), Forecast())

    @property
    def memory_bytes(self) -> int:
        """About the most memory that the run needs at once: captures follow each other."""
        return max(condition.memory_bytes for condition in self.conditions)


def plan_capture(config: CaptureConfig) -> RunPlan:
    """Return what `run_capture` will write; nothing is trained, loaded or written.

    Sites, layers and adapters are resolved in a model without weights, so every error that the
    configuration can cause there comes now.
    """
    return plan_run(config, prepare_run(config))


def plan_run(config: CaptureConfig, run: PreparedRun, *, frames: str | None = None) -> RunPlan:
    """Return what a prepared run will write; with other `frames` than asked for, if given."""
    conditions = tuple(
        _plan_state(config, run, _with_frames(prepared, frames), state)
        for prepared in run.conditions
        for state in prepared.states
    )
    return RunPlan(
        samples=len(run.table.samples),
        train_samples=len(run.split.train_ids),
        test_speakers=run.split.test,
        seconds=sum(utterance.duration_seconds for utterance in run.corpus.utterances),
        rows=max((s.rows for c in conditions for s in c.sites if s.kind == "row"), default=0),
        conditions=conditions,
        interventions=tuple(
            InterventionPlan(
                name=f"{prepared.condition.name}.{one.name}",
                of=prepared.condition.name,
                change=one.describe(),
                forwards=one.passes * len(run.table.samples),
            )
            for prepared in run.conditions
            for one in prepared.interventions
        ),
    )


def _with_frames(prepared: PreparedCondition, frames: str | None) -> PreparedCondition:
    if frames is None:
        return prepared
    recorded = tuple(
        site if site.frames == "none" else replace(site, frames=frames)
        for site in prepared.recorded
    )
    return replace(prepared, recorded=recorded)


def _plan_state(
    config: CaptureConfig, run: PreparedRun, prepared: PreparedCondition, state: CaptureState
) -> ConditionPlan:
    condition, recorded = prepared.condition, prepared.recorded
    sites = store_sites(recorded)
    rows = state.table.rows(run.family.stream, row_frames(recorded, run.family.stream))
    n_rows = sum(sum(sample.rows.values()) for sample in rows)
    trains = condition.spec.train is not None and state.final
    return ConditionPlan(
        name=state.name,
        trains=" and ".join(condition.trained) if trains else "",
        head_from=state.head_from,
        step=state.step,
        samples=len(rows),
        sites=tuple(_plan_site(site, n_rows, len(rows)) for site in sites),
        forecast=_forecast(config, run, prepared, state, sites, rows),
        memory_bytes=estimate_memory(config, run, prepared),
    )


def _forecast(
    config: CaptureConfig,
    run: PreparedRun,
    prepared: PreparedCondition,
    state: CaptureState,
    sites: Sequence[Site],
    rows: Sequence[SampleRows],
) -> Forecast:
    table, n_labels = state.table, len(run.corpus.labels)
    known = table.samples
    batch_size = config.run.batch_size
    resolved = config.resolved()
    metrics = {"metrics.confusion": (n_labels, n_labels), "metrics.uar": (), "metrics.war": ()}
    return forecast_capture(
        state.name,
        sites=sites,
        plan=rows,
        outputs=capture_outputs(n_labels, sites),
        columns={
            "label": [sample.utterance.label for sample in known],
            **sample_groups(table, known),
            **sample_columns(table, known, batch_size=batch_size),
        },
        parameters=[_stored_weights(config, prepared, state), metrics],
        # the definition says what is recorded twice, in the configuration and among the attributes
        config={"config": resolved, "record": resolved["record"], "statistics": places(sites)},
        segment_rows=config.run.segment_rows,
        segment_samples=config.run.segment_samples,
        batch_size=batch_size,
        profile=config.run.profile,
    )


def _stored_weights(
    config: CaptureConfig, prepared: PreparedCondition, state: CaptureState
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of what is stored with the weights of a capture."""
    weights = dict(prepared.weights)
    if config.record.base_weights and state.final:
        weights |= _base_shapes(weights)
    if state.step is None:
        return weights
    if state.final:
        return weights | dict.fromkeys(CURVES, (state.step,))
    parts = tuple(f"{part}." for part in prepared.condition.trained)
    trained = [name for name in weights if name.startswith(parts)]
    return weights | {f"{GRADIENT}{name}": weights[name] for name in trained}


def _base_shapes(weights: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the weights under the adapters: those of B A."""
    stems = [n.removesuffix(".lora_a") for n in weights if n.endswith(".lora_a")]
    return {
        BASE + stem.removeprefix("adapter."): (
            weights[f"{stem}.lora_b"][0],
            weights[f"{stem}.lora_a"][1],
        )
        for stem in stems
    }


def _plan_site(site: Site, n_rows: int, n_samples: int) -> SitePlan:
    layers = 1 if site.layers is None else len(site.layers)
    rows = n_rows if site.kind == "row" else n_samples
    size = layers * rows * site.width * DTYPE_BYTES[site.dtype]
    return SitePlan(site.name, site.kind, layers, site.width, site.dtype, rows, size)
