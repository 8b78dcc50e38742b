"""`kill -9` at every operation, and a disk that refuses at every operation."""

from __future__ import annotations

import errno
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lorascope.store import StoreError, StoreSpaceError, open_store
from lorascope.store.disk import use_disk

from .disks import CountingDisk, DiedError, DyingDisk, FailingDisk, ShortDisk, open_files
from .small_run import Run
from .test_crash_states import ACTIONS, damage

RUNS = {
    "planned": Run(n_samples=4),
    "unplanned": Run(n_samples=3, planned=False, threads=2, parameters=False),
    "compressed": Run(n_samples=3, profile="compact", parameters=False),
}


def count_operations(run: Run, folder: Path) -> tuple[int, str]:
    """Return the operations of an undisturbed run, and its digest."""
    disk = CountingDisk()
    with use_disk(disk):
        digest = run.digest(folder / "undisturbed")
    return disk.done, digest


def disturb(run: Run, path: Path, disk: CountingDisk, error: type[BaseException]) -> set[str]:
    """Run on a disk that must end in `error`; return what was said to be committed before."""
    committed: set[str] = set()
    with use_disk(disk), pytest.raises(error):
        run.write(path, committed=committed.update)
    return committed


def prove_every_death(run: Run, folder: Path) -> int:
    """Die at every operation, check, continue, compare; return the number of operations."""
    operations, expected = count_operations(run, folder)
    for at in range(1, operations + 1):
        path = folder / "killed"
        committed = disturb(run, path, DyingDisk(at=at), DiedError)
        try:
            run.check(path, committed)
            run.write(path)
            run.check_whole(path, expected)
        except Exception as error:
            error.add_note(f"killed at operation {at} of {operations}")
            raise
        shutil.rmtree(path)
    return operations


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_death_at_every_operation(ram, run, note):
    operations = prove_every_death(run, ram)
    assert operations > 200
    note("kill at every operation of create and commit, then the same command", kills=operations)


def test_death_in_drawn_configurations(ram, seed, amount, note):
    rng = random.Random(seed + 1)
    configurations = amount("configurations", change=0, release=20)
    if not configurations:
        pytest.skip("drawn configurations belong to `make proof`")
    kills = 0
    for number in range(configurations):
        folder = ram / str(number)
        folder.mkdir()
        kills += prove_every_death(Run.draw(rng), folder)
        shutil.rmtree(folder)
    note("the same for drawn configurations", configurations=configurations, kills=kills)


def test_death_during_recovery(ram, seed):
    """Dying again and again while a dead run is put in order loses nothing either."""
    run, rng = Run(), random.Random(seed)
    operations, expected = count_operations(run, ram)
    path = ram / "killed"
    committed: set[str] = set()
    deaths = 0
    while committed != {f"s{n}" for n in range(run.n_samples)}:
        with use_disk(DyingDisk(at=rng.randrange(1, operations))):
            try:
                run.write(path, committed=committed.update)
            except DiedError:
                deaths += 1
        run.check(path, committed)
    assert deaths > 1
    assert open_store(path).content_digest() == expected


FAULTS = {
    "EIO": (FailingDisk, {"code": errno.EIO}, StoreError),
    "ENOSPC": (FailingDisk, {"code": errno.ENOSPC, "sticky": True}, StoreSpaceError),
    "short write": (ShortDisk, {}, StoreSpaceError),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("planned", [True, False])
def test_every_operation_fails_once(ram, fault, planned, note, amount):
    """One typed error, nothing committed lost, and the same command goes on."""
    run = Run(n_samples=3, planned=planned, parameters=planned)
    make, options, error = FAULTS[fault]
    operations, expected = count_operations(run, ram)
    step = amount("fault_step", change=3 if fault == "EIO" else 5, release=1)
    hit = 0
    for at in range(1, operations + 1, step):
        path = ram / "refused"
        disk = make(at=at, **options)
        committed: set[str] = set()
        with use_disk(disk):
            try:
                run.write(path, committed=committed.update)
            except error:
                hit += 1
            else:
                # A short write fails only if something is left to write after it.
                assert fault == "short write", f"operation {at} failed and nobody noticed"
        assert not open_files(path), f"descriptors stay open after operation {at} failed"
        run.check(path, committed)
        run.write(path)
        run.check_whole(path, expected)
        shutil.rmtree(path)
    assert hit > 10
    note(f"the disk refuses an operation ({fault}): run again, identical digest", faults=hit)


@dataclass
class WatchfulDisk(FailingDisk):
    """Notices when a file is synced again after its sync has failed."""

    failed: set[Path] = field(default_factory=set)
    retried: bool = False

    def before(self, kind, path):
        if kind == "sync" and path in self.failed:
            self.retried = True
        try:
            super().before(kind, path)
        except OSError:
            if kind == "sync":
                self.failed.add(path)
            raise


def test_a_failed_fsync_is_never_retried(ram):
    """The kernel may have dropped the pages: a second fsync would succeed and be a lie."""
    run = Run(n_samples=3)
    operations, _ = count_operations(run, ram)
    failed = 0
    for at in range(1, operations + 1):
        disk = WatchfulDisk(at=at)
        with use_disk(disk), pytest.raises(StoreError):
            run.write(ram / "refused")
        failed += bool(disk.failed)
        assert not disk.retried
        shutil.rmtree(ram / "refused", ignore_errors=True)
    assert failed > 20


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("kind", ["planned", "unplanned"])
def test_death_at_every_operation_of_seal_and_repair(ram, kind, action, note):
    run, (act, finish) = RUNS[kind], ACTIONS[action]
    expected = run.digest(ram / "before")
    if action == "repair":
        damage(ram / "before")
    at, ended = 0, False
    while not ended:
        at += 1
        path = ram / "killed"
        shutil.copytree(ram / "before", path)
        with use_disk(DyingDisk(at=at)):
            try:
                act(path)
                ended = True
            except DiedError:
                pass
        finish(run, path, expected)
        shutil.rmtree(path)
    assert at > 5
    note(f"kill at every operation of a {action}, then the same command", kills=at - 1)
