"""Singular values that are rounding do not count as directions."""

import numpy as np
import pytest

from lorascope.analyses.spectra.scatter import Scatter, add_rows
from lorascope.analyses.spectra.spectrum import describe_spectrum, singular_values


def of_rank(rank: int, n: int, width: int, sizes: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(rank)
    return (rng.normal(size=(n, rank)) * sizes) @ rng.normal(size=(rank, width))


def scatter(x: np.ndarray) -> Scatter:
    return add_rows(Scatter.empty(x.shape[1]), x)


@pytest.mark.parametrize("offset", [0.0, 5.0])
@pytest.mark.parametrize("smallest", [1.0, 0.01])
def test_rank_31_in_float32_has_the_effective_rank_of_float64(smallest, offset) -> None:
    x = of_rank(31, 1500, 320, np.geomspace(1, smallest, 31)) + offset
    rows = x.astype(np.float32)
    exact = rows.astype(np.float64)
    state = scatter(rows)
    for found, reference in (
        (state.scatter_dd, exact - exact.mean(axis=0)),
        (state.uncentred(), exact),
    ):
        sigma = singular_values(found, 320)
        expected = np.linalg.svd(reference, compute_uv=False)
        # where the offset is most of the rows it hides no direction: 32 of them
        assert np.count_nonzero(sigma) == 31 + (found is not state.scatter_dd and offset > 0)
        erank = describe_spectrum(expected)["erank"]
        assert describe_spectrum(sigma)["erank"] == pytest.approx(erank, rel=1e-3)
    raw = np.sqrt(np.maximum(np.linalg.eigvalsh(state.scatter_dd), 0))[::-1]
    if not offset:  # what is left out is no small matter
        erank = describe_spectrum(np.linalg.svd(exact - exact.mean(axis=0))[1])["erank"]
        assert describe_spectrum(raw)["erank"] > 1.005 * erank


@pytest.mark.parametrize(("n", "width", "rank"), [(60, 64, 40), (2000, 128, 100), (500, 40, 3)])
def test_what_rounding_leaves_is_cut_at_any_size(n, width, rank) -> None:
    """5 or more directions that are not there: some come out below 0 and tell of the others."""
    for axis in (np.ones(width), np.geomspace(1, 1e-3, width)):
        x = (of_rank(rank, n, width, np.ones(rank)) * axis).astype(np.float32)
        assert np.count_nonzero(singular_values(scatter(x).scatter_dd, width)) <= min(rank, n - 1)


def test_full_rank_keeps_every_direction() -> None:
    """A direction 300 times smaller than what float32 tells from 0 elsewhere stays: axes are exact.

    Such are the massive activations of transformers beside all others.
    """
    x = np.random.default_rng(0).normal(size=(400, 24)).astype(np.float32)
    x[:, 0] *= 1e6
    sigma = singular_values(scatter(x).scatter_dd, 24)
    expected = np.linalg.svd(x.astype(np.float64) - x.astype(np.float64).mean(axis=0))[1]
    np.testing.assert_allclose(sigma, expected, rtol=1e-4)


def test_float64_keeps_its_resolution() -> None:
    """1.2e-8 of the largest is there to 20 %, as the square of it is near the last digit."""
    sizes = np.array([1.0, 1e-2, 1e-4, 1.2e-8])
    x = np.linalg.qr(np.random.default_rng(1).normal(size=(200, 4)))[0]
    x = (x - x.mean(axis=0)) * sizes
    x = x - x.mean(axis=0)
    expected = np.linalg.svd(x, compute_uv=False)
    np.testing.assert_allclose(singular_values(scatter(x).scatter_dd, 4), expected, rtol=0.2)
