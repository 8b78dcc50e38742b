"""Angles and overlaps of subspaces: planted ones, scipy's, random ones, and table `angles`."""

import numpy as np
import pytest
from scipy.linalg import subspace_angles

from lorascope.analyses import analyze, to_tables
from lorascope.analyses.spectra.angles import rounding_angle
from lorascope.analyses.spectra.scatter import Scatter, add_rows
from lorascope.analyses.spectra.scatter_fold import leading_vectors
from lorascope.analyses.statistics.subspaces import overlap, principal_angles, random_overlap


def span(rng: np.random.Generator, features: int, count: int) -> np.ndarray:
    return np.linalg.qr(rng.normal(size=(features, count)))[0]


def test_planted_angles_come_back_at_any_size() -> None:
    """From 1e-9 degrees, where a cosine is 1, to a right angle, where a sine is."""
    degrees = np.array([1e-9, 1e-4, 30.0, 89.9999999])
    basis = span(np.random.default_rng(0), 20, 8)
    left, away = basis[:, :4], basis[:, 4:]
    right = left * np.cos(np.radians(degrees)) + away * np.sin(np.radians(degrees))
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(4, 4)))[0]
    # float64 resolves 1e-16 rad = 6e-15 degrees around each
    np.testing.assert_allclose(principal_angles(left @ turn, right), degrees, rtol=1e-5, atol=1e-13)


def test_spans_of_other_sizes_agree_with_scipy() -> None:
    rng = np.random.default_rng(2)
    left, right = span(rng, 15, 6), span(rng, 15, 2)
    expected = np.degrees(subspace_angles(left, right))[::-1]
    np.testing.assert_allclose(principal_angles(left, right), expected, rtol=1e-9)
    np.testing.assert_allclose(principal_angles(right, left), expected, rtol=1e-9)
    cosines = np.cos(np.radians(expected))
    assert overlap(left, right) == pytest.approx(np.mean(cosines**2))
    assert overlap(left, left[:, 2:4]) == pytest.approx(1)


def test_random_spans_share_the_larger_part_of_the_features() -> None:
    rng = np.random.default_rng(3)
    drawn = [overlap(span(rng, 30, 3), span(rng, 30, 9)) for _ in range(400)]
    # standard deviation of one draw is below 0.08, of the mean of 400 below 0.004
    assert np.mean(drawn) == pytest.approx(random_overlap(30, 3, 9), abs=0.016)
    assert random_overlap(30, 3, 9) == 0.3


@pytest.fixture(scope="module")
def angles(study):
    return to_tables(analyze(study.path, ["svd"]))["angles"]


def test_the_table_has_the_directions_of_the_rows(study, angles, one) -> None:
    row = one(angles, capture_a="frozen", capture_b="lora", site="resid_post", layer=2, span="top4")
    spans = []
    for capture in ("frozen", "lora"):
        x = study.rows(capture, "resid_post", 2).astype(np.float64)
        spans.append(np.linalg.svd(x - x.mean(axis=0), full_matrices=False)[2][:4].T)
    expected = np.degrees(subspace_angles(*spans))
    assert row["angle_smallest"] == pytest.approx(expected[-1], rel=1e-3)  # float32 products
    assert row["angle_largest"] == pytest.approx(expected[0], rel=1e-3)
    assert row["overlap"] == pytest.approx(np.mean(np.cos(np.radians(expected)) ** 2), rel=1e-4)
    assert row["overlap_random"] == 4 / 12
    assert row["n"] == len(study.rows("frozen", "resid_post", 2))


def test_the_same_frames_have_no_angle_and_each_pair_is_there_once(angles, pick) -> None:
    same = pick(angles, site="embed", capture_a="frozen", capture_b="untrained")
    assert (same["overlap"] > 1 - 1e-9).all()
    assert (same["angle_largest"] < 1e-4).all()
    places = ["capture_a", "capture_b", "site", "layer", "span"]
    assert not angles.duplicated(places).any()
    pairs = set(zip(angles["capture_a"], angles["capture_b"], strict=True))
    assert pairs == {("frozen", "untrained"), ("frozen", "lora"), ("untrained", "lora")}


def test_sv90_compares_as_many_as_each_capture_needs(study, angles, one) -> None:
    svd = to_tables(analyze(study.path, ["svd"]))["svd"]
    row = one(angles, capture_a="frozen", capture_b="lora", site="mlp_out", layer=0, span="sv90")
    for side in "ab":
        own = one(svd, capture=row[f"capture_{side}"], site="mlp_out", layer=0, centred=True)
        assert row[f"directions_{side}"] == own["sv90"]
    assert row["overlap_random"] == max(row["directions_a"], row["directions_b"]) / 12


def test_directions_that_are_not_there_give_a_reason(angles, one) -> None:
    """B outputs of the untrained adapter are 0."""
    row = one(angles, capture_a="untrained", capture_b="lora", site="lora_b.v_proj", layer=0)
    assert row["reason"] == "untrained: constant features"
    assert np.isnan(row["overlap"])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_rounding_turns_no_span_further_than_its_row_says(dtype, offset) -> None:
    """Scatters of the same rows in other slabs, beside the one of long double sums."""
    rng = np.random.default_rng(4)
    x = rng.normal(size=(3000, 24)) * np.exp(-0.1 * np.arange(24)) + offset * rng.normal(size=24)
    x = x.astype(dtype)
    centred = x.astype(np.longdouble) - x.astype(np.longdouble).mean(axis=0)
    exact = (centred.T @ centred).astype(np.float64)
    sigma = np.sqrt(np.linalg.eigvalsh(exact)[::-1])
    seen = 0.0
    for cuts in (1, 7, 40):
        state = Scatter.empty(24, "cpu")
        for rows in np.array_split(x, cuts):
            add_rows(state, rows)
        for count in (1, 4, 16, 24):
            turned = principal_angles(
                leading_vectors(exact, count), leading_vectors(state.scatter_dd, count)
            )
            bound = rounding_angle(sigma, count, x.itemsize)
            assert turned[-1] <= bound
            seen = max(seen, turned[-1] / bound)
    assert seen > 0.01  # a bound that says something
