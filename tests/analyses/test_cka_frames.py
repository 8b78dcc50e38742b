"""Minibatch CKA of frames: near the exact value, and the same however the store was cut."""

from __future__ import annotations

import numpy as np
import pytest

from lorascope.analyses import analyze, linear_cka, to_tables
from lorascope.analyses.similarity.minibatch import sum_batch

N_SAMPLES, N_ROWS, WIDTH = 300, 8, 6


def correlated() -> list[np.ndarray]:
    """Return two layers [sample, row, feature] that share half of what they hold."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((N_SAMPLES, N_ROWS, WIDTH)) * np.linspace(1, 3, WIDTH)
    return [x, x @ rng.standard_normal((WIDTH, WIDTH)) + 2 * rng.standard_normal(x.shape)]


@pytest.fixture(scope="module")
def layers() -> list[np.ndarray]:
    return correlated()


@pytest.fixture(scope="module")
def path(tmp_path_factory, make_store, layers):
    return make_store(tmp_path_factory.mktemp("frames") / "s", layers)


def frames(path, **options):
    table = to_tables(analyze(path, ["cka"], **options))["cka"]
    return table[table["granularity"] == "frame"].reset_index(drop=True)


def test_value_is_near_that_of_all_frames(path, layers, one):
    """0.008 is five deviations over seeds (0.0015, of 30): each frame meets few of the others."""
    exact = linear_cka([x.reshape(-1, WIDTH) for x in layers])["debiased"].value[0, 1]
    for seed in range(3):
        row = one(frames(path, seed=seed), layer_a=0, layer_b=1)
        assert row["value"] == pytest.approx(exact, abs=0.008)
        assert row["estimator"] == "minibatch"
        assert row["n"] == N_SAMPLES * N_ROWS
    own = one(frames(path), layer_a=1, layer_b=1)
    assert own["value"] == pytest.approx(1, abs=1e-12)


def test_independent_frames_are_around_zero(tmp_path, make_store, one):
    rng = np.random.default_rng(1)
    layers = [rng.standard_normal((120, 4, 50)) for _ in range(2)]
    row = one(frames(make_store(tmp_path / "s", layers)), layer_a=0, layer_b=1)
    # The ceiling is 1.6 deviations of one draw of each utterance; four draws are averaged here.
    assert abs(row["value"]) < 2 * row["null_ceiling"]
    assert 0 < row["null_ceiling"] < 0.05


def test_segments_workers_and_memory_change_nothing(tmp_path, make_store, path, layers):
    """Which frames meet in a batch depends on seed and id alone, so the sums are the same."""
    expected = frames(path)["value"]
    cut = make_store(tmp_path / "s", layers, segment_samples=37)
    for other, options in (
        (cut, {"workers": 1}),
        (cut, {"workers": 3, "memory": "16MB"}),
        (path, {"workers": 2, "memory": "16MB"}),
    ):
        # 1e-12: BLAS may add in another order with another number of threads.
        np.testing.assert_allclose(frames(other, **options)["value"], expected, rtol=1e-12)


def test_a_batch_is_unbiased_hsic_by_its_definition():
    """Σ over batches of n(n-3) HSIC₁ (Song et al. 2012), in float64."""
    rng = np.random.default_rng(2)
    total, expected = np.zeros((2, 2)), np.zeros((2, 2))
    for n in (9, 4):
        features = [rng.standard_normal((n, d)) + 2 for d in (3, 20)]
        sum_batch(features, total)
        grams = [x @ x.T - np.diag(np.square(x).sum(1)) for x in features]
        for a, k in enumerate(grams):
            for b, m in enumerate(grams):
                cross = k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k @ m).sum()
                expected[a, b] += np.trace(k @ m) + cross
    np.testing.assert_allclose(total, expected, rtol=1e-10)
