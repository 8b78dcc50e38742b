"""Committed samples survive a kill and a refusing disk; a resumed run gives the same content."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lorascope.store import StoreSpaceError, StoreWriteError, create_store, open_store, verify_store

from .conftest import SITES, make_samples, plan_of

CHILD = """
import sys, time
import numpy as np
from lorascope.store import SampleRows, Site, create_store
print("start", flush=True)
path, count, planned = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "planned"
plan = [SampleRows(f"s{i}", {"tokens": 1 + i % 5}) for i in range(count)]
sites = [Site("x", [0, 1], 8, "bfloat16"), Site("x.mean", [0, 1], 8, kind="sample")]
with create_store(path, capture="a", sites=sites, config={"n": count}, segment_samples=5,
                  profile="fast" if planned else "compact", plan=plan if planned else None) as writer:
    writer.write_parameters({"w": np.arange(4.0)})
    for number, sample in enumerate(plan):
        if sample.id in writer.committed:
            continue
        x = np.random.default_rng(number).standard_normal((2, sample.rows["tokens"], 8))
        writer.append(sample.id, {"x": x, "x.mean": x.mean(1)}, label="l", groups={"speaker": "1"})
        for done in sorted(writer.committed - getattr(writer, "said", set())):
            print(done, flush=True)
        writer.said = writer.committed
print("end", flush=True)
"""


def run_child(path: Path, planned: str, *, kill_after: float | None = None) -> list[str]:
    """Run the writer; return the ids it had seen committed when it ended or was killed."""
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path), "60", planned], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        if kill_after is not None:
            # The clock starts when it reports for work, so that kills fall into writing.
            assert child.stdout.readline() == "start\n"
            time.sleep(kill_after)
            child.send_signal(signal.SIGKILL)
        return child.stdout.read().split()


@pytest.mark.parametrize("planned", ["planned", "unplanned"])
def test_kill_9_then_the_same_command(tmp_path, planned):
    run_child(tmp_path / "undisturbed.zarr", planned)
    expected = open_store(tmp_path / "undisturbed.zarr").content_digest()
    rng = random.Random(5)
    path = tmp_path / "killed.zarr"
    seen: set[str] = set()
    for _ in range(6):
        seen |= set(run_child(path, planned, kill_after=rng.uniform(0.0, 0.25)))
        if (path / "zarr.json").exists():
            store = open_store(path)
            present = set(store.samples["id"]) if store.captures else set()
            assert seen - {"start", "end"} <= present, (
                "a sample that was said to be committed is gone"
            )
            assert verify_store(path).ok
    assert run_child(path, planned)[-1] == "end"
    assert open_store(path).content_digest() == expected
    assert verify_store(path).ok
    assert not any((path / "__commits__/staging").iterdir())


class Fault(OSError):
    """The error that the disk gives in these tests."""


def failing(monkeypatch, name: str, number: int, code: int) -> list[int]:
    """Let the `number`-th call of `os.<name>` from now on fail, and every later one too."""
    real = getattr(os, name)
    calls = [0]

    def fake(*args, **kwargs):
        calls[0] += 1
        if calls[0] >= number:
            raise Fault(code, os.strerror(code))
        return real(*args, **kwargs)

    monkeypatch.setattr(os, name, fake)
    return calls


@pytest.mark.parametrize(
    ("call", "code", "error"),
    [
        ("fsync", errno.EIO, StoreWriteError),
        ("rename", errno.EIO, StoreWriteError),
        ("fsync", errno.ENOSPC, StoreSpaceError),
    ],
)
@pytest.mark.parametrize("planned", [True, False])
def test_every_failing_call(tmp_path, write_store, monkeypatch, call, code, error, planned):
    samples = make_samples(9)
    options = {"plan": plan_of(samples)} if planned else {"profile": "compact"}
    options |= {"segment_samples": 4, "samples": samples}
    calls = failing(monkeypatch, call, 10**9, code)
    expected = open_store(write_store("whole.zarr", **options)).content_digest()
    total = calls[0]
    monkeypatch.undo()
    assert total > 10
    # Every eighth call keeps the test short; the cases start at different residues of it.
    for number in range(1 + (code + planned) % 8, total + 1, 8):
        name = f"{number}.zarr"
        with monkeypatch.context() as patch:
            failing(patch, call, number, code)
            with pytest.raises(error, match="ommitted samples are safe"):
                write_store(name, **options)
        path = write_store(name, **options)
        store = open_store(path)
        assert store.content_digest() == expected, f"differs after failing {call} number {number}"
        assert verify_store(path).ok


def test_an_exception_drops_the_open_segment_only(tmp_path, write_store):
    samples = make_samples(10)
    with (  # noqa: PT012 - the block is what raises
        pytest.raises(ZeroDivisionError),
        create_store(tmp_path / "s", capture="a", sites=SITES, segment_samples=4) as writer,
    ):
        for sample in samples:
            writer.append(**{k: v for k, v in sample.items() if k != "outputs"})
        raise ZeroDivisionError
    assert open_store(tmp_path / "s").samples["id"].tolist() == [s["id"] for s in samples[:8]]
    assert not any((tmp_path / "s/__commits__/staging").iterdir())


def test_nothing_is_published_before_its_commit(tmp_path):
    """A plain reader of an unplanned store sees no length before the data are durable."""
    samples = make_samples(6)
    shapes = []
    with create_store(tmp_path / "s", capture="a", sites=SITES, segment_samples=3) as writer:
        for sample in samples:
            writer.append(**{k: v for k, v in sample.items() if k != "outputs"})
            names = {p.name for p in (tmp_path / "s/captures/a/sites/embed/values").iterdir()}
            shapes.append(len(names - {"zarr.json"}) <= len(writer.committed) // 3 + 1)
    assert all(shapes)


def test_memory_stays_within_the_buffer(tmp_path):
    """120 MB through an 8 MiB buffer: the peak beyond the baseline stays far below the data."""
    script = f"""
import resource, numpy as np
from lorascope.store import Site, create_store
sites = [Site("x", range(30), 512)]
x = np.zeros((30, 10, 512), np.float32)
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
with create_store({str(tmp_path / "s")!r}, capture="a", sites=sites, buffer_bytes=8 * 2**20) as w:
    w.append("first", {{"x": x}})
    base = peak()
    for number in range(200):
        w.append(str(number), {{"x": x.copy()}})
print(peak() - base)
"""
    out = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout
    # Declared: 8 MiB in flight, one sample (0.6 MB) more, 64 KiB of file buffer for 30 shards.
    assert float(out) < 8 + 8
