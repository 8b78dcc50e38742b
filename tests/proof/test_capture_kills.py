"""A capture is killed, terminated or interrupted while it trains or records, and goes on."""

from __future__ import annotations

import random
import shutil
import signal
from pathlib import Path

import pytest

from lorascope.store import open_store, verify_store

from .commands import Kill
from .conftest import Captures

CODES = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 143, signal.SIGINT: 130}
WORDS = {signal.SIGTERM: "terminated", signal.SIGINT: "interrupted"}
STAGES = ("lora: training", "lora: capturing")


def stop(captures: Captures, store: Path, kill: Kill) -> bool:
    """Have a run stopped; whether the signal was in time, with what it left checked."""
    command = captures.command(store, kill=kill)
    (code,) = captures.commands.run(command)
    said = captures.log(store).read_text()
    assert code in (0, CODES[kill.signal]), said
    assert verify_store(store).ok
    held = open_store(store)
    assert held.capture("frozen").complete
    if code == 0:
        return False
    assert kill.signal == signal.SIGKILL or said.endswith(
        f"\ncapture-run: {WORDS[kill.signal]}\n"
        f"what was committed is safe; to go on: capture-run {' '.join(command.arguments)}\n"
    )
    return True


def test_captures_are_stopped_at_random_and_go_on(captures: Captures, tmp_path, seed, amount, note):
    """The same command ends in the digest of a run that nobody disturbed."""
    stops = amount("capture_kills", change=4, release=20)
    rng = random.Random(seed)
    stopped = dict.fromkeys(CODES, 0)
    longest = 0.4 * captures.seconds
    while (number := sum(stopped.values())) < stops:
        store = tmp_path / f"{number}.zarr"
        shutil.rmtree(store, ignore_errors=True)
        shutil.copytree(captures.half, store)
        sent = (
            signal.SIGINT if number % 10 == 9 else (signal.SIGKILL, signal.SIGTERM)[number // 2 % 2]
        )
        seconds = rng.uniform(0, longest)
        kill = Kill(sent, str(captures.log(store)), STAGES[number % 2], seconds)
        in_time = stop(captures, store, kill)
        stopped[sent] += in_time
        # a machine that was slow at first may be fast now: signals must not always come too late
        longest = 0.4 * captures.seconds if in_time else 0.6 * longest
        if in_time and rng.random() < 0.3:
            stopped[sent] += stop(captures, store, kill)
        captures.finish(store)
    note(
        "captures stopped while training or recording, run again: identical digest",
        killed=stopped[signal.SIGKILL],
        terminated=stopped[signal.SIGTERM],
        interrupted=stopped[signal.SIGINT],
    )


@pytest.mark.parametrize("stage", STAGES)
def test_an_interrupted_capture_says_how_to_go_on(captures: Captures, tmp_path, stage):
    """SIGINT in the middle: what is complete is committed, the rest is not there."""
    store = tmp_path / "s.zarr"
    shutil.copytree(captures.half, store)
    kill = Kill(signal.SIGINT, str(captures.log(store)), stage, 0.0)
    assert stop(captures, store, kill)
    held = open_store(store)
    assert "lora" not in held.captures or not held.capture("lora").complete
