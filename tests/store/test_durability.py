"""Committed samples survive a refusing disk and an exception; memory and lengths keep their bounds."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from lorascope.store import StoreSpaceError, StoreWriteError, create_store, open_store, verify_store

from .conftest import SITES, make_samples, plan_of


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
def test_failing_calls(write_store, monkeypatch, call, code, error):
    """The system's own calls; `tests/proof` lets every operation of a small run fail."""
    planned = code == errno.ENOSPC
    samples = make_samples(9)
    options = {"plan": plan_of(samples)} if planned else {"profile": "compact"}
    options |= {"segment_samples": 4, "samples": samples}
    calls = failing(monkeypatch, call, 10**9, code)
    expected = open_store(write_store("whole.zarr", **options)).content_digest()
    total = calls[0]
    monkeypatch.undo()
    assert total > 10
    for number in (1, total // 3, 2 * total // 3, total):
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
