"""Several processes that carry out one run: who this one is, and how it waits for the others.

They are started by ``torchrun`` or ``accelerate launch`` and talk through the store alone: what is
committed there, and a lock that each holds while it lives. Rank 0 makes the captures and trains;
every rank records segments of its own. No process group is opened.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ..store import (
    DamagedStoreError,
    InvalidStoreError,
    LockedStoreError,
    Store,
    attend_run,
    is_attending,
    open_store,
)
from .errors import CaptureError, ConfigError

POLL_SECONDS = 0.1
WAIT_SECONDS = 600.0
"""How long ranks may be apart when they start, or keep a store locked."""
_LAUNCHER = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_LAUNCHER_PREFIXES = ("LOCAL_", "GROUP_", "ROLE_", "TORCHELASTIC_", "ACCELERATE_")


@dataclass(frozen=True, slots=True)
class Place:
    """The place of this process among those that carry out a run."""

    rank: int = 0
    """From 0; rank 0 trains."""
    of: int = 1
    """Number of processes."""
    local: int = 0
    """Number of this process on its machine: its CUDA device."""
    wait_seconds: float = WAIT_SECONDS
    """How long to wait for a rank that was never there, or for a lock, in seconds."""

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.of or self.local < 0:
            msg = f"rank {self.rank} of {self.of} (local {self.local}): ranks count from 0."
            raise ConfigError(msg)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Self:
        """Return the place that a launcher gave this process; without one it is the only one.

        Raises
        ------
        ConfigError
            RANK, WORLD_SIZE and LOCAL_RANK contradict each other.
        """
        given = os.environ if environment is None else environment
        of = _number(given, "WORLD_SIZE", 1)
        if of > 1 and "RANK" not in given:
            msg = (
                f"WORLD_SIZE is {of}, but RANK is not set: start the processes with torchrun, or "
                "unset WORLD_SIZE."
            )
            raise ConfigError(msg)
        return cls(_number(given, "RANK", 0), of, _number(given, "LOCAL_RANK", 0))

    def device(self, asked: str) -> str:
        """Return the device of this process: of several, each takes a CUDA device of its own."""
        return f"cuda:{self.local}" if asked == "cuda" and self.of > 1 else asked


def _number(given: Mapping[str, str], name: str, default: int) -> int:
    text = given.get(name, str(default))
    try:
        return int(text)
    except ValueError as error:
        msg = f"the environment variable {name} is {text!r}, not a number."
        raise ConfigError(msg) from error


@contextmanager
def without_launcher() -> Iterator[None]:
    """Hide from libraries that a launcher started this process.

    The Trainer would open a process group and wait for ranks that do not train.
    """
    hidden = {
        name: value
        for name, value in os.environ.items()
        if name in _LAUNCHER or name.startswith(_LAUNCHER_PREFIXES)
    }
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)


class Crew:
    """The processes of a run, as one of them sees the others through the store.

    Parameters
    ----------
    store_path
        The store.
    place
        This process.
    is_settled
        Whether a capture's parameters (by name) hold all that recording it needs.
    """

    def __init__(
        self, store_path: Path, place: Place, is_settled: Callable[[Mapping[str, Any]], bool]
    ) -> None:
        self.place = place
        self._path = store_path
        self._is_settled = is_settled
        self._seen: set[int] = set()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Be seen by the others; a process that is the only one has nobody to be seen by."""
        with ExitStack() as stack:
            if self.place.of > 1:
                attend_run(stack, self._path, self.place.rank)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        """Leave."""
        self._stack.close()

    @property
    def leads(self) -> bool:
        """Whether this process makes the captures, trains, and speaks for the run."""
        return self.place.rank == 0

    def settled(self, capture: str) -> bool:
        """Whether a capture is there with the weights that it is recorded with."""
        store = self._read()
        if store is None or capture not in store.captures:
            return False
        return self._is_settled(store.capture(capture).parameters)

    def recorded(self, capture: str) -> int:
        """Return how many samples of a capture are durable, whoever recorded them."""
        store = self._read()
        return 0 if store is None or capture not in store.captures else len(store.capture(capture))

    def complete(self, capture: str) -> bool:
        """Whether every sample of a capture is durable."""
        store = self._read()
        return store is not None and capture in store.captures and store.capture(capture).complete

    def wait_settled(self, capture: str) -> None:
        """Wait until rank 0 has made a capture and its weights.

        Raises
        ------
        CaptureError
            Rank 0 has ended without.
        """
        self._wait(lambda: self.settled(capture), {0}, f"the weights of capture {capture!r}")

    def wait_complete(self, capture: str) -> None:
        """Wait until all ranks have recorded their samples of a capture.

        Raises
        ------
        CaptureError
            One of them has ended before.
        """
        others = set(range(self.place.of)) - {self.place.rank}
        self._wait(lambda: self.complete(capture), others, f"the samples of capture {capture!r}")

    def wait_unlocked[T](self, open_store_alone: Callable[[], T]) -> T:
        """Return what `open_store_alone` returns once no other rank keeps the store from it.

        Raises
        ------
        LockedStoreError
            Another process keeps it.
        """
        deadline = time.monotonic() + (self.place.wait_seconds if self.place.of > 1 else 0)
        while True:
            try:
                return open_store_alone()
            except LockedStoreError:
                if time.monotonic() >= deadline:
                    raise
            time.sleep(POLL_SECONDS)

    def _read(self) -> Store | None:
        """Open the store if there is one: what is committed is sound at any moment."""
        if not (self._path / "zarr.json").exists():
            return None
        for _ in range(3):
            try:
                return open_store(self._path)
            except DamagedStoreError:
                if self.place.of == 1:
                    raise
                # a folder that is listed while records are added may show a later one only
                time.sleep(POLL_SECONDS)
            except InvalidStoreError:
                return None  # whoever opens it to write says what is wrong
        return open_store(self._path)

    def _wait(self, done: Callable[[], bool], ranks: set[int], what: str) -> None:
        deadline = time.monotonic() + self.place.wait_seconds
        while True:
            began = time.monotonic()
            alive = {rank for rank in ranks if is_attending(self._path, rank)}
            self._seen |= alive
            # asked after the locks: a rank that has just ended may have done its part
            if done():
                return
            late = time.monotonic() >= deadline
            gone = (ranks if late else ranks & self._seen) - alive
            if gone:
                raise CaptureError(self._absent(min(gone), what))
            time.sleep(max(POLL_SECONDS, 5 * (time.monotonic() - began)))

    def _absent(self, rank: int, what: str) -> str:
        how = "has ended" if rank in self._seen else "never came"
        return (
            f"rank {rank} of {self.place.of} {how}, and {what} are not all there: see what it "
            "says. What was committed is safe; run the same command again to go on."
        )
