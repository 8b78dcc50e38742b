"""Singular values by streaming QR against numpy's SVD of the same rows in float64."""

import numpy as np
import pytest

from lorascope.analyses import ArrayKey, Block, Piece, analyze, to_tables
from lorascope.analyses.spectra.scatter import Scatter, add_rows
from lorascope.analyses.spectra.spectrum import singular_values
from lorascope.analyses.spectra.svd import SVD
from lorascope.analyses.spectra.tail import TailFold

KEY = ArrayKey("a", "s", 0)


def falling(n: int, width: int, mean: float) -> np.ndarray:
    """Float32 rows whose singular values fall like 1/i⁴, to 1e-6 of the largest and below."""
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(width, width)))[0]
    x = rng.normal(size=(n, width)) / np.arange(1, width + 1) ** 4
    return (x @ turn + mean).astype(np.float32)


def streamed(x: np.ndarray, cuts: list[int]) -> tuple[np.ndarray, np.ndarray]:
    fold = TailFold(KEY, x.shape[1], x.shape[1])
    states = [fold.empty(), fold.empty()]
    for i, part in enumerate(np.split(x, cuts)):
        piece = Piece(part, np.array([i]), np.array([0, len(part)]))
        states[i % 2] = fold.add(states[i % 2], Block(i, i + 1, {KEY: piece}))
    found = fold.finish(fold.merge(*states))
    return found.centred, found.uncentred


@pytest.mark.parametrize("mean", [0.0, 0.01])
def test_the_tail_is_numpys_where_the_scatter_loses_it(mean) -> None:
    x = falling(3000, 40, mean)
    exact = x.astype(np.float64)
    expected = np.linalg.svd(exact - exact.mean(axis=0), compute_uv=False)
    assert expected[-1] < 2e-6 * expected[0]
    centred, uncentred = streamed(x, [7, 1200])
    np.testing.assert_allclose(centred, expected, rtol=1e-6)
    np.testing.assert_allclose(uncentred, np.linalg.svd(exact, compute_uv=False), rtol=1e-6)
    lost = singular_values(add_rows(Scatter.empty(40), x).scatter_dd, 40)
    assert np.abs(lost / expected - 1).max() > 0.1


def test_a_large_mean_costs_only_its_own_digits() -> None:
    x = np.random.default_rng(1).normal(size=(500, 8)) * np.geomspace(1, 1e-5, 8) + 1e4
    expected = np.linalg.svd(x - x.mean(axis=0), compute_uv=False)
    # 1e4 of offset beside 1e-5 of width: 7 of 16 digits are left
    np.testing.assert_allclose(streamed(x, [100])[0], expected, rtol=1e-6)


def test_option_tail_gives_the_rows_of_svd_with_their_intervals(study, one) -> None:
    def run(analysis: SVD | str):
        found = analyze(study.path, [analysis], captures=["lora"], sites=["resid_post", "lora_b"])
        return to_tables(found)

    plain, found = run("svd"), run(SVD(tail=True))
    assert "QR" in found["svd"].attrs["arithmetic"]
    for place in ({"site": "resid_post", "layer": 2}, {"site": "lora_b.v_proj", "layer": 0}):
        for centred in (True, False):
            where = {**place, "centred": centred}
            a, b = one(plain["svd"], **where), one(found["svd"], **where)
            x = study.rows("lora", place["site"], place["layer"]).astype(np.float64)
            sigma = np.linalg.svd(x - x.mean(axis=0) if centred else x, compute_uv=False)
            sigma = sigma[:3] if "lora_b" in place["site"] else sigma
            p = sigma / sigma.sum()
            assert b["erank"] == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-9)
            for name in ("n", "erank", "erank_low", "erank_high", "above_shuffled", "sv90"):
                assert a[name] == pytest.approx(b[name], rel=1e-4)


def test_rows_without_a_spectrum_say_why(tmp_path, make_store) -> None:
    x = np.random.default_rng(0).normal(size=(5, 2, 4))
    x[2, 1, 1] = np.nan
    broken = analyze(make_store(tmp_path / "n.zarr", [x]), [SVD(tail=True)])
    assert set(to_tables(broken)["svd"]["reason"]) == {"NaN or infinite features"}
    same = np.full((6, 3, 4), 0.1, dtype=np.float32)
    rows = to_tables(analyze(make_store(tmp_path / "c.zarr", [same]), [SVD(tail=True)]))["svd"]
    assert rows.set_index("centred").loc[True, "reason"] == "constant features"
