"""CKA through a store: golden values, alignment of captures and stores, reasons instead of numbers."""

import numpy as np
import pytest

from lorascope.analyses import CKA, AnalysisInputError, analyze, linear_cka, to_tables
from lorascope.store import Site, create_store


def golden(dtype: str = "float64", offset: float = 0.0) -> list[np.ndarray]:
    """The published inputs as 100 samples of one row."""
    rng = np.random.RandomState(1337)
    x = rng.randn(100, 10)
    y = rng.randn(100, 10) + x
    return [(a[:, None, :]).astype(dtype) for a in (x + offset, y)]


def table(store, names=("cka",), **options):
    return to_tables(analyze(store, list(names), **options))["cka"]


def value(rows, estimator: str, **place) -> float:
    part = rows[rows["estimator"] == estimator]
    for name, wanted in place.items():
        part = part[part[name] == wanted]
    assert len(part) == 1
    return float(part["value"].iloc[0])


@pytest.mark.parametrize(
    ("dtype", "offset", "tolerance"),
    [
        ("float64", 0.0, 1e-9),
        ("float32", 0.0, 1e-6),
        ("bfloat16", 0.0, 2e-4),  # 8 bits of mantissa, averaged over 1,000 numbers
        ("float64", 1000.0, 1e-9),
        ("float32", 1000.0, 1e-5),
    ],
)
def test_golden_values_through_a_store(tmp_path, make_store, dtype, offset, tolerance) -> None:
    source = "float32" if dtype == "bfloat16" else dtype
    path = tmp_path / "golden.zarr"
    if dtype == "bfloat16":
        site = Site("resid_post", [0, 1], 10, dtype="bfloat16")
        with create_store(path, capture="a", sites=[site]) as writer:
            for i, (x, y) in enumerate(zip(*golden(source), strict=True)):
                writer.append(f"u{i}", {"resid_post": np.stack([x, y])})
    else:
        make_store(path, golden(source, offset))
    rows = table(path)
    place = {"granularity": "pooled", "layer_a": 0, "layer_b": 1}
    assert value(rows, "biased", **place) == pytest.approx(0.5576132566117588, abs=tolerance)
    assert value(rows, "debiased", **place) == pytest.approx(0.513456489505526, abs=tolerance)


def test_every_pair_of_a_study_equals_the_kernel(study) -> None:
    """All pairs within and between captures, from recorded mean_valid."""
    rows = table(study.path, [CKA(frames=False)])
    keys, arrays = [], []
    for (capture, name), pooled in study.pooled.items():
        if name.endswith("mean_valid"):
            stacked = np.stack(pooled)
            for layer in range(stacked.shape[1]):
                site = name.removesuffix(".mean_valid")
                keys.append((capture, site, -1 if site == "embed" else layer))
                arrays.append(stacked[:, layer])
    constant = [bool(np.ptp(x, axis=0).max() == 0) for x in arrays]
    expected = linear_cka(
        [
            np.random.default_rng(0).normal(size=x.shape) if c else x
            for x, c in zip(arrays, constant, strict=True)
        ],
        study.speakers,
    )
    assert len(rows) == 3 * len(keys) * (len(keys) + 1) / 2  # each pair once, three estimators
    place = {key: i for i, key in enumerate(keys)}
    for row in rows.to_dict("records"):
        a, b = (
            place[
                row[f"capture_{s}"],
                row[f"site_{s}"],
                -1 if row[f"site_{s}"] == "embed" else row[f"layer_{s}"],
            ]
            for s in "ab"
        )
        if constant[a] or constant[b]:
            assert np.isnan(row["value"])
            assert "constant features: lora_b.v_proj" in row["reason"]
            continue
        found = expected[row["estimator"]]
        for column, want in (
            ("value", found.value),
            ("value_low", found.low),
            ("value_high", found.high),
            ("null_ceiling", found.null_ceiling),
        ):
            assert row[column] == pytest.approx(want[a, b], abs=1e-9, nan_ok=True)
        assert row["reason"] == ""
        assert not np.isnan(row["value"])


