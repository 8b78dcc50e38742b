"""What was appended comes back, bit for bit in the storage type, under any segmentation."""

from __future__ import annotations

import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorascope.store import (
    DamagedStoreError,
    Output,
    SampleError,
    SampleRows,
    Site,
    create_store,
    open_store,
    verify_store,
)

from .conftest import make_samples, plan_of


def stacked(samples, site, layer):
    return np.concatenate(
        [s["values"][site][layer] if layer is not None else s["values"][site] for s in samples]
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"segment_samples": 4},
        {"segment_rows": 40},
        {"plan": True, "batch_size": 3},
        {"plan": True, "segment_samples": 5},
        {"threads": 3, "segment_samples": 6},
        {"buffer_bytes": 1},
    ],
    ids=str,
)
def test_values_come_back(write_store, options):
    samples = make_samples()
    if options.pop("plan", False):
        options["plan"] = plan_of(samples)
    store = open_store(write_store(samples=samples, **options))
    capture = store.capture("base")
    assert capture.samples["id"].tolist() == [s["id"] for s in samples]
    assert capture.samples["label"].tolist() == [s["label"] for s in samples]
    assert capture.samples["exposed"].tolist() == [s["exposed"] for s in samples]
    assert capture.samples["speaker"].tolist() == [s["groups"]["speaker"] for s in samples]
    assert capture.samples["raw_label"].tolist() == [s["columns"]["raw_label"] for s in samples]
    assert capture.samples["take"].tolist() == [s["columns"]["take"] for s in samples]
    assert capture.groups == ("speaker",)
    np.testing.assert_array_equal(capture.read_rows("embed", None), stacked(samples, "embed", None))
    for layer in (0, 1):
        exact = stacked(samples, "resid_post", layer).astype(ml_dtypes.bfloat16)
        np.testing.assert_array_equal(capture.read_rows("resid_post", layer), exact.astype("f4"))
        np.testing.assert_array_equal(
            capture.read_pooled("resid_post.mean_valid", layer),
            [s["values"]["resid_post.mean_valid"][layer] for s in samples],
        )
    np.testing.assert_array_equal(
        capture.read_output("logits"),
        np.array([s["outputs"]["logits"] for s in samples], np.float32),
    )
    assert capture.read_output("loss").tolist() == list(range(len(samples)))
    assert verify_store(store.path).ok


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_slice_of_samples(data, tmp_path_factory):
    counts = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=12))
    segment_samples = data.draw(st.integers(1, 5))
    path = tmp_path_factory.mktemp("slices") / "s.zarr"
    arrays = [
        np.arange(n * 3, dtype=np.float64).reshape(1, n, 3) + 100 * i for i, n in enumerate(counts)
    ]
    with create_store(
        path, capture="a", sites=[Site("x", [7], 3, "float64")], segment_samples=segment_samples
    ) as writer:
        for number, array in enumerate(arrays):
            writer.append(str(number), {"x": array})
    capture = open_store(path).capture("a")
    start = data.draw(st.integers(0, len(counts)))
    stop = data.draw(st.integers(start, len(counts)))
    expected = np.concatenate([np.empty((0, 3)), *(a[0] for a in arrays[start:stop])])
    got = capture.read_rows("x", 7, slice(start, stop))
    assert got.dtype == np.float64
    np.testing.assert_array_equal(got, expected)
    positions = np.concatenate([np.arange(0), *(np.arange(n) for n in counts[start:stop])])
    np.testing.assert_array_equal(capture.read_positions("tokens", slice(start, stop)), positions)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_every_storage_type_keeps_its_own_values(tmp_path, dtype):
    native = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    special = np.array([0.0, -0.0, 1e-40, 65504.0, np.inf, -np.inf, np.nan, 1 / 3])
    with np.errstate(over="ignore"):
        values = special.astype(native).reshape(1, 2, 4)
    with create_store(tmp_path / "s", capture="a", sites=[Site("x", [0], 4, dtype)]) as writer:
        writer.append("one", {"x": values})
    stored = open_store(tmp_path / "s").capture("a").read_stored("x", 0)
    assert stored.tobytes() == values.tobytes()
    read = open_store(tmp_path / "s").capture("a").read_rows("x", 0)
    np.testing.assert_array_equal(read, values[0].astype(read.dtype))


