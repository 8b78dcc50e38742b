"""Any order of writing, dying, refusing disks, sealing, repairing and reopening keeps to a simple model."""

from __future__ import annotations

import errno
import os
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lorascope.store import (
    NewSample,
    SealedStoreError,
    Site,
    StoreError,
    Writer,
    copy_store,
    create_store,
    open_store,
    repair_store,
    seal_store,
    verify_store,
)
from lorascope.store.disk import Disk, use_disk

from .disks import DiedError, DyingDisk, FailingDisk, QuickDisk

SEGMENT = 3
SITES = [Site("x", [0, 1], 2, "float32"), Site("x.mean_valid", [0, 1], 2, kind="sample")]


def values_of(number: int) -> np.ndarray:
    """Row values of a sample."""
    return np.full((2, 1 + number % 4, 2), number, np.float32)


def open_writer(path: Path) -> Writer:
    """Return a writer of the one capture."""
    return create_store(path, capture="a", sites=SITES, segment_samples=SEGMENT, segment_rows=16)


def append(writer: Writer, numbers: list[int]) -> None:
    """Append samples, in one batch."""
    rows = [values_of(n) for n in numbers]
    writer.append_batch(
        [NewSample(f"s{n}", {"tokens": x.shape[1]}) for n, x in zip(numbers, rows, strict=True)],
        {
            "x": np.concatenate(rows, axis=1),
            "x.mean_valid": np.stack([x.mean(1) for x in rows], axis=1),
        },
    )


