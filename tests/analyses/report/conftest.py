"""Result tables as `to_tables` makes them, small and known; and a parser for the page."""

from collections.abc import Callable
from html.parser import HTMLParser
from itertools import combinations_with_replacement
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lorascope.analyses.report import render_report

CAPTURES = ("frozen", "lora")
LABELS = ("anger", "calm")
LAYERS = 3
VOID = {"meta", "link", "img", "br", "hr", "input"}


def with_layers(rows: list[dict], interval: str = "") -> pd.DataFrame:
    """Return a table as `to_tables` makes it: -1 is no layer, the attributes say the interval."""
    table = pd.DataFrame(rows)
    for name in {"layer", "layer_a", "layer_b"} & set(table.columns):
        layer = table[name].astype("Int64")
        table[name] = layer.mask(layer < 0)
    table.attrs = {"interval": interval} if interval else {}
    return table


def spread(name: str, value: float) -> dict[str, float]:
    return {name: value, f"{name}_low": value - 0.1, f"{name}_high": value + 0.1}


def cka_table(layers: int) -> pd.DataFrame:
    sites = [("resid_post", n) for n in range(layers)]
    arrays = [(c, s, n) for c in CAPTURES for s, n in [("embed", -1), *sites]]
    arrays += [
        ("lora", f"{g}lora_{x}.v", n)
        for g in ("", "grad.")
        for x in "ab"
        for n, _ in enumerate(sites)
    ]
    rows = []
    for (ca, sa, na), (cb, sb, nb) in combinations_with_replacement(arrays, 2):
        value = 0.9 - 0.1 * abs(na - nb) / layers - 0.2 * (ca != cb)
        head = {"capture_a": ca, "site_a": sa, "layer_a": na, "capture_b": cb, "site_b": sb}
        how = {"granularity": "pooled", "kernel": "linear", "mask": "valid", "n": 40}
        rows += [
            {**head, "layer_b": nb, **how, "estimator": e, "exposed": "none", "reason": ""}
            | spread("value", value + 0.05 * (e == "biased"))
            for e in ("debiased", "biased")
        ]
    return with_layers(rows, "delete-one-speaker jackknife, 95 %")


