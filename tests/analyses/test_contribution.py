"""Ratios and cosines against a direct computation on the stored rows."""

import numpy as np
import pytest

from lorascope.analyses import MissingSitesError, analyze, to_tables
from lorascope.store import Site, create_store


@pytest.fixture(scope="module")
def shares(study):
    return to_tables(analyze(study.path, ["contribution"]))["contribution"]


def compare(added: np.ndarray, base: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    norms = np.linalg.norm(added, axis=-1), np.linalg.norm(base, axis=-1)
    return norms[0] / norms[1], np.sum(added * base, axis=-1) / norms[0] / norms[1]


def test_values_equal_a_direct_computation(study, shares) -> None:
    for row in shares[shares["component"] != "lora"].to_dict("records"):
        capture, layer = row["capture"], int(row["layer"])
        before = ("embed", 0) if layer == 0 else ("resid_post", layer - 1)
        per_sample, per_frame = [], []
        for i in range(len(study.ids)):
            h = study.arrays[capture, before[0]][i][before[1]].astype(np.float64)
            a = study.arrays[capture, "attn_out"][i][layer].astype(np.float64)
            m = study.arrays[capture, "mlp_out"][i][layer].astype(np.float64)
            pair = {"attention": (a, h), "mlp": (m, h + a), "layer": (a + m, h)}[row["component"]]
            found = np.stack(compare(*pair))
            per_sample.append(found.mean(axis=1))
            per_frame.append(found)
        ratio, cosine = np.concatenate(per_frame, axis=1)
        means = np.mean(per_sample, axis=0)
        assert row["n"] == ratio.size
        assert row["ratio_mean"] == pytest.approx(means[0], rel=1e-12)
        assert row["cosine_mean"] == pytest.approx(means[1], rel=1e-10, abs=1e-12)
        # half a bin: 0.23 % and 0.00025, and half a gap between neighbouring frames
        assert row["ratio_median"] == pytest.approx(np.median(ratio), rel=0.01)
        assert row["cosine_median"] == pytest.approx(np.median(cosine), abs=0.005)
        assert row["ratio_mean_low"] < row["ratio_mean"] < row["ratio_mean_high"]
        assert row["reason"] == ""


def test_lora_without_its_base_gives_a_reason(shares) -> None:
    lora = shares[shares["component"] == "lora"]
    assert set(lora["capture"]) == {"untrained", "lora"}
    assert lora["ratio_mean"].isna().all()
    assert set(lora["reason"]) == {"base_out.v_proj was not recorded"}


def _write(path, b_out: np.ndarray, base: np.ndarray) -> None:
    """Write a capture with one layer of everything; b_out and base are [sample, row, feature]."""
    names = ("attn_out", "mlp_out", "lora_b.v_proj", "base_out.v_proj")
    sites = [Site("embed", None, 4), *(Site(name, [0], 4) for name in names)]
    attrs = {"adapter": {"r": 2, "scaling": 2.0}, "record": {"frames": "every:4"}}
    with create_store(path, capture="a", sites=sites, attrs=attrs) as writer:
        for i in range(len(base)):
            arrays = {"embed": np.ones((3, 4)), "attn_out": np.ones((1, 3, 4))}
            arrays |= {"mlp_out": np.zeros((1, 3, 4)), "lora_b.v_proj": b_out[i][None]}
            arrays["base_out.v_proj"] = base[i][None]
            writer.append(f"u{i}", {k: x.astype(np.float32) for k, x in arrays.items()})


def test_lora_against_its_base_module(tmp_path) -> None:
    rng = np.random.default_rng(0)
    b_out, base = rng.normal(size=(2, 5, 3, 4)).astype(np.float32)
    _write(tmp_path / "s.zarr", b_out, base)
    rows = to_tables(analyze(tmp_path / "s.zarr", ["contribution"]))["contribution"]
    lora = rows[rows["component"] == "lora"].iloc[0]
    ratio, cosine = compare(2 * b_out.astype(np.float64), base.astype(np.float64))
    assert lora["ratio_mean"] == pytest.approx(ratio.mean())
    assert lora["cosine_mean"] == pytest.approx(cosine.mean())
    assert set(rows["mask"]) == {"every:4"}


def test_zero_norms_have_no_cosine_but_a_ratio(tmp_path) -> None:
    base = np.random.default_rng(1).normal(size=(5, 3, 4))
    _write(tmp_path / "s.zarr", np.zeros_like(base), base)
    rows = to_tables(analyze(tmp_path / "s.zarr", ["contribution"]))["contribution"]
    lora = rows.set_index("component").loc["lora"]
    assert lora["ratio_mean"] == 0
    assert np.isnan(lora["cosine_mean"])
    assert lora["reason"] == "no frame has a cosine: a norm is 0"
    _write(tmp_path / "z.zarr", base, np.zeros_like(base))
    rows = to_tables(analyze(tmp_path / "z.zarr", ["contribution"]))["contribution"]
    assert "no frame has a ratio" in rows.set_index("component").loc["lora", "reason"]


@pytest.fixture(scope="module")
def padded(tmp_path_factory):
    """Write 7 samples of 9 frames, of which 0 to 9 hold audio; return what is in the store."""
    rng = np.random.default_rng(3)
    arrays = {name: rng.normal(size=(7, 9, 4)).astype(np.float32) for name in "ham"}
    valid = np.array([9, 1, 4, 0, 6, 3, 8])
    path = tmp_path_factory.mktemp("padded") / "s.zarr"
    sites = [Site("embed", None, 4), Site("attn_out", [0], 4), Site("mlp_out", [0], 4)]
    attrs = {"record": {"frames": "all"}}
    for capture, columns in (("known", True), ("unknown", False)):
        with create_store(
            path, capture=capture, sites=sites, attrs=attrs, segment_samples=2
        ) as writer:
            for i in range(7):
                writer.append(
                    f"u{i}",
                    {"embed": arrays["h"][i]}
                    | {"attn_out": arrays["a"][i][None], "mlp_out": arrays["m"][i][None]},
                    groups={"speaker": str(i % 4)},
                    columns={"valid_frames": int(valid[i])} if columns else None,
                )
    table = to_tables(analyze(path, ["contribution"], workers=2))["contribution"]
    return path, {k: x.astype(np.float64) for k, x in arrays.items()}, valid, table


@pytest.mark.parametrize("mask", ["valid", "pad", "all"])
def test_frames_of_audio_and_padding_are_told_apart(padded, mask: str) -> None:
    _, x, valid, table = padded
    audio = np.arange(9) < valid[:, None]
    used = {"valid": audio, "pad": ~audio, "all": np.ones_like(audio)}[mask]
    pairs = {"attention": (x["a"], x["h"]), "mlp": (x["m"], x["h"] + x["a"])}
    pairs["layer"] = (x["a"] + x["m"], x["h"])
    rows = table[(table["capture"] == "known") & (table["mask"] == mask)].set_index("component")
    assert set(rows.index) == set(pairs)
    for component, pair in pairs.items():
        row, found = (
            rows.loc[component],
            dict(zip(("ratio", "cosine"), compare(*pair), strict=True)),
        )
        for name, values in found.items():
            means = [v[u].mean() for v, u in zip(values, used, strict=True) if u.any()]
            assert row[f"{name}_mean"] == pytest.approx(np.mean(means), rel=1e-10)
            # half a bin, and half of the gap between neighbours of the middle
            middle = np.sort(values[used])[[used.sum() // 2 - 1, used.sum() // 2]]
            slack = 0.005 * np.abs(middle).max() + 0.0005
            assert middle[0] - slack <= row[f"{name}_median"] <= middle[1] + slack
            assert row[f"{name}_mean_low"] <= row[f"{name}_mean"] <= row[f"{name}_mean_high"]
        assert row["n"] == used.sum()


def test_masks_come_only_where_they_can_be_told(padded, tmp_path) -> None:
    path, x, _, table = padded
    assert table.loc[table["capture"] == "known", "mask"].tolist() == ["valid", "pad", "all"] * 3
    unknown = table[table["capture"] == "unknown"].set_index("component")
    assert set(unknown["mask"]) == {"all"}
    known = table[(table["capture"] == "known") & (table["mask"] == "all")].set_index("component")
    numbers = ["ratio_mean", "ratio_median", "cosine_mean", "cosine_median", "n"]
    # sums of two parts of the frames in another order
    np.testing.assert_allclose(known[numbers], unknown.loc[known.index, numbers], rtol=1e-12)
    small = to_tables(analyze(path, ["contribution"], workers=1, memory="4MiB"))["contribution"]
    np.testing.assert_allclose(small[numbers], table[numbers], rtol=1e-12)
    # without padding there is no mask of it
    sites = [Site("embed", None, 4), Site("attn_out", [0], 4), Site("mlp_out", [0], 4)]
    attrs = {"record": {"frames": "all"}}
    with create_store(tmp_path / "f.zarr", capture="full", sites=sites, attrs=attrs) as writer:
        for i in range(3):
            arrays = {"embed": x["h"][i], "attn_out": x["a"][i][None], "mlp_out": x["m"][i][None]}
            arrays = {name: v.astype(np.float32) for name, v in arrays.items()}
            writer.append(f"u{i}", arrays, columns={"valid_frames": 9})
    full = to_tables(analyze(tmp_path / "f.zarr", ["contribution"]))["contribution"]
    assert full["mask"].tolist() == ["valid", "all"] * 3
    halves = full[full["mask"] == "valid"], full[full["mask"] == "all"]
    np.testing.assert_array_equal(*(half["ratio_mean"].to_numpy() for half in halves))


def test_missing_sites_are_named(tmp_path, make_store) -> None:
    path = make_store(tmp_path / "s.zarr", [np.ones((4, 2, 3))])
    with pytest.raises(MissingSitesError, match=r"attn_out, mlp_out.*Present: resid_post"):
        analyze(path, ["contribution"])
