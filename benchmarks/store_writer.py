"""What durable writing costs: the store against plain files and against zarr-python.

Run it as ``python benchmarks/store_writer.py``. All sides write the same values to the same disk
and end when everything is durable: (a) the writer of the store, (b) ``tofile`` and fsync into as
many files as the store has shards, (c) zarr-python's own sharded writer, whole shards at a time and
already put together, with an fsync of every file and folder afterwards, (d) the writer again, with
a clock on its checksums. Passes alternate within each repeat and ratios are taken per repeat. CPU
is the user and system time of the process, all threads.

The cost of integrity is the wall time of (d) over the same without the seconds spent in checksums:
what they cost if nothing runs beside them. Two passes, one without checksums, cannot tell: the time
of an fsync varies tenfold more than the checksums take.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec

from lorascope.store import SampleRows, Site, create_store, verify_store
from lorascope.store.files import crc32c

LAYERS = 8
WIDTH = 512
SAMPLE_ROWS = 256
SEGMENT_SAMPLES = 32
"""A segment is 8192 rows, a shard 16 MiB of float32."""
SEGMENT_ROWS = SAMPLE_ROWS * SEGMENT_SAMPLES
CHUNK_ROWS = 512
"""What the store chooses for rows of this width: 1 MiB."""
CHECKED = ("shards", "creation", "encoded", "blocks")
"""Modules of the store that name the checksum function."""
TARGETS = {
    "rate_of_raw": (0.85, "at least"),
    "rate_of_zarr": (1.5, "at least"),
    "cpu_of_zarr": (0.5, "at most"),
    "cost_of_integrity": (1.05, "at most"),
}


@dataclass(frozen=True)
class Pass:
    """One side, once."""

    wall_seconds: float
    cpu_seconds: float
    checksum_seconds: float
    """Wall time in checksums, where they were clocked."""


def write_store(values: np.ndarray, folder: Path) -> None:
    n_samples = values.shape[1] // SAMPLE_ROWS
    site = Site("x", range(LAYERS), WIDTH)
    plan = [SampleRows(f"s{i}", {"tokens": SAMPLE_ROWS}) for i in range(n_samples)]
    with create_store(
        folder / "s.zarr",
        capture="a",
        sites=[site],
        plan=plan,
        segment_rows=SEGMENT_ROWS,
        segment_samples=SEGMENT_SAMPLES,
    ) as writer:
        for number, sample in enumerate(plan):
            rows = slice(number * SAMPLE_ROWS, (number + 1) * SAMPLE_ROWS)
            writer.append(sample.id, {"x": values[:, rows]})


def write_raw(values: np.ndarray, folder: Path) -> None:
    """Write in the order in which samples come, one file a layer and segment."""
    for start in range(0, values.shape[1], SEGMENT_ROWS):
        with ExitStack() as stack:
            files = [
                stack.enter_context((folder / f"{layer}.{start}").open("wb"))
                for layer in range(LAYERS)
            ]
            for first in range(start, start + SEGMENT_ROWS, SAMPLE_ROWS):
                for layer, file in enumerate(files):
                    values[layer, first : first + SAMPLE_ROWS].tofile(file)
            for file in files:
                file.flush()
                os.fsync(file.fileno())


def write_zarr(values: np.ndarray, folder: Path) -> None:
    array = zarr.create_array(
        folder / "z.zarr",
        shape=values.shape,
        dtype=values.dtype,
        chunks=(1, SEGMENT_ROWS, WIDTH),
        serializer=ShardingCodec(
            chunk_shape=(1, CHUNK_ROWS, WIDTH), codecs=[BytesCodec(), Crc32cCodec()]
        ),
        compressors=None,
        filters=None,
        fill_value=np.nan,
    )
    for start in range(0, values.shape[1], SEGMENT_ROWS):
        rows = slice(start, start + SEGMENT_ROWS)
        for layer in range(LAYERS):
            array[layer, rows] = values[layer, rows]
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


class Clock:
    """Adds up the wall time of calls, over all threads."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def on_checksums(self) -> Iterator[None]:
        """Clock the checksums of the store inside the block."""

        def clocked(data: bytes | np.ndarray, crc: int = 0) -> int:
            start = time.perf_counter()
            try:
                return crc32c(data, crc)
            finally:
                self.seconds += time.perf_counter() - start

        with ExitStack() as stack:
            for module in CHECKED:
                name = f"lorascope.store.{module}.crc32c"
                stack.enter_context(mock.patch(name, clocked))
            yield


def write_clocked(values: np.ndarray, folder: Path) -> None:
    with CLOCK.on_checksums():
        write_store(values, folder)


