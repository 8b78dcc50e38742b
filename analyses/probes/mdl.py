"""How many bits the labels take given the features: the online code of Voita and Titov (2020)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ..statistics.draws import seeded
from .logistic import fit_logistic
from .scaling import Scaling
from .task import Task

FRACTIONS = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.0625, 0.125, 0.25, 0.5, 1.0)
"""Ends of the blocks, as parts of the samples."""
LEAST_PER_CLASS = 10
"""Samples for each class before the first fit; smaller fractions are dropped."""


@dataclass(frozen=True, slots=True)
class Code:
    """Codelengths of one array."""

    bits_o: NDArray[np.float64]
    """Of the real labels, in each order."""
    control_o: NDArray[np.float64]
    """Of the control labels, mean over their sets, in each order; NaN without any."""
    uniform: float
    """Bits without features: n log₂ K."""


def draw_orders(ids: NDArray[np.object_], orders: int, seed: int) -> NDArray[np.int64]:
    """Return random orders of samples, [orders, samples]; they follow the ids, not the storage."""
    by_id = np.argsort(ids)
    out = np.empty((orders, ids.size), dtype=np.int64)
    for i in range(orders):
        out[i] = by_id[seeded(f"{seed}/mdl/{i}").permutation(ids.size)]
    return out


def block_ends(n: int, n_classes: int) -> list[int]:
    """Return the ends of the blocks: the fractions that hold 10 samples a class, and all."""
    ends = sorted({round(n * fraction) for fraction in FRACTIONS})
    return [end for end in ends if end >= LEAST_PER_CLASS * n_classes and end < n] + [n]


def measure_code(
    x_nd: NDArray[np.float64], task: Task, orders_on: NDArray[np.int64], penalty: float
) -> Code:
    """Return how many bits the labels of all samples take, block after block.

    Parameters
    ----------
    x_nd
        Pooled features, [samples, features].
    task
        Labels; all label sets are coded at once.
    orders_on
        Orders of the samples, [orders, samples].
    penalty
        Of the logistic probe.

    Notes
    -----
    The first block takes log₂ K bits a sample; each later one -log₂ p of the probe of all samples
    before it. A class that has not been seen yet would take infinitely many: then p is
    (t p + 1)/(t + K) after t samples, which the reader of the code can do as well. Samples of one
    speaker are in blocks that are trained on and coded: this is about the labels of these speakers,
    not about new ones.
    """
    n, n_classes = x_nd.shape[0], len(task.classes)
    bits_os = np.zeros((len(orders_on), task.class_ns.shape[1]))
    ends = block_ends(n, n_classes)
    for row, order in enumerate(orders_on):
        bits_os[row] = ends[0] * np.log2(n_classes)
        for start, stop in pairwise(ends):
            seen, new = order[:start], order[start:stop]
            p_nsk = _predict(x_nd, task.class_ns, n_classes, (seen, new), penalty)
            true_n1s = task.class_ns[new][:, :, None]
            p_ns = np.take_along_axis(p_nsk, true_n1s, axis=2)[:, :, 0]
            bits_os[row] -= np.log2(p_ns).sum(axis=0)
    nothing = np.full(len(orders_on), np.nan)
    control_o = bits_os[:, 1:].mean(axis=1) if bits_os.shape[1] > 1 else nothing
    return Code(bits_os[:, 0], control_o, n * float(np.log2(n_classes)))


def _predict(
    x_nd: NDArray[np.float64],
    class_ns: NDArray[np.int64],
    n_classes: int,
    parts: tuple[NDArray[np.int64], NDArray[np.int64]],
    penalty: float,
) -> NDArray[np.float64]:
    """Return the probabilities of new samples after those seen, [samples, sets, classes]."""
    seen, new = parts
    scaling = Scaling.of(x_nd[seen])
    train_nd, test_nd = scaling.apply(x_nd[seen]), scaling.apply(x_nd[new])
    out = np.zeros((new.size, class_ns.shape[1], n_classes))
    shown = [np.unique(class_ns[seen, s]) for s in range(class_ns.shape[1])]
    whole = [s for s, present in enumerate(shown) if present.size == n_classes]
    if whole:
        model = fit_logistic(train_nd, class_ns[np.ix_(seen, whole)], penalty)
        out[:, whole] = np.exp(model.predict(test_nd))
    for s in set(range(len(shown))) - set(whole):
        out[:, s] = 1 / (seen.size + n_classes)
        share = seen.size / (seen.size + n_classes)
        if shown[s].size == 1:
            out[:, s, shown[s][0]] += share
            continue
        compact_ns = np.searchsorted(shown[s], class_ns[seen, s])[:, None]
        model = fit_logistic(train_nd, compact_ns, penalty)
        out[:, s, shown[s]] += share * np.exp(model.predict(test_nd))[:, 0]
    return out
