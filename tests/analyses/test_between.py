"""HSIC between groups: its definition, any group left out, and what it is for: clustered data."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from scipy import stats

from lorascope.analyses.similarity.between import count_tuples, sum_between
from lorascope.analyses.similarity.cka_estimate import linear_cka
from lorascope.analyses.similarity.gram import sum_pairs
from lorascope.analyses.similarity.hsic import find_moments

DRAWS = 1000


def by_definition(k: np.ndarray, el: np.ndarray, groups: np.ndarray) -> float:
    """Mean of k12 l12 - 2 k12 l13 + k12 l34 over all tuples of samples of different groups."""
    means = []
    for size, other in ((2, (0, 1)), (3, (0, 2)), (4, (2, 3))):
        tuples = np.array(
            [t for t in permutations(range(len(k)), size) if len(set(groups[list(t)])) == size]
        )
        a, b = (tuples[:, i] for i in other)
        means.append(np.mean(k[tuples[:, 0], tuples[:, 1]] * el[a, b]))
    return means[0] - 2 * means[1] + means[2]


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_every_tuple_has_a_group_of_its_own(dtype) -> None:
    """Groups of 1 to 4 samples, in no order; float32 products round to 1e-7 of the largest."""
    rng = np.random.default_rng(0)
    groups = rng.permutation(np.repeat(np.arange(6), [1, 2, 3, 2, 4, 1]))
    x = rng.normal(size=(13, 3)) + 5
    arrays = [x, np.hstack([x[:, :2], rng.normal(size=(13, 2))]), rng.normal(size=(13, 5))]

    def read(a: int, rows: np.ndarray) -> np.ndarray:
        return arrays[a][rows]

    moments = find_moments(read, 3, 13)
    parts = sum_between(sum_pairs(read, moments, groups, dtype=dtype))
    scaled = [
        (x - mean) / scale
        for x, mean, scale in zip(arrays, moments.means, moments.scales, strict=True)
    ]
    tolerance = 1e-14 if dtype is np.float64 else 2e-6
    for without in (None, 0, 4, 5):
        kept = groups != without
        grams = [x[kept] @ x[kept].T for x in scaled]
        expected = [[by_definition(k, el, groups[kept]) for el in grams] for k in grams]
        np.testing.assert_allclose(parts.hsic(without), expected, atol=tolerance)


def test_tuples_are_counted() -> None:
    groups = np.repeat(np.arange(4), [1, 3, 2, 2])
    for size, counted in zip((2, 3, 4), count_tuples(np.array([1.0, 3, 2, 2])), strict=True):
        found = sum(len(set(groups[list(t)])) == size for t in permutations(range(8), size))
        assert counted == found


def test_groups_of_one_sample_are_no_groups() -> None:
    """Then every pair is one between groups: the debiased estimate."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(30, 4))
    found = linear_cka([x, x[:, :3] + rng.normal(size=(30, 3))], list(range(30)))
    for part in ("value", "low", "high"):
        expected = getattr(found["debiased"], part)
        np.testing.assert_allclose(getattr(found["between_groups"], part), expected, atol=1e-12)


def test_four_groups_give_nothing() -> None:
    x = np.random.default_rng(2).normal(size=(20, 3))
    assert np.isnan(linear_cka([x, x], [i % 4 for i in range(20)])["between_groups"].value).all()


def draw(rng: np.random.Generator, *, shared: bool, speakers: bool):
    """Return x, y and speakers: 12 of them with 4 to 12 utterances of 8 features.

    x and y share three directions of the content, or nothing; each may have speaker effects of its
    own, as strong as the noise, that do not depend on each other.
    """
    groups = np.repeat(np.arange(12), rng.integers(4, 13, 12))
    content = rng.normal(size=(len(groups), 3)) * shared
    sides = []
    for mix in MIXES:
        noise = rng.normal(size=(len(groups), 8))
        sides.append(content @ mix + noise + speakers * rng.normal(size=(12, 8))[groups])
    return *sides, groups.tolist()


MIXES = np.random.default_rng(5).normal(size=(2, 3, 8))


def truth(*, shared: bool, speakers: bool) -> float:
    """CKA of the covariances from which `draw` draws utterances of different speakers."""
    a, b = MIXES * shared
    own = (1 + speakers) * np.eye(8)
    both, xx, yy = a.T @ b, a.T @ a + own, b.T @ b + own
    return np.sum(both**2) / np.sqrt(np.sum(xx**2) * np.sum(yy**2))


def simulate(*, shared: bool, speakers: bool):
    """Return errors, the share of intervals that cover the truth, and p-values, by estimator."""
    rng = np.random.default_rng([6, shared, speakers])
    true = truth(shared=shared, speakers=speakers)
    values = {name: [] for name in ("debiased", "between_groups")}
    covered, p_values = ({name: [] for name in values} for _ in range(2))
    for _ in range(DRAWS):
        x, y, groups = draw(rng, shared=shared, speakers=speakers)
        found = linear_cka([x, y], groups)
        for name, estimate in found.items():
            if name in values:
                values[name].append(estimate.value[0, 1])
                p_values[name].append(estimate.p_value[0, 1])
                covered[name].append(estimate.low[0, 1] <= true <= estimate.high[0, 1])
    return (
        {name: np.array(v) - true for name, v in values.items()},
        {name: np.mean(c) for name, c in covered.items()},
        {name: np.array(p) for name, p in p_values.items()},
    )


def test_independent_data() -> None:
    """Uniform p-values; intervals that hold 0 in at least 95 % of the draws.

    Each bar leaves three standard errors of 1,000 draws: .0068 for a coverage of .95; a uniform
    sample exceeds the Kolmogorov distance of `ksone.ppf(.999)` once in a thousand.
    """
    _, covered, p_values = simulate(shared=False, speakers=False)
    assert min(covered.values()) >= 0.95
    assert np.mean(p_values["between_groups"] < 0.05) <= 0.05
    assert stats.kstest(p_values["debiased"], "uniform").pvalue > 0.001


def test_dependent_data_are_covered() -> None:
    errors, covered, _ = simulate(shared=True, speakers=False)
    for name, share in covered.items():
        assert 0.92 <= share <= 0.98, name
        assert abs(errors[name].mean()) < 0.005


def test_independent_data_of_speakers() -> None:
    """Pairs of one speaker look similar in both: only pairs of different speakers say 0."""
    errors, covered, p_values = simulate(shared=False, speakers=True)
    assert covered["between_groups"] >= 0.95
    assert np.mean(p_values["between_groups"] < 0.05) <= 0.05
    assert np.mean(p_values["debiased"] < 0.05) > 0.5, "what speakers do to its p-value"
    assert abs(errors["between_groups"].mean()) < 4 * errors["between_groups"].std() / DRAWS**0.5
    assert errors["debiased"].mean() > 0.02, "the bias that it is there for"
    assert covered["debiased"] < 0.9


def test_dependent_data_of_speakers_are_covered() -> None:
    errors, covered, p_values = simulate(shared=True, speakers=True)
    assert np.mean(p_values["between_groups"] < 0.05) > 0.95, "power"
    assert 0.92 <= covered["between_groups"] <= 0.98
    assert abs(errors["between_groups"].mean()) < 0.01
