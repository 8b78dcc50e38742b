"""A small ragged capture, written in one call with any segmentation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from lorascope.store import Output, SampleRows, Site, create_store
from lorascope.store.disk import use_disk

from ..proof.disks import QuickDisk

SITES = (
    Site("resid_post", layers=(0, 1), width=6, dtype="bfloat16"),
    Site("embed", layers=None, width=5),
    Site("resid_post.mean_valid", layers=(0, 1), width=6, kind="sample"),
)


def make_samples(n: int = 23, seed: int = 3) -> list[dict]:
    """Return ragged samples with known values."""
    rng = np.random.default_rng(seed)
    samples = []
    for number in range(n):
        rows = int(rng.integers(1, 19))
        resid = rng.standard_normal((2, rows, 6)).astype(np.float32)
        samples.append(
            {
                "id": f"utt-{number:03d}",
                "values": {
                    "resid_post": resid,
                    "embed": rng.standard_normal((rows, 5)).astype(np.float32),
                    "resid_post.mean_valid": resid.mean(1),
                },
                "label": "anger" if number % 2 else "sadness",
                "groups": {"speaker": f"{number % 3:02d}"},
                "exposed": number % 4 == 0,
                "outputs": {"logits": rng.standard_normal(4), "loss": float(number)},
                "columns": {"raw_label": "wütend, =1", "take": number},
            }
        )
    return samples


def plan_of(samples: list[dict]) -> list[SampleRows]:
    """Return the plan of samples."""
    return [SampleRows(s["id"], {"tokens": len(s["values"]["embed"])}) for s in samples]


@pytest.fixture
def tmp_path(ram: Path) -> Path:
    """A folder in memory: the tests of a store make many small files."""
    return ram


@pytest.fixture(autouse=True, scope="module")
def quick(request: pytest.FixtureRequest) -> Iterator[None]:
    """No waiting for the device but where durability is what the tests are about."""
    if request.path.name == "test_durability.py":
        yield
        return
    with use_disk(QuickDisk()):
        yield


type WriteStore = Callable[..., Path]


@pytest.fixture
def write_store(tmp_path: Path) -> WriteStore:
    """Return a function that writes samples and returns the store's path."""

    def write(name: str = "a.zarr", samples: list[dict] | None = None, **options) -> Path:
        path = tmp_path / name
        options.setdefault("capture", "base")
        options.setdefault("config", {"seed": 0, "model": {"base": "tiny"}})
        with create_store(
            path,
            sites=SITES,
            outputs=[Output("logits", (4,)), Output("loss")],
            **options,
        ) as writer:
            for sample in make_samples() if samples is None else samples:
                if sample["id"] not in writer.committed:
                    writer.append(**sample)
        return path

    return write
