"""Training head and adapter with the Hugging Face Trainer, for a fixed number of epochs.

Nothing is ever evaluated or selected during training, so no test speaker can shape a weight. It
computes in float32 whatever the model's dtype, and leaves no file behind. Its steps are watched,
never interrupted: the same weights come out whatever is kept on the way.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from .errors import CaptureError
from .families import join_inputs
from .lora import named_weights
from .trajectory import Trajectory, TrajectoryRecorder

if TYPE_CHECKING:
    from .config_models import TrainConfig
    from .models import LoadedModel
    from .reporting import Reporter

FEATURE_CACHE_BYTES = 256 * 2**20
"""Input features that training keeps instead of computing them again in each epoch."""


@dataclass(frozen=True, slots=True)
class Examples:
    """The training part."""

    read: Callable[[int], np.ndarray]
    """Waveform of example i."""
    classes: Sequence[int]
    """Class of each example."""


def train(
    loaded: LoadedModel,
    examples: Examples,
    spec: TrainConfig,
    *,
    adapter: bool,
    seed: int,
    reporter: Reporter,
    at: Sequence[int] = (),
) -> Trajectory:
    """Train the head, and the adapter if asked, in place; the same seed gives the same weights.

    Without an adapter the encoder is run once: its pooled output cannot change, and only the head
    is trained on it (exactly what training through the frozen encoder gives, up to rounding).

    Parameters
    ----------
    loaded
        The model, its adapter attached.
    examples
        The training part, and nothing else.
    spec
        Epochs, learning rate and its schedule, batch size, weight decay.
    adapter
        Whether the adapter is trained too.
    seed
        Seed of the order of examples and of dropout.
    reporter
        Hears of every step.
    at
        Steps whose weights and gradients are kept, each before the last one. They stay in memory
        (twice the trained weights a step).

    Returns
    -------
    Trajectory
        Loss, learning rate and gradient norm of every step, and the states asked for.

    Raises
    ------
    CaptureError
        The weights are no longer finite, or several devices would train at once.
    """
    model, dtype = loaded.model, next(loaded.model.parameters()).dtype
    model.float().requires_grad_(requires_grad=False)
    weights = named_weights(model, loaded.family)
    wanted = ("head.", "adapter.") if adapter else ("head.",)
    trained = {name: w for name, w in weights.items() if name.startswith(wanted)}
    for weight in trained.values():
        weight.requires_grad = True
    recorder = TrajectoryRecorder(weights, trained, frozenset(at), dtype)
    features = _Features(loaded, examples)
    if adapter:
        module, dataset = _Whole(loaded), features
    else:
        pooled = _encode(loaded, features, spec.batch_size, reporter)
        module, dataset = _HeadOnly(loaded), pooled
    trajectory = _run_trainer(module, dataset, spec, recorder, seed=seed, reporter=reporter)
    model.requires_grad_(requires_grad=False).to(dtype).eval()
    lost = [name for name, weight in trained.items() if not bool(torch.isfinite(weight).all())]
    if lost:
        msg = (
            f"training diverged: {lost[0]} is no longer finite. Lower train.learning_rate "
            f"(it is {spec.learning_rate:g})."
        )
        raise CaptureError(msg)
    return trajectory


type _Inputs = dict[str, torch.Tensor]
"""Inputs of the model by name, of one example or more."""


class _Features(torch.utils.data.Dataset[dict[str, Any]]):
    """Inputs of the examples, one by one, kept as far as the budget reaches."""

    def __init__(self, loaded: LoadedModel, examples: Examples) -> None:
        self._loaded, self._examples = loaded, examples
        self._cache: dict[int, _Inputs] = {}
        self._free = FEATURE_CACHE_BYTES

    def __len__(self) -> int:
        return len(self._examples.classes)

    def __getitem__(self, i: int) -> dict[str, Any]:
        features = self._cache.get(i)
        if features is None:
            made = self._loaded.inputs([self._examples.read(i)])
            features = {name: x.cpu() for name, x in made.items()}
            size = sum(x.nbytes for x in features.values())
            if size <= self._free:
                self._cache[i] = features
                self._free -= size
        class_ = torch.tensor(self._examples.classes[i])
        return {"features": features, "labels": class_, "index": torch.tensor(i)}


class _Pooled(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Pooled encoder outputs of the examples."""

    def __init__(self, pooled: torch.Tensor, classes: Sequence[int]) -> None:
        self._pooled, self._classes = pooled, torch.tensor(classes)

    def __len__(self) -> int:
        return len(self._pooled)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        labels = self._classes[i]
        return {"features": self._pooled[i], "labels": labels, "index": torch.tensor(i)}


