"""A store many times as large as the memory: what `analyze` really uses, and whether it is right.

Run: `python benchmarks/out_of_core.py` (10.5 GiB of rows within 512 MiB), or quicker
`python benchmarks/out_of_core.py --memory 128MiB --ratio 20.5`. A store of known structure is
written by the ordinary writer and removed at the end; `analyze` without names runs on it in a
process of its own, as the command line does, report and all.

What is counted: `VmHWM`, the kernel's own highest count of resident pages of that process, less its
resident pages at the start, when all modules that such a run imports in the end have been imported
(a first run on a few samples says which). Page cache is no part of it: stores are read into private
memory, not mapped. Pages of library files that the run touches later are counted against it.
`highest_anonymous` is polled every 20 ms and leaves pages of files out.

What is known: every layer is a rotation of `embed` times a constant, so its singular values are
those of `embed` times a power of that constant, and contributions are the same for every frame; the
covariance of `embed` is 1/(1 + j), so are its eigenvalues within sampling error; `second` shares
.75 of its variance with `first`, so their debiased frame CKA is .75; classes differ by 20 standard
errors in each of 64 features, so a probe of them makes no mistake.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lorascope.analyses.memory import format_bytes, parse_bytes
from lorascope.store import Output, Site, create_store, open_store

LAYERS = (0, 1, 2)
LABELS = ("anger", "happiness", "neutral", "sadness")
ATTENTION, MLP = 0.25, 0.5
GROWTH = (1 + ATTENTION) * math.hypot(1, MLP)
"""Of the length of every row from layer to layer."""
SHARED = 0.75
"""Part of the variance of `second` that is that of `first`."""
RANK = 32
BAR = 1.25
"""Peak above the imports, in parts of --memory."""

RUN = """
import importlib, json, sys
from contextlib import suppress
from pathlib import Path
from lorascope.cli.errors import run_command
from lorascope.cli.analyze import analyze

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(dict(line.split(":", 1) for line in lines)[name].split()[0]) * 1024

kept = Path(RECORD)
for name in json.loads(kept.read_text())["modules"] if kept.exists() else ():
    with suppress(ImportError):
        importlib.import_module(name)
imports = status("VmRSS")
code = run_command(analyze)
record = {"imports": imports, "peak": status("VmHWM"), "modules": sorted(sys.modules)}
kept.write_text(json.dumps(record))
sys.exit(code)
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory", default="512MiB")
    parser.add_argument("--ratio", type=float, default=20.5, help="store over memory")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--profile", default="fast")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("names", nargs="*", help="analyses; none: all that the store serves")
    options = parser.parse_args()
    memory = parse_bytes(options.memory)
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCHMARK_DIR")) as folder:
        path = Path(folder) / "large.zarr"
        began = time.perf_counter()
        write(path, options, int(options.ratio * memory))
        written = time.perf_counter() - began
        store_bytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        record = {
            "memory": options.memory,
            "store": format_bytes(store_bytes),
            "store_over_memory": round(store_bytes / memory, 2),
            "seconds_to_write": round(written, 1),
            **measure(path, options, memory),
        }
        record["checks"] = check(Path(folder) / "out", path)
    holds = record["peak_over_memory"] <= BAR and all(one["holds"] for one in record["checks"])
    print(json.dumps(record | {"holds": holds}, indent=1))
    return 0 if holds else 1


def write(path: Path, options: argparse.Namespace, size: int) -> None:
    """Write two captures of the same samples, `size` bytes of rows together."""
    width = options.width
    sites = [Site("embed", None, width)]
    sites += [Site(name, list(LAYERS), width) for name in ("attn_out", "mlp_out", "resid_post")]
    sites.append(Site("lora_a.v_proj", list(LAYERS), RANK))
    row_bytes = 2 * 4 * (width * (1 + 3 * len(LAYERS)) + RANK * len(LAYERS))
    counts: list[int] = []
    drawn = np.random.default_rng([options.seed, 1])
    while sum(counts) * row_bytes < size:
        counts.append(int(drawn.integers(200, 600)))
    counts = counts or [2] * 40
    for capture in ("first", "second"):
        with create_store(
            path,
            capture=capture,
            sites=sites,
            outputs=[Output("logits", (len(LABELS),))],
            config={"capture": capture},
            attrs={"labels": list(LABELS), "trained": []},
            profile=options.profile,
        ) as writer:
            for i, count in enumerate(counts):
                label = i % len(LABELS)
                writer.append(
                    f"u{i:05d}",
                    make_sample(capture, i, count, options),
                    label=LABELS[label],
                    groups={"speaker": f"{i // 4 % 10:02d}"},
                    outputs={"logits": np.eye(len(LABELS), dtype=np.float32)[label]},
                )


def make_sample(
    capture: str, number: int, count: int, options: argparse.Namespace
) -> dict[str, np.ndarray]:
    """Return the arrays of one sample, [layer, row, feature]."""
    scale = (1 / np.sqrt(1 + np.arange(options.width))).astype(np.float32)
    shape = (count, options.width)
    rng = np.random.default_rng([options.seed, 2, number])
    h = rng.standard_normal(shape, dtype=np.float32) * scale
    if capture == "second":
        own = np.random.default_rng([options.seed, 3, number])
        h *= np.float32(math.sqrt(SHARED))
        other = own.standard_normal(shape, dtype=np.float32) * scale
        h += np.float32(math.sqrt(1 - SHARED)) * other
    first = options.width - 16 * (1 + number % len(LABELS))
    h[:, first : first + 16] += 0.05
    parts: dict[str, list[np.ndarray]] = {name: [] for name in ("attn_out", "mlp_out")}
    parts |= {"resid_post": [], "lora_a.v_proj": []}
    arrays = {"embed": h}
    for _ in LAYERS:
        parts["lora_a.v_proj"].append(h[:, :RANK])
        attention = ATTENTION * h
        mlp = MLP * turn(h + attention)
        h = h + attention + mlp
        parts["attn_out"].append(attention)
        parts["mlp_out"].append(mlp)
        parts["resid_post"].append(h)
    return arrays | {name: np.stack(layers) for name, layers in parts.items()}


