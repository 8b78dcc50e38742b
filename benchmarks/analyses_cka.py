"""All pairs of pooled CKA from a store, beside pytorch-cka in memory and the bare products.

Run: `python benchmarks/analyses_cka.py` (33 layers, 500 samples, 1280 features: Whisper-large). All
contenders run in one process, in turn, with the same number of threads. pytorch-cka gives debiased
values alone; `analyze` gives three estimators with intervals over ten speakers, p-values and
ceilings, and `values_only` is what it takes without groups and permutations, from memory. Seconds
of the clock are the best of the repeats; `processor_seconds`, of all threads together, say what the
work takes where other programs have the processor as well.
"""

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cka
import click
import numpy as np
import torch
from threadpoolctl import threadpool_limits

from lorascope.analyses import CKA, analyze, linear_cka
from lorascope.store import Site, create_store, open_store

SITE = "resid_post.mean_valid"
_PAUSE = 0.2
"""Seconds in which threads of the one before fall asleep."""


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


def best_in_turn(
    repeats: int, work: dict[str, Callable[[], object]]
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the shortest times of each contender, of the clock and of the processor.

    They run one after the other in each repeat, with a pause before each: threads of BLAS and torch
    wait busily for more work, and would take a core from the next one.
    """
    clocks = time.perf_counter, time.process_time
    best = tuple(dict.fromkeys(work, float("inf")) for _ in clocks)
    for _ in range(repeats):
        for name, run in work.items():
            time.sleep(_PAUSE)
            starts = [clock() for clock in clocks]
            run()
            for times, clock, start in zip(best, clocks, starts, strict=True):
                times[name] = min(times[name], clock() - start)
    return best[0], best[1]


@click.command(help=__doc__)
@click.option("--layers", default=33)
@click.option("--samples", default=500)
@click.option("--features", default=1280)
@click.option("--workers", default=2)
@click.option("--repeats", default=10)
def main(layers: int, samples: int, features: int, workers: int, repeats: int) -> None:
    rng = np.random.default_rng(0)
    x_lnd = rng.standard_normal((layers, samples, features), dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store.zarr"
        write_store(path, x_lnd)
        store = open_store(path)
        torch.set_num_threads(workers)
        stack = torch.from_numpy(x_lnd)
        plain = CKA(frames=False, permutations=0)
        with threadpool_limits(workers):
            seconds, processor = best_in_turn(
                repeats,
                {
                    "analyze": lambda: analyze(store, [plain], workers=workers),
                    "with_permutations": lambda: analyze(
                        store, [CKA(frames=False)], workers=workers
                    ),
                    "values_only": lambda: linear_cka([*x_lnd]),
                    "pytorch_cka": lambda: cka.cka_from_features(stack, stack),
                    "products": lambda: multiply(x_lnd),
                },
            )
    record = {
        "layers": layers,
        "samples": samples,
        "features": features,
        "workers": workers,
        "pairs": layers * (layers + 1) // 2,
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "processor_seconds": {name: round(value, 3) for name, value in processor.items()},
        "times_faster_than_pytorch_cka": {
            name: round(seconds["pytorch_cka"] / value, 2) for name, value in seconds.items()
        },
    }
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
