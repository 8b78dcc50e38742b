"""What the tests of the capture room share: a tiny model, noise to feed it, a writer in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lorascope.capture.config_models import AdapterConfig, ModelConfig
from lorascope.capture.lora import attach_adapter
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