CLOCK = Clock()
SIDES: dict[str, Callable[[np.ndarray, Path], None]] = {
    "store": write_store,
    "raw": write_raw,
    "zarr": write_zarr,
    "clocked": write_clocked,
}


def timed(action: Callable[[], object]) -> Pass:
    CLOCK.seconds = 0.0
    wall, cpu = time.perf_counter(), time.process_time()
    action()
    return Pass(time.perf_counter() - wall, time.process_time() - cpu, CLOCK.seconds)


def measure(values: np.ndarray, repeats: int) -> dict[str, list[Pass]]:
    passes: dict[str, list[Pass]] = {name: [] for name in [*SIDES, "verify"]}
    for repeat in range(repeats + 1):
        names = list(SIDES) if repeat % 2 else list(SIDES)[::-1]
        for name in names:
            with tempfile.TemporaryDirectory(dir=os.environ.get("BENCHMARK_DIR")) as folder:
                path = Path(folder)
                taken = timed(lambda name=name, path=path: SIDES[name](values, path))
                if repeat:  # the first round warms up
                    passes[name].append(taken)
                if name == "store":
                    assert_written(values, path / "s.zarr")
                    checked = timed(lambda path=path: verify_store(path / "s.zarr"))
                    if repeat:
                        passes["verify"].append(checked)
    return passes


def assert_written(values: np.ndarray, path: Path) -> None:
    """Check that the store holds what it was given; not timed."""
    folder = path / "captures/a/sites/x/values"
    shards = {p.name: p.stat().st_size for p in folder.glob("c.*")}
    assert len(shards) == LAYERS * values.shape[1] // SEGMENT_ROWS
    assert sum(shards.values()) >= values.nbytes
    array = zarr.open_array(folder, mode="r")
    assert array.shards == (1, SEGMENT_ROWS, WIDTH)
    assert array.chunks == (1, CHUNK_ROWS, WIDTH)
    last = np.asarray(array[-1, -SAMPLE_ROWS:])
    np.testing.assert_array_equal(last, values[-1, -SAMPLE_ROWS:])


def compare(passes: dict[str, list[Pass]]) -> dict[str, list[float]]:
    """Return the ratios of every repeat."""
    store, raw, plain = passes["store"], passes["raw"], passes["zarr"]
    return {
        "rate_of_raw": [r.wall_seconds / s.wall_seconds for r, s in zip(raw, store, strict=True)],
        "rate_of_zarr": [
            z.wall_seconds / s.wall_seconds for z, s in zip(plain, store, strict=True)
        ],
        "cpu_of_zarr": [s.cpu_seconds / z.cpu_seconds for z, s in zip(plain, store, strict=True)],
        "cost_of_integrity": [
            c.wall_seconds / (c.wall_seconds - c.checksum_seconds) for c in passes["clocked"]
        ],
    }


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--segments", type=int, default=4, help="segments of 128 MiB a pass")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of all sides")
    parser.add_argument("--note", default="", help="a remark for the record")
    parser.add_argument("--out", type=Path, help="where to write the JSON record")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    rng = np.random.default_rng(0)
    shape = (LAYERS, options.segments * SEGMENT_ROWS, WIDTH)
    values = rng.standard_normal(shape, dtype=np.float32)
    passes = measure(values, options.repeats)
    ratios = compare(passes)
    medians = {name: statistics.median(numbers) for name, numbers in ratios.items()}
    holds = {
        name: medians[name] >= bar if side == "at least" else medians[name] <= bar
        for name, (bar, side) in TARGETS.items()
    }
    gib = values.nbytes / 2**30
    record: dict[str, Any] = {
        "bytes": values.nbytes,
        "shards": LAYERS * options.segments,
        "note": options.note,
        "passes": {name: [asdict(p) for p in taken] for name, taken in passes.items()},
        "cpu_seconds_per_gib": {
            name: statistics.median(p.cpu_seconds for p in taken) / gib
            for name, taken in passes.items()
        },
        "wall_seconds_per_gib": {
            name: statistics.median(p.wall_seconds for p in taken) / gib
            for name, taken in passes.items()
        },
        "ratios": ratios,
        "medians": medians,
        "targets": {name: f"{side} {bar}" for name, (bar, side) in TARGETS.items()},
        "machine": {
            "cpus": os.cpu_count(),
            "load": os.getloadavg()[0],
            "python": platform.python_version(),
            "zarr": metadata.version("zarr"),
            "numpy": metadata.version("numpy"),
        },
        "holds": holds,
    }
    text = json.dumps(record, indent=1) + "\n"
    if options.out:
        options.out.write_text(text)
    print(text, end="")
    for name, (bar, side) in TARGETS.items():
        print(f"{name} {medians[name]:.3f} ({side} {bar})", file=sys.stderr)
    return 0 if all(holds.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
