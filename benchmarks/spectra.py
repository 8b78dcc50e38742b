"""Spectrum of many rows, streamed, beside the bare product X'X and numpy's SVD.

Run: `python benchmarks/spectra.py` (50,000 x 1,280 float32), with `--tail` for the streaming QR of
`SVD(tail=True)` as well. Everything in one process with the
same BLAS threads, in turn, the shortest of several; the peak in a process of its own, which
streams the rows from a file.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np
from threadpoolctl import threadpool_limits

from lorascope.analyses import ArrayKey, Block, Piece
from lorascope.analyses.spectra.scatter import TILE_ROWS, Scatter, add_rows
from lorascope.analyses.spectra.spectrum import singular_values
from lorascope.analyses.spectra.tail import TailFold

BLOCK_ROWS = 2 * TILE_ROWS
PEAK = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
import spectra

def highest():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

base = highest()
spectra.streamed(Path(sys.argv[1]), int(sys.argv[2]))
print(highest() - base)
"""


def write_rows(path: Path, n: int, width: int) -> None:
    """Singular values falling like 1/i around a mean of 3."""
    rng = np.random.default_rng(0)
    turn_dd = np.linalg.qr(rng.normal(size=(width, width)))[0] / np.arange(1, width + 1)[:, None]
    with path.open("wb") as file:
        for start in range(0, n, TILE_ROWS):
            x_nd = rng.normal(size=(min(TILE_ROWS, n - start), width)) @ turn_dd + 3
            file.write(x_nd.astype(np.float32).tobytes())


def streamed(path: Path, width: int) -> np.ndarray:
    """Covariance and spectrum of a file, block by block, as a pass over a store reads it."""
    state = Scatter.empty(width)
    block_nd = np.empty((BLOCK_ROWS, width), np.float32)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block_nd) // (4 * width):
            add_rows(state, block_nd[:count])
    return singular_values(state.scatter_dd, width)


def streamed_tail(path: Path, width: int) -> np.ndarray:
    """Centred spectrum of the same file by streaming QR."""
    key = ArrayKey("a", "s", 0)
    fold = TailFold(key, width, width)
    state = fold.empty()
    block_nd = np.empty((BLOCK_ROWS, width), np.float32)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block_nd) // (4 * width):
            piece = Piece(block_nd[:count], np.array([0]), np.array([0, count]))
            state = fold.add(state, Block(0, 1, {key: piece}))
    return fold.finish(state).centred


@click.command(help=__doc__)
@click.option("--rows", default=50_000)
@click.option("--features", default=1280)
@click.option("--threads", default=1, help="BLAS threads of every job.")
@click.option("--repeats", default=3)
@click.option("--tail", is_flag=True, help="Time the streaming QR too.")
@click.option("--json", "json_path", type=click.Path(path_type=Path))
def main(
    rows: int, features: int, threads: int, repeats: int, *, tail: bool, json_path: Path | None
) -> None:
    with tempfile.TemporaryDirectory() as folder, threadpool_limits(threads):
        path = Path(folder) / "rows.f32"
        write_rows(path, rows, features)
        held_nd = np.fromfile(path, dtype=np.float32).reshape(-1, features)
        centred_nd = held_nd - held_nd.mean(axis=0, dtype=np.float64).astype(np.float32)
        jobs = {
            "product": lambda: held_nd.T @ held_nd,
            "streamed": lambda: streamed(path, features),
            "numpy_svd": lambda: np.linalg.svd(centred_nd, compute_uv=False),
        }
        if tail:
            jobs["tail"] = lambda: streamed_tail(path, features)
        seconds: dict[str, list[float]] = {name: [] for name in jobs}
        for _ in range(repeats):  # in turn, so that what else runs here hits all of them
            for name, job in jobs.items():
                start = time.perf_counter()
                job()
                seconds[name].append(time.perf_counter() - start)
        found = {name: min(times) for name, times in seconds.items()}
        exact = np.linalg.svd(centred_nd.astype(np.float64), compute_uv=False)
        error = np.abs(streamed(path, features) / exact - 1)
        tail_error = np.abs(streamed_tail(path, features) / exact - 1) if tail else None
        here = str(Path(__file__).parent)
        command = [sys.executable, "-c", PEAK, str(path), str(features), here]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
    result = {
        **found,
        "times_product": found["streamed"] / found["product"],
        "times_faster_than_svd": found["numpy_svd"] / found["streamed"],
        "error_first_32": float(error[:32].max()),
        "error_all": float(error.max()),
        "peak_bytes": int(run.stdout) * 1024,
        "threads": threads,
    }
    print(
        f"{rows:,} x {features:,} float32, {threads} BLAS threads, best of {repeats}: X'X "
        f"{found['product']:.2f} s; covariance and spectrum {found['streamed']:.2f} s, "
        f"{result['times_product']:.2f} times that; numpy's SVD {found['numpy_svd']:.1f} s, "
        f"{result['times_faster_than_svd']:.1f} times slower; largest relative error "
        f"{result['error_first_32']:.0e} (first 32), {result['error_all']:.0e} (all); "
        f"peak {result['peak_bytes'] / 1e6:.0f} MB above the process"
    )
    if tail_error is not None:
        result |= {
            "times_streamed_tail": found["tail"] / found["streamed"],
            "error_tail": float(tail_error.max()),
        }
        print(
            f"streaming QR {found['tail']:.1f} s, {result['times_streamed_tail']:.1f} times the "
            f"scatter; largest relative error {result['error_tail']:.0e} in all singular values"
        )
    if json_path is not None:
        json_path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
