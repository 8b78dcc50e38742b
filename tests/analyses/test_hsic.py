"""CKA kernels: golden values, dense references, invariances, and any cut into tiles and panels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lorascope.analyses.similarity.cka_estimate import biased_ceiling, debiased_ceiling, linear_cka
from lorascope.analyses.similarity.gram import sum_pairs
from lorascope.analyses.similarity.hsic import find_moments, hsic
from lorascope.analyses.similarity.minibatch import sum_batch


def golden() -> tuple[np.ndarray, np.ndarray]:
    """The published inputs: y depends on x."""
    rng = np.random.RandomState(1337)
    x = rng.randn(100, 10)
    return x, rng.randn(100, 10) + x


def dense_unbiased(x: np.ndarray, y: np.ndarray) -> float:
    """HSIC₁ by its definition, with explicit matrices of ones."""
    n = len(x)
    k, el, ones = x @ x.T, y @ y.T, np.ones(n)
    np.fill_diagonal(k, 0)
    np.fill_diagonal(el, 0)
    inner = np.trace(k @ el) + (ones @ k @ ones) * (ones @ el @ ones) / ((n - 1) * (n - 2))
    return (inner - 2 / (n - 2) * (ones @ k @ el @ ones)) / (n * (n - 3))


def dense_biased(x: np.ndarray, y: np.ndarray) -> float:
    n = len(x)
    h = np.eye(n) - 1 / n
    return float(np.sum((h @ x @ x.T @ h) * (h @ y @ y.T @ h)) / (n - 1) ** 2)


def ratio(function, x: np.ndarray, y: np.ndarray) -> float:
    return function(x, y) / np.sqrt(function(x, x) * function(y, y))


def correlated(seed: int, n: int, widths: list[int]) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(n, 3))
    return [rng.normal(size=(n, d)) + shared @ rng.normal(size=(3, d)) for d in widths]


def sums_of(arrays: list[np.ndarray], groups: np.ndarray, **options):
    def read(a: int, rows: np.ndarray) -> np.ndarray:
        return arrays[a][rows]

    return sum_pairs(read, find_moments(read, len(arrays), len(groups)), groups, **options)


def test_golden_values() -> None:
    found = linear_cka(golden())
    assert found["biased"].value[0, 1] == pytest.approx(0.5576132566117588, abs=1e-14)
    assert found["debiased"].value[0, 1] == pytest.approx(0.513456489505526, abs=1e-14)


def test_an_offset_changes_nothing() -> None:
    x, y = golden()
    exact, moved = linear_cka([x, y]), linear_cka([x + 1000, y])
    for name, found in exact.items():
        # float64 holds 1000 + x to 1e-13
        np.testing.assert_allclose(moved[name].value, found.value, atol=1e-10, rtol=0)
    single = linear_cka([(x + 1000).astype(np.float32), y.astype(np.float32)])
    for name, found in exact.items():
        # float32 holds 1000 + x to 3e-5, and the similarity averages that over 1,000 numbers
        np.testing.assert_allclose(single[name].value, found.value, atol=1e-5, rtol=0)


def test_unbiased_and_biased_hsic_follow_their_definitions() -> None:
    arrays = correlated(0, 17, [2, 5, 30])
    unbiased, biased, n = hsic(sums_of(arrays, np.zeros(17, np.int64)))
    assert n == 17
    for a, x in enumerate(arrays):
        for b, y in enumerate(arrays):
            # float64 sums of 17² terms
            assert unbiased[a, b] == pytest.approx(dense_unbiased(x, y) / _scale(x, y), rel=1e-12)
            assert biased[a, b] == pytest.approx(dense_biased(x, y) / _scale(x, y), rel=1e-12)


def _scale(x: np.ndarray, y: np.ndarray) -> float:
    """The kernel works on features of unit mean square distance from the mean."""
    return float(np.prod([np.square(a - a.mean(axis=0)).sum() / len(a) for a in (x, y)]))


@settings(max_examples=40, deadline=None)
@given(
    groups=st.lists(st.integers(0, 3), min_size=8, max_size=20),
    panel=st.integers(3, 25),
    tile_bytes=st.integers(64, 4000),
    workers=st.integers(1, 3),
)
def test_any_cut_gives_the_same_sums_and_subsets(groups, panel, tile_bytes, workers) -> None:
    group_n = np.unique(groups, return_inverse=True)[1]
    arrays = correlated(1, len(group_n), [2, 6])
    whole = sums_of(arrays, group_n)
    cut = sums_of(arrays, group_n, panel_rows=panel, tile_bytes=tile_bytes, workers=workers)
    for group in [None, *range(whole.n_groups)]:
        keep = np.ones(len(group_n), bool) if group is None else group_n != group
        for sums in (whole, cut):
            unbiased, biased, n = hsic(sums, without=group)
            assert n == keep.sum()
            if n < 4:
                assert np.isnan(unbiased).all()
                continue
            x, y = (a[keep] for a in arrays)
            scale = _scale(*arrays)
            size = np.abs(biased).max()  # HSIC₁ may be near 0: errors scale with the terms
            assert abs(unbiased[0, 1] - dense_unbiased(x, y) / scale) < 1e-12 * max(size, 1)
            assert abs(biased[0, 1] - dense_biased(x, y) / scale) < 1e-12 * max(size, 1)


def test_float32_products_stay_close() -> None:
    arrays = correlated(2, 60, [40, 300])
    exact = hsic(sums_of(arrays, np.zeros(60, np.int64)))[0]
    single = hsic(sums_of(arrays, np.zeros(60, np.int64), dtype=np.float32))[0]
    # 60² products of relative error 1e-7 that do not cancel after U-centring
    np.testing.assert_allclose(single, exact, rtol=2e-6)


def test_invariances() -> None:
    x, y = correlated(3, 50, [8, 8])
    rng = np.random.default_rng(4)
    rotation = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    skew = np.diag(10.0 ** np.arange(8))
    groups = (np.arange(50) % 7).tolist()
    base, changed, skewed = (
        linear_cka([a, y], groups) for a in (x, 7 * x @ rotation + 3, x @ skew)
    )
    for name in base:
        assert changed[name].value[0, 1] == pytest.approx(base[name].value[0, 1], abs=1e-12)
        assert abs(skewed[name].value[0, 1] - base[name].value[0, 1]) > 1e-2


def test_debiased_is_never_clamped() -> None:
    values = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        pair = [rng.normal(size=(12, 200)) for _ in range(2)]
        values.append(linear_cka(pair)["debiased"].value[0, 1])
    assert min(values) < -0.05
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(40)


def test_paper_regime_biased_is_all_ceiling() -> None:
    """n = 40 utterances of T = 1500 frames and r = 32, 85 % shared padding, independent data."""
    rng = np.random.default_rng(0)
    n, frames, rank, valid = 40, 1500, 32, 225
    padding = rng.normal(size=(2, frames - valid, rank))
    flat = []
    for side in range(2):
        x = np.empty((n, frames, rank))
        x[:, :valid] = rng.normal(size=(n, valid, rank))
        x[:, valid:] = padding[side]
        flat.append(x.reshape(n, -1).astype(np.float32))
    found = linear_cka(flat)
    assert found["biased"].value[0, 1] >= 0.99
    assert abs(found["debiased"].value[0, 1]) < 0.05
    ceiling = found["biased"].null_ceiling[0, 1]
    assert found["biased"].value[0, 1] == pytest.approx(ceiling, abs=2e-3)


@pytest.mark.parametrize(("n", "d"), [(32, 8), (64, 8), (128, 8), (40, 32), (40, 1280)])
def test_biased_ceiling_is_the_mean_of_independent_data(n: int, d: int) -> None:
    rng = np.random.default_rng(n * d)
    values = [
        linear_cka([rng.normal(size=(n, d)) for _ in range(2)])["biased"].value[0, 1]
        for _ in range(30)
    ]
    expected = biased_ceiling(np.full(2, float(d)), n)[0, 1]
    assert expected == pytest.approx(d / (n + d))
    # the closed form is the leading term; its error is of order 1/n
    assert np.mean(values) == pytest.approx(expected, abs=0.03)


def test_debiased_ceiling_is_exceeded_in_5_percent() -> None:
    rng = np.random.default_rng(0)
    n = 40
    arrays = [rng.normal(size=(n, 400)) for _ in range(60)]
    found = linear_cka(arrays)["debiased"]
    off = found.value[np.triu_indices(60, 1)]
    share = np.mean(off > debiased_ceiling(n))
    # 1,770 pairs of 60 arrays: about 3 standard errors of a share of 0.05
    assert share == pytest.approx(0.05, abs=0.02)
    p = found.p_value[np.triu_indices(60, 1)]
    assert np.mean(p < 0.05) == share
    assert np.mean(p < 0.5) == pytest.approx(0.5, abs=0.05)


def test_jackknife_interval_equals_refits() -> None:
    x, y = correlated(5, 42, [4, 9])
    groups = np.arange(42) % 6
    found = linear_cka([x, y], groups.tolist())
    for name, function in (("debiased", dense_unbiased), ("biased", dense_biased)):
        left_out = [ratio(function, x[groups != g], y[groups != g]) for g in range(6)]
        error = np.sqrt(5 / 6 * np.sum(np.square(left_out - np.mean(left_out))))
        value = ratio(function, x, y)
        half = stats.t.ppf(0.975, 5) * error
        assert found[name].value[0, 1] == pytest.approx(value, abs=1e-12)
        assert found[name].low[0, 1] == pytest.approx(value - half, abs=1e-10)
        assert found[name].high[0, 1] == pytest.approx(value + half, abs=1e-10)


def test_two_groups_give_no_interval() -> None:
    found = linear_cka(correlated(6, 20, [3, 3]), [i % 2 for i in range(20)])
    assert np.isnan(found["debiased"].low).all()


def test_closed_form_of_a_projection() -> None:
    """Biased CKA of z and zB' from r × r matrices: tr(S²M)/√(tr S² tr(SMSM)), ANALYSES 1.3.4."""
    rng = np.random.default_rng(7)
    z, b = rng.normal(size=(300, 6)) * np.arange(1, 7), rng.normal(size=(40, 6))
    centred = z - z.mean(axis=0)
    s, m = centred.T @ centred, b.T @ b
    expected = np.trace(s @ s @ m) / np.sqrt(np.trace(s @ s) * np.trace(s @ m @ s @ m))
    assert linear_cka([z, z @ b.T])["biased"].value[0, 1] == pytest.approx(expected, rel=1e-12)


