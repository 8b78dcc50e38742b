"""The same analyses on the CPU and on a CUDA device, side by side, from one generated store.

Run it as ``python benchmarks/analyses_device.py`` where cupy sees a device: spectra of the rows of
every layer, and all pairs of pooled CKA, each read from the store, and the bare read beside them.
The largest difference between the two devices' tables is printed too.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from lorascope.analyses import CKA, SVD, analyze
from lorascope.analyses.backend import describe_device
from lorascope.store import Site, Store, create_store, open_store

PARTS = ("resid_post", "attn_out", "mlp_out")


def write_store(path: Path, options: argparse.Namespace) -> None:
    """Write rows of a few layers, and pooled vectors of many."""
    layers, width = list(range(options.layers)), options.features
    pooled = Site("resid_post.mean_valid", list(range(33)), width, kind="sample")
    rng = np.random.default_rng(0)
    scale = (1 / np.arange(1, width + 1) ** 0.5).astype(np.float32)
    shape = (options.layers, options.rows, width)
    sites = [pooled, *(Site(part, layers, width) for part in PARTS)]
    with create_store(path, capture="a", sites=sites) as writer:
        for i in range(options.samples):
            vector = rng.standard_normal((33, width), dtype=np.float32)
            rows = {
                part: rng.standard_normal(shape, dtype=np.float32) * scale + 1 for part in PARTS
            }
            arrays = {"resid_post.mean_valid": vector, **rows}
            writer.append(f"u{i:05d}", arrays, groups={"speaker": str(i % 10)})


def read_rows(store: Store) -> int:
    """Read every row once and do nothing with it; return the bytes."""
    capture = store.capture("a")
    count = 0
    for part in PARTS:
        for layer in capture.sites[part].layers or ():
            for start in range(0, len(capture.samples), 64):
                count += capture.read_rows(part, layer, samples=slice(start, start + 64)).nbytes
    return count


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=8, help="layers whose rows are stored")
    parser.add_argument("--rows", type=int, default=32, help="rows of each sample")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--features", type=int, default=1280)
    parser.add_argument("--memory", default="16GiB")
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    jobs = {"spectra": [SVD()], "cka_pooled": [CKA(frames=False)], "cka_frames": [CKA()]}
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCHMARK_DIR")) as folder:
        path = Path(folder) / "store.zarr"
        write_store(path, options)
        store = open_store(path)
        read_seconds, read_bytes = timed(lambda: read_rows(store))
        record: dict[str, Any] = {
            **vars(options),
            "device": describe_device("cuda"),
            "cpus": os.cpu_count(),
            "rows_bytes": read_bytes,
            "read_seconds_one_thread": round(read_seconds, 2),
        }
        first, _ = timed(lambda: analyze(store, device="cuda", memory=options.memory, layers=[0]))
        record["first_seconds"] = round(first, 2)  # kernels are compiled, libraries loaded
        for name, analyses in jobs.items():
            found: dict[str, Any] = {}
            for _ in range(options.repeats):
                for device in ("cpu", "cuda"):
                    seconds, tables = timed(
                        lambda d=device, a=analyses: analyze(
                            store, a, device=d, memory=options.memory
                        )
                    )
                    found.setdefault(device, []).append(round(seconds, 2))
                    found[f"{device}_tables"] = tables
            cpu, cuda = found.pop("cpu_tables"), found.pop("cuda_tables")
            found["largest_differences"] = compare(cpu, cuda)
            found["ratio"] = round(min(found["cpu"]) / min(found["cuda"]), 2)
            record[name] = found
            print(json.dumps({name: found}), flush=True)
    print(json.dumps(record, indent=1))


def compare(a: dict[str, xr.Dataset], b: dict[str, xr.Dataset]) -> dict[str, float]:
    """Return the largest difference of each column that differs, as a part of its largest value."""
    found: dict[str, float] = {}
    for table, dataset in a.items():
        for column in dataset.variables:
            x, y = dataset[column].to_numpy(), b[table][column].to_numpy()
            known = np.isfinite(x) if x.dtype == np.float64 else np.zeros(0, bool)
            if known.any():
                worst = float(np.abs(x - y)[known].max() / max(np.abs(x[known]).max(), 1e-30))
                found |= {f"{table}.{column}": float(f"{worst:.1e}")} if worst > 1e-9 else {}
    return found


if __name__ == "__main__":
    main()
