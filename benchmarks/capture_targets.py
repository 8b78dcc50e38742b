"""What hooks, training with capture, and overlap cost: the bars of the capture service.

Run it as ``python benchmarks/capture_targets.py [MODEL_DIRECTORY] [--device cuda]``. Sides of one
figure run in turn within each repeat, and ratios are taken per repeat:

- *hooks*: a forward with and without a recorder of every layer's ``resid_post`` and LoRA A and B
  outputs, whose writer throws everything away;
- *tensor*: the same on a model so small that it computes next to nothing, per recorded tensor;
- *training*: steps of LoRA (forward, backward, AdamW) with and without A and B activations and
  gradients of every step being recorded into a durable store;
- *overlap*: a capture of rows and gradients into a store, against the slower of its compute alone
  and of writing its values alone with `tofile` and fsync.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from capture_overhead import (
    BATCH,
    SHAPES,
    Load,
    build_random,
    losses_of,
    prepare,
    run_bare,
    run_recording,
)
from peft import LoraConfig, get_peft_model

from lorascope.capture import Recorder
from lorascope.capture.pooling import prefix_mask

TARGETS = {"hooks": 1.05, "tensor_us": 20.0, "training": 1.10, "overlap": 1.10}
"""At most."""
HOOKED = ["resid_post", "lora_a", "lora_b"]
TRAINED = ["lora_a", "lora_b"]


class Discard:
    """A writer that keeps nothing."""

    def append_batch(self, samples: Sequence[Any], values: Mapping[str, np.ndarray]) -> None:
        """Take a batch and forget it."""


@dataclass
class Sides:
    """Seconds of the plain and the recording side, one pair a repeat."""

    plain: list[float]
    recording: list[float]

    @property
    def ratio(self) -> float:
        """Median over the pairs of recording to plain."""
        pairs = zip(self.recording, self.plain, strict=True)
        return statistics.median(recording / plain for recording, plain in pairs)


def timed(action: Callable[[], object], device: str) -> float:
    began = time.perf_counter()
    action()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def alternate(
    plain: Callable[[], object], recording: Callable[[], object], repeats: int, device: str
) -> Sides:
    sides = Sides([], [])
    for repeat in range(repeats + 1):
        pair = timed(plain, device), timed(recording, device)
        if repeat:  # the first pair warms up
            sides.plain.append(pair[0])
            sides.recording.append(pair[1])
    return sides


def hooks(load: Load, options: argparse.Namespace) -> dict[str, Any]:
    ids = [str(i) for i in range(BATCH)]
    mask = prefix_mask(load.valid, load.loaded.frames)
    recorder = Recorder(load.loaded.model, Discard(), sites=HOOKED, pool=())

    @torch.no_grad()
    def plain() -> None:
        for _ in range(options.batches):
            load.loaded.model(load.features)

    @torch.no_grad()
    def recording() -> None:
        with recorder:
            for _ in range(options.batches):
                with recorder.batch(ids, mask=mask):
                    load.loaded.model(load.features)

    sides = alternate(plain, recording, options.repeats, options.device)
    return {"sides": vars(sides), "hooks": sides.ratio}


def tensor(_: Load, options: argparse.Namespace) -> dict[str, Any]:
    config = transformers.LlamaConfig(
        vocab_size=32,
        hidden_size=8,
        num_hidden_layers=32,
        num_attention_heads=1,
        num_key_value_heads=1,
        intermediate_size=8,
    )
    torch.manual_seed(0)
    base = transformers.LlamaForCausalLM(config)
    peft_model = get_peft_model(base, LoraConfig(r=2, target_modules=["v_proj"]))  # pyright: ignore[reportArgumentType]
    model = peft_model.eval().requires_grad_(requires_grad=False).to(options.device)
    tokens = torch.ones((1, 4), dtype=torch.long, device=options.device)
    recorder = Recorder(model, Discard(), sites=HOOKED, pool=())
    count = sum(len(site.taps) for site in recorder.recorded)
    forwards = 50

    @torch.no_grad()
    def plain() -> None:
        for _ in range(forwards):
            model(input_ids=tokens)

    @torch.no_grad()
    def recording() -> None:
        with recorder:
            for _ in range(forwards):
                with recorder.batch(["a"]):
                    model(input_ids=tokens)

    sides = alternate(plain, recording, options.repeats, options.device)
    pairs = zip(sides.recording, sides.plain, strict=True)
    each = [(recording - plain) / forwards / count * 1e6 for recording, plain in pairs]
    return {"tensors": count, "each_us": each, "tensor_us": statistics.median(each)}


def training(load: Load, options: argparse.Namespace) -> dict[str, Any]:
    model = load.loaded.model
    trained = [p for name, p in model.named_parameters() if "lora_" in name]
    for parameter in trained:
        parameter.requires_grad_()
    optimiser = torch.optim.AdamW(trained, lr=1e-4)
    mask = prefix_mask(load.valid, load.loaded.frames)

    def step(backward: Callable[[], object]) -> None:
        optimiser.zero_grad()
        backward()
        optimiser.step()

    def plain() -> None:
        for _ in range(options.batches):
            step(lambda: losses_of(load)[1].sum().backward())

    def recording() -> None:
        with tempfile.TemporaryDirectory(dir=os.environ.get("BENCHMARK_DIR")) as folder:
            path = Path(folder) / "t.zarr"
            with Recorder(model, path, sites=TRAINED, gradients=TRAINED, pool=()) as recorder:
                for number in range(options.batches):
                    ids = [f"{number}-{i}" for i in range(BATCH)]
                    with recorder.batch(ids, mask=mask):
                        step(lambda: recorder.backward(losses_of(load)[1]))

    sides = alternate(plain, recording, options.repeats, options.device)
    for parameter in trained:
        parameter.requires_grad_(requires_grad=False)
    return {"sides": vars(sides), "training": sides.ratio}


def overlap(load: Load, options: argparse.Namespace) -> dict[str, Any]:
    run_recording(load, 2, options.buffer)
    ratios, walls = [], []
    for _ in range(options.repeats):
        compute = timed(lambda: run_bare(load, options.batches), options.device)
        capture, size = run_recording(load, options.batches, options.buffer)
        write = write_raw(size)
        walls.append({"compute": compute, "write": write, "capture": capture})
        ratios.append(capture / max(compute, write))
    return {"walls": walls, "ratios": ratios, "overlap": statistics.median(ratios)}


def write_raw(size: int) -> float:
    """Return the seconds that `size` bytes take with `tofile` and fsync, in files of 16 MiB."""
    values = np.random.default_rng(0).integers(0, 255, 16 * 2**20, dtype=np.uint8)
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCHMARK_DIR")) as folder:
        began = time.perf_counter()
        for number in range(max(1, size // values.nbytes)):
            with (Path(folder) / str(number)).open("wb") as file:
                values.tofile(file)
                file.flush()
                os.fsync(file.fileno())
        return time.perf_counter() - began


FIGURES = {"hooks": hooks, "tensor": tensor, "training": training, "overlap": overlap}


def to_device(load: Load, device: str) -> Load:
    load.loaded.model.to(device)
    return Load(load.loaded, load.features.to(device), load.classes.to(device), load.valid)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", nargs="?", help="a Whisper directory; else a random one")
    parser.add_argument("--shape", choices=SHAPES, default="tiny.en", help="of the random one")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--batches", type=int, default=12, help="batches a pass")
    parser.add_argument("--repeats", type=int, default=7, help="pairs of passes")
    parser.add_argument("--buffer", type=int, default=256 * 2**20, help="the writer's, bytes")
    parser.add_argument("--out", type=Path, help="where to write the JSON record")
    parser.add_argument("--figures", nargs="+", choices=FIGURES, default=[*FIGURES])
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    with tempfile.TemporaryDirectory() as folder:
        directory = options.directory or str(build_random(Path(folder), options.shape))
        load = to_device(prepare(directory), options.device)
    parts: dict[str, dict[str, Any]] = {
        name: FIGURES[name](load, options) for name in options.figures
    }
    found = {name: value for part in parts.values() for name, value in part.items()}
    device = "cpu" if options.device == "cpu" else torch.cuda.get_device_name(options.device)
    record = {
        **parts,
        "model": options.directory or f"random, shape of {options.shape}",
        "device": device,
        "cpus": os.cpu_count(),
        "load": os.getloadavg()[0],
        "torch": torch.__version__,
        "holds": {name: found[name] <= bar for name, bar in TARGETS.items() if name in found},
    }
    text = json.dumps(record, indent=1) + "\n"
    if options.out:
        options.out.write_text(text)
    print(text, end="")
    for name in record["holds"]:
        print(f"{name} {found[name]:.3f} (at most {TARGETS[name]})", file=sys.stderr)
    return 0 if all(record["holds"].values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
