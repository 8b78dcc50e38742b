"""Partial states of a long pass in a folder, so that a run that was killed goes on from there."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..store import Store
from .identity import NotKnownError, identify_run
from .memory import Pass
from .source import Source
from .state_file import UnusableStateError, read_done, read_state, write_state

INTERVAL_SECONDS = 60.0
"""A worker keeps its state no more often than this, and nothing of a run that is over before."""
REST = 20.0
"""Times the seconds of the last writing until the next: less than 5 % of a run goes into it."""
FOLDER = "partial"
"""Name of the folder among the results of a run."""
_NAMES = re.compile(r"pass-\d+(-part-\d+)?\.state(\.\d+\.tmp)?")


class Keeper:
    """Keeps and finds the states of one run.

    Parameters
    ----------
    folder
        Where they lie; made when there is something to keep.
    key
        Digest of all that decides them.
    modules
        Modules of users' folds, whose data classes may be in states.
    notify
        Told what does not work; the run goes on without it.
    """

    def __init__(
        self, folder: Path, key: str, modules: frozenset[str], notify: Callable[[str], None]
    ) -> None:
        self._folder, self._key, self._modules, self._notify = folder, key, modules, notify
        self._began = time.monotonic()
        self._works = True

    @property
    def lasts(self) -> bool:
        """Whether the run is long enough for its states to be worth keeping."""
        return time.monotonic() - self._began >= INTERVAL_SECONDS

    def done(self, name: str) -> int:
        """Return how many slabs are in the kept state of a part, or of a whole pass."""
        return read_done(self._path(name), self._key) or 0

    def load(self, name: str) -> Any | None:  # noqa: ANN401 - states of folds
        """Return what was kept of this run; None where there is nothing usable."""
        path = self._path(name)
        if read_done(path, self._key) is None:
            return None
        try:
            return read_state(path, self._key, self._modules)
        except UnusableStateError as error:
            self._notify(f"{path} is computed again: {error}.")
            return None

    def save(self, name: str, done: int, content: Any) -> None:  # noqa: ANN401
        """Keep a state; where that fails, say so once and keep nothing more."""
        if not self._works:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_state(self._path(name), self._key, done, content)
        except Exception as error:  # a user's state may hold what cannot be pickled
            self._works = False
            self._notify(f"partial states cannot be kept in {self._folder}: {error}")

    def drop(self, names: Sequence[str]) -> None:
        """Remove states that nobody needs any more."""
        for name in names:
            with suppress(OSError):
                self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.state"


class Timer:
    """Says when the next state of one worker is due."""

    def __init__(self) -> None:
        self._due = time.monotonic() + INTERVAL_SECONDS

    def is_due(self) -> bool:
        """Return whether it is time."""
        return time.monotonic() >= self._due

    def rest(self, began: float) -> None:
        """Wait again, long in proportion to the writing that began then."""
        now = time.monotonic()
        self._due = now + max(INTERVAL_SECONDS, REST * (now - began))


@dataclass(frozen=True, slots=True)
class Keeping:
    """Where partial states are to be kept, before it is known of which run."""

    folder: Path | None
    """None: nowhere."""
    stores: Sequence[Store]
    """What is analysed."""
    notify: Callable[[str], None] | None
    """Told what does not work."""

    def open(self, source: Source, passes: Sequence[Pass], seed: int) -> Keeper | None:
        """Return what keeps the states of a run; None where nothing is kept, with the reason told.

        States of another run in the folder are removed.
        """
        say = self.notify or _say_nothing
        if self.folder is None:
            return None
        if any(getattr(fold, "device", "cpu") != "cpu" for one in passes for fold in one.folds):
            say("partial states are not kept: they are on the CUDA device.")
            return None
        try:
            key, modules = identify_run(self.stores, source, passes, seed)
        except NotKnownError as error:
            say(f"partial states are not kept: {error}.")
            return None
        others = [path for path in _states(self.folder) if read_done(path, key) is None]
        if others:
            say(
                f"partial states of another run in {self.folder} are not used: its data, options, "
                "memory or workers were others."
            )
        for path in others:
            path.unlink(missing_ok=True)
        return Keeper(self.folder, key, modules, say)


def remove_partial(folder: Path) -> None:
    """Remove the states in a folder, and the folder if nothing else is in it."""
    for path in _states(folder):
        path.unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def _states(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if _NAMES.fullmatch(path.name)]


def _say_nothing(text: str) -> None:
    """Tell nobody."""
