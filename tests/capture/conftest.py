"""What the tests of the capture room share: a tiny model, noise to feed it, a writer in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from lorascope.capture import ProbeBatch, RecorderCallback
from lorascope.capture.config_models import AdapterConfig, ModelConfig
from lorascope.capture.lora import attach_adapter, extract_weights, named_weights
from lorascope.capture.models import LoadedModel, load_model
from lorascope.capture.sites import POOLS
from lorascope.store import NewSample

CLASSES = 4
RATE = 16_000


class MemoryWriter:
    """Takes what a store's writer takes, and keeps it for the test to look at."""

    def __init__(self) -> None:
        self.samples: dict[str, dict[str, np.ndarray]] = {}
        self.details: dict[str, dict[str, Any]] = {}
        self.streams: dict[str, str] = {}
        """Site to stream, where a test records several."""

    def append_batch(self, samples: list[NewSample], values: dict[str, np.ndarray]) -> None:
        first: dict[str, int] = {}
        for number, sample in enumerate(samples):
            assert sample.id not in self.samples
            rows = {
                stream: slice(first.get(stream, 0), first.get(stream, 0) + count)
                for stream, count in sample.n_rows.items()
            }
            first |= {stream: part.stop for stream, part in rows.items()}
            main = next(iter(rows), "")
            self.samples[sample.id] = {
                name: self._part(name, array, number, rows.get(self._stream(name, main)))
                for name, array in values.items()
            }
            fields = ("label", "exposed", "groups", "columns", "outputs", "positions")
            self.details[sample.id] = {name: getattr(sample, name) for name in fields}

    def _stream(self, name: str, main: str) -> str:
        return self.streams.get(name, main)

    @staticmethod
    def _part(name: str, array: np.ndarray, number: int, rows: slice | None) -> np.ndarray:
        of_sample = name.endswith(tuple(POOLS)) or "_weight." in name
        return array[..., number, :] if of_sample else array[..., rows, :]


@pytest.fixture(scope="session")
def make_writer() -> type[MemoryWriter]:
    """The class of a writer in memory."""
    return MemoryWriter


@pytest.fixture
def writer() -> MemoryWriter:
    return MemoryWriter()


@pytest.fixture(scope="session")
def make_model() -> Callable[..., LoadedModel]:
    """A function that loads the embedded model, with a 1 s window and an adapter if asked."""

    def make(
        adapter: AdapterConfig | None = None, *, base: str = "demo:whisper", **options: Any
    ) -> LoadedModel:
        seed = options.pop("seed", 0)
        spec = ModelConfig(base=base, **{"window_seconds": 1.0, **options})
        loaded = load_model(spec, CLASSES, seed=seed, device="cpu")
        if adapter is not None:
            attach_adapter(loaded.model, loaded.family, adapter, seed=seed)
            loaded.model.requires_grad_(requires_grad=False)
        return loaded

    return make


@pytest.fixture(scope="session")
def make_waves() -> Callable[[int], list[np.ndarray]]:
    """A function that draws utterances of 0.2 to 1 s: noise whose loudness and colour differ."""

    def make(count: int) -> list[np.ndarray]:
        rng = np.random.default_rng(7)
        lengths = np.linspace(0.2, 1.0, count)
        waves = [np.cumsum(rng.normal(0, 0.02, int(s * RATE))) for s in lengths]
        return [(w - w.mean()).astype(np.float32) * (i + 1) / count for i, w in enumerate(waves)]

    return make


class Watcher(TrainerCallback):
    def __init__(self, study):
        self.study, self.weights = study, {}

    def on_train_begin(self, args, state, control, **_):
        self.on_step_end(args, state, control)

    def on_step_end(self, args, state, control, **_):
        study = self.study
        self.weights[state.global_step] = extract_weights(study.model, study.loaded.family)


class Study:
    """A model, its training data and its probe batches: the same each time it is made."""

    ADAPTER = AdapterConfig(r=4, alpha=8, target_modules=("v_proj",), dropout=0.3)
    CLASSES = [0, 1, 2, 3, 0, 1, 2, 3]
    LABELS = ["anger", "happiness", "neutral", "sadness"]
    FRAMES = 50

    def __init__(self, make_model, make_waves, *, adapter=ADAPTER, peft=None):
        self.loaded = make_model(adapter)
        self.model = self.loaded.model
        self.features = self.loaded.features(make_waves(len(self.CLASSES)))
        if peft is not None:
            from peft import get_peft_model

            torch.manual_seed(0)
            self.model = get_peft_model(self.model, peft)
        else:
            for name, weight in named_weights(self.model, self.loaded.family).items():
                weight.requires_grad = name.startswith(("head.", "adapter."))

    def probes(self, size=3):
        for start in range(0, 6, size):
            at = range(start, min(start + size, 6))
            yield ProbeBatch(
                ids=[f"u{i}" for i in at],
                inputs={"input_features": self.features[list(at)]},
                labels=[self.LABELS[self.CLASSES[i]] for i in at],
                mask=np.arange(self.FRAMES)[None] < np.array([[10 + 5 * i] for i in at]),
                groups={"speaker": [f"s{i % 3}" for i in at]},
                exposed=[i < 4 for i in at],
            )

    def loss(self, output, batch):
        """The loss of each sample of a probe batch."""
        target = torch.tensor([self.LABELS.index(label) for label in batch.labels])
        return torch.nn.functional.cross_entropy(output.logits, target, reduction="none")

    def recorder(self, path, **options):
        """The callback under test."""
        defaults = {"sites": ["resid_post", "lora_a", "lora_b"], "dtype": "float32"}
        return RecorderCallback(path, self.probes, **{**defaults, **options})

    def watcher(self):
        """A callback that keeps the weights after each update, independently."""
        return Watcher(self)

    def train(self, folder, *callbacks, model=None, resume=None, **options):
        arguments = TrainingArguments(
            output_dir=str(folder / "trainer"),
            num_train_epochs=2,
            learning_rate=1e-2,
            per_device_train_batch_size=4,
            seed=0,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            **{
                "save_strategy": "no",
                "logging_steps": 1,
                "remove_unused_columns": False,
                **options,
            },
        )
        data = [
            {"input_features": f, "labels": torch.tensor(c)}
            for f, c in zip(self.features, self.CLASSES, strict=True)
        ]
        trainer = Trainer(model or self.model, arguments, train_dataset=data, eval_dataset=data[:4])
        for callback in callbacks:
            trainer.add_callback(callback)
        trainer.train(resume_from_checkpoint=resume)
        return trainer


@pytest.fixture(scope="session")
def make_study(make_model, make_waves) -> Callable[..., Study]:
    """A function that makes a small study to train with a Trainer."""

    def make(**options: Any) -> Study:
        return Study(make_model, make_waves, **options)

    return make
