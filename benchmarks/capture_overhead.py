"""What recording costs: the same forward and backward with and without it, side by side.

Run it as ``python benchmarks/capture_overhead.py [MODEL_DIRECTORY]``. Without a directory a seeded
random Whisper of the shape of tiny.en is built. Both sides run the same model on the same batch,
the graph starting at the encoder's first layer and every parameter frozen; the recording side also
writes all sites of a study durably into a store (closing it counts). Passes alternate within each
repeat; the ratio is taken per repeat. Peak memory is measured in one child process a side.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lorascope.capture.config_models import AdapterConfig, ModelConfig
from lorascope.capture.lora import attach_adapter
from lorascope.capture.models import LoadedModel, load_model
from lorascope.capture.pooling import prefix_mask
from lorascope.capture.recorder import Recorder, find_sites
from lorascope.capture.streams import layer_modules
from lorascope.store import Output, SampleRows, create_store

BATCH = 8
SECONDS = 5.0
CLASSES = 4
SITES = ["embed", "resid_post", "attn_out", "mlp_out", "lora_a", "lora_b", "encoder_out"]
GRADIENTS = ["resid_post", "lora_a", "lora_b"]
SHAPES = {"tiny.en": (384, 4, 6), "large-v2": (1280, 32, 20)}
"""Width, encoder layers and heads."""
TARGET_RATIO = 1.15
TARGET_EXTRA_BYTES = 200 * 10**6


@dataclass(frozen=True)
class Load:
    """One prepared model and batch."""

    loaded: LoadedModel
    features: torch.Tensor
    classes: torch.Tensor
    valid: list[int]


def build_random(directory: Path, shape: str = "tiny.en") -> Path:
    """Save a seeded random Whisper of one of `SHAPES` and return its folder."""
    from transformers import (
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForAudioClassification,
    )

    width, layers, heads = SHAPES[shape]
    config = WhisperConfig(
        d_model=width,
        encoder_layers=layers,
        encoder_attention_heads=heads,
        encoder_ffn_dim=4 * width,
        decoder_layers=1,
        decoder_attention_heads=heads,
        decoder_ffn_dim=64,
        num_mel_bins=80,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    torch.manual_seed(0)
    WhisperForAudioClassification(config).save_pretrained(directory)
    WhisperFeatureExtractor(feature_size=80).save_pretrained(directory)
    return directory


def prepare(directory: str) -> Load:
    spec = ModelConfig(base=directory, window_seconds=SECONDS)
    loaded = load_model(spec, CLASSES, seed=0, device="cpu")
    adapter = AdapterConfig(r=32, alpha=64, target_modules=("v_proj",), init="normal")
    attach_adapter(loaded.model, loaded.family, adapter, seed=0)
    loaded.model.requires_grad_(requires_grad=False)
    rng = np.random.default_rng(0)
    # utterances of 3 to 5 s, as in the corpora that are studied
    lengths = np.linspace(3.0, 5.0, BATCH)
    waves = [rng.normal(0, 0.1, int(s * 16000)).astype(np.float32) for s in lengths]
    valid = [loaded.family.valid_frames(len(w), loaded.frames) for w in waves]
    classes = torch.arange(BATCH) % CLASSES
    return Load(loaded, loaded.features(waves), classes, valid)


def losses_of(load: Load) -> tuple[torch.Tensor, torch.Tensor]:
    logits = load.loaded.model(load.features).logits
    return logits, nn.functional.cross_entropy(logits, load.classes, reduction="none")


def run_bare(load: Load, n_batches: int) -> None:
    """Forward and backward from the first layer's input, recording nothing."""
    layer = layer_modules(load.loaded.model, load.loaded.family)[0]

    def start_graph(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        args[0].requires_grad_()

    start = layer.register_forward_pre_hook(start_graph)
    try:
        for _ in range(n_batches):
            losses_of(load)[1].sum().backward()
    finally:
        start.remove()


def run_recording(load: Load, n_batches: int, buffer_bytes: int) -> tuple[float, int]:
    """Do the same into a store; return the seconds until it is durable, and its bytes.

    The clock runs from before the store is made until it is closed; that the benchmark then
    measures and deletes it is not part of a capture.
    """
    ids = [[f"{b}-{i}" for i in range(BATCH)] for b in range(n_batches)]
    mask = prefix_mask(load.valid, load.loaded.frames)
    model = load.loaded.model
    chosen: dict[str, Any] = {"sites": SITES, "gradients": GRADIENTS}
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCHMARK_DIR")) as folder:
        path = Path(folder) / "run.zarr"
        began = time.perf_counter()
        writer = create_store(
            path,
            capture="a",
            sites=find_sites(model, **chosen),
            outputs=[Output("logits", (CLASSES,)), Output("loss")],
            plan=[
                SampleRows(i, {"encoder": n})
                for batch in ids
                for i, n in zip(batch, load.valid, strict=True)
            ],
            batch_size=BATCH,
            buffer_bytes=buffer_bytes,
        )
        with writer, Recorder(model, writer, **chosen) as recorder:
            for batch in ids:
                with recorder.batch(batch, mask=mask):
                    logits, losses = losses_of(load)
                    recorder.backward(losses)
                    recorder.output(logits=logits, loss=losses)
        seconds = time.perf_counter() - began
        return seconds, sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def measure_time(directory: str, options: argparse.Namespace) -> dict[str, Any]:
    load = prepare(directory)
    run_bare(load, 2)
    run_recording(load, 2, options.buffer)
    bare, recording, size = [], [], 0
    for _ in range(options.repeats):
        began = time.perf_counter()
        run_bare(load, options.batches)
        bare.append(time.perf_counter() - began)
        seconds, size = run_recording(load, options.batches, options.buffer)
        recording.append(seconds)
    ratios = [r / b for r, b in zip(recording, bare, strict=True)]
    return {
        "bare_seconds": bare,
        "recording_seconds": recording,
        "ratios": ratios,
        "ratio": statistics.median(ratios),
        "store_bytes": size,
    }


def peak_rss() -> int:
    """Return the peak of this process alone: ru_maxrss would begin with that of the parent."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure_memory(directory: str, options: argparse.Namespace) -> dict[str, Any]:
    peaks: dict[str, int] = {}
    for side in ("bare", "recording"):
        command = [sys.executable, __file__, directory, "--side", side]
        command += ["--batches", str(options.batches), "--buffer", str(options.buffer)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks[side] = int(done.stdout)
    return {
        "bare_peak_bytes": peaks["bare"],
        "recording_peak_bytes": peaks["recording"],
        "extra_bytes": peaks["recording"] - peaks["bare"],
        "buffer_bytes": options.buffer,
        "allowed_bytes": options.buffer + TARGET_EXTRA_BYTES,
    }


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", nargs="?", help="a Whisper directory; else a random one")
    parser.add_argument("--batches", type=int, default=24, help="batches a pass")
    parser.add_argument("--repeats", type=int, default=5, help="pairs of passes")
    parser.add_argument(
        "--buffer", type=int, default=256 * 2**20, help="the writer's buffer, bytes"
    )
    parser.add_argument("--out", type=Path, help="where to write the JSON record")
    parser.add_argument("--side", choices=("bare", "recording"), help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def run_side(options: argparse.Namespace) -> None:
    load = prepare(options.directory)
    if options.side == "bare":
        run_bare(load, options.batches)
    else:
        run_recording(load, options.batches, options.buffer)
    print(peak_rss())


@dataclass(frozen=True)
class Machine:
    """What the figures were measured on."""

    cpus: int
    torch_threads: int
    python: str
    torch: str
    transformers: str


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.side:
        run_side(options)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        directory = options.directory or str(build_random(Path(folder)))
        timing = measure_time(directory, options)
        memory = measure_memory(directory, options)
    record = {
        "model": Path(directory).name if options.directory else "random, shape of tiny.en",
        "batch": BATCH,
        "window_seconds": SECONDS,
        "batches": options.batches,
        "sites": SITES,
        "gradients": GRADIENTS,
        "time": timing,
        "memory": memory,
        "machine": asdict(
            Machine(
                os.cpu_count() or 0,
                torch.get_num_threads(),
                platform.python_version(),
                metadata.version("torch"),
                metadata.version("transformers"),
            )
        ),
        "holds": {
            "time": timing["ratio"] <= TARGET_RATIO,
            "memory": memory["extra_bytes"] <= memory["allowed_bytes"],
        },
    }
    if options.out:
        options.out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))
    print(
        f"ratio {timing['ratio']:.3f} (target {TARGET_RATIO}), "
        f"extra memory {memory['extra_bytes'] / 1e6:.0f} MB "
        f"(allowed {memory['allowed_bytes'] / 1e6:.0f} MB)",
        file=sys.stderr,
    )
    return 0 if all(record["holds"].values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
