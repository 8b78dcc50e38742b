"""CKA with the Gaussian kernel: golden values, its limit, any cut of the work, faults."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorascope.analyses import kernel_cka, linear_cka
from lorascope.analyses.similarity.cka_estimate import estimate
from lorascope.analyses.similarity.gaussian import Gaussian, describe_kernel, median_distances
from lorascope.analyses.similarity.gram import sum_pairs
from lorascope.analyses.similarity.hsic import find_moments
from lorascope.analyses.similarity.matrices import sum_grams


def golden() -> list[np.ndarray]:
    rng = np.random.RandomState(1337)
    x = rng.randn(100, 10)
    return [x, rng.randn(100, 10) + x]


def rbf(arrays, factor: float, rule: str = "offdiagonal", groups=None, **options):
    n = len(arrays[0])

    def read(a: int, rows: np.ndarray) -> np.ndarray:
        return arrays[a][rows]

    moments = find_moments(read, len(arrays), n)
    sigmas = factor * median_distances(read, moments, np.arange(n), rule=rule)
    group_n = np.zeros(n, np.int64) if groups is None else groups
    sums = sum_pairs(read, moments, group_n, gaussian=Gaussian(sigmas), **options)
    return estimate(sums), sigmas * moments.scales, sums


def dense(x: np.ndarray, sigma: float) -> np.ndarray:
    square = np.square(x[:, None] - x[None]).sum(-1)
    return np.exp(-square / (2 * sigma**2))


@pytest.mark.parametrize(
    ("rule", "factor", "expected"),
    [
        ("kornblith", 0.5, 0.6548311822614982),  # the notebook of Kornblith et al.
        ("kornblith", 1.0, 0.575832),
        ("offdiagonal", 1.0, 0.5757367),  # repsim
    ],
)
def test_golden_values(rule, factor, expected) -> None:
    found, _, _ = rbf(golden(), factor, rule)
    digits = len(str(expected)) - 2
    assert found["biased"].value[0, 1] == pytest.approx(expected, abs=10.0**-digits)


@settings(max_examples=25, deadline=None)
@given(
    groups=st.lists(st.integers(0, 5), min_size=8, max_size=20),
    panel=st.integers(3, 25),
    tile_bytes=st.integers(64, 4000),
    workers=st.integers(1, 3),
)
def test_any_cut_gives_the_estimates_of_the_whole_matrix(
    groups, panel, tile_bytes, workers
) -> None:
    """Every estimate, interval and ceiling: those of exp(-d²/2σ²) centred as a whole."""
    group_n = np.unique(groups, return_inverse=True)[1].astype(np.int64)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(len(groups), 4)) + 50
    arrays = [x, x[:, :2] + rng.normal(size=(len(groups), 2))]
    cut = {"panel_rows": panel, "tile_bytes": tile_bytes, "workers": workers}
    found, sigmas, sums = rbf(arrays, 1.0, groups=group_n, **cut)
    grams = [dense(a, s) for a, s in zip(arrays, sigmas, strict=True)]
    expected = kernel_cka(grams, groups)
    for name, want in expected.items():
        for part in ("value", "low", "high", "null_ceiling", "p_value"):
            got = getattr(found[name], part)
            # distances of rows at 50 carry 1e-13; intervals divide by differences of groups
            np.testing.assert_allclose(got, getattr(want, part), atol=1e-9, equal_nan=True)
    whole = sum_grams(grams, group_n)
    scale = sums.norms_ln.sum(axis=1) / whole.norms_ln.sum(axis=1)
    np.testing.assert_allclose(sums.row_lng, whole.row_lng * scale[:, None, None], atol=1e-11)


def test_wide_kernels_become_linear() -> None:
    """exp(-d²/2σ²) - 1 is -d²/2σ² up to (d/σ)²/4: the difference falls with the square of σ."""
    arrays = golden()
    linear = linear_cka(arrays)
    last = np.inf
    for factor in (3, 30, 300, 1e5):
        found, _, _ = rbf(arrays, factor)
        gap = max(abs(found[n].value[0, 1] - linear[n].value[0, 1]) for n in ("debiased", "biased"))
        assert gap < max(last / 50, 1e-10)
        last = gap
    assert last < 1e-10, "no digits are lost where all values of the kernel are near 1"


def test_narrow_kernels_tell_nothing_but_the_diagonal() -> None:
    """Only the nearest samples see each other at σ of a tenth of the median distance."""
    found, _, _ = rbf(golden(), 0.1)
    assert found["biased"].value[0, 1] > 0.999
    assert abs(found["debiased"].value[0, 1]) < 0.01


def test_float32_products_stay_close() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(80, 300))
    arrays = [x, x + rng.normal(size=x.shape)]
    exact, _, _ = rbf(arrays, 1.0)
    single, _, _ = rbf(arrays, 1.0, dtype=np.float32)
    for name in ("debiased", "biased"):
        # float32 squared distances of 600 units carry 1e-7 of them, exponents 1e-7
        np.testing.assert_allclose(single[name].value, exact[name].value, atol=1e-5)


def test_names_say_the_bandwidth() -> None:
    assert describe_kernel(0.5, "offdiagonal") == "rbf(0.5 median)"
    assert describe_kernel(1.0, "kornblith") == "rbf(1 median with diagonal)"


def test_matrices_in_memory_equal_the_features() -> None:
    arrays, groups = golden(), [i % 7 for i in range(100)]
    features = linear_cka(arrays, groups)
    matrices = kernel_cka([arrays[0] @ arrays[0].T + 3, 9 * arrays[1] @ arrays[1].T], groups)
    for name, want in features.items():
        for part in ("value", "low", "high", "null_ceiling"):
            got = getattr(matrices[name], part)
            np.testing.assert_allclose(got, getattr(want, part), atol=1e-12, equal_nan=True)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [(np.eye(4), "same size"), (np.triu(np.ones((5, 5))), "not symmetric")],
)
def test_other_matrices_are_refused(wrong, says) -> None:
    with pytest.raises(ValueError, match=says):
        kernel_cka([np.eye(5), wrong])
