"""A small store with everything that the published quantities need, and its paper table."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from lorascope.analyses import analyze, to_tables
from lorascope.store import Output, Site, create_store

LABELS = ["anger", "calm"]
N, FRAMES, WIDTH, RANK = 12, 9, 6, 3
SITES = {
    "embed": (None, WIDTH),
    "resid_post": ([0, 1], WIDTH),
    "attn_out": ([0, 1], WIDTH),
    "mlp_out": ([0, 1], WIDTH),
    "lora_a.v": ([0, 1], RANK),
    "lora_b.v": ([0, 1], WIDTH),
    "grad.lora_a.v": ([0, 1], RANK),
    "grad.lora_b.v": ([0, 1], WIDTH),
}
CAPTURES = {"untrained": (["head"], "peft"), "random": (["head"], "normal"), "lora": (None, "peft")}
VALID = np.asarray([3 + i % 4 for i in range(N)])


def _values(capture: str, i: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([list(CAPTURES).index(capture), i])
    out = {}
    for name, (layers, width) in SITES.items():
        x = rng.normal(size=(len(layers or [0]), FRAMES, width))
        x[:, VALID[i] :] = 3.0 + 0.1 * x[:, VALID[i] :]  # padding is nearly the same everywhere
        if capture == "untrained" and name in {"lora_b.v", "grad.lora_a.v"}:
            x[:] = 0
        out[name] = (x if layers else x[0]).astype(np.float32)
    return out


def _write(path: Path, frames: str = "all", sites: tuple[str, ...] = tuple(SITES)) -> Path:
    for capture, (trained, init) in CAPTURES.items():
        rows = [Site(s, SITES[s][0], SITES[s][1], stream="encoder") for s in sites]
        pool = Site("resid_post.mean_all_normed", [0, 1], WIDTH, kind="sample")
        attrs = {
            "labels": LABELS,
            "trained": trained or ["head", "adapter"],
            "adapter": {"r": WIDTH, "alpha": 12, "scaling": 2.0, "init": init},
            "record": {"frames": frames},
        }
        rng = np.random.default_rng(9)
        head = {
            "head.projector.weight": rng.normal(size=(4, WIDTH)),
            "head.projector.bias": rng.normal(size=4),
            "head.classifier.weight": rng.normal(size=(2, 4)),
            "head.classifier.bias": rng.normal(size=2),
        }
        with create_store(
            path, capture=capture, sites=[*rows, pool], outputs=[Output("logits", (2,))],
            config={"c": capture}, attrs=attrs, segment_samples=5,
        ) as writer:  # fmt: skip
            for i in range(N):
                values = {name: x for name, x in _values(capture, i).items() if name in sites}
                if frames != "all":
                    values = {k: x[..., : VALID[i], :] for k, x in values.items()}
                rng = np.random.default_rng([7, i])
                values["resid_post.mean_all_normed"] = rng.normal(size=(2, WIDTH))
                writer.append(
                    f"u{i}", values, label=LABELS[i % 2], groups={"speaker": f"s{i % 4}"},
                    exposed=i % 4 == 0, outputs={"logits": rng.normal(size=2)},
                    columns={"valid_frames": int(VALID[i])},
                )  # fmt: skip
            writer.write_parameters({k: v.astype(np.float32) for k, v in head.items()})
    return path


@pytest.fixture(scope="session")
def store(tmp_path_factory) -> Path:
    return _write(tmp_path_factory.mktemp("paper") / "s.zarr")


@pytest.fixture(scope="session")
def results(store: Path) -> dict[str, xr.Dataset]:
    return analyze(store, variant="paper", workers=1)


@pytest.fixture(scope="session")
def table(results: dict[str, xr.Dataset]) -> pd.DataFrame:
    return to_tables(results)["paper"]


@pytest.fixture(scope="session")
def write_store() -> Callable[..., Path]:
    """Return the function that writes the store, at another path and with other frames."""
    return _write


@pytest.fixture(scope="session")
def rows() -> dict[tuple[str, str, int], list[np.ndarray]]:
    """Return the float64 rows of each sample of each array, padding included."""
    out: dict[tuple[str, str, int], list[np.ndarray]] = {}
    for capture in CAPTURES:
        for i in range(N):
            for name, x in _values(capture, i).items():
                layers = SITES[name][0]
                for layer in layers or [-1]:
                    part = x[layer] if layers else x
                    out.setdefault((capture, name, layer), []).append(part.astype(np.float64))
    return out
