"""From HSIC to CKA: ratios, never clamped, with noise ceilings, p-values and intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from ..engine import Runner, count_cores
from ..statistics.resampling import jackknife_spread
from . import between
from .gram import DEAR, choose_dtype, sum_at_a_glance, sum_pairs
from .hsic import HsicSums, hsic
from .moments import find_moments

BETWEEN = "between_groups"
"""The estimator that takes no two samples of one speaker."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """One estimator's CKA of all pairs of arrays, every field [arrays, arrays]."""

    value: NDArray[np.float64]
    low: NDArray[np.float64]
    """Lower end of the 95 % jackknife interval over groups, NaN below 3 groups."""
    high: NDArray[np.float64]
    null_ceiling: NDArray[np.float64]
    """What independent data would give: see `biased_ceiling` and `debiased_ceiling`."""
    p_value: NDArray[np.float64]


def no_estimate(n_arrays: int) -> dict[str, Estimate]:
    """Return NaN everywhere, for too few samples."""
    return {name: _nothing(n_arrays) for name in ("debiased", "biased", BETWEEN)}


def _nothing(n_arrays: int) -> Estimate:
    return Estimate(*(np.full((n_arrays, n_arrays), np.nan) for _ in range(5)))


def to_ratio(hsic_ll: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return HSIC(a, b) / √(HSIC(a, a) HSIC(b, b)), NaN where a self-HSIC is not positive."""
    self_l = np.diagonal(hsic_ll).copy()
    self_l[~(self_l > 0)] = np.nan
    return hsic_ll / np.sqrt(np.outer(self_l, self_l))


def participation(sums: HsicSums) -> NDArray[np.float64]:
    """Return γ = (tr Σ)² / tr Σ² of every array, both from unbiased estimates, [arrays].

    tr Σ² of a sample covariance is too large by (tr Σ)²/n; HSIC₁ of an array with itself is not.
    """
    unbiased_ll, _, n = hsic(sums)
    trace_l = sums.norms_ln.sum(axis=1) / (n - 1)
    self_l = np.diagonal(unbiased_ll).copy()
    self_l[~(self_l > 0)] = np.nan
    return trace_l**2 / self_l


def biased_ceiling(gamma_l: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """Return the biased CKA that independent Gaussian data of these spectra are expected to show.

    1/√((1 + n/γ_x)(1 + n/γ_y)): for isotropic data d/(n + d), 0.97 for 40 samples of 1,280
    features.
    """
    root_l = np.sqrt(1 + n / gamma_l)
    return 1 / np.outer(root_l, root_l)


def debiased_ceiling(n: int) -> float:
    """Return the debiased CKA that independent data exceed in 5 % of cases (their mean is 0).

    From the same t distribution as `p_value`: R = t/√(v - 1 + t²) at its 95 % point.
    """
    freedom = n * (n - 3) / 2 - 1
    point = float(special.stdtrit(freedom, 0.95)) if freedom > 0 else np.nan
    return point / float(np.sqrt(freedom + point**2))


def p_value(ratio: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """Return the one-sided p-value of independence for debiased CKA.

    Notes
    -----
    T = √(v - 1) R / √(1 - R²) follows t with v - 1 degrees of freedom, v = n(n - 3)/2, when
    features are many and samples independent [1]_. Samples of few speakers are not: then p is too
    small.

    References
    ----------
    .. [1] Székely & Rizzo, The distance correlation t-test of independence in high dimension, 2013.
    """
    freedom = n * (n - 3) / 2 - 1
    inside = np.clip(
        ratio, -1 + 1e-15, 1 - 1e-15
    )  # beyond: the limit of T, not a clamp of the value
    return special.stdtr(freedom, -np.sqrt(freedom) * inside / np.sqrt(1 - inside**2))


def estimate(sums: HsicSums) -> dict[str, Estimate]:
    """Return CKA of all pairs: debiased, biased, and from pairs of different groups only.

    Parameters
    ----------
    sums
        What `sum_pairs` or `sum_features` gave.

    Notes
    -----
    The interval is delete-one-group: value ± t(0.975, G - 1) · √((G - 1)/G Σ (θ₋g - θ̄)²). It says
    how much the value depends on which speakers were recorded. What makes utterances of one speaker
    alike stays in `debiased` and `biased`, as a bias that their interval does not see;
    `between_groups` is without it; its p-value is that of the t behind its interval, one-sided. For
    independent data the jackknife takes the error for larger than it is: both err on the safe side.
    """
    return _estimate_all_pairs(sums) | _estimate_between(sums)


def _estimate_all_pairs(sums: HsicSums) -> dict[str, Estimate]:
    """Return the estimators that take every pair of samples."""
    *both, n = hsic(sums)
    values = {"debiased": to_ratio(both[0]), "biased": to_ratio(both[1])}
    left_out = (
        np.stack([to_ratio(x) for x in hsic(sums, without=g)[:2]]) for g in range(sums.n_groups)
    )
    spreads = jackknife_spread(np.stack([*values.values()]), left_out, sums.n_groups)
    ceilings = tests = dict.fromkeys(values, np.full_like(both[0], np.nan))
    if n > 3:
        ceiling = np.full_like(both[0], debiased_ceiling(n))
        ceilings = {"debiased": ceiling, "biased": biased_ceiling(participation(sums), n)}
        tests = tests | {"debiased": p_value(values["debiased"], n)}
    return {
        name: Estimate(value, value - spread, value + spread, ceilings[name], tests[name])
        for (name, value), spread in zip(values.items(), spreads, strict=True)
    }


def _estimate_between(sums: HsicSums) -> dict[str, Estimate]:
    """Return the estimator that takes no two samples of one group."""
    nothing, n_groups = _nothing(len(sums.norms_ln)), sums.n_groups
    if n_groups < between.MIN_GROUPS:
        return {BETWEEN: nothing}
    tuples = between.sum_between(sums)
    value = to_ratio(tuples.hsic())
    left_out = (to_ratio(tuples.hsic(g)) for g in range(n_groups))
    spread = jackknife_spread(value, left_out, n_groups)
    test = one_sided(value, spread, n_groups)
    return {BETWEEN: Estimate(value, value - spread, value + spread, nothing.null_ceiling, test)}


def one_sided(
    value: NDArray[np.float64], spread: NDArray[np.float64], n_groups: int
) -> NDArray[np.float64]:
    """Return the p-value of a value above 0, from half the width of its 95 % interval."""
    point = special.stdtrit(n_groups - 1, 0.975)
    error = np.where(spread > 0, spread / point, np.nan)  # a value with itself has no error
    return special.stdtr(n_groups - 1, -value / error)


def linear_cka(
    features: Sequence[NDArray], groups: Sequence[object] | None = None
) -> dict[str, Estimate]:
    """Return linear CKA of all pairs of arrays held in memory, by every estimator of `estimate`.

    Parameters
    ----------
    features
        Arrays [samples, features] with the same samples in the same order; widths may differ.
    groups
        Speaker (or another group) of every sample, for the intervals and `between_groups`.

    Raises
    ------
    ValueError
        Arrays of different numbers of samples.

    Notes
    -----
    Centred first, so that an offset changes nothing. In float64; products of float32 features in
    float32 where they are more than 5e9 (`DEAR` of gram.py), with errors below 1e-6; so many run
    on all cores. O(arrays · samples · features) memory.
    """
    n = features[0].shape[0]
    if any(x.shape[0] != n for x in features):
        counts = sorted({x.shape[0] for x in features})
        msg = f"arrays have {counts} samples; CKA compares the same samples."
        raise ValueError(msg)
    labels = np.zeros(n) if groups is None else np.asarray(groups)
    group_n = np.unique(labels, return_inverse=True)[1].astype(np.int64)

    def read(a: int, rows: NDArray[np.int64]) -> NDArray:
        return features[a][rows]

    multiplications = float(n) ** 2 * sum(x.shape[1] for x in features)
    single = all(x.dtype == np.float32 for x in features)
    dtype = choose_dtype(multiplications, single=single, device="cpu")
    if multiplications <= DEAR["cpu"]:
        moments = find_moments(read, len(features), n)
        return estimate(sum_pairs(read, moments, group_n, dtype=dtype))
    runner = Runner(count_cores())
    alike: dict[str, Any] = {"dtype": dtype, "mapper": runner.map, "workers": runner.workers}
    if dtype == np.float32:
        sums = sum_at_a_glance(read, group_n, len(features), **alike)[1]
    else:
        moments = find_moments(read, len(features), n, mapper=runner.map)
        sums = sum_pairs(read, moments, group_n, **alike)
    return runner.map(estimate, [sums])[0]
