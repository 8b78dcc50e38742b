"""The training axis: at which steps a condition is captured, under which names, on which samples.

Step k is the state after k updates of the optimizer: step 0 is before the first, the last one is
the trained capture itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from .config_steps import EPOCHS, FINAL, spacing
from .corpora.table import choose_evenly
from .errors import ConfigError
from .samples import UNKNOWN, Sample, SampleTable

if TYPE_CHECKING:
    from .conditions import Condition
    from .config_models import CaptureSpec, StepSamplesConfig
    from .split import Split


@dataclass(frozen=True, slots=True)
class TrainingSteps:
    """The updates of one training."""

    total: int
    """Number of updates."""
    per_epoch: int
    """Updates an epoch."""

    def epoch(self, step: int) -> float:
        """Return how many passes over the training part lie before `step`, fractions included."""
        return step / self.per_epoch


@dataclass(frozen=True, slots=True)
class CaptureState:
    """One capture of a condition: its weights at one moment, on some of the samples."""

    name: str
    """Name of the capture."""
    condition: Condition
    """What it is a moment of."""
    step: int | None
    """Updates before it; None where nothing is trained."""
    table: SampleTable
    """Samples that it records."""

    @property
    def final(self) -> bool:
        """Whether it is the capture that the configuration names, all training behind it."""
        return self.name == self.condition.name

    @property
    def trained(self) -> tuple[str, ...]:
        """What was trained in or for it: before the first update nothing was."""
        return () if self.step == 0 else self.condition.trained

    @property
    def head_from(self) -> str | None:
        """The capture whose trained head it has; None: the seeded, untrained one."""
        return None if self.step == 0 else self.condition.head_from


def step_name(capture: str, step: int) -> str:
    """Return the name of the capture of `step` of the training of `capture`."""
    return f"{capture}.step{step}"


def count_steps(spec: CaptureSpec, n_train: int) -> TrainingSteps | None:
    """Return the updates of a condition's training on `n_train` samples; None without training."""
    if spec.train is None:
        return None
    per_epoch = -(-n_train // spec.train.batch_size)
    return TrainingSteps(spec.train.epochs * per_epoch, per_epoch)


def find_steps(moments: Sequence[int | str], steps: TrainingSteps, *, where: str) -> list[int]:
    """Return the numbers of the steps that moments name, ascending, each once.

    Parameters
    ----------
    moments
        See `check_moments`.
    steps
        The training.
    where
        What asks for them, for the message.

    Raises
    ------
    ConfigError
        A step that the training does not reach.
    """
    found: set[int] = set()
    for moment in moments:
        every = spacing(moment)
        first = every if every is not None else moment if isinstance(moment, int) else 0
        if first > steps.total:
            n = "1 step" if steps.total == 1 else f"{steps.total} steps"
            msg = (
                f"{where}: {moment} lies beyond the training, which has {n} ({steps.per_epoch} an "
                f"epoch). Ask for steps up to {steps.total}, or train for more epochs."
            )
            raise ConfigError(msg)
        if every is not None:
            found |= set(range(every, steps.total + 1, every))
        elif moment == EPOCHS:
            found |= set(range(steps.per_epoch, steps.total + 1, steps.per_epoch))
        else:
            found.add(steps.total if moment == FINAL else first)
    return sorted(found)


def plan_states(
    condition: Condition, table: SampleTable, split: Split, *, seed: int
) -> tuple[CaptureState, ...]:
    """Return the captures of one condition, in the order of its steps, the final one last.

    Raises
    ------
    ConfigError
        A step beyond the training, or more samples than there are.
    """
    spec, name = condition.spec, condition.name
    steps = count_steps(spec, len(split.train_ids))
    if steps is None:
        return (CaptureState(name, condition, None, table),)
    found = find_steps(spec.at_steps, steps, where=f"captures.{name}.at_steps")
    during = [step for step in found if step < steps.total]
    chosen = table
    if during and spec.step_samples is not None:
        where = f"captures.{name}.step_samples"
        chosen = choose_samples(table, split, spec.step_samples, seed=seed, where=where)
    states = [CaptureState(step_name(name, step), condition, step, chosen) for step in during]
    return (*states, CaptureState(name, condition, steps.total, table))


def check_names(states: Sequence[CaptureState]) -> None:
    """Refuse two captures of one name (`lora.step5` of `lora`, and one that is called so).

    Raises
    ------
    ConfigError
        Naming both.
    """
    known: dict[str, CaptureState] = {}
    for state in states:
        twin = known.setdefault(state.name.casefold(), state)
        if twin is not state and twin.condition is not state.condition:
            first, second = sorted((twin, state), key=lambda s: s.final)
            msg = (
                f"captures.{second.name}: {first.condition.name!r} captures its step {first.step} "
                "under that name. Choose another name, or leave the step out of at_steps."
            )
            raise ConfigError(msg)


def choose_samples(
    table: SampleTable, split: Split, spec: StepSamplesConfig, *, seed: int, where: str
) -> SampleTable:
    """Return a seeded subset of the samples, in their order.

    Raises
    ------
    ConfigError
        There are fewer than asked for.
    """
    parts = {"train": split.train_ids, "test": split.test_ids}
    ids = parts.get(spec.part)
    pool = [s for s in table.samples if ids is None or s.utterance.id in ids]
    of_part = "" if ids is None else f" in the {spec.part} part"
    if spec.per_class is None:
        chosen = _draw(pool, spec.total or len(pool), seed, f"{where}.total", of_part)
    else:
        chosen = _draw_each(pool, table, spec.per_class, seed, f"{where}.per_class", of_part)
    return replace(table, samples=tuple(s for s in table.samples if s.utterance.id in chosen))


def _draw(pool: Sequence[Sample], count: int, seed: int, where: str, of_part: str) -> set[str]:
    if len(pool) < count:
        msg = f"{where} asks for {count} samples, and there are {len(pool)}{of_part}."
        raise ConfigError(msg)
    drawn = np.random.default_rng(seed).permutation(len(pool))[:count]
    return {pool[i].utterance.id for i in drawn}


def _draw_each(
    pool: Sequence[Sample],
    table: SampleTable,
    count: int,
    seed: int,
    where: str,
    of_part: str,
) -> set[str]:
    known = [s.utterance for s in pool if s.class_ != UNKNOWN]
    chosen: set[str] = set()
    for label in table.corpus.labels:
        ids = choose_evenly(known, label, count, seed)
        if len(ids) < count:
            msg = f"{where} asks for {count} of each label, and {label!r} has {len(ids)}{of_part}."
            raise ConfigError(msg)
        chosen |= set(ids)
    return chosen
