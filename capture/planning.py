"""`plan_capture`: what a run will write, before a model is loaded or a file is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..store import Site
from ..store.chunking import plan_segments
from .preparing import PreparedCondition, PreparedRun, prepare_run
from .sites import row_frames, store_sites

if TYPE_CHECKING:
    from .config_models import CaptureConfig

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8}


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
    segments: int
    """Units of commit; a crash costs at most the open one."""
    sites: tuple[SitePlan, ...]
    """Its sites."""

    @property
    def bytes(self) -> int:
        """Bytes of all its sites."""
        return sum(site.bytes for site in self.sites)


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
    """Samples of each capture."""
    train_samples: int
    """Samples that training sees."""
    test_speakers: tuple[str, ...]
    """Speakers that it does not see."""
    seconds: float
    """Audio, in seconds, before cutting to the window."""
    rows: int
    """Rows of each capture."""
    conditions: tuple[ConditionPlan, ...]
    """One plan a capture, in the order in which they run."""
    interventions: tuple[InterventionPlan, ...] = ()
    """One plan an intervention, in the order in which they run, after all captures."""

    @property
    def bytes(self) -> int:
        """Bytes of all captures."""
        return sum(condition.bytes for condition in self.conditions)


def plan_capture(config: CaptureConfig) -> RunPlan:
    """Return what `run_capture` will write; nothing is trained, loaded or written.

    Sites, layers and adapters are resolved in a model without weights, so every error that the
    configuration can cause there comes now.
    """
    run = prepare_run(config)
    conditions = tuple(_plan_condition(config, run, prepared) for prepared in run.conditions)
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


def _plan_condition(
    config: CaptureConfig, run: PreparedRun, prepared: PreparedCondition
) -> ConditionPlan:
    condition, recorded = prepared.condition, prepared.recorded
    sites = store_sites(recorded, run.family.stream)
    rows = run.table.rows(run.family.stream, row_frames(recorded))
    _, segments = plan_segments(
        rows,
        sites,
        batch_size=config.run.batch_size,
        segment_rows=config.run.segment_rows,
        segment_samples=config.run.segment_samples,
    )
    n_rows = sum(sum(sample.rows.values()) for sample in rows)
    own = condition.spec.train is not None
    return ConditionPlan(
        name=condition.name,
        trains=" and ".join(condition.trained) if own else "",
        head_from=condition.head_from,
        segments=len(segments),
        sites=tuple(_plan_site(site, n_rows, len(rows)) for site in sites),
    )


def _plan_site(site: Site, n_rows: int, n_samples: int) -> SitePlan:
    layers = 1 if site.layers is None else len(site.layers)
    rows = n_rows if site.kind == "row" else n_samples
    size = layers * rows * site.width * DTYPE_BYTES[site.dtype]
    return SitePlan(site.name, site.kind, layers, site.width, site.dtype, rows, size)
