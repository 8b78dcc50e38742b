"""CKA of whole samples: that of their Gram matrices, whatever fits, and reasons where it is none."""

from __future__ import annotations

import numpy as np
import pytest

from lorascope.analyses import CKA, MemoryBudgetError, analyze, kernel_cka, to_tables
from lorascope.store import Site, create_store

N, T, D = 30, 6, 5
SPEAKERS = [f"s{i % 6}" for i in range(N)]
FLAT = CKA(frames=False, flattened=True, permutations=0)


def flattened(path, **options):
    table = to_tables(analyze(path, [FLAT], **options))["cka"]
    return table[table["granularity"] == "flattened"].reset_index(drop=True)


def draw(offset: float = 0.0, dtype: str = "float64") -> list[np.ndarray]:
    """Return two layers [sample, row, feature] that share a pattern over rows and features."""
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((N, 3)) @ rng.standard_normal((3, T * D))
    layers = [shared + 2 * rng.standard_normal((N, T * D)) for _ in range(2)]
    return [(x.reshape(N, T, D) + offset).astype(dtype) for x in layers]


@pytest.mark.parametrize(
    ("dtype", "offset", "tolerance"),
    [
        ("float64", 0.0, 1e-12),
        ("float64", 1000.0, 1e-10),
        ("float32", 1000.0, 1e-4),  # what 1,000 leaves of the digits that are stored
    ],
)
def test_it_is_cka_of_the_vectors(tmp_path, make_store, one, dtype, offset, tolerance) -> None:
    plain = [x.reshape(N, -1) for x in draw()]
    plain = [x - x.mean(axis=0) for x in plain]
    expected = kernel_cka([x @ x.T for x in plain], SPEAKERS)
    path = make_store(tmp_path / "s", draw(offset, dtype), speakers=SPEAKERS)
    found = flattened(path)
    assert len(found) == 9
    for name, estimate in expected.items():
        for pair in ((0, 0), (0, 1), (1, 1)):
            row = one(found, estimator=name, layer_a=pair[0], layer_b=pair[1])
            for column, want in (
                ("value", estimate.value),
                ("value_low", estimate.low),
                ("value_high", estimate.high),
                ("p_value", estimate.p_value),
                ("null_ceiling", estimate.null_ceiling),
            ):
                assert row[column] == pytest.approx(want[pair], abs=tolerance, nan_ok=True)
            assert row["n"] == N
            assert row["reason"] == ""


def test_panels_and_workers_change_nothing(tmp_path, make_store) -> None:
    """30 samples of 160 kB an array; 56 MiB leave room for some of them at a time."""
    rng = np.random.default_rng(1)
    layers = [rng.standard_normal((N, 40, 500)) for _ in range(2)]
    path = make_store(tmp_path / "s", layers, segment_samples=7)
    whole = flattened(path, workers=1)
    from lorascope.analyses.similarity import flattened as module

    held = []
    original = module._Flat._read

    def read(self, part):
        values = original(self, part)
        held.append(len(values))
        return values

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module._Flat, "_read", read)
        cut = flattened(path, workers=2, memory="56MiB")
    assert 1 < max(held) < N
    for column in ("value", "null_ceiling"):
        np.testing.assert_allclose(cut[column], whole[column], atol=1e-12)


def test_only_common_samples_of_two_captures_are_compared(tmp_path, make_store, one) -> None:
    """In another order, and of another number of rows."""
    x, y = draw()
    y = np.concatenate([y, y[:, :2]], axis=1)
    ids = [f"u{i}" for i in range(N)]
    order = np.random.default_rng(2).permutation(N)[:20]
    path = make_store(tmp_path / "s", [x], capture="a", ids=ids)
    make_store(path, [y[order]], capture="b", ids=[ids[i] for i in order])
    grams = [z[np.sort(order)].reshape(20, -1) for z in (x, y)]
    expected = kernel_cka([z @ z.T for z in grams])["debiased"].value[0, 1]
    row = one(flattened(path), estimator="debiased", capture_a="a", capture_b="b")
    assert row["value"] == pytest.approx(expected, abs=1e-12)
    assert row["n"] == 20


def test_unequal_rows_have_a_reason_and_leave_others_alone(tmp_path, one) -> None:
    rng = np.random.default_rng(3)
    sites = [Site("resid_post", [0], 3, stream="encoder"), Site("embed", None, 3, stream="text")]
    with create_store(tmp_path / "s", capture="a", sites=sites) as writer:
        for i in range(8):
            rows = {"resid_post": rng.normal(size=(1, 4, 3)).astype(np.float32)}
            rows["embed"] = rng.normal(size=(1, 2 + i // 5, 3)).astype(np.float32)
            writer.append(f"u{i}", rows)
    found = flattened(tmp_path / "s")
    bad = one(found, site_a="embed")
    assert np.isnan(bad["value"])
    assert "samples have unequal rows: 'u0' has 2 and 'u5' 3" in bad["reason"]
    assert found[found["site_a"] == "resid_post"]["value"].dropna().tolist() == [1.0, 1.0]


def test_rows_at_other_positions_have_a_reason(tmp_path, one) -> None:
    rng = np.random.default_rng(4)
    with create_store(tmp_path / "s", capture="a", sites=[Site("embed", None, 3)]) as writer:
        for i in range(6):
            rows = {"embed": rng.normal(size=(1, 4, 3)).astype(np.float32)}
            writer.append(f"u{i}", rows, positions={"tokens": np.arange(i // 5, i // 5 + 4)})
    assert "at different positions" in one(flattened(tmp_path / "s"))["reason"]


def test_constant_and_broken_arrays_have_a_reason(tmp_path, make_store) -> None:
    """Equal samples are constant, though their numbers differ from column to column."""
    x, y = draw()
    y[3, 2, 1] = np.inf
    constant = np.broadcast_to(x[:1], x.shape) + 1000
    found = flattened(make_store(tmp_path / "s", [x, y, constant], speakers=SPEAKERS))
    bad = found[(found["layer_a"] > 0) | (found["layer_b"] > 0)]
    assert bad["value"].isna().all()
    reasons = {r.split(":")[0] for r in bad["reason"]}
    assert reasons == {"NaN or infinite features", "constant features"}
    good = found[(found["layer_a"] == 0) & (found["layer_b"] == 0)]
    np.testing.assert_allclose(good["value"], 1)


def test_three_samples_have_no_similarity(tmp_path, make_store) -> None:
    found = flattened(make_store(tmp_path / "s", [x[:3] for x in draw()]))
    assert found["value"].isna().all()
    assert found["reason"].str.contains("at least 4").all()


def test_grams_that_do_not_fit_are_refused_before_the_pass(tmp_path, make_store) -> None:
    x = np.random.default_rng(5).standard_normal((600, 1, 2))
    path = make_store(tmp_path / "s", [x, x + 1])

    def progress(*_):
        pytest.fail("nothing is read")

    with pytest.raises(MemoryBudgetError, match="2 flattened arrays needs pairs of samples"):
        analyze(path, [FLAT], memory="64MiB", progress=progress)


def test_the_default_has_no_flattened_rows(study) -> None:
    found = to_tables(analyze(study.path, [CKA(frames=False)], sites=["embed"]))["cka"]
    assert set(found["granularity"]) == {"pooled"}
