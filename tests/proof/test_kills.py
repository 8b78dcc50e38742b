"""Signals to real processes at random moments: `kill -9` with somebody reading along, and those that ask."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from lorascope.store import open_store

from .small_run import Run
from .warm import Warm


@pytest.fixture(scope="module")
def forker() -> Iterator[Warm]:
    """A warm parent for all writers of this module."""
    forker = Warm("forker")
    yield forker
    forker.close()


def order(run: Run, path: Path, log: Path, *signals: tuple[float, int]) -> dict[str, object]:
    """Return the order to write a run, and to send signals after so many seconds each."""
    return {"path": str(path), "run": asdict(run), "log": str(log), "signals": signals}


def read_along(run: Run, path: Path, until: float) -> int:
    """Read the live store again and again; every value that is there must be right."""
    reads = 0
    while time.perf_counter() < until:
        if (path / "zarr.json").exists() and open_store(path).captures:
            run.check_values(open_store(path))
            reads += 1
    return reads


def test_kills_at_random_moments(ram, forker, seed, amount, note):
    """Committed samples lost: 0. Torn reads: 0. Stores that need help to be opened again: 0."""
    kills = amount("kills", change=200, release=5000)
    rng = random.Random(seed)
    done = reads = runs = 0
    while done < kills:
        run = Run.draw(rng)
        expected = run.digest(ram / "undisturbed")
        path, log = ram / "killed", ram / "log"
        log.touch()
        began = time.perf_counter()
        assert forker.ask(order(run, ram / "timed", ram / "unused")) == 0
        whole = time.perf_counter() - began
        while True:
            kill_after = rng.uniform(0, 1.1 * whole)
            forker.start(order(run, path, log, (kill_after, signal.SIGKILL)))
            if rng.random() < 0.3:
                reads += read_along(run, path, time.perf_counter() + kill_after)
            code = forker.answer()
            assert code in {0, -signal.SIGKILL}, f"the writer ended with code {code}"
            run.check(path, log.read_text().split())
            if code == 0:
                break
            done += 1
        assert open_store(path).content_digest() == expected
        runs += 1
        for folder in (path, ram / "undisturbed", ram / "timed"):
            shutil.rmtree(folder)
        log.unlink()
    assert reads > 0
    note("kill -9 of a writer: lost, torn, stuck", kills=done, resumed=runs, live_reads=reads)


ASKING = (signal.SIGTERM, signal.SIGINT)
ENDED = {0, 143, 130, *(-number for number in ASKING)}
"""What `cli` exits with; a signal that comes before a command looks for it ends the process."""


def test_signals_at_random_moments(ram, forker, seed, amount, note):
    """Told to end, a command leaves what `kill -9` leaves at worst; the same command goes on."""
    signals = amount("signals", change=20, release=500)
    rng = random.Random(seed + 2)
    codes: Counter[int] = Counter()
    runs = 0
    while codes.total() < signals:
        run = Run.draw(rng)
        expected = run.digest(ram / "undisturbed")
        path, log = ram / "ended", ram / "log"
        log.touch()
        began = time.perf_counter()
        assert forker.ask(order(run, ram / "timed", ram / "unused")) == 0
        whole = time.perf_counter() - began
        while True:
            wanted = [(rng.uniform(0.1, 1) * whole, rng.choice(ASKING))]
            if rng.random() < 0.2:  # the second one may come while the command says how to go on
                wanted.append((rng.uniform(0, 0.1) * whole, rng.choice(ASKING)))
            code = forker.ask(order(run, path, log, *wanted))
            said = log.with_name("log.said")
            assert code in ENDED, f"the writer ended with code {code}: {said.read_text()}"
            assert "defect" not in said.read_text(), said.read_text()
            run.check(path, log.read_text().split())
            if code == 0:
                break
            codes[code] += 1
            if code < 0:  # before the command looked: the machine is slower than when it was timed
                whole *= 1.25
        run.check_whole(path, expected)
        runs += 1
        for folder in (path, ram / "undisturbed", ram / "timed"):
            shutil.rmtree(folder)
        log.unlink()
    orderly = codes[143] + codes[130]
    assert orderly, f"no command ended in an orderly way: {codes}"
    counts = {"signals": codes.total(), "orderly": orderly, "resumed": runs}
    note("SIGTERM and SIGINT, then the same command: identical digest", **counts)