def turn(x: np.ndarray) -> np.ndarray:
    """Return rows turned by a right angle in every pair of features."""
    turned = np.empty_like(x)
    turned[:, 0::2], turned[:, 1::2] = -x[:, 1::2], x[:, 0::2]
    return turned


def measure(path: Path, options: argparse.Namespace, memory: int) -> dict[str, Any]:
    """Run `analyze` in a process of its own and return what it took."""
    record = path.parent / "record.json"
    small = path.parent / "small.zarr"
    write(small, options, 0)
    command = make_command(small, options, record)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    began = time.perf_counter()
    process = subprocess.Popen(make_command(path, options, record), stdout=subprocess.DEVNULL)
    highest = 0
    while process.poll() is None:
        highest = max(highest, read_anonymous(process.pid))
        time.sleep(0.02)
    seconds = time.perf_counter() - began
    if process.returncode:
        raise SystemExit(process.returncode)
    found = json.loads(record.read_text())
    baseline = found["imports"]
    attrs = json.loads((path.parent / "out" / "summary.json").read_text())
    facts = next(iter(attrs["tables"].values()))["attrs"]
    peak = found["peak"] - baseline
    return {
        "imports": format_bytes(baseline),
        "peak_above_imports": format_bytes(peak),
        "peak_over_memory": round(peak / memory, 3),
        "highest_anonymous": format_bytes(highest),
        "analyses_skipped": attrs["skipped"],
        "passes": facts["passes"],
        "slabs": facts["slabs"],
        "bytes_read": facts["bytes_read"],
        "seconds": round(seconds, 1),
    }


def make_command(path: Path, options: argparse.Namespace, record: Path) -> list[str]:
    """Return a command that analyses a store and leaves a record of its memory."""
    command = [sys.executable, "-c", RUN.replace("RECORD", repr(str(record))), *options.names]
    command += ["--store", str(path), "--memory", options.memory]
    command += ["--workers", str(options.workers), "--seed", str(options.seed)]
    return [*command, "--out", str(path.parent / "out")]


def read_anonymous(pid: int) -> int:
    """Return the resident anonymous pages of a process, in bytes; 0 once it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"RssAnon:\s+(\d+)", status)
    return int(found[1]) * 1024 if found else 0


def check(out: Path, path: Path) -> list[dict[str, Any]]:
    """Compare some results with what is known of the store."""
    tables = {name.stem: pd.read_parquet(name) for name in (out / "tables").glob("*.parquet")}
    store = open_store(path)
    rows = int(store.capture("first").row_counts("tokens").sum())
    checks: list[dict[str, Any]] = []

    def add(what: str, found: float, expected: float, allowed: float) -> None:
        error = abs(found - expected)
        holds = bool(error <= allowed)
        checks.append({"what": what, "found": found, "expected": expected, "holds": holds})

    if "spectrum" in tables:
        check_spectra(tables["spectrum"], rows, add)
    if "contribution" in tables:
        table = tables["contribution"].query("capture == 'second' and layer == 2")
        for part, ratio in (("attention", ATTENTION), ("mlp", MLP)):
            row = table.query("component == @part")
            add(f"{part} over its input", only(row, "ratio_mean"), ratio, 1e-6)
        row = table.query("component == 'mlp'")
        add("cosine of mlp and its input", only(row, "cosine_mean"), 0.0, 1e-6)
    if "cka" in tables:
        table = tables["cka"].query("granularity == 'frame' and site_a == site_b == 'embed'")
        table = table.query("capture_a == 'first' and capture_b == 'second'")
        table = table.query("estimator == 'minibatch'")
        allowed = 0.3 / math.sqrt(len(store.capture("first")))  # frames of so many samples
        add("frame CKA of first and second", only(table, "value"), SHARED, allowed)
    if "probe" in tables:
        table = tables["probe"].query("probe == 'logistic' and fold == 'all' and site == 'embed'")
        add("UAR of the probe", float(table["uar"].to_numpy(dtype=float).min()), 1.0, 0.0)
    return checks


def only(table: pd.DataFrame, column: str) -> float:
    """Return the one value of a column of a table of one row."""
    (value,) = table[column].to_numpy(dtype=float)
    return float(value)


def check_spectra(
    table: pd.DataFrame, rows: int, add: Callable[[str, float, float, float], None]
) -> None:
    """Compare eigenvalues with those of the generator, and layers with their input."""
    table = table.query("centred and capture == 'first'")

    def values(site: str, layer: int) -> np.ndarray:
        own = table.query("site == @site and (layer.isna() or layer == @layer)")
        return own.sort_values("index")["singular_value"].to_numpy()

    embed = values("embed", -1)
    for j in (0, 1, 9):
        # five standard errors of an eigenvalue, √(2/n), and the pull of its neighbours
        allowed = 5 * math.sqrt(2 / rows) + 1000 / rows
        add(f"eigenvalue {j} times {j + 1}", (j + 1) * embed[j] ** 2 / rows, 1.0, allowed)
    for layer in LAYERS:
        ratio = values("resid_post", layer)[:RANK] / embed[:RANK]
        add(f"growth up to layer {layer}", ratio.mean(), GROWTH ** (layer + 1), 1e-4)


if __name__ == "__main__":
    raise SystemExit(main())
