"""Cluster bootstrap: how much a score over samples depends on which speakers were recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray
from scipy import special

REPLICATES = 1000
"""Bootstrap replicates behind every interval of predictions."""
MIN_GROUPS = 3
"""Groups below which no interval is given: resampling two speakers says nothing."""
_CHUNK_NUMBERS = 2**22
"""Weights held at a time."""


def cluster_bootstrap(
    group_n: NDArray[np.int64],
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    *,
    seed: int,
    replicates: int = REPLICATES,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the 2.5 % and 97.5 % points of a statistic when speakers, then samples, are redrawn.

    Parameters
    ----------
    group_n
        Group number 0 … G-1 of every sample.
    statistic
        Gets weights [replicates, samples] (how often each sample was drawn) and returns
        [replicates] or [replicates, statistics].
    seed
        Of the draws.
    replicates
        How many.

    Returns
    -------
    tuple
        Lower and upper ends, [] or [statistics]; NaN below 3 groups.
    """
    n_groups = int(group_n.max()) + 1 if group_n.size else 0
    if n_groups < MIN_GROUPS:
        shape = np.asarray(statistic(np.ones((1, group_n.size)))).shape[1:]
        return np.full(shape, np.nan), np.full(shape, np.nan)
    chunk = max(1, _CHUNK_NUMBERS // group_n.size)
    rng = np.random.default_rng(seed)
    parts = []
    for start in range(0, replicates, chunk):
        weights_bn = _draw(rng, group_n, n_groups, min(chunk, replicates - start))
        parts.append(np.asarray(statistic(weights_bn)))
    values = np.concatenate(parts)
    low, high = np.percentile(values, [2.5, 97.5], axis=0)  # NaN where a replicate has no value
    return low, high


def _draw(
    rng: np.random.Generator, group_n: NDArray[np.int64], n_groups: int, count: int
) -> NDArray[np.float64]:
    """Return how often each sample is drawn in each replicate, [replicates, samples]."""
    times_bg = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=count)
    weights_bn = np.zeros((count, group_n.size))
    for group in range(n_groups):
        members = np.flatnonzero(group_n == group)
        share = np.full(members.size, 1 / members.size)
        weights_bn[:, members] = rng.multinomial(times_bg[:, group] * members.size, share)
    return weights_bn


def weighted_recall(
    true_n: NDArray[np.int64], hit_nm: NDArray, n_classes: int
) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """Return the statistic UAR for `cluster_bootstrap`.

    Parameters
    ----------
    true_n
        True class numbers, [samples].
    hit_nm
        Whether each of several predictions was right, [samples, predictions].
    n_classes
        Number of classes.
    """
    member_kn = (np.arange(n_classes)[:, None] == true_n).astype(np.float64)

    def statistic(weights_bn: NDArray[np.float64]) -> NDArray[np.float64]:
        total = np.zeros((weights_bn.shape[0], hit_nm.shape[1]))
        occurring = np.zeros((weights_bn.shape[0], 1))
        for member_n in member_kn:
            support = (weights_bn @ member_n)[:, None]
            hits = (weights_bn * member_n) @ hit_nm
            total += np.where(support > 0, hits / np.maximum(support, 1.0), 0.0)
            occurring += support > 0
        return total / np.maximum(occurring, 1.0)

    return statistic


def weighted_mean(
    values_nm: NDArray[np.float64],
) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """Return the statistic "mean of each column" of values [samples, columns]."""

    def statistic(weights_bn: NDArray[np.float64]) -> NDArray[np.float64]:
        return (weights_bn @ values_nm) / weights_bn.sum(axis=1, keepdims=True)

    return statistic


def weighted_median(
    values_n: NDArray[np.float64],
) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """Return the statistic "median" of values [samples], each drawn so often as its weight says."""
    order = np.argsort(values_n)
    sorted_n = values_n[order]

    def statistic(weights_bn: NDArray[np.float64]) -> NDArray[np.float64]:
        reached_bn = np.cumsum(weights_bn[:, order], axis=1)
        half_b = reached_bn[:, -1:] / 2
        lower_b = (reached_bn >= half_b).argmax(axis=1)
        upper_b = (reached_bn > half_b).argmax(axis=1)
        return (sorted_n[lower_b] + sorted_n[upper_b]) / 2

    return statistic


def jackknife_spread(
    value: NDArray[np.float64], left_out: Iterable[NDArray[np.float64]], n_groups: int
) -> NDArray[np.float64]:
    """Return half the width of 95 % intervals from statistics without each of G groups.

    Parameters
    ----------
    value
        The statistics of all groups, of any shape.
    left_out
        The same without each group in turn; they are looked at one by one and not kept.
    n_groups
        How many groups there are.

    Returns
    -------
    numpy.ndarray
        Like `value`: t quantile of G - 1 degrees of freedom times √((G - 1)/G Σ(θ_g - θ̄)²); NaN
        below 3 groups, and where `value` or a group has none.
    """
    if n_groups < MIN_GROUPS:
        return np.full_like(value, np.nan)
    mean, square = np.zeros_like(value), np.zeros_like(value)
    for part in left_out:
        difference = part - value  # near 0, so that its variance is safe
        mean += difference / n_groups
        square += np.square(difference)
    variance = (square - n_groups * np.square(mean)) * (n_groups - 1) / n_groups
    return float(special.stdtrit(n_groups - 1, 0.975)) * np.sqrt(np.maximum(variance, 0.0))
