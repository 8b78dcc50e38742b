"""Any order of writing, dying, refusing disks and reopening keeps to a simple model."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lorascope.store import (
    NewSample,
    Site,
    StoreError,
    Writer,
    create_store,
    open_store,
    verify_store,
)
from lorascope.store.disk import Disk, use_disk

from .disks import DiedError, DyingDisk, FailingDisk

SEGMENT = 3
SITES = [Site("x", [0, 1], 2, "float32"), Site("x.mean_valid", [0, 1], 2, kind="sample")]


def values_of(number: int) -> np.ndarray:
    """Row values of a sample."""
    return np.full((2, 1 + number % 4, 2), number, np.float32)


class WriterMachine(RuleBasedStateMachine):
    """An unplanned capture against a dict of what was appended and a set of what is safe."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory(prefix="lorascope-machine-")
        self.path = Path(self._folder.name) / "store"
        self.appended: list[int] = []
        self.safe: set[str] = set()
        self.next = 0

    def teardown(self) -> None:
        self._folder.cleanup()

    def _write(self, disk: Disk, batches: list[int], *, fail: bool) -> None:
        """Append batches of samples on some disk; keep the model up to date."""
        appended: list[int] = []
        committed: set[str] = set()
        writer: Writer | None = None
        try:
            with (
                use_disk(disk),
                create_store(
                    self.path, capture="a", sites=SITES, segment_samples=SEGMENT, segment_rows=16
                ) as writer,
            ):
                assert writer.committed >= self.safe
                number = 1 + max((int(name[1:]) for name in writer.committed), default=-1)
                for size in batches:
                    numbers = list(range(number, number + size))
                    self._append(writer, numbers)
                    appended += numbers
                    number += size
        except (DiedError, StoreError):
            assert fail
        else:
            committed |= {f"s{n}" for n in appended}
        if writer is not None:
            committed |= writer.committed
        self.safe |= committed

    def _append(self, writer: Writer, numbers: list[int]) -> None:
        rows = [values_of(n) for n in numbers]
        writer.append_batch(
            [
                NewSample(f"s{n}", {"tokens": x.shape[1]})
                for n, x in zip(numbers, rows, strict=True)
            ],
            {
                "x": np.concatenate(rows, axis=1),
                "x.mean_valid": np.stack([x.mean(1) for x in rows], axis=1),
            },
        )

    @rule(batches=st.lists(st.integers(1, 5), max_size=4))
    def write(self, batches: list[int]) -> None:
        """Write undisturbed: all of it is safe."""
        self._write(Disk(), batches, fail=False)

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

    @precondition(lambda self: bool(self.safe))
    @rule()
    def append_again(self) -> None:
        """A sample that is there is refused, and nothing changes."""
        with create_store(
            self.path, capture="a", sites=SITES, segment_samples=SEGMENT, segment_rows=16
        ) as writer:
            number = int(next(iter(self.safe))[1:])
            with pytest.raises(StoreError, match="already"):
                self._append(writer, [number])

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
TestWriterMachine.settings = settings(max_examples=25, stateful_step_count=8, deadline=None)
