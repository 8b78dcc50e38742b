"""All pairs of pooled CKA from a store, beside the bare matrix products that they are made of.

Run: `python benchmarks/analyses_cka.py` (33 layers, 500 samples, 1280 features: Whisper-large).
"""

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
from threadpoolctl import threadpool_limits

from lorascope.analyses import CKA, analyze
from lorascope.store import Site, create_store, open_store

SITE = "resid_post.mean_valid"


def write_store(path: Path, x_lnd: np.ndarray) -> None:
    site = Site(SITE, list(range(x_lnd.shape[0])), x_lnd.shape[2], kind="sample")
    with create_store(path, capture="a", sites=[site]) as writer:
        for i in range(x_lnd.shape[1]):
            writer.append(f"u{i:05d}", {SITE: x_lnd[:, i].copy()}, groups={"speaker": str(i % 10)})


def multiply(x_lnd: np.ndarray) -> np.ndarray:
    """Do nothing but the products: one Gram matrix a layer, then all pairs of them."""
    x_lnd = x_lnd.astype(np.float64)
    grams = np.stack([x @ x.T for x in x_lnd]).reshape(len(x_lnd), -1)
    return grams @ grams.T


def best_of(repeats: int, work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


@click.command(help=__doc__)
@click.option("--layers", default=33)
@click.option("--samples", default=500)
@click.option("--features", default=1280)
@click.option("--workers", default=2)
@click.option("--repeats", default=3)
def main(layers: int, samples: int, features: int, workers: int, repeats: int) -> None:
    rng = np.random.default_rng(0)
    x_lnd = rng.standard_normal((layers, samples, features), dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store.zarr"
        write_store(path, x_lnd)
        store = open_store(path)
        whole = best_of(repeats, lambda: analyze(store, [CKA(frames=False)], workers=workers))
        with threadpool_limits(workers):
            bare = best_of(repeats, lambda: multiply(x_lnd))
    record = {
        "layers": layers,
        "samples": samples,
        "features": features,
        "workers": workers,
        "pairs": layers * (layers + 1) // 2,
        "analyze_seconds": round(whole, 3),
        "products_seconds": round(bare, 3),
        "ratio": round(whole / bare, 2),
    }
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
