"""A small run of every kind of array, written again and again by the proofs, and its oracle."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lorascope.store import (
    NewSample,
    Output,
    SampleRows,
    Site,
    Store,
    create_store,
    open_store,
    verify_store,
)


@dataclass(frozen=True)
class Run:
    """A configuration of the writer; the values follow from the sample's number."""

    n_samples: int = 5
    layers: int = 1
    width: int = 3
    dtype: str = "bfloat16"
    segment_samples: int = 2
    planned: bool = True
    threads: int = 1
    batch: int = 1
    parameters: bool = True
    profile: str = "fast"

    @classmethod
    def draw(cls, rng: random.Random) -> Run:
        """Draw a configuration."""
        return cls(
            n_samples=rng.randint(1, 12),
            layers=rng.randint(1, 3),
            width=rng.randint(1, 9),
            dtype=rng.choice(["bfloat16", "float16", "float32", "float64"]),
            segment_samples=rng.randint(1, 5),
            planned=rng.random() < 0.5,
            threads=rng.randint(1, 3),
            batch=rng.randint(1, 3),
            parameters=rng.random() < 0.7,
            profile=rng.choice(["fast", "compact", "portable"]),
        )

    @property
    def sites(self) -> list[Site]:
        """What is recorded."""
        layers = list(range(self.layers))
        return [
            Site("x", layers, self.width, self.dtype),
            Site("x.mean_valid", layers, self.width, kind="sample"),
        ]

    def n_rows(self, number: int) -> int:
        """Rows of a sample."""
        return 1 + number * 7 % 5

    def values(self, number: int) -> np.ndarray:
        """Row values of a sample [layer, row, feature], small integers: exact in every type."""
        shape = (self.layers, self.n_rows(number), self.width)
        return (np.arange(np.prod(shape)).reshape(shape) + number) % 251.0

    def sample(self, number: int) -> NewSample:
        """What is said of a sample."""
        rows = {"tokens": self.n_rows(number)}
        return NewSample(
            f"s{number}",
            rows,
            label="ab"[number % 2],
            groups={"speaker": str(number % 3)},
            outputs={"loss": float(number)},
        )

    def write(
        self,
        path: Path,
        *,
        committed: Callable[[set[str]], None] | None = None,
        rank: int = 0,
        ranks: int = 1,
        pause: float = 0.0,
        wait_seconds: float = 30.0,
    ) -> None:
        """Write what is not there yet; `committed` hears of durable samples now and then."""
        plan = [SampleRows(f"s{n}", {"tokens": self.n_rows(n)}) for n in range(self.n_samples)]
        with create_store(
            path,
            capture="a",
            sites=self.sites,
            outputs=[Output("loss")],
            config={"run": repr(self)},
            plan=plan if self.planned else None,
            batch_size=self.batch,
            segment_samples=max(self.segment_samples, self.batch),
            segment_rows=64,
            threads=self.threads,
            profile=self.profile,
            rank=rank,
            ranks=ranks,
            wait_seconds=wait_seconds,
        ) as writer:
            if self.parameters:
                writer.write_parameters({"head.weight": np.arange(6.0).reshape(2, 3)})
            ids = [f"s{n}" for n in range(self.n_samples)]
            if self.planned:
                ids = [i for s in writer.segments if not s.committed for i in s.samples]
            missing = [int(name[1:]) for name in ids if name not in writer.committed]
            for start in range(0, len(missing), self.batch):
                numbers = missing[start : start + self.batch]
                rows = [self.values(n) for n in numbers]
                writer.append_batch(
                    [self.sample(n) for n in numbers],
                    {
                        "x": np.concatenate(rows, axis=1),
                        "x.mean_valid": np.stack([x.mean(1) for x in rows], axis=1),
                    },
                )
                if committed is not None:
                    committed(writer.committed)
                time.sleep(pause)
        if committed is not None:
            committed(writer.committed)

    def check(self, path: Path, promised: Iterable[str]) -> Store | None:
        """Check a store as it stands: openable, sound, promised samples there, no wrong value.

        A folder that is no store yet is sound while nothing was promised; then None is returned.
        """
        promised = set(promised)
        if not (path / "zarr.json").exists():
            assert not promised, "a store with committed samples has no root metadata"
            return None
        report = verify_store(path)
        assert report.ok, report.damages
        store = open_store(path)
        present = set(store.capture("a").sample_columns["id"]) if store.captures else set()
        assert promised <= present, f"committed samples are gone: {sorted(promised - present)}"
        if store.captures:
            self.check_values(store)
        return store

    def check_whole(self, path: Path, expected: str) -> None:
        """Check a store that must hold the whole run: sound, and of the digest of the run.

        The digest is of every value, and the undisturbed run that gave it was checked by value.
        """
        report = verify_store(path)
        assert report.ok, report.damages
        assert open_store(path).content_digest() == expected

    def check_values(self, store: Store) -> None:
        """Compare all values that are there with what was written."""
        capture = store.capture("a")
        table = capture.sample_columns
        numbers = [int(name[1:]) for name in table["id"]]
        assert len(set(numbers)) == len(numbers), "a sample is there twice"
        for layer in range(self.layers):
            rows = capture.read_rows("x", layer)
            pooled = capture.read_pooled("x.mean_valid", layer)
            wanted = [self.values(n)[layer] for n in numbers]
            if wanted:
                assert np.array_equal(rows, np.concatenate(wanted)), f"rows of layer {layer}"
                means = np.array([x.mean(0) for x in wanted])
                assert np.array_equal(pooled, means.astype(np.float32)), f"means of layer {layer}"
        assert np.array_equal(capture.read_output("loss"), np.float32(numbers))
        assert list(table["label"]) == ["ab"[n % 2] for n in numbers]
        for value in capture.parameters.values():
            assert np.array_equal(value, np.arange(6.0).reshape(2, 3))

    def digest(self, path: Path) -> str:
        """Write the run undisturbed, compare every value, return its content digest."""
        self.write(path)
        store = self.check(path, {f"s{n}" for n in range(self.n_samples)})
        assert store is not None
        return store.content_digest()