def test_given_positions_and_streams(tmp_path):
    sites = [Site("a", [0], 2, stream="encoder"), Site("b", [0], 2, stream="decoder")]
    with create_store(
        tmp_path / "s", capture="c", sites=sites, outputs=[Output("n", (), "int64")]
    ) as w:
        for number in range(3):
            w.append(
                f"{number}",
                {"a": np.ones((1, 4, 2)), "b": np.ones((1, 2 + number, 2))},
                positions={"encoder": np.array([0, 5, 10, 15])},
                outputs={"n": number},
            )
    capture = open_store(tmp_path / "s").capture("c")
    assert capture.row_counts("encoder").tolist() == [4, 4, 4]
    assert capture.row_counts("decoder").tolist() == [2, 3, 4]
    assert capture.read_positions("encoder", slice(1, 2)).tolist() == [0, 5, 10, 15]
    assert capture.read_positions("decoder", slice(2, 3)).tolist() == [0, 1, 2, 3]
    assert capture.read_output("n").tolist() == [0, 1, 2]


def test_dataset_is_lazy_and_aligned_with_shards(write_store):
    store = open_store(write_store(segment_samples=5))
    dataset = store.dataset(capture="base", site="resid_post")
    assert dataset["values"].dims == ("layer", "row", "feature")
    chunks = dataset["values"].chunks
    assert chunks is not None
    assert chunks[0] == (1, 1)
    assert len(chunks[1]) == len(store.capture("base").segments)
    np.testing.assert_array_equal(
        dataset["values"].sel(layer=1).compute(), store.capture("base").read_rows("resid_post", 1)
    )
    counts = store.capture("base").row_counts("tokens")
    assert dataset["sample"].to_numpy().tolist() == np.repeat(np.arange(23), counts).tolist()
    pooled = store.dataset(capture="base", site="resid_post", pool="mean_valid")
    assert pooled["values"].shape == (2, 23, 6)


def test_parameters_are_durable_at_once(tmp_path, write_store):
    path = write_store()
    weights = {"head.weight": np.arange(6.0).reshape(2, 3), "scale": np.float32(2.5)}
    with create_store(tmp_path / "p", capture="a", sites=[Site("x", [0], 2)]) as writer:
        writer.write_parameters(weights, attrs={"labels": ["a", "b"]})
        capture = open_store(tmp_path / "p").capture("a")
        np.testing.assert_array_equal(capture.parameters["head.weight"], weights["head.weight"])
        assert capture.parameters["scale"] == np.float32(2.5)
        assert capture.parameter_attrs == {"labels": ["a", "b"]}
        writer.write_parameters(weights)
    assert list(open_store(tmp_path / "p").capture("a").parameters) == ["head.weight", "scale"]
    assert verify_store(path).ok


def test_a_live_store_shows_what_is_committed(tmp_path):
    with create_store(
        tmp_path / "s",
        capture="a",
        sites=[Site("x", [0], 2)],
        segment_samples=2,
        plan=[SampleRows(str(n), {"tokens": 1}) for n in range(4)],
    ) as writer:
        for number in range(3):
            writer.append(str(number), {"x": np.full((1, 1, 2), number)})
        while len(writer.committed) < 2:
            pass
        seen = open_store(tmp_path / "s").capture("a")
        assert seen.samples["id"].tolist() == ["0", "1"]
        assert not seen.complete
        writer.append("3", {"x": np.zeros((1, 1, 2))})
    assert open_store(tmp_path / "s").capture("a").complete


@pytest.mark.parametrize("planned", [True, False])
@pytest.mark.parametrize("first", [0, 1, 5, 7])
def test_a_column_may_come_later(tmp_path, planned, first):
    """Samples, and whole segments, that were written before it have its fill value."""
    plan = [SampleRows(f"s{i}", {"tokens": 1}) for i in range(8)]
    with create_store(
        tmp_path / "s",
        capture="a",
        sites=[Site("x", None, 2)],
        segment_samples=2,
        plan=plan if planned else None,
    ) as writer:
        for i, sample in enumerate(plan):
            facts = {"take": i, "clean": True, "weight": 0.5, "note": "n"} if i >= first else {}
            writer.append(sample.id, {"x": np.ones((1, 2), np.float32)}, columns=facts)
    table = open_store(tmp_path / "s").samples
    missing = [-1] * first
    assert table["take"].tolist() == missing + list(range(first, 8))
    assert table["clean"].tolist() == [False] * first + [True] * (8 - first)
    assert table["weight"].isna().tolist() == [True] * first + [False] * (8 - first)
    assert table["note"].tolist() == [""] * first + ["n"] * (8 - first)
    assert verify_store(tmp_path / "s").ok


