"""The pass of fused analyses beside plain reads of the same files, both from a cold cache, in turn.

Run: `python benchmarks/fused_pass.py` (options: --profile compact, --dtype bfloat16, --warm). A
store of narrow sites (LoRA A of rank 32, 8 layers, two captures), where arithmetic is small, is
read by plain reads of all bytes of its shards, and by `analyze` with pooled and frame CKA and the
lengths of all rows (`--svd`: spectra with their intervals too, which are arithmetic); as many
threads both times. Before each, the pages of the files are dropped from the cache
(`posix_fadvise`). `pass` ends with the last slab; `whole` is the call, intervals and all. Each
figure is the best of the repeats. The time of all cores says what a machine without other work
could reach: it must be below cores / (plain rate). A disk that is faster than that can be slowed
down by the kernel: `echo "254:0 500000000" > blkio.throttle.read_bps_device` (numbers of the
device, bytes a second) in a control group that this process is a member of.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lorascope.analyses import CKA, SVD, ArrayKey, Block, analyze
from lorascope.store import Site, Store, create_store, open_store

SITE, RANK, LAYERS = "lora_a.v_proj", 32, 8
TARGET = 0.9
"""At least this part of the rate of plain reads."""
BUFFER_BYTES = 2**20


@dataclass(frozen=True)
class RowLengths:
    """Sum of squares of the rows of every array."""

    needs: tuple[ArrayKey, ...]
    name: str = "row_lengths"
    scratch_bytes: int = 0

    def state_bytes(self, workers: int) -> int:
        """Return the bytes of the sums."""
        return 8 * len(self.needs) * workers

    def empty(self) -> np.ndarray:
        """Return the sums of no rows."""
        return np.zeros(len(self.needs))

    def add(self, state: np.ndarray, block: Block) -> np.ndarray:
        """Return the sums with the rows of a block."""
        parts = (block[key].values.ravel() for key in self.needs)
        return state + [np.dot(part, part) for part in parts]

    def merge(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Return the sums of both."""
        return left + right

    def finish(self, state: np.ndarray) -> np.ndarray:
        """Return the sums."""
        return state


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=1500)
    parser.add_argument("--profile", default="fast")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--memory", default="1GiB")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--svd", action="store_true", help="spectra too")
    parser.add_argument("--warm", action="store_true", help="leave the files in the cache")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCHMARK_DIR")) as folder:
        store = write(Path(folder) / "s.zarr", options)
        large = (f for f in store.path.rglob("*") if f.is_file() and f.stat().st_size > 2**16)
        files = sorted(large)
        size = sum(file.stat().st_size for file in files)
        runs = []
        for _ in range(options.repeats):
            drop(files, options.warm)
            raw = read_plainly(files, options.workers)
            drop(files, options.warm)
            runs.append((raw, *run_analyses(store, options)))
    raw, fused, whole, cpu = (min(seconds) for seconds in zip(*runs, strict=True))
    record = {
        "profile": options.profile,
        "dtype": options.dtype,
        "bytes": size,
        "cold": not options.warm,
        "raw_megabytes_per_second": round(size / raw / 1e6),
        "pass_megabytes_per_second": round(size / fused / 1e6),
        "ratio": round(raw / fused, 3),
        "ratio_of_the_whole": round(raw / whole, 3),
        "ratios": [round(one / other, 3) for one, other, *_ in runs],
        "pass_nanoseconds_of_cpu_per_byte": round(cpu / size * 1e9, 2),
        "load": os.getloadavg()[0],
        "holds": raw / fused >= TARGET,
    }
    print(json.dumps(record, indent=1))
    return 0 if record["holds"] else 1


def write(path: Path, options: argparse.Namespace) -> Store:
    site = Site(SITE, list(range(LAYERS)), RANK, dtype=options.dtype)
    item = 4 if options.dtype == "float32" else 2
    samples = options.megabytes * 10**6 // (2 * LAYERS * 1500 * RANK * item)
    rng = np.random.default_rng(0)
    for capture in ("first", "second"):
        config = {"capture": capture}
        with create_store(
            path, capture=capture, sites=[site], config=config, profile=options.profile
        ) as writer:
            for i in range(samples):
                x = rng.standard_normal((LAYERS, 1500, RANK), dtype=np.float32)
                writer.append(f"u{i:05d}", {site.name: x}, groups={"speaker": str(i % 10)})
    return open_store(path)


def drop(files: list[Path], warm: bool) -> None:  # noqa: FBT001
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        advice = os.POSIX_FADV_WILLNEED if warm else os.POSIX_FADV_DONTNEED
        os.posix_fadvise(descriptor, 0, 0, advice)
        os.close(descriptor)


def read_plainly(files: list[Path], threads: int) -> float:
    """Return the seconds of reading all bytes, each file by one of the threads."""

    def read(file: Path) -> None:
        buffer = bytearray(BUFFER_BYTES)
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass

    began = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(read, files))
    return time.perf_counter() - began


def run_analyses(store: Store, options: argparse.Namespace) -> tuple[float, float, float]:
    """Return the seconds of the pass, of the whole call, and of all cores during the pass."""
    ends: list[float] = []
    cpu: list[float] = []

    def progress(done: int, total: int, text: str) -> None:
        if not text.startswith("computing"):
            ends.append(time.perf_counter())
            cpu.append(time.process_time())

    began, used = time.perf_counter(), time.process_time()
    keys = [ArrayKey(c, SITE, layer) for c in store.captures for layer in range(LAYERS)]
    results = analyze(
        store,
        [RowLengths(tuple(keys)), CKA(), *([SVD()] if options.svd else [])],
        memory=options.memory,
        workers=options.workers,
        progress=progress,
    )
    assert results["cka"].attrs["passes"] == 1
    return ends[-1] - began, time.perf_counter() - began, cpu[-1] - used


if __name__ == "__main__":
    raise SystemExit(main())
