"""`RecorderCallback`: captures during the training of any Hugging Face Trainer.

The training does not notice: random states, modes, flags and gradients are put back, so it ends in
the same weights, bit for bit, with the callback and without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from transformers import TrainerCallback

from ..store import create_store
from .callback_store import (
    Moment,
    describe_capture,
    describe_training,
    find_moment,
    find_outputs,
    find_trained,
    find_weights,
    refuse_other_training,
)
from .config_steps import EPOCHS, FINAL, check_moments
from .config_types import suggest
from .errors import CaptureError, ConfigError, ModelError
from .probe_batch import OnlyNew, ProbeBatch, ProbeBatches, at_step, check_ids, keep_batches
from .recorder import Recorder, SiteChoice
from .sites import store_sites
from .steps import TrainingSteps, find_steps
from .undisturbed import undisturbed

_OPTIONS = ("layers", "frames", "pool", "dtype")


class SampleLoss(Protocol):
    """Gives the loss of each sample of a batch."""

    def __call__(self, output: Any, batch: ProbeBatch) -> torch.Tensor:  # noqa: ANN401
        """Return one loss a sample, [sample], from what the model returned."""
        ...


class RecorderCallback(TrainerCallback):
    """Captures a fixed set of samples at steps of a training.

    ::

        trainer.add_callback(RecorderCallback("run.zarr", batches, sites=["resid_post"], every=50))

    The captures are named ``<capture>.step<N>``, N updates being done. Their parameters are the
    weights of head and adapter, where the model has them, and the training so far. The same
    training started again, or resumed from a checkpoint, leaves complete captures as they are.

    Parameters
    ----------
    path
        The store; it is made, or gets the captures added.
    batches
        The samples: batches, or a function that gives them. They must be the same each time.
    sites, gradients
        What to record; see `Recorder`.
    loss
        The loss of each sample, from the model's output and the batch; needed for gradients.
    at_steps
        Moments: numbers of steps (0: before the first update), ``every:N``, ``epochs`` (the end of
        every epoch) and ``final``. Without it, `every` and `on_evaluate`: ``[0, final]``.
    every
        The same as ``every:N``.
    on_evaluate
        Whether to capture after each evaluation of the Trainer.
    capture
        First part of the captures' names.
    labels
        Names of the classes in the order of the logits; None: as the model's configuration says.
    model
        The transformers model (or `PeftModel`), where the Trainer's model is a wrapper around it;
        the inputs of the batches then are its own.
    **options
        `layers`, `frames`, `pool` and `dtype` of sites that are given by name; see `SiteRequest`.

    Raises
    ------
    ConfigError, ModelError, CaptureError
        What can be known when the training begins is told then: a step beyond it, a site or adapter
        that cannot be recorded, parameters that are sharded over processes, a store that holds
        captures of another training.

    Notes
    -----
    Under DDP rank 0 records while the other ranks wait at their next collective operation.
    """

    def __init__(  # noqa: PLR0913  everything after the batches is optional and named
        self,
        path: str | Path,
        batches: ProbeBatches,
        *,
        sites: SiteChoice,
        gradients: SiteChoice = (),
        loss: SampleLoss | None = None,
        at_steps: Sequence[int | str] | None = None,
        every: int | None = None,
        on_evaluate: bool = False,
        capture: str = "training",
        labels: Sequence[str] | None = None,
        model: nn.Module | None = None,
        **options: Any,  # noqa: ANN401
    ) -> None:
        self._path, self._batches = Path(path), keep_batches(batches)
        self._choice: dict[str, Any] = {"sites": sites, "gradients": gradients, **options}
        self._loss, self._on_evaluate = loss, on_evaluate
        self._moments = _find_moments(at_steps, every, on_evaluate=on_evaluate)
        self._capture, self._labels, self._model = capture, labels, model
        self._steps: frozenset[int] = frozenset()
        self._done: set[int] = set()
        self._ids: list[str] | None = None
        self._rates: dict[int, float] = {}
        unknown = [name for name in options if name not in _OPTIONS]
        if unknown:
            hint = suggest(unknown[0], _OPTIONS)
            msg = f"unknown option {unknown[0]!r}{hint} (known: {', '.join(_OPTIONS)})."
            raise ConfigError(msg)
        if gradients and loss is None:
            msg = "gradients need a loss: give loss=, a function of (output, batch) -> [sample]."
            raise ConfigError(msg)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Check that everything can be recorded, and capture step 0 where it is asked for."""
        if not state.is_world_process_zero:
            return
        _refuse_sharded(args)
        total = int(state.max_steps)
        steps = TrainingSteps(total, max(1, -(-total // max(1, int(state.num_train_epochs)))))
        wanted = [moment for moment in self._moments if moment not in (EPOCHS, FINAL)]
        self._steps = frozenset(find_steps(wanted, steps, where="RecorderCallback(at_steps)"))
        self._done, self._rates = set(), {}
        Recorder(self._find_model(kwargs), None, **self._choice)
        refuse_other_training(self._path, self._capture, describe_training(args, state))
        self._record_at(args, state, kwargs, wanted=state.global_step in self._steps)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Note the learning rate of the update that begins."""
        scheduler = kwargs.get("lr_scheduler")
        if scheduler is not None:
            self._rates[state.global_step] = float(scheduler.get_last_lr()[0])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Capture after an update."""
        self._record_at(args, state, kwargs, wanted=state.global_step in self._steps)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Capture after an epoch."""
        self._record_at(args, state, kwargs, wanted=EPOCHS in self._moments)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Capture after an evaluation."""
        self._record_at(args, state, kwargs, wanted=self._on_evaluate)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Capture after the last update."""
        self._record_at(args, state, kwargs, wanted=FINAL in self._moments)

    def _record_at(
        self,
        args: Any,  # noqa: ANN401
        state: Any,  # noqa: ANN401
        kwargs: Mapping[str, Any],
        *,
        wanted: bool,
    ) -> None:
        step = int(state.global_step)
        if not wanted or step in self._done or not state.is_world_process_zero:
            return
        model = self._find_model(kwargs)
        family = Recorder(model, None, **self._choice).family
        # which weights learn is known only before everything is frozen
        trained = find_trained(model, family)
        moment = find_moment(self._capture, args, state, rates=self._rates, trained=trained)
        with undisturbed(kwargs["model"]):
            self._record(model, moment)
        self._done.add(step)

    def _find_model(self, kwargs: Mapping[str, Any]) -> nn.Module:
        model = kwargs["model"] if self._model is None else self._model
        if not hasattr(model, "config"):
            msg = (
                f"the Trainer trains a {type(model).__name__}, which is no transformers model: "
                "give RecorderCallback(model=...) the one inside it."
            )
            raise ModelError(msg)
        return model

    def _record(self, model: nn.Module, moment: Moment) -> None:
        """Write one capture, as far as it is not there."""
        recorder = Recorder(model, None, **self._choice)
        sites = store_sites(recorder.recorded)
        outputs = find_outputs(model, recorder.family, loss=self._loss is not None)
        names = [output.name for output in outputs]
        writer = create_store(
            self._path,
            capture=moment.name,
            sites=sites,
            outputs=outputs,
            config={"training": dict(moment.training), "step": moment.step},
            attrs=describe_capture(recorder, model, moment, self._labels),
        )
        ids: list[str] = []
        settled = False
        with writer, Recorder(model, OnlyNew(writer, sites), **self._choice) as recorder:
            there = writer.committed
            for batch in self._batches():
                ids += batch.ids
                check_ids(ids)
                if there.issuperset(batch.ids):
                    continue
                if not settled:
                    _settle_weights(writer, find_weights(model, recorder.family), moment)
                    settled = True
                self._record_batch(recorder, model, at_step(batch, moment.step), names)
            self._check_same(ids)

    def _record_batch(
        self, recorder: Recorder, model: nn.Module, batch: ProbeBatch, outputs: Sequence[str]
    ) -> None:
        inputs = batch.inputs_on(next(model.parameters()).device)
        opened = recorder.batch(
            batch.ids,
            labels=batch.labels,
            groups=batch.groups,
            exposed=batch.exposed,
            mask=batch.mask,
        )
        with opened, torch.set_grad_enabled(bool(self._choice["gradients"])):
            output = model(**inputs)
            found: dict[str, torch.Tensor] = {}
            if "logits" in outputs:
                found["logits"] = output.logits.float()
            if self._loss is not None:
                found["loss"] = self._loss(output, batch).float()
                if self._choice["gradients"]:
                    recorder.backward(found["loss"])
            recorder.output(**found)

    def _check_same(self, ids: list[str]) -> None:
        check_ids(ids)
        if self._ids is None:
            self._ids = ids
        if ids != self._ids:
            msg = (
                "the probe batches hold other samples than at the first step, or in another order, "
                "so the captures would not line up. Give fixed batches (no shuffling)."
            )
            raise CaptureError(msg)


def _find_moments(
    at_steps: Sequence[int | str] | None, every: int | None, *, on_evaluate: bool
) -> tuple[int | str, ...]:
    """Return all moments that the arguments name.

    Raises
    ------
    ConfigError
        One of them is none.
    """
    asked = list(at_steps or ())
    if every is not None:
        asked.append(f"every:{every}")
    if not asked and at_steps is None and not on_evaluate:
        asked = [0, FINAL]
    try:
        return check_moments(asked)
    except ValueError as error:
        msg = f"RecorderCallback(at_steps, every): {error}."
        raise ConfigError(msg) from error


def _settle_weights(writer: Any, weights: Mapping[str, np.ndarray], moment: Moment) -> None:  # noqa: ANN401
    """Make weights and curves durable; of a capture that was begun, the weights must agree.

    A training that is resumed from a checkpoint has the same weights, but knows its past in part.
    """
    begun = bool(writer.parameters)
    writer.write_parameters(weights if begun else {**weights, **moment.curves})


def _refuse_sharded(args: Any) -> None:  # noqa: ANN401
    if getattr(args, "fsdp", None) or getattr(args, "deepspeed", None):
        msg = (
            "RecorderCallback needs the whole model in one process, and FSDP or DeepSpeed shard "
            "it. Train on one device or with DDP, or record the checkpoints afterwards."
        )
        raise ModelError(msg)