def folder() -> tempfile.TemporaryDirectory[str]:
    """Return a folder, in memory where the system has some."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    return tempfile.TemporaryDirectory(prefix="lorascope-machine-", dir=memory)


@cache
def digest_of(samples: int) -> str:
    """Return the content digest of a capture that was written at once."""
    with folder() as name, use_disk(QuickDisk()):
        with open_writer(Path(name) / "store") as writer:
            if samples:
                append(writer, list(range(samples)))
        return open_store(Path(name) / "store").content_digest()


class WriterMachine(RuleBasedStateMachine):
    """An unplanned capture against a set of what is safe and whether the store is sealed."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = folder()
        self.path = Path(self._folder.name) / "store"
        self.safe: set[str] = set()
        self.sealed = False

    def teardown(self) -> None:
        self._folder.cleanup()

    @property
    def exists(self) -> bool:
        """Whether there is a capture."""
        return (self.path / "zarr.json").exists() and bool(open_store(self.path).captures)

    def _write(self, disk: Disk, batches: list[int], *, fail: bool) -> None:
        """Append batches of samples on some disk; keep the model up to date."""
        if self.sealed:
            with use_disk(disk), pytest.raises(SealedStoreError):
                open_writer(self.path)
            return
        appended: list[int] = []
        committed: set[str] = set()
        writer: Writer | None = None
        try:
            with use_disk(disk), open_writer(self.path) as writer:
                assert writer.committed >= self.safe
                number = 1 + max((int(name[1:]) for name in writer.committed), default=-1)
                for size in batches:
                    numbers = list(range(number, number + size))
                    append(writer, numbers)
                    appended += numbers
                    number += size
        except (DiedError, StoreError):
            assert fail
        else:
            committed |= {f"s{n}" for n in appended}
        if writer is not None:
            committed |= writer.committed
        self.safe |= committed

    @rule(batches=st.lists(st.integers(1, 5), max_size=4))
    def write(self, batches: list[int]) -> None:
        """Write undisturbed: all of it is safe."""
        self._write(QuickDisk(), batches, fail=False)

    @rule(batches=st.lists(st.integers(1, 5), min_size=1, max_size=4), at=st.integers(1, 300))
    def die(self, batches: list[int], at: int) -> None:
        """Die at some operation."""
        self._write(DyingDisk(at=at), batches, fail=True)

    @rule(
        batches=st.lists(st.integers(1, 5), min_size=1, max_size=4),
        at=st.integers(1, 300),
        code=st.sampled_from([errno.EIO, errno.ENOSPC]),
        sticky=st.booleans(),
    )
    def refuse(self, batches: list[int], at: int, code: int, sticky: bool) -> None:  # noqa: FBT001
        """Have some operation refused."""
        self._write(FailingDisk(at=at, code=code, sticky=sticky), batches, fail=True)

    @precondition(lambda self: bool(self.safe) and not self.sealed)
    @rule()
    def append_again(self) -> None:
        """A sample that is there is refused, and nothing changes."""
        with use_disk(QuickDisk()), open_writer(self.path) as writer:
            number = int(next(iter(self.safe))[1:])
            with pytest.raises(StoreError, match="already"):
                append(writer, [number])

    @precondition(lambda self: self.exists)
    @rule()
    def seal(self) -> None:
        """The digest is that of the same samples written at once; a second seal finds a sealed one."""
        with use_disk(QuickDisk()):
            report = seal_store(self.path)
        assert report.changed != self.sealed
        assert report.content_digest == digest_of(len(open_store(self.path).capture("a")))
        assert verify_store(self.path, "full").ok
        assert open_store(self.path).manifest_digest == report.manifest_digest
        self.sealed = True

    @precondition(lambda self: self.exists and not self.sealed)
    @rule(at=st.integers(1, 60))
    def die_sealing(self, at: int) -> None:
        """Dead at some operation of a seal, the store is open or sealed, and sound."""
        with use_disk(DyingDisk(at=at)), suppress(DiedError):
            seal_store(self.path)
        self.sealed = open_store(self.path).state == "sealed"

    @precondition(lambda self: self.sealed)
    @rule()
    def go_on_with_a_copy(self) -> None:
        """The copy of a sealed store is open and has the same content."""
        target = self.path.with_name(f"{self.path.name}-copy")
        with use_disk(QuickDisk()):
            copy_store(self.path, target)
        assert open_store(target).content_digest() == open_store(self.path).content_digest()
        self.path, self.sealed = target, False

    @precondition(lambda self: self.exists)
    @rule()
    def repair(self) -> None:
        """A repair of a sound store sweeps what crashes left, and nothing else."""
        with use_disk(QuickDisk()):
            report = repair_store(self.path)
        assert not report.withdrawn
        assert not (self.sealed and report.changed)
        assert not verify_store(self.path).leftovers

    @precondition(lambda self: self.exists and not self.sealed)
    @rule(data=st.data(), at=st.integers(1, 150))
    def damage_and_repair(self, data: st.DataObject, at: int) -> None:
        """A flipped bit costs its segment, though the first repair dies; the rest stays safe."""
        segments = open_store(self.path).capture("a").segments.records
        if not segments:
            return
        entry = data.draw(st.sampled_from(segments[-1].files))
        file = self.path / entry.path
        content = bytearray(file.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1
        file.write_bytes(content)
        assert [damage.path for damage in verify_store(self.path).damages] == [entry.path]
        with use_disk(DyingDisk(at=at)), suppress(DiedError):
            repair_store(self.path)
        with use_disk(QuickDisk()):
            repair_store(self.path)
        self.safe -= {sample.id for sample in segments[-1].samples}

    @invariant()
    def holds(self) -> None:
        """What is safe is there, sound and right; what else is there is right too."""
        if not (self.path / "zarr.json").exists():
            assert not self.safe
            return
        assert verify_store(self.path).ok
        store = open_store(self.path)
        if "a" not in store.captures:
            assert not self.safe
            return
        capture = store.capture("a")
        numbers = [int(name[1:]) for name in capture.samples["id"]]
        assert {f"s{n}" for n in numbers} >= self.safe
        assert numbers == list(range(len(numbers))), "samples are lost, doubled or out of order"
        for layer in (0, 1):
            expected = [values_of(n)[layer] for n in numbers] or [np.empty((0, 2), np.float32)]
            np.testing.assert_array_equal(capture.read_rows("x", layer), np.concatenate(expected))


TestWriterMachine = WriterMachine.TestCase
TestWriterMachine.settings = settings(max_examples=40, stateful_step_count=8, deadline=None)
