"""Time of the kernels behind the analyses, beside the matrix products or fits that they replace.

Run: `python benchmarks/analyses_kernels.py`. Everything is in memory and seeded; one line a job.
"""

import time
from collections.abc import Callable

import numpy as np
from sklearn.linear_model import LogisticRegression

from lorascope.analyses import linear_cka
from lorascope.analyses.probes.left_out import predict_left_out
from lorascope.analyses.probes.task import Task
from lorascope.analyses.spectra.scatter import Scatter, add_rows
from lorascope.analyses.spectra.spectrum import singular_values


def measure(function: Callable[[], object], repeats: int = 3) -> float:
    """Return the shortest time of several calls, in seconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def time_cka() -> None:
    rng = np.random.default_rng(0)
    layers = [rng.normal(size=(500, 1280)).astype(np.float32) for _ in range(33)]
    speakers = [i // 50 for i in range(500)]
    plain = measure(lambda: linear_cka(layers))
    grouped = measure(lambda: linear_cka(layers, speakers))
    products = measure(lambda: [x.astype(np.float64) @ x.T.astype(np.float64) for x in layers])
    print(
        f"CKA, all pairs of 33 x 500 x 1280: {plain:.2f} s, with jackknife {grouped:.2f} s; ",
        end="",
    )
    print(f"its Gram matrices in float64 {products:.2f} s")


def time_spectrum() -> None:
    x = np.random.default_rng(0).normal(size=(50_000, 1280)).astype(np.float32)
    product = measure(lambda: x.T @ x)

    def spectrum() -> np.ndarray:
        return singular_values(add_rows(Scatter.empty(1280), x).scatter_dd, 1280)

    print(f"spectrum of 50,000 x 1,280: {measure(spectrum):.2f} s; X'X alone {product:.2f} s")


def time_probe(n_arrays: int = 30, shuffles: int = 10) -> None:
    rng = np.random.default_rng(0)
    n, width, n_classes = 336, 384, 4
    class_n, speaker_n = np.arange(n) % n_classes, np.arange(n) // 28
    labels = np.stack([class_n, *(rng.permutation(class_n) for _ in range(shuffles))], axis=1)
    names = tuple("abcd"), tuple(str(s) for s in range(12))
    task = Task(np.arange(n), labels, names[0], speaker_n, names[1], "")
    means = rng.normal(size=(n_classes, width)) / 4
    arrays = [rng.normal(size=(n, width)) + means[class_n] for _ in range(n_arrays)]
    own = measure(lambda: [predict_left_out(x, task, 0.01) for x in arrays], repeats=1)
    x = (arrays[0] - arrays[0].mean(axis=0)) / arrays[0].std(axis=0)
    fit = measure(lambda: LogisticRegression(C=0.01, tol=1e-8, max_iter=10_000).fit(x, class_n))
    fits = n_arrays * 12 * (shuffles + 1)
    print(
        f"probe, {n_arrays} arrays x 12 speakers x {shuffles + 1} label sets: {own:.1f} s; ", end=""
    )
    print(f"scikit-learn, {fits} fits of {fit:.3f} s: {fits * fit:.0f} s")


if __name__ == "__main__":
    time_cka()
    time_spectrum()
    time_probe()