def test_frames_of_one_row_are_the_pooled_golden_values(tmp_path, make_store) -> None:
    """Each draw takes the one row of every sample: all samples in one batch are exact."""
    rows = table(make_store(tmp_path / "g.zarr", golden()))
    place = {"granularity": "frame", "layer_a": 0, "layer_b": 1}
    assert value(rows, "minibatch", **place) == pytest.approx(0.513456489505526, abs=1e-9)


def test_minibatch_frames_are_close_to_exact_frames(tmp_path, make_store) -> None:
    """Rows without structure inside a sample: drawing 8 of 10 rows loses little of the exact value."""
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(300, 10, 4))
    layers = [
        (shared @ rng.normal(size=(4, 12)) + rng.normal(size=(300, 10, 12))).astype(np.float32)
        for _ in range(2)
    ]
    exact = linear_cka([x.reshape(-1, 12) for x in layers])["debiased"].value[0, 1]
    rows = table(make_store(tmp_path / "f.zarr", layers))
    place = {"granularity": "frame", "layer_a": 0, "layer_b": 1}
    # 2,400 drawn rows: the deviation of the estimate is about 0.01
    assert value(rows, "minibatch", **place) == pytest.approx(exact, abs=0.03)


def test_frames_do_not_depend_on_order_segments_or_workers(tmp_path, make_store) -> None:
    rng = np.random.default_rng(1)
    layers = [rng.normal(size=(30, 7, 5)).astype(np.float32) for _ in range(2)]
    ids = [f"u{i}" for i in range(30)]
    order = rng.permutation(30)
    one = make_store(tmp_path / "a.zarr", layers, ids=ids)
    two = make_store(
        tmp_path / "b.zarr",
        [x[order] for x in layers],
        ids=[ids[i] for i in order],
        segment_samples=4,
    )
    found = [table(p, workers=w) for p, w in ((one, 1), (two, 3))]
    keys = ["granularity", "estimator", "layer_a", "layer_b"]
    first, second = (t.set_index(keys)["value"].sort_index() for t in found)
    # the same frames in the same batches; sums in another order
    np.testing.assert_allclose(first, second, atol=1e-12)
    assert not np.allclose(
        first, table(one, seed=1).set_index(keys)["value"].sort_index(), atol=1e-6
    )


