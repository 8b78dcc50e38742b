"""Several processes carry out one run: what they write is what one writes, whoever dies."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest

from lorascope.capture import CaptureError, ConfigError, Place
from lorascope.capture.ranks import Crew, without_launcher
from lorascope.store import LockedStoreError, is_attending, open_store, verify_store

from .commands import Kill
from .conftest import Captures


def test_two_processes_write_what_one_writes(captures: Captures, tmp_path, note):
    store = tmp_path / "two.zarr"
    codes = captures.commands.run(*(captures.command(store, rank=r, ranks=2) for r in range(2)))
    assert codes == [0, 0], captures.log(store, 1).read_text()
    assert open_store(store).content_digest() == captures.digest
    segments = [r for r in open_store(store).log.records if r.kind == "segment"]
    assert {(r.capture, r.writer) for r in segments} == {
        (capture, writer) for capture in ("frozen", "lora") for writer in ("w0", "w1")
    }
    said = captures.log(store).read_text()
    assert [line.split()[:3] for line in said.splitlines() if line[:4] in ("froz", "lora")][
        -2:
    ] == [
        ["frozen", "24", "24"],
        ["lora", "24", "24"],
    ]
    assert captures.log(store, 1).read_text() == "", "one rank speaks for the run"
    assert verify_store(store).ok
    note("captures by two processes: identical digest", ranks=2)


def test_a_rank_dies_and_the_same_command_goes_on(captures: Captures, tmp_path, seed, amount, note):
    """The other one says so and ends; nobody waits for ever."""
    rng = random.Random(seed)
    times = amount("capture_rank_kills", change=2, release=12)
    for number in range(times):
        store, victim = tmp_path / f"{number}.zarr", number % 2
        # rank 1 is silent, but where rank 0 trains or records, both have met
        words = rng.choice(["lora: training", "frozen: capturing", "lora: capturing"])
        seconds = rng.uniform(0, 0.5 * captures.seconds)
        kill = Kill(signal.SIGKILL, str(captures.log(store)), words, seconds)
        codes = captures.commands.run(
            captures.command(store, rank=0, ranks=2, kill=None if victim else kill),
            captures.command(store, rank=1, ranks=2, kill=kill if victim else None),
        )
        if codes != [0, 0]:
            assert codes[victim] == -signal.SIGKILL
            said = captures.log(store, 1 - victim).read_text()
            assert codes[1 - victim] in (0, 2), said
            assert codes[1 - victim] == 0 or f"rank {victim} of 2 has ended, and the" in said
        captures.finish(store, ranks=1 + number % 2)
    note("a rank of a capture killed, run again: identical digest", kills=times)


def test_who_never_comes_is_not_waited_for_long(tmp_path):
    path = tmp_path / "s.zarr"
    with Crew(path, Place(1, 2, wait_seconds=0.2), lambda _: True) as crew:
        with pytest.raises(CaptureError, match="rank 0 of 2 never came, and the weights of"):
            crew.wait_settled("lora")
        with pytest.raises(CaptureError, match="rank 0 of 2 never came, and the samples of"):
            crew.wait_complete("lora")


def test_who_lives_is_waited_for(tmp_path):
    """Training may take hours: only a rank that is not there is given up."""
    path = tmp_path / "s.zarr"
    asked = []

    def settled() -> bool:
        asked.append(time.monotonic())
        return len(asked) > 5

    with (
        Crew(path, Place(0, 2), lambda _: True),
        Crew(path, Place(1, 2, wait_seconds=0.1), bool) as crew,
    ):
        crew.settled = lambda _: settled()
        crew.wait_settled("lora")
    assert asked[-1] - asked[0] > 0.4
    assert not any(is_attending(path, rank) for rank in (0, 1))


def test_a_rank_cannot_be_there_twice(tmp_path):
    path = tmp_path / "s.zarr"
    with (
        Crew(path, Place(1, 2), bool),
        pytest.raises(LockedStoreError, match="is being written by process"),
        Crew(path, Place(1, 2), bool),
    ):
        pass


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2, but RANK is not set"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "rank 2 of 2"),
        ({"WORLD_SIZE": "two", "RANK": "0"}, "WORLD_SIZE is 'two', not a number"),
    ],
)
def test_places_that_make_no_sense(environment, message):
    with pytest.raises(ConfigError, match=message):
        Place.from_environment(environment)


def test_places():
    assert Place.from_environment({}) == Place(0, 1, 0)
    place = Place.from_environment({"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"})
    assert place == Place(3, 4, 1)
    assert [place.device(d) for d in ("cpu", "cuda", "cuda:0")] == ["cpu", "cuda:1", "cuda:0"]
    assert Place().device("cuda") == "cuda"


def test_libraries_do_not_see_the_launcher(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    with without_launcher():
        left = set(os.environ)
    assert not left & {"RANK", "LOCAL_RANK", "TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION"}
    assert "OMP_NUM_THREADS" in left
    assert os.environ["LOCAL_RANK"] == "1"
