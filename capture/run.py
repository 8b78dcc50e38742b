"""Carrying out a configuration: every condition on the same samples, into one store."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .condition_run import ConditionResult, run_condition
from .condition_store import RunContext, is_settled
from .errors import ConfigError, ModelError
from .intervention_run import InterventionResult, run_interventions
from .preparing import PreparedRun, prepare_run
from .ranks import Crew, Place, without_launcher
from .reporting import Reporter, SilentReporter
from .samples import corpus_digest, too_long
from .space import check_space

if TYPE_CHECKING:
    from os import PathLike

    import numpy as np

    from .config_models import CaptureConfig
    from .corpora import Corpus

VERSIONS = ("lorascope", "torch", "transformers", "peft", "numpy", "zarr")


@dataclass(frozen=True, slots=True)
class RunSummary:
    """What a run did."""

    store_path: Path
    """Where the store is."""
    labels: tuple[str, ...]
    """Classes, in the order of logits and confusion matrices."""
    test_speakers: tuple[str, ...]
    """Speakers that no training saw."""
    samples: int
    """Samples of each capture (those during training may have fewer)."""
    conditions: tuple[ConditionResult, ...]
    """One result a capture, in the order in which they ran."""
    interventions: tuple[InterventionResult, ...] = ()
    """One result an intervention, in the order in which they ran."""


def run_capture(
    config: CaptureConfig,
    *,
    store_path: str | PathLike[str] | None = None,
    device: str = "cpu",
    reporter: Reporter | None = None,
    command: Sequence[str] | None = None,
    place: Place | None = None,
) -> RunSummary:
    """Train and capture every condition of a configuration.

    Running it again goes on where it was stopped: committed weights are restored instead of
    trained, committed segments are skipped, and the store's `content_digest` is that of an
    undisturbed run. Conditions that the store does not hold yet are added.

    Several processes, each calling it with the same arguments, share the work: rank 0 trains, every
    rank captures segments of its own, and all return when all samples are there.

    Parameters
    ----------
    config
        From `load_config`.
    store_path
        Instead of the configuration's `store`.
    device
        ``cpu``, ``cuda`` or ``cuda:N``.
    reporter
        Hears of stages, progress and notes.
    command
        The command line, for the provenance; None: that of this process.
    place
        The place of this process among several; None: what ``torchrun`` or ``accelerate launch``
        says in RANK, WORLD_SIZE and LOCAL_RANK. Each takes the device ``cuda:LOCAL_RANK``.

    Raises
    ------
    ConfigError, DataError, ModelError
        Before anything is trained or written, where that can be known.
    StoreSpaceError
        The disk has no room for the run.
    ConfigMismatchError
        The store holds a capture of the same name from another configuration.
    """
    reporter = reporter or SilentReporter()
    place = Place.from_environment() if place is None else place
    path = _store_path(config, store_path)
    device = place.device(device)
    _check_device(device)
    with without_launcher():
        reporter.stage("reading the corpus")
        run = prepare_run(config)
        _tell(config, run, reporter)
        if place.rank == 0:
            check_space(config, run, path)
        with Crew(path, place, is_settled) as crew:
            context = RunContext(
                config=config,
                store_path=path,
                device=device,
                table=run.table,
                split=run.split,
                data=corpus_digest(run.corpus),
                provenance={
                    "versions": {name: metadata.version(name) for name in VERSIONS},
                    "command": _command(sys.argv if command is None else command),
                },
                reporter=reporter,
                crew=crew,
            )
            results, changed = _run_conditions(context, run)
    return RunSummary(
        path, run.corpus.labels, run.split.test, len(run.table.samples), results, changed
    )


def _run_conditions(
    context: RunContext, run: PreparedRun
) -> tuple[tuple[ConditionResult, ...], tuple[InterventionResult, ...]]:
    results: list[ConditionResult] = []
    weights: dict[str, Mapping[str, np.ndarray]] = {}
    for prepared in run.conditions:
        condition = prepared.condition
        giver = condition.head_from
        head = None if giver in (None, condition.name) else weights[giver]
        found = run_condition(context, prepared, head)
        weights[condition.name] = found[-1].weights
        results += found
    # after all captures, because a patch reads another one
    conditions = {prepared.condition.name: prepared.condition for prepared in run.conditions}
    changed = [
        result
        for prepared in run.conditions
        for result in run_interventions(
            context, prepared, weights[prepared.condition.name], conditions
        )
    ]
    return tuple(results), tuple(changed)


def _tell(config: CaptureConfig, run: PreparedRun, reporter: Reporter) -> None:
    cut = too_long(run.table.samples, run.family.window_samples(config.model.window_seconds))
    if cut:
        seconds = config.model.window_seconds
        reporter.note(f"{cut} of {len(run.table.samples)} utterances are cut to {seconds:g} s.")
    if run.table.equal_lengths is not None and config.run.batch_size > 1:
        reporter.note(
            "padding would change what this model computes, so only utterances of one length share "
            "a batch; others are computed alone."
        )
    asked = "mean_all_normed" in _pools(config)
    if asked and not any("norm.weight" in one.weights for one in run.conditions):
        reporter.note(
            "the pool mean_all_normed is left out: this model has no norm after its last layer. "
            "The lens, which needs it, is not available."
        )
    if run.corpus.left_out:
        reporter.note(f"left out: {_spell_left_out(run.corpus)}")
    for name, spec in config.captures.items():
        said = spec.adapter.base if spec.adapter is not None else None
        if said is not None and Path(said).name.lower() != Path(config.model.base).name.lower():
            reporter.note(f"{name}: the adapter was trained on {said}, as it says itself.")


def _pools(config: CaptureConfig) -> set[str]:
    record = config.record
    return {pool for name in record.sites for pool in record.options(name).pool or ()}


def _spell_left_out(corpus: Corpus) -> str:
    first = "; ".join(f"{what} ({why})" for what, why in corpus.left_out[:3])
    more = len(corpus.left_out) - 3
    return f"{first}; and {more} more" if more > 0 else first


def _command(words: Sequence[str]) -> str:
    """Spell a command line without the folders of this machine."""
    return " ".join(Path(word).name if Path(word).is_absolute() else word for word in words)


def _store_path(config: CaptureConfig, store_path: str | PathLike[str] | None) -> Path:
    chosen: Any = store_path if store_path is not None else config.store
    if chosen is None:
        msg = "no store: give `store:` in the configuration, or a path on the command line."
        raise ConfigError(msg)
    return Path(chosen)


def _check_device(device: str) -> None:
    import torch

    if device.partition(":")[0] not in ("cpu", "cuda"):
        msg = f"unknown device {device!r}; known: cpu, cuda, cuda:N."
        raise ConfigError(msg)
    if device.startswith("cuda") and not torch.cuda.is_available():
        msg = f"device {device!r} was asked for, but torch sees no CUDA device. Use cpu."
        raise ModelError(msg)
    number = device.partition(":")[2]
    if number and int(number) >= torch.cuda.device_count():
        msg = (
            f"device {device!r} was asked for, but torch sees {torch.cuda.device_count()} CUDA "
            "devices. Start as many processes a machine as it has."
        )
        raise ModelError(msg)
