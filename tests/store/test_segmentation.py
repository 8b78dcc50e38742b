"""Plans cover every sample once, never split a batch, and give shapes that divide."""

from __future__ import annotations

import threading
import time
from itertools import pairwise

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from lorascope.store import SampleRows, Site, create_store, open_store
from lorascope.store.chunking import chunk_rows, plan_segments
from lorascope.store.layout import ArraySpec, fill_bytes
from lorascope.store.pipeline import Pipeline
from lorascope.store.shards import ShardWriter


@given(
    rows=st.lists(st.integers(0, 300), min_size=1, max_size=80),
    batch_size=st.integers(1, 9),
    widths=st.lists(st.integers(1, 3000), min_size=1, max_size=3),
    limit=st.one_of(st.none(), st.integers(1, 20)),
)
def test_plan(rows, batch_size, widths, limit):
    plan = [SampleRows(str(i), {"tokens": n}) for i, n in enumerate(rows)]
    sites = [Site(f"s{i}", [0], width) for i, width in enumerate(widths)]
    shape, segments = plan_segments(plan, sites, batch_size=batch_size, segment_samples=limit)
    assert [s for segment in segments for s in segment] == plan
    starts = np.cumsum([0, *(len(segment) for segment in segments)])[:-1]
    assert all(start % batch_size == 0 for start in starts), "a batch crosses a segment"
    assert all(sum(s.rows["tokens"] for s in segment) <= shape.rows for segment in segments)
    assert all(len(segment) <= shape.samples for segment in segments)
    if limit is not None and limit >= batch_size:
        assert max(map(len, segments)) <= limit
    for site in sites:
        inner = chunk_rows(site, shape.rows)
        assert shape.rows % inner == 0
        assert inner == 1 or inner * site.row_bytes <= 2**20


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_streamed_shard_is_what_zarr_reads(data, tmp_path_factory):
    """Any number of rows in pieces of any size gives the bytes that Zarr's own codec accepts."""
    n_chunks, inner, width = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 4)), 3
    total = data.draw(st.integers(0, n_chunks * inner))
    cuts = sorted(data.draw(st.lists(st.integers(0, total), max_size=6)))
    rows = np.arange(total * width, dtype=np.float32).reshape(total, width)
    folder = tmp_path_factory.mktemp("shard")
    spec = ArraySpec(
        "x",
        ("layer", "row", "feature"),
        (1, n_chunks * inner, width),
        "float32",
        (1, n_chunks * inner, width),
        (1, inner, width),
    )
    shard = ShardWriter(
        folder / "c.0.0.0",
        "x/c.0.0.0",
        chunk_bytes=inner * width * 4,
        n_chunks=n_chunks,
        fill=fill_bytes("float32"),
    )
    for start, stop in pairwise([0, *cuts, total]):
        shard.write(np.array_split(rows[start:stop], 2))
    shard.complete()
    entry = shard.sync()
    (folder / "zarr.json").write_bytes(spec.metadata())
    read = np.asarray(zarr.open_array(folder, mode="r")[0])
    np.testing.assert_array_equal(read[:total], rows)
    assert np.isnan(read[total:]).all()
    assert entry.size == (folder / "c.0.0.0").stat().st_size
    assert len(entry.chunks) == -(-total // inner)


def test_the_pipeline_blocks_at_its_bound():
    gate = threading.Event()
    pipeline = Pipeline(1, max_bytes=100)
    sent = []

    def wait() -> None:
        gate.wait()

    def produce():
        for number in range(5):
            pipeline.send(0, wait, 40)
            sent.append(number)

    producer = threading.Thread(target=produce)
    producer.start()
    time.sleep(0.2)
    assert sent == [0, 1], "two jobs of 40 bytes fit into 100, a third must wait"
    gate.set()
    producer.join(5)
    assert len(sent) == 5
    pipeline.close()


def test_a_failing_job_reaches_the_producer_and_nobody_waits():
    pipeline = Pipeline(2, max_bytes=10)

    def fail():
        msg = "disk gone"
        raise OSError(msg)

    pipeline.send(0, fail, 10)
    with pytest.raises(OSError, match="disk gone"):  # noqa: PT012 - some later call raises
        for _ in range(100):
            pipeline.send(1, lambda: None, 10)
            time.sleep(0.001)
    with pytest.raises(OSError, match="disk gone"):
        pipeline.close()


def test_a_column_that_comes_later_is_empty_before(tmp_path):
    """Strings, numbers and flags alike; a plain Zarr reader sees the same fill values."""
    x = {"x": np.zeros((2, 1, 3))}
    site = Site("x", [0, 1], 3)
    with create_store(tmp_path / "s", capture="a", sites=[site], segment_samples=1) as writer:
        writer.append("one", x)
        writer.append("two", x, columns={"take": 7, "gain": 0.5, "loud": True, "note": "n"})
    table = open_store(tmp_path / "s").capture("a").samples
    assert table["take"].tolist() == [-1, 7]
    assert np.isnan(table["gain"][0])
    assert table["gain"][1] == 0.5
    assert table["loud"].tolist() == [False, True]
    assert table["note"].tolist() == ["", "n"]