def test_constant_and_broken_features_are_found() -> None:
    rng = np.random.default_rng(8)
    x = rng.normal(size=(10, 3))
    broken = x.copy()
    broken[4, 1] = np.nan
    arrays = [x, np.full((10, 3), 0.1, np.float32), np.zeros((10, 3)), broken]
    moments = find_moments(lambda a, rows: arrays[a][rows], 4, 10)
    assert [bool(fault) for fault in moments.faults] == [False, True, True, True]
    assert "NaN" in moments.faults[3]
    assert moments.faults[1] == moments.faults[2] == "constant features"


def test_arrays_of_other_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="the same samples"):
        linear_cka([np.zeros((5, 2)), np.zeros((6, 2))])


def test_minibatch_of_everything_is_exact() -> None:
    x, y = correlated(9, 30, [5, 12])
    total = np.zeros((2, 2))
    sum_batch([x + 1000, y], total)
    assert total[0, 1] == pytest.approx(30 * 27 * dense_unbiased(x, y), rel=1e-9)
    assert total[0, 0] == pytest.approx(30 * 27 * dense_unbiased(x, x), rel=1e-9)


def test_sum_then_ratio_is_close_to_exact() -> None:
    """4,096 rows in batches of 256: the ratio of sums is within 3 of its standard deviation."""
    x, y = correlated(10, 4096, [20, 30])
    exact = linear_cka([x, y])["debiased"].value[0, 1]
    order = np.random.default_rng(0).permutation(4096)
    total = np.zeros((2, 2))
    for batch in np.array_split(order, 16):
        sum_batch([x[batch], y[batch]], total)
    found = total[0, 1] / np.sqrt(total[0, 0] * total[1, 1])
    assert found == pytest.approx(exact, abs=0.01)
