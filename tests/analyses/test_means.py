"""Means of columns: numpy's own, whatever the shape, and as exact."""

import numpy as np
import pytest

from lorascope.analyses.statistics.means import column_means


@pytest.mark.parametrize(("rows", "width"), [(1, 3), (63, 32), (64, 32), (700, 7), (9, 4000)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_means_of_any_shape(rows, width, dtype):
    """1e-15 of the offset: float64 sums in another order; a float32 sum would be off by 1e-5."""
    x = (np.random.default_rng(0).standard_normal((rows, width)) + 1000).astype(dtype)
    for given in (x, np.asfortranarray(x), x[::-1]):
        found = column_means(given)
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, x.astype(np.float64).mean(axis=0), rtol=4e-15)


def test_what_is_not_finite_stays_so():
    x = np.zeros((200, 3), np.float32)
    x[150, 0], x[199, 1] = np.inf, np.nan
    found = column_means(x)
    assert np.isinf(found[0])
    assert np.isnan(found[1])
    assert found[2] == 0
