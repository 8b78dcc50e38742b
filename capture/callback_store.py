"""What `RecorderCallback` tells the store of a model that it did not make and of its training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from ..store import Output, open_store
from .adapters import adapters_of
from .errors import CaptureError
from .families import SpeechFamily
from .lora import extract_weights
from .pooling import final_norms
from .recorder import Recorder, bare_model
from .sites import POOLS
from .steps import step_name
from .streams import find_streams, stream_layers

if TYPE_CHECKING:
    from .families import Family

VERSIONS = ("lorascope", "torch", "transformers", "peft", "numpy", "zarr")
_IDENTITY = (
    "learning_rate",
    "warmup_steps",
    "weight_decay",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "max_grad_norm",
    "seed",
)


@dataclass(frozen=True, slots=True)
class Moment:
    """A training at one of its steps."""

    of: str
    """First part of the captures' names."""
    step: int
    """Updates so far."""
    epoch: float
    """Passes over the training data so far."""
    training: Mapping[str, Any]
    """What identifies the training (JSON)."""
    trained: tuple[str, ...]
    """What the training changes: ``head``, and ``adapter`` for anything below the head."""
    curves: Mapping[str, np.ndarray]
    """The training so far."""

    @property
    def name(self) -> str:
        """Name of the capture."""
        return step_name(self.of, self.step)


def find_moment(
    of: str,
    args: Any,  # noqa: ANN401
    state: Any,  # noqa: ANN401
    *,
    rates: Mapping[int, float],
    trained: tuple[str, ...],
) -> Moment:
    """Describe a Trainer that stands between two steps.

    Parameters
    ----------
    of
        First part of the captures' names.
    args, state
        As a `TrainerCallback` gets them.
    rates
        Learning rate of each update that was seen, by the step before it.
    trained
        What learns; see `find_trained`.
    """
    step = int(state.global_step)
    return Moment(
        of=of,
        step=step,
        epoch=float(state.epoch or 0.0),
        training=describe_training(args, state),
        trained=trained if step else (),
        curves=_find_curves(step, state.log_history, rates),
    )


def describe_training(args: Any, state: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return what must be the same where a training is started again (JSON)."""
    facts = {name: getattr(args, name) for name in _IDENTITY}
    chosen = {name: str(getattr(args, name)) for name in ("optim", "lr_scheduler_type")}
    return {**facts, **chosen, "steps": int(state.max_steps)}


def _find_curves(
    step: int, log: Sequence[Mapping[str, Any]], rates: Mapping[int, float]
) -> dict[str, np.ndarray]:
    """Return the learning rate of every update, and the losses that the Trainer has logged.

    Before the first of them there is nothing to return.
    """
    seen = [entry for entry in log if "loss" in entry and entry["step"] <= step]
    curves = {
        # a resumed training does not know the rates from before
        "training.learning_rate": np.array([rates.get(k, np.nan) for k in range(step)], np.float64),
        "training.loss": np.array([entry["loss"] for entry in seen], np.float64),
        "training.loss_step": np.array([entry["step"] for entry in seen], np.int64),
    }
    return {name: curve for name, curve in curves.items() if curve.size}


def refuse_other_training(path: Path, of: str, training: Mapping[str, Any]) -> None:
    """Refuse a store whose captures of that name come from another training.

    Raises
    ------
    CaptureError
        Naming the first field that differs.
    """
    if not path.exists():
        return
    store = open_store(path)
    for name in store.captures:
        there = store.capture(name).config.get("training")
        if store.capture(name).attrs.get("of") != of or there is None:
            continue
        field = next((key for key, value in training.items() if there.get(key) != value), None)
        if field is not None:
            msg = (
                f"{path} holds {name!r} of another training: {field} is {there.get(field)!r} there "
                f"and {training[field]!r} now. Give RecorderCallback another path or capture=."
            )
            raise CaptureError(msg)


def find_trained(model: nn.Module, family: Family) -> tuple[str, ...]:
    """Return which parts of a model learn: ``head``, and ``adapter`` for anything below it."""
    modules = family.head.modules.values() if isinstance(family, SpeechFamily) else ()
    paths = tuple(f"{path}." for path in modules)
    learns = [name for name, weight in bare_model(model).named_parameters() if weight.requires_grad]
    head = [name for name in learns if name.startswith(paths)]
    found = {"head": bool(head), "adapter": len(learns) > len(head)}
    return tuple(name for name, there in found.items() if there)


def has_head(model: nn.Module, family: Family) -> bool:
    """Tell whether the model is one with the family's classification head."""
    if not isinstance(family, SpeechFamily):
        return False
    paths = {path for path, _ in bare_model(model).named_modules()}
    return set(family.head.modules.values()) <= paths


def find_outputs(model: nn.Module, family: Family, *, loss: bool) -> list[Output]:
    """Return the per-sample outputs that are stored beside the activations."""
    outputs = [Output("loss")] if loss else []
    if has_head(model, family):
        config: Any = bare_model(model).config
        outputs.insert(0, Output("logits", (int(config.num_labels),)))
    return outputs


def find_weights(model: nn.Module, family: Family) -> dict[str, np.ndarray]:
    """Return adapter, head and final norm by stored name, as far as the model has them."""
    bare = bare_model(model)
    if isinstance(family, SpeechFamily) and has_head(model, family):
        found = extract_weights(bare, family)
        # PEFT keeps the weights that a saved module had beside those that it trains
        kept = {n: w for n, w in found.items() if ".original_module." not in n}
        return {n.replace(".modules_to_save.default.", "."): w for n, w in kept.items()}
    weights = {}
    for adapter in adapters_of(bare, family):
        for kind, matrix in (("lora_a", adapter.lora_a), ("lora_b", adapter.lora_b)):
            value = matrix.weight.detach().float().cpu().numpy().copy()
            weights[f"{adapter.parameter}.{kind}"] = value
    return weights


def describe_capture(
    recorder: Recorder, model: nn.Module, moment: Moment, labels: Sequence[str] | None
) -> dict[str, Any]:
    """Return the attributes of one capture, under the names that `capture-run` gives them."""
    bare, family = bare_model(model), recorder.family
    scaling = next((adapter.scaling for adapter in adapters_of(bare, family)), None)
    stream = next(iter(find_streams(bare, family)), None)
    norm = None if stream is None else final_norms(bare, family).get(stream.name)
    frames = {site.source: {"frames": site.frames} for site in recorder.recorded}
    return {
        "model": {
            "base": str(getattr(bare.config, "_name_or_path", "")),
            "family": family.name,
            "n_layers": 0 if stream is None else len(stream_layers(bare, stream)),
            "width": None if stream is None else stream.width(bare.config),
        },
        "adapter": None if scaling is None else {"type": "lora", "scaling": scaling},
        "trained": list(moment.trained),
        "of": moment.of,
        "step": moment.step,
        "steps": moment.training["steps"],
        "epoch": moment.epoch,
        "labels": list(labels or _own_labels(bare)) if has_head(model, family) else [],
        "pools": dict(POOLS),
        "final_norm": None if norm is None else {"kind": norm.kind, "eps": norm.eps},
        "record": {"sites": frames},
        "versions": {name: metadata.version(name) for name in VERSIONS},
    }


def _own_labels(bare: Any) -> list[str]:  # noqa: ANN401
    return [str(label) for _, label in sorted(bare.config.id2label.items())]
