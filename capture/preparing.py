"""Everything about a run that can be known, and refused, before a model's weights are loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .conditions import Condition, condition_products, condition_sites, order_conditions
from .corpora import load_corpus
from .errors import ConfigError, DataError
from .intervention import Intervention
from .intervention_plan import Subject, expand_interventions
from .lora import attach_adapter, named_weights
from .models import build_shape
from .samples import SampleTable, make_table
from .split import Split, check_training_part, make_split
from .steps import CaptureState, check_names, plan_states
from .streams import find_streams, layer_modules

if TYPE_CHECKING:
    from .config_models import CaptureConfig
    from .corpora import Corpus
    from .families import SpeechFamily
    from .sites import RecordedSite


@dataclass(frozen=True, slots=True)
class PreparedCondition:
    """One condition with its sites."""

    condition: Condition
    """The condition."""
    recorded: tuple[RecordedSite, ...]
    """What is recorded of it."""
    states: tuple[CaptureState, ...]
    """Its captures: the steps of its training that were asked for, then the final one."""
    interventions: tuple[Intervention, ...]
    """What is changed in the final one afterwards, in order."""
    weights: Mapping[str, tuple[int, ...]]
    """Shapes of the weights that are stored, by name."""
    model_parameters: int
    """Parameters of the model, adapter included."""
    layers: int
    """Layers of the model."""
    width: int
    """Features of its residual stream."""


@dataclass(frozen=True, slots=True)
class PreparedRun:
    """A run that is known to fit together."""

    corpus: Corpus
    """The corpus."""
    split: Split
    """Who is held out."""
    family: SpeechFamily
    """The model's family."""
    frames: int
    """Frames of its window."""
    table: SampleTable
    """The samples with their lengths."""
    conditions: tuple[PreparedCondition, ...]
    """The conditions, in the order in which they run."""


def prepare_run(config: CaptureConfig) -> PreparedRun:
    """Resolve corpus, split, samples and the sites of every condition.

    Sites and adapters are resolved in models without weights, so that a mistake in the last
    condition is told before the first one is trained.

    Raises
    ------
    ConfigError, DataError, ModelError
        What does not fit.
    """
    data = config.data
    corpus = load_corpus(
        data.corpus,
        data.root,
        manifest=data.manifest,
        labels=data.labels,
        per_class=data.per_class,
        seed=config.seed,
    )
    split = make_split(corpus, config.split)
    if any(spec.train is not None for spec in config.captures.values()):
        check_training_part(corpus, split)
    _, family, frames = build_shape(config.model, len(corpus.labels))
    window_samples = family.window_samples(config.model.window_seconds)
    table = make_table(corpus, family, frames, window_samples=window_samples)
    unknown = sum(sample.class_ < 0 for sample in table.samples)
    if config.record.gradients and unknown:
        msg = f"gradients need a loss, and {unknown} samples have no label of data.labels."
        raise DataError(msg)
    ordered = order_conditions(config)
    subjects = {one.name: resolve_subject(config, one, len(corpus.labels)) for one in ordered}
    changes = expand_interventions(config, subjects)
    _check_partners(changes, table)
    conditions = tuple(
        _prepare_condition(
            one,
            subjects[one.name],
            plan_states(one, table, split, seed=config.seed),
            changes[one.name],
        )
        for one in ordered
    )
    check_names([state for prepared in conditions for state in prepared.states])
    return PreparedRun(corpus, split, family, table.frames, table, conditions)


def resolve_subject(config: CaptureConfig, condition: Condition, n_labels: int) -> Subject:
    """Return a condition's model without weights, and what is recorded of it."""
    model, family, _ = build_shape(config.model, n_labels)
    if condition.spec.adapter is not None:
        attach_adapter(model, family, condition.spec.adapter, seed=config.seed)
    recorded = condition_sites(model, family, config, condition)
    condition_products(model, family, config, recorded)  # refuses what could not be read back
    return Subject(condition.spec, model, family, recorded)


def _prepare_condition(
    condition: Condition,
    subject: Subject,
    states: tuple[CaptureState, ...],
    interventions: tuple[Intervention, ...],
) -> PreparedCondition:
    model, family = subject.model, subject.family
    return PreparedCondition(
        condition=condition,
        recorded=subject.recorded,
        states=states,
        interventions=interventions,
        weights={name: tuple(w.shape) for name, w in named_weights(model, family).items()},
        model_parameters=sum(parameter.numel() for parameter in model.parameters()),
        layers=len(layer_modules(model, family)),
        width=find_streams(model, family)[0].width(model.config),
    )


def _check_partners(changes: Mapping[str, Sequence[Intervention]], table: SampleTable) -> None:
    """Refuse to take another sample's update where there is no other sample."""
    resampled = [one for some in changes.values() for one in some if one.passes > 1]
    if resampled and len(table.samples) < 2:
        msg = f"{resampled[0].name} takes another sample's update, and there is only one sample."
        raise DataError(msg)
    if resampled and not table.padded:
        msg = (
            f"{resampled[0].name} takes another sample's update frame by frame, and the samples of "
            "this model differ in their frames. Erase with how: mean or zero."
        )
        raise ConfigError(msg)
