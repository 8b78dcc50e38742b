"""How fast shuffled rows come out of a store, against the same rows in order: side by side.

Run it as ``python benchmarks/row_batches.py``. A store of one site (bfloat16, width 1,280, samples
of 100 to 400 rows) is written and read with `Capture.read_rows` in order and with `Store.batches`;
both checksum every byte and give float32. The store is read once before, so both read from the
page cache: with a slower disk the ratio comes nearer to one. Passes alternate.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import ml_dtypes
import numpy as np

from lorascope.store import Site, Store, create_store, open_store

WIDTH = 1280
TARGET = 0.5
"""At least this part of the sequential rate."""


def write(path: Path, megabytes: int) -> Store:
    rng = np.random.default_rng(0)
    block = rng.normal(size=(400, WIDTH)).astype(ml_dtypes.bfloat16)
    left = megabytes * 10**6 // (2 * WIDTH)
    with create_store(path, capture="a", sites=[Site("x", [0], WIDTH, dtype="bfloat16")]) as writer:
        number = 0
        while left > 0:
            rows = int(rng.integers(100, 400))
            writer.append(f"s{number}", {"x": block[None, :rows]})
            number, left = number + 1, left - rows
    return open_store(path)


def in_order(store: Store, samples: int) -> int:
    capture = store.capture("a")
    return sum(
        len(capture.read_rows("x", 0, slice(start, start + samples)))
        for start in range(0, len(capture), samples)
    )


def shuffled(store: Store, size: int, buffer_bytes: int) -> int:
    return sum(len(x) for x in store.batches("x", 0, size, buffer_bytes=buffer_bytes))


def timed(action: object, *arguments: object) -> tuple[float, int]:
    began = time.perf_counter()
    rows = action(*arguments)  # pyright: ignore[reportCallIssue]
    return time.perf_counter() - began, rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--size", type=int, default=4096, help="rows of a batch")
    parser.add_argument("--buffer", type=int, default=256 * 2**20, help="bytes")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCHMARK_DIR")) as folder:
        store = write(Path(folder) / "s.zarr", options.megabytes)
        rows = in_order(store, 16)
        pairs = []
        for _ in range(options.repeats):
            order, _ = timed(in_order, store, 16)
            mixed, seen = timed(shuffled, store, options.size, options.buffer)
            assert seen == rows
            pairs.append((order, mixed))
    ratios = [order / mixed for order, mixed in pairs]
    record = {
        "rows": rows,
        "in_order_rows_per_second": [rows / order for order, _ in pairs],
        "ratios": ratios,
        "ratio": statistics.median(ratios),
        "load": os.getloadavg()[0],
        "holds": statistics.median(ratios) >= TARGET,
    }
    print(json.dumps(record, indent=1))
    return 0 if record["holds"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
