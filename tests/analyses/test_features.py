"""The feature form of linear HSIC: the same sums as the Gram form, chosen where it costs less."""

import numpy as np
import pytest

from lorascope.analyses import CKA, analyze, linear_cka
from lorascope.analyses.similarity.features import prefers_features, sum_features
from lorascope.analyses.similarity.gram import sum_pairs
from lorascope.analyses.similarity.hsic import find_moments, hsic
from lorascope.store import Site, create_store

WIDTHS = (3, 5, 1)


def arrays(n: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(n, 2))
    made = [rng.normal(size=(n, d)) + shared @ rng.normal(size=(2, d)) + 1000 for d in WIDTHS]
    return [*made, np.ones((n, 2))]  # the last one is constant: no similarity with anything


@pytest.mark.parametrize("n_groups", [1, 4])
def test_sums_are_those_of_the_gram_form(n_groups: int) -> None:
    x = arrays(60)
    groups = np.random.default_rng(1).integers(0, n_groups, 60)

    def read(a: int, rows: np.ndarray) -> np.ndarray:
        return x[a][rows]

    moments = find_moments(read, len(x), 60)
    by_features = sum_features(read, moments, groups)
    by_gram = sum_pairs(read, moments, groups)
    for without in [None, *range(n_groups if n_groups > 1 else 0)]:
        found, expected = hsic(by_features, without=without), hsic(by_gram, without=without)
        assert found[2] == expected[2]
        for got, want in zip(found[:2], expected[:2], strict=True):
            # both in float64 of features scaled to 1: rounding of some hundred sums
            np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-13)


def test_chosen_where_samples_outnumber_features() -> None:
    assert prefers_features([4], 100)
    assert not prefers_features([1280] * 33, 500)


def test_a_store_of_many_samples_takes_it(tmp_path) -> None:
    x = arrays(200)[:2]
    sites = [
        Site(f"s{i}.mean_valid", None, v.shape[1], "float64", kind="sample")
        for i, v in enumerate(x)
    ]
    with create_store(tmp_path / "s.zarr", capture="a", sites=sites) as writer:
        for i in range(200):
            values = {f"s{a}.mean_valid": v[i] for a, v in enumerate(x)}
            writer.append(f"u{i:03d}", values, groups={"speaker": str(i % 8)})
    table = analyze(tmp_path / "s.zarr", [CKA(frames=False)])["cka"]
    assert table.attrs["linear_form"].startswith("features")
    frame = table.to_dataframe().set_index(["site_a", "site_b", "estimator"])
    expected = linear_cka(x, [str(i % 8) for i in range(200)])  # by Gram matrices
    for name, one in expected.items():
        row = frame.loc["s0", "s1", name]
        assert row["value"] == pytest.approx(one.value[0, 1], abs=1e-10)
        assert row["value_low"] == pytest.approx(one.low[0, 1], abs=1e-9)
