"""Several processes on one store: the same files as one, whoever dies; never two in one place."""

from __future__ import annotations

import random
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from lorascope.store import SampleError, open_store, verify_store
from lorascope.store.creation import prepare_folder
from lorascope.store.files import LockFile

from .racers import REFUSED
from .small_run import Run
from .warm import Warm

RUN = Run(n_samples=40, layers=2, segment_samples=2, batch=2)


type Race = Callable[..., list[int]]


@pytest.fixture(scope="module")
def racers() -> Iterator[Warm]:
    """A warm parent for all races."""
    racers = Warm("racers")
    yield racers
    racers.close()


@pytest.fixture
def race(racers: Warm) -> Race:
    """A function that lets writers race and returns their exit codes."""

    def race(
        run: Run,
        path: Path,
        places: list[tuple[int, int]],
        *,
        kills: list[float | None] | None = None,
        pause: float = 0.0,
        wait_seconds: float = 30.0,
    ) -> list[int]:
        return racers.ask(
            {
                "run": asdict(run),
                "path": str(path),
                "places": places,
                "kills": kills or [None] * len(places),
                "pause": pause,
                "wait_seconds": wait_seconds,
            }
        )

    return race


def data_files(path: Path) -> dict[str, int]:
    """Return every file that a record names, with its checksum."""
    log = open_store(path).log
    return {entry.path: entry.crc32c for record in log.records for entry in record.files}


def test_eight_ranks_write_what_one_writes(tmp_path, race, note):
    expected = RUN.digest(tmp_path / "one")
    codes = race(RUN, tmp_path / "eight", [(rank, 8) for rank in range(8)])
    assert codes == [0] * 8
    store = RUN.check(tmp_path / "eight", {f"s{n}" for n in range(RUN.n_samples)})
    assert store is not None
    assert store.content_digest() == expected
    assert data_files(tmp_path / "eight") == data_files(tmp_path / "one")
    assert {record.writer for record in store.log.records} == {f"w{rank}" for rank in range(8)}
    note("ranks that write one capture: the same files as one process", ranks=8)


def test_ranks_die_and_the_same_command_goes_on(tmp_path, race, seed, amount, note):
    expected = RUN.digest(tmp_path / "one")
    rng = random.Random(seed)
    races = amount("rank_races", change=4, release=200)
    killed = 0
    for number in range(races):
        path = tmp_path / f"{number}"
        places = [(rank, 4) for rank in range(4)]
        codes: list[int] = []
        while codes.count(-9) == 0:
            shutil.rmtree(path, ignore_errors=True)
            kills = [rng.uniform(0, 0.15) if rng.random() < 0.5 else None for _ in places]
            codes = race(RUN, path, places, kills=kills, pause=0.03)
        while True:
            assert set(codes) <= {0, -9}
            killed += codes.count(-9)
            RUN.check(path, ())
            if codes == [0] * 4:
                break
            kills = [rng.uniform(0, 0.3) if rng.random() < 0.2 else None for _ in places]
            codes = race(RUN, path, places, kills=kills)
        assert open_store(path).content_digest() == expected
    assert killed >= races
    note("ranks killed at random, run again: identical digest", races=races, killed=killed)


def test_a_lock_that_is_shared_does_not_mean_that_the_store_is_prepared(tmp_path):
    """The first rank may have died while it prepared, or the holder may only have looked."""
    path = tmp_path / "store"
    prepare_folder(path)
    held = LockFile(path / "__commits__/store.lock")
    assert held.take(shared=True)
    timer = threading.Timer(0.3, held.free)
    timer.start()
    try:
        RUN.write(path, rank=1, ranks=2)  # without a rank that has joined, it waits and prepares
    finally:
        timer.join()
        held.close()
    assert verify_store(path).ok
    RUN.write(path)
    assert open_store(path).content_digest() == RUN.digest(tmp_path / "one")


def test_another_number_of_ranks_goes_on(tmp_path, race):
    path = tmp_path / "store"
    assert 0 in race(RUN, path, [(0, 3), (1, 3)])
    assert not open_store(path).capture("a").complete
    RUN.write(path)
    assert open_store(path).content_digest() == RUN.digest(tmp_path / "one")


def test_eight_processes_that_all_want_to_be_the_only_one(tmp_path, race, note):
    """No barrier, no luck: whoever is late is refused, and nobody's samples mix."""
    path = tmp_path / "store"
    codes = race(RUN, path, [(0, 1)] * 8, pause=0.02)
    assert codes.count(0) == 1
    assert codes.count(REFUSED) == 7
    assert verify_store(path).ok
    assert len(open_store(path).samples) == RUN.n_samples
    note("writers that race without ranks: one writes, the others are refused", writers=8)


def test_a_rank_cannot_be_there_twice(tmp_path, race):
    # each writes for 2 s: far longer than a rank waits for its place
    codes = race(RUN, tmp_path / "store", [(0, 2), (1, 2), (1, 2)], pause=0.2)
    assert sorted(codes) == [0, 0, REFUSED]


def test_ranks_without_a_plan_or_without_sense(tmp_path):
    with pytest.raises(SampleError, match="need a plan"):
        Run(planned=False).write(tmp_path / "a", rank=0, ranks=2)
    with pytest.raises(SampleError, match="ranks count from 0"):
        RUN.write(tmp_path / "a", rank=2, ranks=2)


def test_ranks_of_another_number_or_beside_a_single_writer(tmp_path, race):
    """Their segments would overlap: whoever comes second is refused."""
    codes = race(RUN, tmp_path / "store", [(0, 2), (1, 3)], pause=0.1, wait_seconds=0.1)
    assert sorted(codes) == [0, REFUSED]
    codes = race(RUN, tmp_path / "other", [(0, 1), (1, 2)], pause=0.1, wait_seconds=0.1)
    assert sorted(codes) == [0, REFUSED]