def test_a_planned_capture_of_pooled_values_only(tmp_path):
    """No rows at all, more samples than row slots: what was planned opens again."""
    plan = [SampleRows(f"s{n}") for n in range(9)]
    sites = [Site("x.mean_valid", [0], 2, kind="sample")]
    with create_store(
        tmp_path / "s", capture="a", sites=sites, plan=plan, segment_samples=5
    ) as writer:
        for number, sample in enumerate(plan):
            writer.append(sample.id, {"x.mean_valid": np.full((1, 2), number)})
    read = open_store(tmp_path / "s").capture("a").read_pooled("x.mean_valid", 0)
    np.testing.assert_array_equal(read, np.repeat(np.arange(9.0)[:, None], 2, axis=1))


@pytest.mark.parametrize("profile", ["fast", "compact"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_rows_go_into_memory_that_is_there(tmp_path, dtype, profile):
    """Any part of several chunks and segments; what does not fit exactly is refused."""
    x = np.arange(40 * 30 * 4, dtype=np.float64).reshape(40, 1, 30, 4) % 251
    site = Site("x", [0], 4, dtype)
    with create_store(
        tmp_path / "s", capture="a", sites=[site], segment_rows=300, profile=profile
    ) as writer:
        for number, rows in enumerate(x):
            writer.append(str(number), {"x": rows})
    capture = open_store(tmp_path / "s").capture("a")
    wide = np.dtype(np.float64 if dtype == "float64" else np.float32)
    for start, stop in ((0, 40), (3, 4), (7, 23), (10, 20), (5, 5)):
        out = np.full((30 * (stop - start), 4), -1, wide)
        capture.expect_rows("x", 0, slice(start, stop))
        assert capture.read_rows("x", 0, slice(start, stop), out=out) is out
        np.testing.assert_array_equal(out, x[start:stop].reshape(-1, 4))
    for wrong in (
        np.empty((29, 4), wide),
        np.empty((30, 4), np.int32),
        np.empty((30, 8), wide)[:, ::2],
    ):
        with pytest.raises(SampleError, match="the array that should take it"):
            capture.read_rows("x", 0, slice(0, 1), out=wrong)


def numbered_rows(path: Path, count: int = 40) -> np.ndarray:
    """Write one chunk of float32 rows, a sample each, and return them."""
    x = np.arange(count * 4, dtype=np.float32).reshape(count, 4)
    with create_store(path, capture="a", sites=[Site("x", [0], 4, "float32")]) as writer:
        for number, row in enumerate(x):
            writer.append(str(number), {"x": row[None, None]})
    return x


@pytest.mark.parametrize("changed", [0, 9, 10, 19, 20, 39])
def test_rows_around_those_that_are_wanted_are_checked_too(tmp_path, changed):
    """One flipped bit of the chunk, before, in or behind the rows 10 to 19."""
    numbered_rows(tmp_path / "s")
    shard = tmp_path / "s/captures/a/sites/x/values/c.0.0.0"
    content = bytearray(shard.read_bytes())
    content[changed * 16 + 7] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DamagedStoreError, match="checksum of chunk 0"):
        open_store(tmp_path / "s").capture("a").read_rows("x", 0, slice(10, 20))


@pytest.mark.parametrize("most", [1, 7, 160, 170])
def test_a_disk_that_gives_less_than_was_asked_for(tmp_path, monkeypatch, most):
    """A read may stop anywhere: before the wanted rows, within them, at their end, behind it."""
    x = numbered_rows(tmp_path / "s")
    capture = open_store(tmp_path / "s").capture("a")

    def preadv(descriptor, buffers, offset):
        content = os.pread(descriptor, min(most, sum(len(b) for b in buffers)), offset)
        at = 0
        for buffer in buffers:
            part = content[at : at + len(buffer)]
            buffer[: len(part)] = part
            at += len(part)
        return len(content)

    monkeypatch.setattr(os, "preadv", preadv)
    np.testing.assert_array_equal(capture.read_rows("x", 0, slice(10, 20)), x[10:20])