class _Whole(nn.Module):
    """The model with its mean cross-entropy, as the Trainer wants it."""

    def __init__(self, loaded: LoadedModel) -> None:
        super().__init__()
        self.model = loaded.model
        self._equal = loaded.family.equal_lengths

    def forward(self, features: list[_Inputs], labels: torch.Tensor) -> dict[str, torch.Tensor]:
        together = _together(features, equal_lengths=self._equal)
        logits = torch.cat([self.model(**inputs).logits for inputs in together])
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class _HeadOnly(nn.Module):
    """The head with its mean cross-entropy, on pooled features."""

    def __init__(self, loaded: LoadedModel) -> None:
        super().__init__()
        self.model = loaded.model
        self._apply_head = loaded.family.head.apply

    def forward(self, features: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self._apply_head(self.model, features)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def _encode(
    loaded: LoadedModel, features: _Features, batch_size: int, reporter: Reporter
) -> _Pooled:
    encoder = loaded.model.get_submodule(loaded.family.encoder).eval()
    equal = loaded.family.equal_lengths
    parts, classes, total = [], [], len(features)
    for start in range(0, total, batch_size):
        items = [features[i] for i in range(start, min(start + batch_size, total))]
        for inputs in _together([item["features"] for item in items], equal_lengths=equal):
            moved = loaded.move(inputs)
            with torch.no_grad():
                encoded = encoder(**moved).last_hidden_state
                parts.append(loaded.family.head.pool(loaded.model, encoded, moved).cpu())
        classes += [int(item["labels"]) for item in items]
        reporter.progress(start + len(items), total, "encoding the training part")
    return _Pooled(torch.cat(parts), classes)


def _together(items: Sequence[_Inputs], *, equal_lengths: bool) -> list[_Inputs]:
    """Return the inputs of the forwards that a batch takes: one, unless padding changes values."""
    lengths = {next(iter(item.values())).shape[-1] for item in items}
    if equal_lengths and len(lengths) > 1:
        return list(items)
    return [join_inputs(items)]


def _collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack what are tensors; inputs differ in length, and stay a list."""
    columns = {key: [item[key] for item in items] for key in ("labels", "index", "features")}
    return {
        key: torch.stack(column) if isinstance(column[0], torch.Tensor) else column
        for key, column in columns.items()
    }


def _run_trainer(
    module: nn.Module,
    dataset: Any,  # noqa: ANN401  any dataset of {"features", "labels", "index"}
    spec: TrainConfig,
    recorder: TrajectoryRecorder,
    *,
    seed: int,
    reporter: Reporter,
) -> Trajectory:
    from transformers import PrinterCallback, Trainer, TrainerCallback

    class Progress(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ANN401
            reporter.progress(state.global_step, state.max_steps, "training")

    class Watched(Trainer):
        def training_step(
            self,
            model: nn.Module,
            inputs: dict[str, Any],
            num_items_in_batch: torch.Tensor | int | None = None,
        ) -> torch.Tensor:
            step = self.state.global_step
            examples = inputs.pop("index").tolist()
            recorder.before_update(step)
            loss = super().training_step(model, inputs, num_items_in_batch)
            scheduler: Any = self.lr_scheduler
            rate = float(scheduler.get_last_lr()[0])
            recorder.after_backward(step, loss=loss, rate=rate, examples=examples)
            return loss

    on_cpu = next(module.parameters()).device.type == "cpu"
    steps = spec.epochs * -(-len(dataset) // spec.batch_size)
    with tempfile.TemporaryDirectory(prefix="lorascope-training-") as folder:
        trainer = Watched(
            model=module,
            args=_arguments(spec, folder, steps, seed=seed, on_cpu=on_cpu),
            train_dataset=dataset,
            data_collator=_collate,
            callbacks=[Progress()],
        )
        trainer.remove_callback(PrinterCallback)
        _check_one_device(trainer.args.train_batch_size, spec.batch_size)
        trainer.train()
    return recorder.finish(clipped_at=float(trainer.args.max_grad_norm))


def _check_one_device(found: int, asked: int) -> None:
    """Refuse a batch that the Trainer multiplied: steps and their batches would be others."""
    if found != asked:
        msg = (
            f"the Trainer would train on {found // asked} devices at once, with batches of {found} "
            f"instead of the {asked} of train.batch_size. Make one visible (CUDA_VISIBLE_DEVICES)."
        )
        raise CaptureError(msg)


def _arguments(spec: TrainConfig, folder: str, steps: int, *, seed: int, on_cpu: bool) -> Any:  # noqa: ANN401
    from transformers import TrainingArguments

    schedule = "constant_with_warmup" if spec.schedule == "constant" else spec.schedule
    return TrainingArguments(
        output_dir=folder,
        num_train_epochs=spec.epochs,
        learning_rate=spec.learning_rate,
        lr_scheduler_type=schedule,
        warmup_steps=math.ceil(steps * spec.warmup_ratio),
        weight_decay=spec.weight_decay,
        per_device_train_batch_size=spec.batch_size,
        optim="adamw_torch",
        seed=seed,
        data_seed=seed,
        use_cpu=on_cpu,
        dataloader_pin_memory=not on_cpu,
        remove_unused_columns=False,
        report_to="none",
        save_strategy="no",
        eval_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
