"""Time of leave-one-speaker-out ridge, beside refits of scikit-learn's RidgeClassifier.

Run: `OMP_NUM_THREADS=1 python benchmarks/probes.py [layers]`, as `analyze` runs each task. 5,000
samples of 1,280 features in 10 groups, float64, both in this process and layer by layer in turn;
seeded; decisions are compared.
"""

import sys
import time

import numpy as np
from sklearn.linear_model import RidgeClassifier

from lorascope.analyses.probes.closed_form import fit_lda, fit_ridge, train_folds

PENALTY = 100.0


def refit(x: np.ndarray, group_n: np.ndarray, class_n: np.ndarray) -> np.ndarray:
    """Return the predicted classes of ten fits; the features are standardised beforehand."""
    out = np.empty_like(class_n)
    for group in range(int(group_n.max()) + 1):
        test = group_n == group
        model = RidgeClassifier(alpha=PENALTY).fit(x[~test], class_n[~test])
        out[test] = model.predict(x[test])
    return out


def closed_form(x: np.ndarray, group_n: np.ndarray, class_ns: np.ndarray, fit) -> np.ndarray:  # noqa: ANN001
    """Return the predicted classes of every label set, standardised anew in each fold."""
    out = np.empty_like(class_ns)
    for test, present, training in train_folds(x, group_n, class_ns):
        out[test] = present[fit(training).score(x[test]).argmax(axis=2)]
    return out


def main(n_layers: int, n: int = 5000, width: int = 1280, groups: int = 10) -> None:
    """Print the times of all layers and their ratio."""
    rng = np.random.default_rng(0)
    class_n, group_n = np.arange(n) % 4, np.arange(n) // (n // groups)
    sets = np.stack([class_n, *(rng.permutation(class_n) for _ in range(10))], axis=1)
    times = np.zeros(4)
    agree = 0.0
    for _ in range(n_layers):
        x = rng.normal(size=(n, width)) + 0.1 * rng.normal(size=(4, width))[class_n]
        x = (x - x.mean(axis=0)) / x.std(axis=0)
        jobs = (
            lambda x=x: refit(x, group_n, class_n),
            lambda x=x: closed_form(x, group_n, sets[:, :1], lambda t: fit_ridge(t, PENALTY)),
            lambda x=x: closed_form(x, group_n, sets, lambda t: fit_ridge(t, PENALTY)),
            lambda x=x: closed_form(x, group_n, sets, fit_lda),
        )
        found = []
        for i, job in enumerate(jobs):
            start = time.perf_counter()
            found.append(job())
            times[i] += time.perf_counter() - start
        agree += float((found[0] == found[1][:, 0]).mean()) / n_layers
    own = times[1]
    print(f"leave-one-group-out ridge, {n_layers} layers of {n:,} x {width:,}, {groups} groups:")
    print(f"  scikit-learn RidgeClassifier, refitted  {times[0]:.2f} s")
    print(f"  closed form                             {own:.2f} s, {times[0] / own:.1f} x as fast")
    print(f"  closed form, 11 label sets at once      {times[2]:.2f} s")
    print(f"  LDA in closed form, 11 label sets       {times[3]:.2f} s")
    print(f"  decisions that agree                    {agree:.4f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 33)
