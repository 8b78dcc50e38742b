"""Edges of noise against closed forms, drawn noise, and columns that are really shuffled."""

import json

import numpy as np
import pytest

from lorascope.analyses import MemoryBudgetError, analyze, to_tables
from lorascope.analyses.spectra.nulls import compare_with_noise, find_noise, shuffled_edge


def eigenvalues(x: np.ndarray) -> np.ndarray:
    return np.linalg.svd(x - x.mean(axis=0), compute_uv=False) ** 2 / len(x)


def test_equal_variances_give_the_marchenko_pastur_edge() -> None:
    for features, n in ((10, 1000), (50, 40), (1, 7)):
        closed = 3 * (1 + np.sqrt(features / n)) ** 2
        assert shuffled_edge(np.full(features, 3.0), n) == pytest.approx(closed, rel=1e-9)
    flat = find_noise(np.full(10, 3.0), 1000, 10)
    assert flat.variance == pytest.approx(3)
    assert flat.edge == pytest.approx(3 * (1 + np.sqrt(0.01)) ** 2)
    assert flat.above == 0


def test_noise_stays_below_and_directions_are_counted() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 200))
    noise = find_noise(eigenvalues(x), 2000, 200)
    assert noise.above <= 1  # the largest of noise lies within 2 % of the edge, on either side
    assert noise.edge == pytest.approx(eigenvalues(x)[0], rel=0.03)
    x[:, :3] *= 5  # three directions of 25 times the variance
    found = find_noise(eigenvalues(x), 2000, 200)
    assert found.above in (3, 4)
    assert found.variance == pytest.approx(1, rel=0.03)  # the three do not raise it


def test_the_shuffled_edge_is_the_limit_of_columns_that_are_shuffled() -> None:
    """Correlated columns of very different variance, each shuffled on its own, in two sizes."""
    rng = np.random.default_rng(1)
    gaps = []
    for n, features in ((600, 150), (2400, 600)):
        shared = rng.normal(size=(n, 2)) @ rng.normal(size=(2, features))
        x = (shared + rng.normal(size=(n, features))) * np.linspace(0.2, 3, features)
        edge = shuffled_edge(x.var(axis=0), n)
        drawn = [eigenvalues(rng.permuted(x, axis=0))[0] for _ in range(3)]
        gaps.append(edge / np.mean(drawn) - 1)
        assert np.sum(eigenvalues(x) > edge) == 2
    # finite data stay below the limit, by a part that falls like n^(-2/3): 0.4 for four times n
    assert 0 < gaps[1] < 0.6 * gaps[0] < 0.06


def test_one_large_column_and_a_scale() -> None:
    variance = np.concatenate([[1e6], np.ones(99)])
    edge = shuffled_edge(variance, 400)
    # no closer than the fluctuation of the one column, whose sample variance is 1e6
    assert 1e6 < edge < 1.2e6
    assert shuffled_edge(1e-12 * variance, 400) == pytest.approx(1e-12 * edge, rel=1e-9)


def test_too_little_has_no_edge() -> None:
    none = compare_with_noise(np.ones(3), np.ones(3), rows=9, independent=1, dimension=3)
    assert none.pop("independent") == 1
    assert all(np.isnan(value) for value in none.values())


def test_a_spectrum_that_only_falls_has_no_noise() -> None:
    sigma = np.exp(-0.2 * np.arange(100))  # every direction far above the ones after it
    found = compare_with_noise(sigma, np.ones(100), rows=1000, independent=1000, dimension=100)
    assert find_noise(np.square(sigma) / 1000, 1000, 100).above > 50
    assert all(np.isnan(found[name]) for name in ("noise_variance", "mp_edge", "above_mp"))
    assert np.isfinite(found["shuffled_edge"])


def test_samples_count_as_independent_not_frames(study, one) -> None:
    svd = to_tables(analyze(study.path, ["svd"], captures=["frozen"]))["svd"]
    row = one(svd, site="resid_post", layer=2, centred=True)
    x = study.rows("frozen", "resid_post", 2).astype(np.float64)
    assert row["n"] == len(x)
    assert row["independent"] == len(study.ids)
    expected = find_noise(eigenvalues(x), len(study.ids), 12)
    assert row["mp_edge"] == pytest.approx(expected.edge, rel=1e-5)  # float32 products
    assert row["above_mp"] == expected.above
    edge = shuffled_edge(x.var(axis=0), len(study.ids))
    assert row["shuffled_edge"] == pytest.approx(edge, rel=1e-5)
    assert row["above_shuffled"] == np.sum(eigenvalues(x) > edge)


def test_an_analysis_that_does_not_fit_leaves_the_others(study) -> None:
    """1.3 MB hold the spectra, and not the 1.2 MB of float64 tiles of contribution beside rows."""
    results = analyze(study.path, memory="1.3MB", workers=1)
    assert "svd" in results
    assert "too little" in json.loads(results["svd"].attrs["skipped"])["contribution"]
    with pytest.raises(MemoryBudgetError, match="too little"):
        analyze(study.path, ["contribution"], memory="1.3MB", workers=1)