def test_samples_are_matched_by_id(tmp_path, make_store) -> None:
    """Another order and other samples in the second capture change nothing about the common ones."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(20, 3, 6))
    y = x[:, :, ::-1] + 0.3 * rng.normal(size=x.shape)
    ids = [f"u{i}" for i in range(20)]
    path = make_store(tmp_path / "s.zarr", [x], capture="a", ids=ids)
    order = rng.permutation(20)[:15]
    make_store(path, [y[order]], capture="b", ids=[ids[i] for i in order])
    rows = table(path)
    between = {"capture_a": "a", "capture_b": "b"}
    common = np.sort(order)
    expected = linear_cka([x[common].mean(axis=1), y[common].mean(axis=1)])
    assert value(rows, "debiased", **between) == pytest.approx(
        expected["debiased"].value[0, 1], abs=1e-12
    )
    sizes = rows[rows["estimator"] == "debiased"].set_index(["capture_a", "capture_b"])["n"]
    assert sizes.to_dict() == {("a", "a"): 20, ("a", "b"): 15, ("b", "b"): 15}


def test_another_store_is_compared_by_id(tmp_path, make_store) -> None:
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(2, 12, 2, 4))
    mine = make_store(tmp_path / "mine.zarr", [x], capture="a")
    other = make_store(
        tmp_path / "other.zarr", [y[::-1]], capture="a", ids=[f"u{i}" for i in range(12)][::-1]
    )
    rows = table(mine, against=other)
    pairs = set(zip(rows["capture_a"], rows["capture_b"], strict=True))
    assert pairs == {("a", "a"), ("a", "against:a")}
    expected = linear_cka([x.mean(axis=1), y.mean(axis=1)])["debiased"].value[0, 1]
    found = value(rows, "debiased", capture_b="against:a")
    assert found == pytest.approx(expected, abs=1e-12)


def test_rows_that_do_not_match_give_a_reason(tmp_path, make_store) -> None:
    rng = np.random.default_rng(4)
    path = make_store(tmp_path / "s.zarr", [rng.normal(size=(8, 5, 3))], capture="a")
    make_store(path, [rng.normal(size=(8, 6, 3))], capture="b")
    rows = table(path)
    frames = rows[(rows["granularity"] == "frame") & (rows["capture_a"] != rows["capture_b"])]
    assert len(frames) == 1
    assert np.isnan(frames["value"].iloc[0])
    assert "sample 'u0' has 5 and 6" in frames["reason"].iloc[0]
    within = rows[(rows["granularity"] == "frame") & (rows["capture_a"] == rows["capture_b"])]
    np.testing.assert_allclose(within["value"], 1, atol=1e-12)
    pooled = rows[(rows["granularity"] == "pooled") & (rows["capture_a"] != rows["capture_b"])]
    assert np.isfinite(pooled["value"]).all()


def test_rows_at_other_positions_give_a_reason(tmp_path) -> None:
    rng = np.random.default_rng(5)
    for capture, start in (("a", 0), ("b", 1)):
        site = Site("resid_post", [0], 3)
        with create_store(tmp_path / "s.zarr", capture=capture, sites=[site]) as writer:
            for i in range(6):
                rows = {"resid_post": rng.normal(size=(1, 4, 3)).astype(np.float32)}
                writer.append(f"u{i}", rows, positions={"tokens": np.arange(start, start + 4)})
    rows = table(tmp_path / "s.zarr")
    frames = rows[(rows["granularity"] == "frame") & (rows["capture_a"] != rows["capture_b"])]
    assert "other positions" in frames["reason"].iloc[0]


def test_three_samples_have_no_similarity(tmp_path, make_store) -> None:
    x = np.random.default_rng(6).normal(size=(3, 2, 4))
    rows = table(make_store(tmp_path / "s.zarr", [x]))
    assert rows["value"].isna().all()
    assert rows["reason"].str.contains("at least 4").all()
    assert set(rows["granularity"]) == {"pooled", "frame"}


def test_nan_rows_give_a_reason_and_leave_others_alone(tmp_path, make_store) -> None:
    x, y = np.random.default_rng(7).normal(size=(2, 10, 3, 4))
    y[4, 1, 2] = np.nan
    rows = table(make_store(tmp_path / "s.zarr", [x, y]))
    broken = (rows["layer_a"] == 1) | (rows["layer_b"] == 1)
    pooled = rows["granularity"] == "pooled"
    assert rows[broken & pooled]["value"].isna().all()
    assert rows[broken & pooled]["reason"].str.contains("NaN").all()
    assert rows[~broken]["value"].notna().all()


def test_exposed_captures_say_so(study) -> None:
    rows = table(study.path, [CKA(frames=False)])
    lora = (rows["capture_a"] == "lora") | (rows["capture_b"] == "lora")
    assert set(rows[lora]["exposed"]) == {"all"}
    assert set(rows[~lora]["exposed"]) == {"none"}  # their features no training shaped


def test_pooled_features_that_do_not_fit_are_read_in_panels(tmp_path, make_store) -> None:
    """400 samples of 2 x 160 features in float64 are 1 MB; a tenth of a MB is allowed for them."""
    rng = np.random.default_rng(8)
    layers = [rng.normal(size=(400, 1, 160)) for _ in range(2)]
    path = make_store(tmp_path / "s.zarr", layers, speakers=[str(i // 50) for i in range(400)])
    whole = analyze(path, [CKA(frames=False)])["cka"]
    cut = analyze(path, [CKA(frames=False)], memory="2MB")["cka"]
    assert cut.attrs["pooled_reads"] > 1 == whole.attrs["pooled_reads"]
    for column in ("value", "value_low", "null_ceiling"):
        np.testing.assert_allclose(cut[column], whole[column], atol=1e-12)


def test_duplicate_ids_are_refused_by_name() -> None:
    from lorascope.analyses.views import view_of  # the store itself never holds an id twice

    class Twice:
        import pandas as pd

        name = "a"
        samples = pd.DataFrame({"id": ["u", "u"]})

    with pytest.raises(AnalysisInputError, match="'u' twice"):
        view_of(0, Twice(), "a", Twice.pd.Index(["u"]), {})  # type: ignore[arg-type]
