"""Compare LoRA with the frozen encoder on speakers that no training saw.

Trains head only (`frozen`) and head with LoRA (`lora`) once per fold of held-out speakers, pools
the predictions over the folds and compares UAR, with a cluster bootstrap over speakers on the
paired difference. Every fold is one `capture-run`, so what is compared is what users get.

    python benchmarks/lora_folds.py ../shared/real --json docs/records/lora-folds.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lorascope.capture import load_config, run_capture
from lorascope.store import open_store

CONFIG = """
store: fold.zarr
seed: 0
model: {{base: {root}/whisper-tiny-en, window_seconds: 5}}
data: {{corpus: ravdess, root: {root}/ravdess, labels: [anger, happiness, neutral, sadness]}}
split: {{by: speaker, test: {test}}}
captures:
  frozen: {{adapter: null, train: {{epochs: {epochs}, learning_rate: 1.0e-3}}}}
  lora:
    adapter: {{type: lora, r: 8, alpha: 16, target_modules: [v_proj]}}
    train: {{epochs: {epochs}, learning_rate: 1.0e-3}}
record: {{sites: [encoder_out], gradients: [], frames: none, pool: [mean_valid]}}
"""


@dataclass(frozen=True, slots=True)
class Predictions:
    """What one capture answered on held-out speakers."""

    speakers: np.ndarray
    """Speaker of each sample."""
    hits: np.ndarray
    """Whether the answer was right."""
    labels: np.ndarray
    """True label of each sample."""


def run_fold(root: Path, test: list[str], epochs: int, folder: Path) -> dict[str, Predictions]:
    """Train and capture one fold; return the predictions on its held-out speakers."""
    path = folder / "fold.yaml"
    path.write_text(CONFIG.format(root=root, test=json.dumps(test), epochs=epochs))
    run_capture(load_config(path), store_path=folder / "fold.zarr")
    store = open_store(folder / "fold.zarr")
    answers = {}
    for name in store.captures:
        capture = store.capture(name)
        kept = ~capture.samples["exposed"].to_numpy(bool)
        labels = capture.samples["label"].to_numpy(str)
        predicted = np.array(capture.attrs["labels"])[capture.read_output("logits").argmax(1)]
        speakers = capture.samples["speaker"].to_numpy(str)
        answers[name] = Predictions(speakers[kept], (predicted == labels)[kept], labels[kept])
    return answers


def pool(parts: list[Predictions]) -> Predictions:
    """Put the predictions of several folds together."""
    return Predictions(
        np.concatenate([part.speakers for part in parts]),
        np.concatenate([part.hits for part in parts]),
        np.concatenate([part.labels for part in parts]),
    )


def uar(answers: Predictions, rows: np.ndarray | None = None) -> float:
    """Return the unweighted average recall, over some rows or all."""
    rows = np.arange(len(answers.hits)) if rows is None else rows
    labels, hits = answers.labels[rows], answers.hits[rows]
    return float(np.mean([hits[labels == label].mean() for label in np.unique(labels)]))


def bootstrap(pooled: dict[str, Predictions], draws: int, seed: int) -> list[float]:
    """Return the 95 % interval of UAR(lora) - UAR(frozen), resampling speakers."""
    rng = np.random.default_rng(seed)
    speakers = pooled["lora"].speakers
    rows_of = [np.flatnonzero(speakers == speaker) for speaker in np.unique(speakers)]
    differences = []
    for _ in range(draws):
        rows = np.concatenate([rows_of[k] for k in rng.integers(len(rows_of), size=len(rows_of))])
        differences.append(uar(pooled["lora"], rows) - uar(pooled["frozen"], rows))
    return np.quantile(differences, [0.025, 0.975]).tolist()


def main() -> None:
    """Run all folds and print the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path, help="folder with whisper-tiny-en/ and ravdess/")
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    root = asked.root.resolve()
    speakers = sorted(p.name[-2:] for p in (root / "ravdess").glob("Actor_*"))
    folds = [list(part) for part in np.array_split(speakers, asked.folds)]
    answers: list[dict[str, Predictions]] = []
    began = time.perf_counter()
    for number, test in enumerate(folds):
        with tempfile.TemporaryDirectory() as folder:
            answers.append(run_fold(root, list(map(str, test)), asked.epochs, Path(folder)))
        scores = {name: round(uar(part), 4) for name, part in answers[-1].items()}
        print(f"fold {number} ({', '.join(test)}): {scores}", flush=True)
    pooled = {name: pool([fold[name] for fold in answers]) for name in ("frozen", "lora")}
    record = {
        "folds": [list(map(str, fold)) for fold in folds],
        "epochs": asked.epochs,
        "n": len(pooled["lora"].hits),
        "uar": {name: uar(part) for name, part in pooled.items()},
        "uar_by_fold": {name: [uar(fold[name]) for fold in answers] for name in pooled},
        "difference": uar(pooled["lora"]) - uar(pooled["frozen"]),
        "difference_95": bootstrap(pooled, 2000, seed=0),
        "seconds": round(time.perf_counter() - began),
    }
    print(json.dumps(record, indent=1))
    if asked.json:
        asked.json.parent.mkdir(parents=True, exist_ok=True)
        asked.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
