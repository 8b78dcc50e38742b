"""`kill -9` on real processes at random moments, with somebody reading along."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from lorascope.store import open_store

from .small_run import Run

ROOT = Path(__file__).parents[2]


class Forker:
    """The warm parent, as the test sees it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.proof.forker"],
            cwd=ROOT,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, run: Run, path: Path, log: Path, kill_after: float | None = None) -> None:
        """Start a writer, and have it killed after some seconds."""
        assert self._process.stdin is not None
        order = {"path": str(path), "run": asdict(run), "log": str(log), "kill_after": kill_after}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()

    def wait(self) -> int:
        """Return the exit code of the last writer, or minus its signal."""
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())

    def close(self) -> None:
        """End the parent."""
        self._process.communicate(timeout=10)


@pytest.fixture(scope="module")
def forker() -> Iterator[Forker]:
    """A warm parent for all kills of this module."""
    forker = Forker()
    yield forker
    forker.close()


def read_along(run: Run, path: Path, until: float) -> int:
    """Read the live store again and again; every value that is there must be right."""
    reads = 0
    while time.perf_counter() < until:
        if (path / "zarr.json").exists() and open_store(path).captures:
            run.check_values(open_store(path))
            reads += 1
    return reads


def test_kills_at_random_moments(tmp_path, forker, seed, amount, note):
    """Committed samples lost: 0. Torn reads: 0. Stores that need help to be opened again: 0."""
    kills = amount("kills", change=200, release=5000)
    rng = random.Random(seed)
    done = reads = runs = 0
    while done < kills:
        run = Run.draw(rng)
        expected = run.digest(tmp_path / "undisturbed")
        path, log = tmp_path / "killed", tmp_path / "log"
        log.touch()
        began = time.perf_counter()
        forker.start(run, tmp_path / "timed", tmp_path / "unused")
        assert forker.wait() == 0
        whole = time.perf_counter() - began
        while True:
            kill_after = rng.uniform(0, 1.1 * whole)
            forker.start(run, path, log, kill_after)
            if rng.random() < 0.3:
                reads += read_along(run, path, time.perf_counter() + kill_after)
            code = forker.wait()
            assert code in {0, -signal.SIGKILL}, f"the writer ended with code {code}"
            run.check(path, log.read_text().split())
            if code == 0:
                break
            done += 1
        assert open_store(path).content_digest() == expected
        runs += 1
        for folder in (path, tmp_path / "undisturbed", tmp_path / "timed"):
            shutil.rmtree(folder)
        log.unlink()
    assert reads > 0
    note("kill -9 of a writer: lost, torn, stuck", kills=done, resumed=runs, live_reads=reads)
