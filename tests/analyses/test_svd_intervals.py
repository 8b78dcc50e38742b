"""Intervals of spectra: a jackknife written out from the rows, what it covers, what it takes."""

import numpy as np
import pytest
from scipy import stats

from lorascope.analyses import analyze, to_tables
from lorascope.analyses.source import Source
from lorascope.analyses.spectra.blocks import make_blocks
from lorascope.analyses.spectra.intervals import MEASURES, bound_measures, spread_measures
from lorascope.analyses.spectra.scatter import Scatter, add_rows, join_scatters
from lorascope.analyses.spectra.spectrum import describe_spectrum, singular_values
from lorascope.store import open_store


def measure(x: np.ndarray, name: str, *, centred: bool) -> float:
    x = x.astype(np.float64)
    return describe_spectrum(np.linalg.svd(x - x.mean(axis=0) if centred else x)[1])[name]


@pytest.mark.parametrize("centred", [True, False])
def test_ends_are_those_of_the_spectra_without_each_speaker(study, one, centred) -> None:
    tables = to_tables(analyze(study.path, ["svd"], captures=["frozen"], sites=["resid_post"]))
    row = one(tables["svd"], layer=1, centred=centred)
    arrays = [x[1] for x in study.arrays["frozen", "resid_post"]]
    names = sorted(set(study.speakers))
    for name in MEASURES:
        left_out = [
            measure(
                np.concatenate(
                    [x for x, s in zip(arrays, study.speakers, strict=True) if s != out]
                ),
                name,
                centred=centred,
            )
            for out in names
        ]
        value = measure(np.concatenate(arrays), name, centred=centred)
        share = name == "top10_energy"
        drawn = np.asarray(left_out if share else np.log(left_out))
        variance = (len(names) - 1) / len(names) * np.square(drawn - drawn.mean()).sum()
        half = stats.t.ppf(0.975, len(names) - 1) * np.sqrt(variance)
        ends = (
            (value - half, value + half) if share else (value / np.exp(half), value * np.exp(half))
        )
        least, most = (0, 1) if share else (float(name != "sv90_interpolated"), 12)
        # float32 products
        assert row[f"{name}_low"] == pytest.approx(max(ends[0], least), rel=1e-4)
        assert row[f"{name}_high"] == pytest.approx(min(ends[1], most), rel=1e-4)
    assert row["sv90_low"] == np.ceil(row["sv90_interpolated_low"])
    assert row["sv90_high"] == np.ceil(row["sv90_interpolated_high"])
    assert row["sv90_low"] <= row["sv90"] <= row["sv90_high"]
    assert tables["svd"].attrs["interval"] == "delete-one-speaker jackknife, 95 %"


def test_intervals_cover_what_other_speakers_would_show() -> None:
    """12 speakers of 100 rows, each with a mean and scales of its own, drawn 80 times."""
    sizes = np.arange(1, 41) ** -0.7

    def draw(rng: np.random.Generator, speakers: int) -> list[Scatter]:
        scale = sizes * np.exp(0.2 * rng.normal(size=(speakers, 1, 40)))
        x = rng.normal(size=(speakers, 100, 40)) * scale
        x += 0.3 * rng.normal(size=(speakers, 1, 40)) * sizes
        return [add_rows(Scatter.empty(40), one) for one in x]

    def describe(parts: list[Scatter]) -> dict[str, float]:
        return describe_spectrum(singular_values(join_scatters(parts, 40).scatter_dd, 40))

    rng = np.random.default_rng(0)
    truth = describe(draw(rng, 1000))
    covered, inside_half = dict.fromkeys(MEASURES, 0), dict.fromkeys(MEASURES, 0)
    for _ in range(80):
        parts = draw(rng, 12)
        spreads = spread_measures(parts, 40)
        assert spreads is not None
        for counts, spread in ((covered, spreads[0]), (inside_half, spreads[0] / 2)):
            found = bound_measures(describe(parts), spread, 40)
            for name in MEASURES:
                counts[name] += found[f"{name}_low"] <= truth[name] <= found[f"{name}_high"]
    # 76 of 80 promised, standard deviation 2; spectra of few rows are a little steeper than true
    assert all(count >= 68 for count in covered.values()), covered
    # and no wider than needed: half of it should hold 56 (t of 11 degrees at 1.1), deviation 4
    assert all(44 <= count <= 68 for count in inside_half.values()), inside_half


def test_speakers_in_blocks_are_whole_and_neighbours(tmp_path, make_store) -> None:
    speakers = [f"{i // 2:02d}" for i in range(60)]
    x = np.random.default_rng(0).normal(size=(60, 3, 4)).astype(np.float32)
    path = make_store(tmp_path / "s.zarr", [x], speakers=speakers)
    view = Source.open(open_store(path), ["a"]).views["a"]
    blocks = make_blocks(view, 12)
    assert blocks is not None
    assert (blocks.count, blocks.speakers, blocks.runs) == (10, 30, 10)
    np.testing.assert_array_equal(blocks.block_n, np.arange(60) // 6)
    assert blocks.parts(1) == 10
    assert blocks.parts(4) == 13
    found = to_tables(analyze(path, ["svd"]))["svd"]
    assert "10 blocks of whole speakers (30 in the order of names)" in found.attrs["interval"]
    assert found["erank_low"].notna().all()


def test_where_they_do_not_fit_intervals_are_left_out_and_values_are_not(study) -> None:
    said: list[str] = []
    few = analyze(study.path, ["svd"], memory="900kB", workers=1, notify=said.append)
    assert few["svd"].attrs["interval"] == ""
    assert "no intervals" in few["svd"].attrs["interval_note"]
    assert few["svd"].attrs["interval_note"] in said
    few, all_of_them = to_tables(few)["svd"], to_tables(analyze(study.path, ["svd"]))["svd"]
    assert few["erank_low"].isna().all()
    np.testing.assert_allclose(few["erank"], all_of_them["erank"], rtol=1e-5)


def test_without_speakers_or_with_two_there_are_no_intervals(tmp_path, make_store) -> None:
    x = np.random.default_rng(0).normal(size=(6, 3, 4)).astype(np.float32)
    for name, speakers in (("none", None), ("two", ["a", "b"] * 3)):
        found = analyze(make_store(tmp_path / f"{name}.zarr", [x], speakers=speakers), ["svd"])
        assert np.isnan(found["svd"]["erank_low"].to_numpy()).all()
        assert found["svd"].attrs["interval"] == ""
        assert np.isfinite(found["svd"]["erank"].to_numpy()).all()


def test_speakers_that_alternate_give_what_speakers_in_a_row_do(tmp_path, make_store) -> None:
    x = np.random.default_rng(0).normal(size=(24, 4, 6)).astype(np.float32)
    names = [f"s{i % 4}" for i in range(24)]
    order = np.argsort(names, kind="stable")
    mixed = make_store(tmp_path / "m.zarr", [x], speakers=names, segment_samples=5)
    sorted_ = make_store(
        tmp_path / "s.zarr", [x[order]], speakers=[names[i] for i in order], segment_samples=5
    )
    a, b = (
        to_tables(analyze(path, ["svd"], workers=3))["svd"]
        .select_dtypes("number")
        .drop(columns="layer")
        for path in (mixed, sorted_)
    )
    np.testing.assert_allclose(a, b, rtol=1e-5)