def spectra(layers: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    rows, spectrum = [], []
    for capture in CAPTURES:
        for site in ("lora_a.v", "lora_b.v", "resid_post"):
            for layer in range(layers):
                head = {"capture": capture, "site": site, "layer": layer, "mask": "valid"}
                dead = capture == "frozen" and site == "lora_b.v"
                energy = np.array([0.8, 0.15, 0.05])
                sv90 = np.nan if dead else 2.0
                reason = "constant features" if dead else ""
                for centred in (True, False):
                    common = {**head, "centred": centred}
                    rows.append({**common, "n": 900, "sv90": sv90, "sv90_interpolated": sv90 - 0.3}
                                | {"exposed": "none", "reason": reason})  # fmt: skip
                    spectrum += [
                        {
                            **common,
                            "index": i + 1,
                            "singular_value": e**0.5,
                            "energy": np.nan if dead else e,
                        }
                        for i, e in enumerate(energy)
                    ]
    return with_layers(rows), with_layers(spectrum)


def probe_table(layers: int) -> pd.DataFrame:
    rows = []
    for capture in CAPTURES:
        places = [("embed", -1), *(("resid_post", n) for n in range(layers)), ("encoder_out", -1)]
        for i, (site, layer) in enumerate(places):
            uar = 0.4 + 0.1 * (i == 2) + 0.2 * (capture == "lora")
            head = {"capture": capture, "site": site, "layer": layer, "probe": "logistic"}
            head |= {"split": "leave-one-speaker-out", "exposed": "none", "reason": ""}
            pooled = {"fold": "all", "n": 40, "war": uar, "control_uar": 0.48} | spread("uar", uar)
            folds = [
                ("fold-of-nine", 9, 0.11),
                ("fold-of-ten", 10, uar),
                ("fold-of-21", 21, uar - 0.05),
            ]
            rows.append(head | pooled)
            rows += [head | {"fold": name, "n": n, "uar": score} for name, n, score in folds]
    return with_layers(rows, "cluster bootstrap over speakers, 95 %")


def embedding_tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return 400 points of two starts for each capture, and the numbers of both starts."""
    points, quality = [], []
    for capture in CAPTURES:
        for seed, init in enumerate(("pca", "random")):
            head = {"capture": capture, "site": "resid_post", "layer": 2, "method": "tsne"}
            head |= {"seed": seed, "k": 10, "n": 400, "exposed": "none", "reason": ""}
            points += [
                {**head, "sample": f"utt-secret-{i}", "x": float(i), "y": float(seed)}
                | {"label": LABELS[i % 2], "speaker": f"speaker-{i % 7}"}
                for i in range(400)
            ]
            chances = {"knn_purity_label_chance": 0.25, "knn_purity_speaker_chance": 0.05}
            numbers = spread("knn_purity_label", 0.6) | spread("knn_purity_speaker", 0.3) | chances
            quality.append(head | {"init": init, "knn_recall": 0.5 + 0.1 * seed} | numbers)
    method = "delete-one-speaker jackknife, 95 %"
    return with_layers(points, method), with_layers(quality, method)


def make_tables(layers: int = LAYERS) -> dict[str, pd.DataFrame]:
    svd, spectrum = spectra(layers)
    lens, contribution = [], []
    for capture in CAPTURES:
        for layer in range(layers):
            head = {"capture": capture, "layer": layer, "exposed": "none", "reason": "", "n": 12}
            depth = (layer + 1) / layers
            answers = {
                "site": "resid_post",
                "kl_final_layer": 1 - depth,
                "chance_overlap": 0.6,
                "uar": 0.5,
            }
            lens.append(head | answers | spread("overlap", depth))
            for component in ("attention", "mlp", "layer"):
                ratios = spread("ratio_mean", 0.3) | spread("cosine_mean", -0.2)
                contribution.append(head | {"component": component, "mask": "valid"} | ratios)
    scores = [
        {"capture": c, "n": 12, "exposed": "none", "war": 0.75, "reason": ""} | spread("uar", u)
        for c, u in zip(CAPTURES, (0.55, 0.8), strict=True)
    ]
    erased = [
        {"capture": c, "intervention": f"{change}{i}", "change": change, "layer": i, "n": 12}
        | {"exposed": "none", "reason": ""}
        | spread("delta_uar", -0.05 * (i + 1) - 0.2 * (c == "lora" and change == "erase, zero"))
        | spread("kl", 0.3)
        for c in CAPTURES
        for change in ("erase, mean", "erase, zero")
        for i in range(layers)
    ]
    whole = {"capture": "lora", "intervention": "lora_off", "change": "LoRA off", "layer": -1}
    erased.append(whole | {"n": 12, "exposed": "none", "reason": ""} | spread("delta_uar", -0.01))
    null = {"value": 0.9, "null_mean": 0.6, "null_low": 0.4, "null_high": 0.8, "p_value": 0.01}
    aligned = [
        {"capture": "lora", "module": "v", "layer": i, "direction": d, "mask": "valid", "n": 900}
        | {"exposed": "none", "reason": ""}
        | null
        for i in range(layers)
        for d in ("forward", "backward")
    ]
    weights = [
        {"capture": c, "module": "v", "layer": i, "matrix": m, "n": 8, "exposed": "none"}
        | {"erank": 8.0 - 6 * (c == "lora" and m == "BA"), "reason": ""}
        for c in CAPTURES
        for i in range(layers)
        for m in ("A", "B", "BA")
    ]
    shared = [
        {"capture_a": "frozen", "capture_b": "lora", "module": "v", "layer": i, "matrix": m}
        | {"directions": k, "overlap": 0.9 if m == "A" else 0.2, "overlap_random": k / 64}
        | {"n": 8, "exposed": "only", "reason": ""}
        for i in range(layers)
        for m in "AB"
        for k in (1, 8)
    ]
    angles = [
        {"capture_a": "frozen", "capture_b": "lora", "site": "resid_post", "layer": i, "n": 900}
        | {"mask": "valid", "span": f"top{k}", "directions_a": k, "directions_b": k}
        | {"overlap": 0.75, "overlap_random": k / 64, "angle_smallest": 5.0}
        | {"angle_largest": 60.0, "exposed": "none", "reason": ""}
        for i in range(layers)
        for k in (1, 4)
    ]
    gradients = [
        {"capture": c, "site": "grad.lora_b.v", "layer": i, "mask": "valid", "n": 40}
        | {"exposed": "none", "reason": "", "noise_scale": 20.0}
        | spread("norm_mean", 0.5 + (c == "lora"))
        | spread("within_class_cosine", 0.75)
        | spread("between_class_cosine", -0.25)
        for c in CAPTURES
        for i in range(layers)
    ]
    points, quality = embedding_tables()
    cells = [(c, t, p) for c in CAPTURES for t in LABELS for p in LABELS]
    return {
        "cka": cka_table(layers),
        "svd": svd,
        "spectrum": spectrum,
        "angles": with_layers(angles),
        "probe": probe_table(layers),
        "lens": with_layers(lens, "cluster bootstrap over speakers, 95 %"),
        "contribution": with_layers(contribution),
        "alignment": with_layers(aligned),
        "erasure": with_layers(erased, "cluster bootstrap over speakers, 95 %"),
        "weights": with_layers(weights),
        "subspaces": with_layers(shared),
        "gradients": with_layers(gradients, "delete-one-speaker jackknife, 95 %"),
        "embedding": points,
        "embedding_quality": quality,
        "outputs": with_layers(scores, "cluster bootstrap over speakers, 95 %"),
        "confusion": with_layers(
            [
                {"capture": c, "label": t, "predicted": p, "count": 5 if t == p else 1}
                for c, t, p in cells
            ]
        ),
    }


def make_summary() -> dict:
    adapter = {"type": "lora", "r": 8, "alpha": 16, "target_modules": ["v_proj"], "init": "peft"}
    common = {
        "labels": list(LABELS),
        "model": {"base": "demo:whisper"},
        "samples": 40,
        "exposed": 28,
    }
    return {
        "command": "analyze --store run.zarr",
        "seed": 7,
        "versions": {"lorascope": "0.1.0"},
        "store": {"name": "run.zarr", "content_digest": "sha256:c0ffee"},
        "captures": {
            "frozen": common | {"adapter": None, "trained": ["head"]},
            "lora": common | {"adapter": adapter, "trained": ["head", "adapter"]},
        },
    }


class Page(HTMLParser):
    """What a page consists of; fails on tags that are not closed in order."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.source = path.read_text(encoding="utf-8")
        self.folder = path.parent
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(self.source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {k: v or "" for k, v in attrs}))
        if tag not in VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {k: v or "" for k, v in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in set(self.open):
            self.texts[tag][-1] += data

    def attributes(self, name: str) -> list[str]:
        return [attrs[name] for _, attrs in self.elements if name in attrs]

    @property
    def text(self) -> str:
        return " ".join(self.texts["main"][0].split())


@pytest.fixture(scope="session")
def tables() -> Callable[..., dict[str, pd.DataFrame]]:
    return make_tables


@pytest.fixture(scope="session")
def summary() -> Callable[[], dict]:
    return make_summary


@pytest.fixture(scope="session")
def render() -> Callable[[dict[str, pd.DataFrame], dict, Path], Page]:
    return lambda tables, summary, out_path: Page(render_report(tables, summary, out_path))


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """Return the page of all tables."""
    return Page(render_report(make_tables(), make_summary(), tmp_path_factory.mktemp("report")))
