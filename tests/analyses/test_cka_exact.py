"""Exact CKA of frames: every pair of rows, however the store, the pairs and the memory are cut."""

from __future__ import annotations

import pickle
import sys
from typing import Any

import numpy as np
import pytest
from scipy import stats

from lorascope.analyses import (
    CKA,
    AnalysisInputError,
    MissingSitesError,
    analyze,
    linear_cka,
    to_tables,
)
from lorascope.analyses.memory import plan_passes
from lorascope.analyses.report.section_cka import cka_section
from lorascope.analyses.report.study import Study as Compared
from lorascope.analyses.selection import select
from lorascope.analyses.similarity.cka_exact import cut_pairs, plan_exact
from lorascope.analyses.similarity.row_sums import Layout, RowHsic, RowSums, add_tile, merge_sums
from lorascope.analyses.source import Source
from lorascope.analyses.summary import collect_values
from lorascope.store import Site, create_store, open_store

from .fake_cupy import make_module

KEYS = ["capture_a", "layer_a", "capture_b", "layer_b", "estimator"]


def brute(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Return CKA of all rows from the n x n matrices of Song et al. (2012), in float64."""
    n = len(x)

    def products(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
        k, m = (z @ z.T for z in (a.astype(np.float64), b.astype(np.float64)))
        h = np.eye(n) - 1 / n
        biased = float(np.sum((h @ k @ h) * (h @ m @ h)))
        np.fill_diagonal(k, 0)
        np.fill_diagonal(m, 0)
        cross = k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k.sum(0) @ m.sum(0))
        return float(np.sum(k * m) + cross), biased

    xy, xx, yy = products(x, y), products(x, x), products(y, y)
    ratio = [a / np.sqrt(b * c) for a, b, c in zip(xy, xx, yy, strict=True)]
    return {"debiased": ratio[0], "biased": ratio[1]}


def rows_of(rng: np.random.Generator, n: int, width: int, layers: int = 3) -> list[np.ndarray]:
    """Return layers [sample, row, feature] that go on from each other, samples alike within."""
    x = rng.normal(size=(n, 1, width)) + rng.normal(size=(n, 5, width))
    found = [x]
    for _ in range(layers - 1):
        found.append(found[-1] @ rng.normal(size=(width, width)) / 2 + rng.normal(size=x.shape))
    return found


@pytest.fixture(scope="module")
def layers() -> list[np.ndarray]:
    return rows_of(np.random.default_rng(0), 24, 6)


@pytest.fixture(scope="module")
def path(tmp_path_factory, make_store, layers):
    return make_store(tmp_path_factory.mktemp("exact") / "s", layers, **speakers(24))


def speakers(n: int) -> dict[str, list[str]]:
    return {"speakers": [f"s{i % 4}" for i in range(n)], "ids": [f"u{i}" for i in range(n)]}


def exact(store, **options) -> Any:
    """Return the exact rows of the table."""
    names = [CKA(exact=True, frames=False, permutations=0)]
    table = to_tables(analyze(store, names, **options))["cka"]
    frame = table[table["granularity"] == "frame"]
    frame.attrs = table.attrs
    return frame.reset_index(drop=True)


def test_every_pair_is_that_of_all_rows(path, layers, one):
    """1e-10: float64 values, rows taken relative to the mean of some samples."""
    table = exact(path)
    assert len(table) == 2 * 6
    flat = [x.reshape(-1, 6) for x in layers]
    for a in range(3):
        for b in range(a, 3):
            for name, want in brute(flat[a], flat[b]).items():
                row = one(table, layer_a=a, layer_b=b, estimator=name)
                assert row["value"] == pytest.approx(want, abs=1e-10)
                assert row["n"] == 24 * 5
                assert row["reason"] == ""
                assert np.isnan(row["p_value"])


@pytest.mark.parametrize(
    ("dtype", "offset", "tolerance"),
    # float32 near 1000 rounds the features themselves by 3e-5 of their size
    [
        ("float64", 0, 1e-10),
        ("float64", 1000, 1e-10),
        ("float32", 0, 1e-6),
        ("float32", 1000, 1e-5),
    ],
)
def test_golden_values_of_one_row_a_sample(tmp_path, make_store, one, dtype, offset, tolerance):
    rng = np.random.RandomState(1337)
    x = rng.randn(100, 10)
    y = rng.randn(100, 10) + x
    layers = [a[:, None, :].astype(dtype) for a in (x + offset, y)]
    table = exact(make_store(tmp_path / "g", layers))
    found = [one(table, layer_a=0, layer_b=1, estimator=e)["value"] for e in ("debiased", "biased")]
    assert found == pytest.approx([0.513456489505526, 0.5576132566117588], abs=tolerance)


def test_slabs_workers_and_order_change_nothing(tmp_path, make_store, path, layers):
    expected = exact(path).sort_values(KEYS)
    order = np.random.default_rng(1).permutation(24)
    names = {key: [values[i] for i in order] for key, values in speakers(24).items()}
    turned = make_store(tmp_path / "t", [x[order] for x in layers], segment_samples=5, **names)
    for store, options in (
        (path, {"workers": 3, "memory": "2MB"}),
        (turned, {"workers": 1, "memory": "1MB"}),
    ):
        found = exact(store, **options).sort_values(KEYS)
        for column in ("value", "value_low", "value_high", "null_ceiling"):
            # 1e-12: sums of float64 in another order
            np.testing.assert_allclose(found[column], expected[column], rtol=0, atol=1e-12)


def test_float32_rows_in_any_slabs(tmp_path, make_store, layers):
    """2e-6: products of float32 over other runs of rows."""
    store = make_store(tmp_path / "s", [x.astype("f4") for x in layers], **speakers(24))
    one, other = exact(store), exact(store, workers=3, memory="1MB")
    np.testing.assert_allclose(other["value"], one["value"], rtol=0, atol=2e-6)


def test_several_passes_give_the_same(tmp_path, make_store, one):
    """Tiles of 0.5 MB hold 250 x 250 sums: four layers of 100 features take three of them."""
    layers = rows_of(np.random.default_rng(2), 12, 100, layers=4)
    store = make_store(tmp_path / "s", layers, ids=[f"u{i}" for i in range(12)])
    notes: list[str] = []
    table = exact(store, memory="2MB", workers=1, notify=notes.append)
    assert table.attrs["passes"] > 1
    assert notes[0].startswith("exact CKA of frames: 1 site, up to 4 arrays of 60 rows, 6.0e+06 ")
    assert notes[0].endswith("take at least 3 passes: more --memory makes them fewer.")
    assert len(table) == 2 * 10
    flat = [x.reshape(-1, 100) for x in layers]
    for a in range(4):
        for b in range(a, 4):
            for name, want in brute(flat[a], flat[b]).items():
                row = one(table, layer_a=a, layer_b=b, estimator=name)
                assert row["value"] == pytest.approx(want, abs=1e-10)


@pytest.mark.parametrize("room", [None, 10**9, 40_000, 9_000, 1])
def test_tiles_hold_every_pair_once(room):
    widths = (30, 30, 8, 50, 30)
    pairs = []
    tiles = cut_pairs(widths, room)
    for members, n_left in tiles:
        layout = Layout(tuple(widths[a] for a in members), n_left)
        assert room is None or 8 * layout.size <= room or len(members) <= 2
        for a in layout.left:
            pairs += [tuple(sorted((members[a], b))) for b in members[layout.first(a) :]]
    assert sorted(pairs) == [(a, b) for a in range(5) for b in range(a, 5)]
    assert room not in (None, 10**9) or len(tiles) == 1


def test_interval_is_that_of_recomputing_without_each_speaker(path, layers, one):
    table = exact(path)
    assert table.attrs["exact_jackknife_groups"] == "resid_post 4"
    row = one(table, layer_a=0, layer_b=2, estimator="debiased")
    kept = [np.arange(24) % 4 != g for g in range(4)]
    left_out = [brute(*(layers[a][k].reshape(-1, 6) for a in (0, 2)))["debiased"] for k in kept]
    spread = np.sqrt(3 / 4 * np.square(left_out - np.mean(left_out)).sum())
    half = stats.t.ppf(0.975, 3) * spread
    assert row["value_high"] - row["value"] == pytest.approx(half, abs=1e-10)
    assert row["value"] - row["value_low"] == pytest.approx(half, abs=1e-10)


def test_rows_of_different_speakers_are_those_of_the_gram_form(tmp_path, make_store, one):
    """The same estimator from row by row matrices (gram.py), speakers of unequal size."""
    layers = rows_of(np.random.default_rng(6), 24, 6)
    names = [f"s{i}" for i in np.random.default_rng(7).integers(0, 6, size=24)]
    table = exact(make_store(tmp_path / "s", layers, speakers=names))
    flat = [x.reshape(-1, 6) for x in layers]
    want = linear_cka(flat, np.repeat(names, 5).tolist())["between_groups"]
    for a in range(3):
        for b in range(a, 3):
            row = one(table, layer_a=a, layer_b=b, estimator="between_groups")
            for column, values in (("value", want.value), ("value_low", want.low)):
                assert row[column] == pytest.approx(values[a, b], abs=1e-10)
            p_value = want.p_value[a, b]
            assert a == b or row["p_value"] == pytest.approx(p_value, rel=1e-6)
            assert np.isnan(row["null_ceiling"])


def test_rows_of_one_utterance_are_no_similarity(tmp_path, make_store, one):
    """Layers of 40 features that share nothing but that an utterance's rows are alike: .32."""
    rng = np.random.default_rng(8)
    shape = (60, 1, 40), (60, 5, 40)
    layers = [rng.normal(size=shape[0]) + 0.3 * rng.normal(size=shape[1]) for _ in range(2)]
    speakers = [f"s{i % 12}" for i in range(60)]
    table = exact(make_store(tmp_path / "s", layers, speakers=speakers))
    over_all, between = (
        one(table, layer_a=0, layer_b=1, estimator=name) for name in ("debiased", "between_groups")
    )
    assert over_all["value"] > 0.25
    assert over_all["value"] == pytest.approx(over_all["null_ceiling"], rel=0.25)
    assert between["value_low"] < 0 < between["value_high"]
    assert abs(between["value"]) < 0.05


def test_no_interval_where_sums_of_speakers_do_not_fit(tmp_path, make_store):
    layers = rows_of(np.random.default_rng(3), 8, 80, layers=2)
    table = exact(make_store(tmp_path / "s", layers, **speakers(8)), memory="1.2MB", workers=1)
    assert table.attrs["exact_jackknife_groups"] == "resid_post 0"
    assert np.isfinite(table["value"]).all()
    assert np.isnan(table["value_low"]).all()


def test_captures_are_compared_where_their_rows_match(tmp_path, make_store, layers, one, pick):
    path = make_store(tmp_path / "s", layers[:2], ids=[f"u{i}" for i in range(24)])
    ids = [f"u{i}" for i in range(4, 24)][::-1]  # fewer samples, in another order
    make_store(path, [layers[2][:3:-1]], capture="b", ids=ids)
    make_store(path, [layers[2][:, :4]], capture="c", ids=[f"u{i}" for i in range(24)])
    table = exact(path)
    want = brute(layers[0][4:].reshape(-1, 6), layers[2][4:].reshape(-1, 6))
    row = one(table, capture_a="a", layer_a=0, capture_b="b", estimator="debiased")
    assert row["value"] == pytest.approx(want["debiased"], abs=1e-10)
    refused = pick(table, capture_a="a", layer_a=0, capture_b="c")
    assert refused["estimator"].tolist() == ["debiased", "biased"]
    assert refused["value"].isna().all()
    assert refused["reason"].str.contains("sample 'u4' has 5 and 4").all()
    assert one(table, capture_a="c", capture_b="c", estimator="biased")["value"] == pytest.approx(1)


@pytest.mark.parametrize(("wrong", "n_groups"), [(np.nan, 4), (np.inf, 6)])
def test_constant_and_broken_features_have_reasons(
    tmp_path, make_store, layers, one, wrong, n_groups
):
    constant = np.full_like(layers[0], 0.1)
    broken = layers[1].copy()
    broken[20, 3, 2] = wrong
    names = [f"s{i % n_groups}" for i in range(24)]
    table = exact(make_store(tmp_path / "s", [layers[0], constant, broken], speakers=names))
    for b, reason in (
        (1, "constant features: resid_post layer 1"),
        (2, "NaN or infinite features"),
    ):
        row = one(table, layer_a=0, layer_b=b, estimator="debiased")
        assert row["reason"].startswith(reason)
        assert row[["value", "value_low", "null_ceiling"]].isna().all()
    assert one(table, layer_a=0, layer_b=0, estimator="debiased")["value"] == pytest.approx(1)


@pytest.mark.parametrize("size", [1e-20, 1e15])
def test_tiny_and_huge_features_are_as_good_as_others(tmp_path, make_store, layers, size):
    """Squares of squares of them are beyond float32."""
    sized = make_store(tmp_path / "s", [(x * size).astype("f4") for x in layers], **speakers(24))
    plain = make_store(tmp_path / "p", [x.astype("f4") for x in layers], **speakers(24))
    np.testing.assert_allclose(exact(sized)["value"], exact(plain)["value"], atol=2e-6)


def test_independent_rows_agree_with_minibatch(tmp_path, make_store, one):
    """Rows that do not depend on each other: minibatch is off by its own error alone, .002."""
    rng = np.random.default_rng(4)
    shared = rng.normal(size=(150, 8, 4))
    layers = [shared @ rng.normal(size=(4, 6)) + rng.normal(size=(150, 8, 6)) for _ in range(2)]
    table = to_tables(analyze(make_store(tmp_path / "s", layers), [CKA(exact=True)]))["cka"]
    frame = table[(table["granularity"] == "frame") & (table["layer_a"] != table["layer_b"])]
    found = frame.set_index("estimator")["value"]
    assert found["debiased"] == pytest.approx(found["minibatch"], abs=0.01)
    assert found["biased"] == pytest.approx(found["debiased"], abs=0.01)  # 1,200 rows, 6 features


def test_sums_add_up_in_any_order_and_grouping():
    rng = np.random.default_rng(5)
    layout = Layout((3, 2, 4), 1)
    tiles = [(g, rng.normal(size=(n, 9))) for g, n in ((0, 7), (1, 3), (0, 5), (2, 6))]

    def of(part) -> RowSums:
        sums = RowSums.empty(layout, 3)
        for group, tile in part:
            add_tile(sums, layout, group, tile)
        return sums

    whole = RowHsic.of(of(tiles), layout)
    for cut in (1, 2, 3):
        parts = RowHsic.of(merge_sums(of(tiles[cut:]), of(tiles[:cut])), layout)
        np.testing.assert_allclose(parts.unbiased_sll, whole.unbiased_sll, rtol=1e-12)
        np.testing.assert_allclose(parts.biased_sll, whole.biased_sll, rtol=1e-12)


def test_folds_travel_and_promise_what_they_hold(path):
    source = Source.open(open_store(path), ["a"])
    selection = select(source, sites=None, layers=None, seed=0, memory_bytes=2**30, workers=2)
    (fold,) = plan_exact(selection).folds
    state = fold.empty()
    held = sum(x.nbytes for x in (state.sum_gd, state.cross_gdl, state.square_gll, *state.panels))
    assert held <= fold.state_bytes(1) < fold.state_bytes(2)
    block = source.block(fold.needs, 0, 24)
    again = pickle.loads(pickle.dumps(fold))
    for one, other in zip(
        again.add(again.empty(), block).panels, fold.add(state, block).panels, strict=True
    ):
        np.testing.assert_array_equal(one, other)
    (single,) = plan_passes([fold], source.sizes, source.borders(), memory_bytes=2**30, workers=2)
    assert single.folds == (fold,)


def test_a_device_gives_the_same_and_mixes_nothing(study, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", make_module())
    options = {"sites": ["resid_post", "lora_a"], "workers": 2}
    here = exact(study.path, **options)
    there = exact(study.path, device="cuda", **options)
    np.testing.assert_allclose(there["value"], here["value"], atol=1e-6)
    np.testing.assert_allclose(there["value_low"], here["value_low"], atol=1e-5)


def test_report_and_summary_keep_to_pooled_values(study):
    """Rows of frames beside them change neither a curve nor a headline."""
    names = [CKA(exact=True, permutations=0)]
    options = {"sites": ["resid_post", "lora_a", "lora_b"], "layers": [0]}
    table = to_tables(analyze(study.path, names, **options))["cka"]
    frame = table["granularity"] == "frame"
    names = {"minibatch", "minibatch_between_groups", "debiased", "biased", "between_groups"}
    assert set(table[frame]["estimator"]) == names
    pooled = table[~frame]
    shown = Compared(("frozen", "untrained", "lora"), "frozen", "lora", 4)
    both, alone = (cka_section(rows, shown) for rows in (table, pooled))
    assert both.findings == alone.findings
    assert [g.caption for g in both.figures] == [g.caption for g in alone.figures]
    assert [t.rows for t in both.tables] == [t.rows for t in alone.tables]
    assert collect_values({"cka": table}) == collect_values({"cka": pooled})


def test_exact_needs_rows_and_cka(tmp_path, path):
    pooled = tmp_path / "p"
    with create_store(
        pooled, capture="a", sites=[Site("embed.mean_valid", None, 3, kind="sample")]
    ) as writer:
        for i in range(8):
            writer.append(f"u{i}", {"embed.mean_valid": np.random.default_rng(i).normal(size=3)})
    for names in (["cka"], None):
        with pytest.raises(MissingSitesError, match=r"exact CKA compares rows .* pooled features"):
            analyze(pooled, names, exact=True)
    with pytest.raises(AnalysisInputError, match="exact is of cka, which was not asked for: svd"):
        analyze(path, ["svd"], exact=True)
