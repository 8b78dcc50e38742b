"""Compare LoRA with the frozen encoder on speakers that no training saw.

Trains head only (`frozen`) and head with LoRA (`lora`) once per seed and fold of held-out speakers,
pools the predictions over the folds and compares UAR, with a cluster bootstrap over speakers on the
paired difference, averaged over the seeds. Every fold is one `capture-run`, so what is compared is
what users get.

    python benchmarks/lora_folds.py ../shared/real --seeds 0 1 2 --json docs/records/lora-folds.json
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

NAMES = ("frozen", "lora")

CONFIG = """
store: fold.zarr
seed: {seed}
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


def run_fold(
    root: Path, test: list[str], epochs: int, seed: int, folder: Path
) -> dict[str, Predictions]:
    """Train and capture one fold; return the predictions on its held-out speakers."""
    path = folder / "fold.yaml"
    path.write_text(CONFIG.format(root=root, test=json.dumps(test), epochs=epochs, seed=seed))
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


def bootstrap(runs: list[dict[str, Predictions]], draws: int, seed: int) -> list[float]:
    """Return the 95 % interval of UAR(lora) - UAR(frozen), mean over seeds, resampling speakers."""
    rng = np.random.default_rng(seed)
    speakers = runs[0]["lora"].speakers
    rows_of = [np.flatnonzero(speakers == speaker) for speaker in np.unique(speakers)]
    differences = []
    for _ in range(draws):
        rows = np.concatenate([rows_of[k] for k in rng.integers(len(rows_of), size=len(rows_of))])
        differences.append(
            np.mean([uar(run["lora"], rows) - uar(run["frozen"], rows) for run in runs])
        )
    return np.quantile(differences, [0.025, 0.975]).tolist()


def run_seed(
    root: Path, folds: list[list[str]], epochs: int, seed: int
) -> list[dict[str, Predictions]]:
    """Train and capture every fold with one seed."""
    answers: list[dict[str, Predictions]] = []
    for number, test in enumerate(folds):
        with tempfile.TemporaryDirectory() as folder:
            answers.append(run_fold(root, test, epochs, seed, Path(folder)))
        scores = {name: round(uar(part), 4) for name, part in answers[-1].items()}
        print(f"seed {seed}, fold {number} ({', '.join(test)}): {scores}", flush=True)
    return answers


def main() -> None:
    """Run all folds and print the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path, help="folder with whisper-tiny-en/ and ravdess/")
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one set of folds each")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    root = asked.root.resolve()
    speakers = sorted(p.name[-2:] for p in (root / "ravdess").glob("Actor_*"))
    folds = [list(map(str, part)) for part in np.array_split(speakers, asked.folds)]
    began = time.perf_counter()
    runs: list[dict[str, Predictions]] = []
    by_seed: dict[int, dict[str, list[float]]] = {}
    for seed in asked.seeds:
        answers = run_seed(root, folds, asked.epochs, seed)
        runs.append({name: pool([fold[name] for fold in answers]) for name in NAMES})
        by_seed[seed] = {name: [uar(fold[name]) for fold in answers] for name in NAMES}
    differences = [uar(run["lora"]) - uar(run["frozen"]) for run in runs]
    record = {
        "folds": folds,
        "epochs": asked.epochs,
        "seeds": asked.seeds,
        "n": len(runs[0]["lora"].hits),
        "uar": {name: [uar(run[name]) for run in runs] for name in NAMES},
        "uar_by_seed_and_fold": by_seed,
        "difference": differences,
        "mean_difference": float(np.mean(differences)),
        "mean_difference_95": bootstrap(runs, 2000, seed=0),
        "seconds": round(time.perf_counter() - began),
    }
    print(json.dumps(record, indent=1))
    if asked.json:
        asked.json.parent.mkdir(parents=True, exist_ok=True)
        asked.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
