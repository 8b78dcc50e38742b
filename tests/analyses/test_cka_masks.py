"""Frames of `cka` and pooled features where padding was recorded: speech first, and apart."""

import numpy as np
import pytest

from lorascope.analyses import CKA, analyze, linear_cka, to_tables
from lorascope.store import Site, create_store

N, FRAMES, WIDTH = 24, 12, 6
VALID = np.random.default_rng(9).integers(3, FRAMES + 1, N)
VALID[5] = 0
"""Frames with audio of each sample; one has none."""
VALUES = ("value", "value_low", "value_high", "p_value", "null_ceiling")


def rows(seed: int, valid_n=VALID) -> np.ndarray:
    """Return [sample, layer, frame, feature]; padding is far off and its own in each sample."""
    rng = np.random.default_rng(seed)
    common = np.random.default_rng(0).normal(size=(N, 1, FRAMES, WIDTH))
    x = 0.7 * common + rng.normal(size=(N, 2, FRAMES, WIDTH))
    padding = 20 + 5 * np.random.default_rng(1).normal(size=(N, 1, 1, WIDTH))
    return np.where(np.arange(FRAMES)[:, None] < valid_n[:, None, None, None], x, padding).astype(
        "f4"
    )


def write(path, frames: str, *, tell: bool = True, valid_n=VALID):
    """Write two captures of the same seeds: all frames, or only those with audio."""
    for seed, capture in enumerate(("a", "b"), 2):
        sites = [Site("resid_post", [0, 1], WIDTH, stream="encoder")]
        options = {"attrs": {"record": {"frames": frames}}, "config": {"c": capture}}
        with create_store(
            path, capture=capture, sites=sites, segment_samples=7, **options
        ) as writer:
            for i, x in enumerate(rows(seed, valid_n)):
                kept = x if frames == "all" else x[:, : valid_n[i]]
                columns = {"valid_frames": int(valid_n[i])} if tell else {}
                groups = {"speaker": f"s{i % 6}"}
                writer.append(f"u{i}", {"resid_post": kept}, groups=groups, columns=columns)
    return path


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("masks")
    return write(folder / "all.zarr", "all"), write(folder / "valid.zarr", "valid")


def frames_of_cka(path, **options):
    found = analyze(path, [CKA(exact=True, permutations=0)], **options)
    table = to_tables(found)["cka"]
    return table[table["granularity"] == "frame"], found["cka"].attrs


def in_order(table):
    keys = ["capture_a", "layer_a", "capture_b", "layer_b", "estimator"]
    return table.sort_values(keys).reset_index(drop=True)


def test_audio_of_all_frames_is_what_a_store_of_audio_has(stores) -> None:
    """Same ids, same numbers of frames: the same draws and the same rows, to the last digits."""
    padded, attrs = frames_of_cka(stores[0])
    spoken, _ = frames_of_cka(stores[1])
    assert set(padded["mask"]) == {"valid", "all"}
    assert set(spoken["mask"]) == {"valid"}
    audio = in_order(padded[padded["mask"] == "valid"])
    spoken = in_order(spoken)
    assert len(audio) == len(spoken) == 10 * 5
    assert (audio["reason"] == "").all()
    for column in VALUES:
        np.testing.assert_allclose(audio[column], spoken[column], rtol=1e-9, err_msg=column)
    np.testing.assert_array_equal(audio["n"], spoken["n"])
    exact = audio[audio["estimator"] == "debiased"]
    assert (exact["n"] == VALID.sum()).all()
    assert attrs["exact_jackknife_groups"] == "resid_post 6, resid_post (all) 6"


def test_all_frames_are_every_frame(stores, one) -> None:
    padded, _ = frames_of_cka(stores[0])
    x, y = (rows(seed)[:, 1].reshape(-1, WIDTH) for seed in (2, 3))
    expected = linear_cka([x.astype("f8"), y.astype("f8")])
    pair = {"capture_a": "a", "capture_b": "b", "layer_a": 1, "layer_b": 1}
    for estimator in ("debiased", "biased"):
        row = one(padded, **pair, mask="all", estimator=estimator)
        assert row["value"] == pytest.approx(expected[estimator].value[0, 1], abs=1e-5)
        assert row["n"] == N * FRAMES
    spoken = one(padded, **pair, mask="valid", estimator="debiased")["value"]
    assert spoken < 0.6 < one(padded, **pair, mask="all", estimator="debiased")["value"]
    drawn = padded[padded["estimator"] == "minibatch"]
    drawn = drawn[drawn["capture_a"] != drawn["capture_b"]]
    means = [drawn[drawn["mask"] == mask]["value"].mean() for mask in ("valid", "all")]
    assert means[0] < 0.6 < means[1]  # what samples share most is their padding


@pytest.mark.parametrize("other", ["a store of audio alone", "a store of all frames"])
def test_another_store_is_compared_by_its_audio(stores, other) -> None:
    path = stores[1] if other == "a store of audio alone" else stores[0]
    table, _ = frames_of_cka(stores[0], captures=["a"], against=path)
    far = table[table["capture_b"] == "against:a"]
    same = far[(far["layer_a"] == far["layer_b"]) & (far["estimator"] == "debiased")]
    assert list(same["mask"]) == (
        ["valid"] * 2 if path == stores[1] else ["valid"] * 2 + ["all"] * 2
    )
    np.testing.assert_allclose(same["value"], 1, atol=1e-6)
    assert (far["reason"] == "").all()


def test_without_a_count_of_audio_all_frames_are_one(tmp_path) -> None:
    path = write(tmp_path / "s.zarr", "all", tell=False)
    table, _ = frames_of_cka(path)
    assert set(table["mask"]) == {"all"}
    pooled = to_tables(analyze(path, [CKA(frames=False)]))["cka"]
    assert set(pooled["mask"]) == {"all"}


@pytest.mark.parametrize("memory", ["2GiB", "10kB"])
def test_means_are_those_of_audio_where_no_pool_was_recorded(tmp_path, memory, one) -> None:
    """Kept in memory, or read again where they do not fit."""
    valid_n = np.maximum(VALID, 1)
    path = write(tmp_path / "s.zarr", "all", valid_n=valid_n)
    found = analyze(path, [CKA(frames=False, permutations=0)], memory=memory, workers=1)["cka"]
    assert (found.attrs["slabs"] == 0) == (memory == "10kB")  # nothing was read in a pass
    table = to_tables({"cka": found})["cka"]
    assert set(table["mask"]) == {"valid"}
    x, y = (
        np.stack([x[1, :n].mean(axis=0) for x, n in zip(rows(s, valid_n), valid_n, strict=True)])
        for s in (2, 3)
    )
    pair = {"capture_a": "a", "capture_b": "b", "layer_a": 1, "layer_b": 1}
    expected = linear_cka([x, y])["debiased"].value[0, 1]
    row = one(table, **pair, estimator="debiased")
    assert row["value"] == pytest.approx(expected, abs=1e-6)  # means of float32
