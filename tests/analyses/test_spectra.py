"""Scatter matrices and spectra against numpy's SVD, under any cut."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorascope.analyses.spectra.scatter import Scatter, add_rows, merge_scatter
from lorascope.analyses.spectra.spectrum import describe_spectrum, singular_values


def fold(x: np.ndarray, cuts: list[int]) -> Scatter:
    """Add the pieces of x to two states, then merge them."""
    states = [Scatter.empty(x.shape[1]), Scatter.empty(x.shape[1])]
    for i, part in enumerate(np.split(x, sorted(cuts))):
        add_rows(states[i % 2], part)
    return merge_scatter(*states)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 40), max_size=8), st.sampled_from([0.0, 1000.0]))
def test_any_cut_gives_the_scatter_of_the_whole(cuts: list[int], offset: float) -> None:
    x = np.random.default_rng(0).normal(size=(40, 6)) + offset
    state = fold(x, cuts)
    centred = x - x.mean(axis=0)
    assert state.n == 40
    # float64 throughout; an offset of 1000 costs the 13 digits of x itself
    np.testing.assert_allclose(state.scatter_dd, centred.T @ centred, atol=1e-9)
    np.testing.assert_allclose(state.uncentred(), x.T @ x, rtol=1e-12, atol=1e-9)


def test_merge_is_associative_and_empty_is_neutral() -> None:
    rng = np.random.default_rng(1)
    parts = [rng.normal(size=(n, 4)) + 5 for n in (1, 9, 30)]

    def states() -> list[Scatter]:
        return [add_rows(Scatter.empty(4), part) for part in parts]

    a, b, c = states()
    left = merge_scatter(merge_scatter(a, b), c)
    a, b, c = states()
    right = merge_scatter(a, merge_scatter(b, c))
    np.testing.assert_allclose(left.scatter_dd, right.scatter_dd, rtol=1e-12)
    np.testing.assert_allclose(left.mean_d, right.mean_d, rtol=1e-13)
    same = merge_scatter(Scatter.empty(4), states()[2])
    np.testing.assert_array_equal(same.scatter_dd, states()[2].scatter_dd)


def test_float32_rows_with_an_offset_keep_their_spectrum() -> None:
    rng = np.random.default_rng(2)
    x = (rng.normal(size=(9000, 24)) / np.arange(1, 25) + 1000).astype(np.float32)
    exact = np.linalg.svd(x.astype(np.float64) - x.astype(np.float64).mean(axis=0))[1]
    found = singular_values(fold(x, [3000, 7000]).scatter_dd, 24)
    # float32 products of 4,096 rows, summed in float64
    np.testing.assert_allclose(found, exact, rtol=1e-5)


def test_singular_values_equal_numpy() -> None:
    x = np.random.default_rng(3).normal(size=(50, 12)) * np.logspace(0, -4, 12)
    found = singular_values(fold(x, [10]).uncentred(), 12)
    # the square of 1e-4 in float64 leaves 8 of 16 digits
    np.testing.assert_allclose(found, np.linalg.svd(x)[1], rtol=1e-7)


def test_summaries_of_known_spectra() -> None:
    flat = describe_spectrum(np.ones(20))
    assert flat["sv90"] == 18
    assert flat["sv90_interpolated"] == pytest.approx(18)
    assert flat["top10_energy"] == pytest.approx(0.5)
    for name in ("erank", "erank_energy", "stable_rank", "participation_ratio"):
        assert flat[name] == pytest.approx(20)
    one = describe_spectrum(np.array([3.0, 0.0, 0.0]))
    assert one["sv90"] == 1
    assert one["sv90_interpolated"] == pytest.approx(0.9)
    assert one["erank"] == one["stable_rank"] == pytest.approx(1)
    # energies 0.8 and 0.2; 0.9 lies half way between 0.8 and 1
    two = describe_spectrum(np.array([2.0, 1.0]))
    assert two["sv90"] == 2
    assert two["sv90_interpolated"] == pytest.approx(1.5)
    p = np.array([2 / 3, 1 / 3])
    assert two["erank"] == pytest.approx(np.exp(-(p * np.log(p)).sum()))
    q = np.array([0.8, 0.2])
    assert two["erank_energy"] == pytest.approx(np.exp(-(q * np.log(q)).sum()))
    assert two["stable_rank"] == pytest.approx(1.25)
    assert two["participation_ratio"] == pytest.approx(25 / 17)


def test_nothing_has_no_summary() -> None:
    assert all(np.isnan(value) for value in describe_spectrum(np.zeros(3)).values())
    assert all(np.isnan(value) for value in describe_spectrum(np.empty(0)).values())
