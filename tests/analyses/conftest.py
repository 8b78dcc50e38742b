"""A small store like one that `capture-run` writes: three captures of the same speakers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from lorascope.analyses import analyze, to_tables
from lorascope.store import Output, Site, create_store

LABELS = ("anger", "happiness", "neutral", "sadness")
N_LAYERS = 3


@dataclass
class Study:
    """The arrays behind the store, as the tests' reference."""

    path: Path
    ids: list[str]
    labels: list[str]
    speakers: list[str]
    arrays: dict[tuple[str, str], list[np.ndarray]] = field(default_factory=dict)
    """(capture, site): one [layer, row, feature] a sample."""
    pooled: dict[tuple[str, str], list[np.ndarray]] = field(default_factory=dict)
    logits: dict[str, np.ndarray] = field(default_factory=dict)
    head: dict[str, np.ndarray] = field(default_factory=dict)
    exposed: dict[str, np.ndarray] = field(default_factory=dict)

    def rows(self, capture: str, site: str, layer: int) -> np.ndarray:
        """Return all rows of one array, float32 as stored."""
        return np.concatenate([x[max(layer, 0)] for x in self.arrays[capture, site]])


def _norm(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


def _sample(
    rng: np.random.Generator, class_: int, speaker: int, *, width: int, rank: int, adapter: str
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the row arrays of one utterance, and its pooled `mean_all_normed`."""
    n = int(rng.integers(5, 12))
    direction = np.random.default_rng(class_).normal(size=width)
    voice = np.random.default_rng(100 + speaker).normal(size=width)
    h = rng.normal(size=(n, width)) + 0.4 * voice
    arrays = {"embed": h[None]}
    residual, attention, mlp, a_out, b_out = [], [], [], [], []
    for layer in range(N_LAYERS):
        weight_a = np.random.default_rng(200 + layer).normal(size=(width, rank)) / np.sqrt(width)
        weight_b = np.random.default_rng(300 + layer).normal(size=(rank, width))
        a_out.append(h @ weight_a)
        b_out.append(a_out[-1] @ (weight_b * (adapter == "lora")))
        attention.append(0.3 * rng.normal(size=(n, width)) + 0.1 * h + b_out[-1] * 0.05)
        mlp.append(0.2 * rng.normal(size=(n, width)) + 0.5 * direction)
        h = h + attention[-1] + mlp[-1]
        residual.append(h)
    arrays |= {"resid_post": np.stack(residual), "attn_out": np.stack(attention)}
    arrays["mlp_out"] = np.stack(mlp)
    if adapter:
        arrays |= {"lora_a.v_proj": np.stack(a_out), "lora_b.v_proj": np.stack(b_out)}
    arrays = {name: x.astype(np.float32) for name, x in arrays.items()}
    normed = {s: _norm(arrays[s]).mean(axis=1) for s in ("embed", "resid_post")}
    return arrays, {f"{name}.mean_all_normed": x.astype(np.float32) for name, x in normed.items()}


def build_study(
    path: Path, *, speakers: int = 5, per_speaker: int = 8, width: int = 12, rank: int = 3
) -> Study:
    """Write the store and return what is in it."""
    n = speakers * per_speaker
    study = Study(
        path,
        [f"utt-{i:03d}" for i in range(n)],
        [LABELS[i % 4] for i in range(n)],
        [f"{i // per_speaker + 1:02d}" for i in range(n)],
    )
    rng = np.random.default_rng(0)
    study.head = {
        "head.projector.weight": rng.normal(size=(6, width)).astype(np.float32),
        "head.projector.bias": rng.normal(size=6).astype(np.float32),
        "head.classifier.weight": rng.normal(size=(4, 6)).astype(np.float32),
        "head.classifier.bias": rng.normal(size=4).astype(np.float32),
    }
    for capture, adapter in (("frozen", ""), ("untrained", "b0"), ("lora", "lora")):
        _write_capture(study, capture, adapter, width=width, rank=rank)
    return study


def _sites(adapter: str, width: int, rank: int) -> list[Site]:
    layers = list(range(N_LAYERS))
    sites = [Site("embed", None, width, stream="encoder")]
    parts = ("resid_post", "attn_out", "mlp_out")
    sites += [Site(s, layers, width, stream="encoder") for s in parts]
    if adapter:
        sites.append(Site("lora_a.v_proj", layers, rank, stream="encoder"))
        sites.append(Site("lora_b.v_proj", layers, width, stream="encoder"))
    pools = [Site(f"{s.name}.mean_valid", s.layers, s.width, kind="sample") for s in sites]
    pools.append(Site("embed.mean_all_normed", None, width, kind="sample"))
    pools.append(Site("resid_post.mean_all_normed", layers, width, kind="sample"))
    return sites + pools


def _write_capture(study: Study, capture: str, adapter: str, *, width: int, rank: int) -> None:
    trained = ["head", "adapter"] if adapter == "lora" else ["head"]
    lora = {"type": "lora", "r": rank, "alpha": 2 * rank, "scaling": 2.0}
    attrs = {"labels": list(LABELS), "trained": trained, "adapter": lora if adapter else None}
    study.exposed[capture] = np.asarray([s in {"01", "02"} for s in study.speakers])
    logits = []
    with create_store(
        study.path,
        capture=capture,
        sites=_sites(adapter, width, rank),
        outputs=[Output("logits", (4,))],
        config={"capture": capture},
        attrs=attrs,
        segment_samples=7,
    ) as writer:
        for i, sample in enumerate(study.ids):
            class_, speaker = LABELS.index(study.labels[i]), int(study.speakers[i])
            rng = np.random.default_rng(1000 + i)  # the same frames in every capture
            arrays, pooled = _sample(rng, class_, speaker, width=width, rank=rank, adapter=adapter)
            pooled |= {f"{s}.mean_valid": x.mean(axis=1) for s, x in arrays.items()}
            for name, x in arrays.items():
                study.arrays.setdefault((capture, name), []).append(x)
            for name, x in pooled.items():
                study.pooled.setdefault((capture, name), []).append(x)
            logits.append(_logits(study.head, pooled["resid_post.mean_all_normed"][-1]))
            writer.append(
                sample,
                arrays | pooled,
                label=study.labels[i],
                groups={"speaker": study.speakers[i]},
                exposed=bool(study.exposed[capture][i]),
                outputs={"logits": logits[-1]},
            )
        writer.write_parameters(study.head, attrs={"labels": list(LABELS)})
    study.logits[capture] = np.stack(logits)


def _logits(head: Mapping[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    hidden = head["head.projector.weight"] @ x + head["head.projector.bias"]
    return head["head.classifier.weight"] @ hidden + head["head.classifier.bias"]


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return build_study(tmp_path_factory.mktemp("study") / "study.zarr")


@pytest.fixture(scope="session")
def results(study: Study) -> dict[str, xr.Dataset]:
    """Return every analysis of the study, by one worker."""
    return analyze(study.path, workers=1)


@pytest.fixture(scope="session")
def tables(results: dict[str, xr.Dataset]) -> dict[str, pd.DataFrame]:
    return to_tables(results)


@pytest.fixture(scope="session")
def pick() -> Callable[..., Any]:
    """Return a function that gives the rows of a table with these values; None: empty cells."""

    def rows(table: Any, **where: object) -> Any:
        for column, value in where.items():
            table = table[table[column].isna() if value is None else table[column] == value]
        return table

    return rows


@pytest.fixture(scope="session")
def one(pick: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that gives the only row with these values."""

    def row(table: Any, **where: object) -> Any:
        rows = pick(table, **where)
        assert len(rows) == 1, f"{len(rows)} rows for {where}"
        return rows.iloc[0]

    return row


@pytest.fixture
def unwritten_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the pictures of reports without writing them: four fifths of the time of a page.

    For tests of its words.
    """
    monkeypatch.setattr("lorascope.analyses.report.html.save_panel", lambda *_: "")


@pytest.fixture(scope="session")
def make_study() -> Callable[..., Study]:
    return build_study


@pytest.fixture(scope="session")
def make_store() -> Callable[..., Path]:
    """Return a function that stores arrays [sample, row, feature] as layers of `resid_post`."""

    def make(
        path: Path,
        layers: list[np.ndarray],
        *,
        capture: str = "a",
        speakers: list[str] | None = None,
        labels: list[str] | None = None,
        ids: list[str] | None = None,
        **options: object,
    ) -> Path:
        width, dtype = layers[0].shape[-1], layers[0].dtype.name
        site = Site("resid_post", list(range(len(layers))), width, dtype=dtype)
        with create_store(path, capture=capture, sites=[site], **options) as writer:  # type: ignore[arg-type]
            for i in range(len(layers[0])):
                writer.append(
                    ids[i] if ids else f"u{i}",
                    {"resid_post": np.stack([x[i] for x in layers])},
                    label=labels[i] if labels else "",
                    groups={"speaker": speakers[i]} if speakers else None,
                )
        return path

    return make
