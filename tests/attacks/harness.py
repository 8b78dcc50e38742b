"""The child that meets hostile stores: little memory and time, and no way out unnoticed.

Run as `python -m tests.attacks.harness FOLDER GROUP…`; prints one JSON line a case. A violation
raises inside the code under test and is reported even if that code swallows it.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Never

import dask.config
import numpy as np

from lorascope.store import (
    StoreError,
    create_store,
    open_store,
    read_results,
    verify_store,
)
from lorascope.store.disk import use_disk

from ..proof.disks import QuickDisk
from .attack import Attack
from .copies import restore
from .forge import OUTPUTS, SITES, Forge, make_sound, sample

CASE_SECONDS = 10
HEADROOM_BYTES = (128 + 64) * 2**20
"""Address space beyond that of a warm process: a budget of 128 MiB, and 64."""
_FORBIDDEN = ("subprocess.", "socket.", "os.exec", "os.fork", "os.posix_spawn", "os.system")
_FORBIDDEN_TOO = ("ctypes.", "urllib.", "os.symlink", "os.link", "os.mkfifo")
_PICKLED = {"numpy", "lorascope", "dask", "pandas", "xarray"}
"""Dask copies its own tasks by pickling them; nothing from a store may be among them."""
_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Violation(BaseException):
    """The code under test did what no store may make it do."""


class Hang(BaseException):
    """A case took too long."""


class Guard:
    """The audit hook; it cannot be removed, so it is armed for each case."""

    def __init__(self) -> None:
        self.folder = ""
        self.armed = False
        self.violations: list[str] = []
        self.packages: set[str] = set()
        sys.addaudithook(self._hook)

    def learn(self) -> None:
        """Let nothing be imported from packages that are not loaded by now."""
        self.packages = {name.partition(".")[0] for name in sys.modules}

    def arm(self, folder: Path) -> None:
        """Watch: only below `folder` may anything be changed."""
        self.folder = os.path.realpath(folder)
        self.violations.clear()
        self.armed = True

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.armed:
            return
        bad = event.startswith(_FORBIDDEN) or event.startswith(_FORBIDDEN_TOO)
        if event == "import":
            bad = str(args[0]).partition(".")[0] not in self.packages
        elif event == "pickle.find_class":
            bad = str(args[0]).partition(".")[0] not in _PICKLED
        elif event == "open":
            path, mode, flags = args
            writes = bool(isinstance(flags, int) and flags & _WRITES) or (
                isinstance(mode, str) and any(letter in mode for letter in "wax+")
            )
            bad = writes and not isinstance(path, int) and not self._inside(path)
        elif event in _CHANGES:
            bad = not all(self._inside(path) for path in args if isinstance(path, str | bytes))
        if bad:
            self.violations.append(f"{event}{args[:2]!r}"[:300])
            raise Violation(self.violations[-1])

    def _inside(self, path: object) -> bool:
        folder, name = os.path.split(os.fspath(path))  # type: ignore[arg-type]
        real = os.path.join(os.path.realpath(folder), name)  # noqa: PTH118 - must not audit itself
        return str(real).startswith(self.folder + os.sep)


def read_all(path: Path, *, doubly: bool = True) -> str:
    """Read everything that a store holds; `doubly`: by every way that reading has."""
    store = open_store(path)
    if doubly:
        len(store.samples)
    for name in store.captures:
        capture = store.capture(name)
        for site in capture.sites.values():
            for layer in site.layers or (None,):
                capture.read_stored(site.name, layer, slice(1, 3))
                if doubly:
                    capture.read_rows(site.name, layer)
            if doubly:
                store.dataset(capture=name, site=site.name).compute()
        for site in capture.pooled.values():
            for layer in site.layers or (None,):
                capture.read_pooled(site.name, layer)
        for output in capture.outputs:
            capture.read_output(output)
        for stream in capture.definition.streams:
            capture.read_positions(stream)
            capture.row_counts(stream)
        assert capture.parameters.keys() is not None
        for parameter in capture.parameters:
            np.asarray(capture.parameters[parameter])
        str((capture.attrs, capture.config, capture.groups, capture.parameter_attrs))
        assert capture.complete in (True, False)
    return store.content_digest()


def write(path: Path, *captures: str) -> None:
    """Continue captures, or add them; `live` is there already."""
    for capture in captures:
        options = {"segment_samples": 2, "segment_rows": 16}
        with create_store(
            path,
            capture=capture,
            sites=SITES,
            outputs=OUTPUTS,
            config={"seed": 0, "model": {"base": "tiny"}},
            **options,  # type: ignore[arg-type]
        ) as writer:
            writer.append(**sample(7))
            writer.write_parameters({"new": np.arange(3.0)})


def tree_hash(folder: Path) -> str:
    """Return a digest of names, kinds and bytes; links are not followed."""
    parts = []
    for path in sorted(folder.rglob("*")):
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        parts.append((str(path), path.lstat().st_mode, hashlib.sha256(content).hexdigest()))
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def attempt(outcomes: dict[str, str], stage: str, action: Any) -> None:
    try:
        result = action()
    except StoreError as error:
        outcomes[stage] = f"{type(error).__name__}: {error}"[:400]
        return
    except (Hang, Violation):
        raise
    except BaseException as error:
        outcomes[stage] = f"BAD {type(error).__name__}: {error}"[:400]
        return
    if stage == "verify" and not result.ok:
        outcomes[stage] = f"damage: {result.damages[0].message}"[:400]
    else:
        outcomes[stage] = "fine" + (f" {result}" if isinstance(result, str) else "")


def run_case(attack: Attack, sound: Path, folder: Path, guard: Guard) -> dict[str, Any]:
    """Spoil a copy of the sound store and use it in every way."""
    case = folder / "case"
    restore(sound, case / "in")
    outside = case / "outside"
    shutil.rmtree(outside, ignore_errors=True)
    outside.mkdir()
    (outside / "secret.txt").write_text("secret")
    (outside / "folder").mkdir()
    attack.spoil(Forge(case / "in/s.zarr", case / "in/r.zarr", outside))
    before = tree_hash(outside)
    path = case / "in/s.zarr"
    started = time.monotonic()

    def use() -> dict[str, str]:
        outcomes: dict[str, str] = {}
        if attack.stage == "results":
            attempt(outcomes, "results", lambda: len(read_results(case / "in/r.zarr")))
            return outcomes
        attempt(outcomes, "open", lambda: open_store(path).uuid)
        attempt(outcomes, "read", lambda: read_all(path))
        attempt(outcomes, "verify", lambda: verify_store(path))
        attempt(outcomes, "write", lambda: write(path, "live", "extra"))
        return outcomes

    outcomes = watched(guard, path, use)
    if tree_hash(outside) != before:
        outcomes["outside"] = "BAD something outside the store was changed"
    return {"name": attack.name, "seconds": time.monotonic() - started, **outcomes}


def watched(guard: Guard, folder: Path, use: Callable[[], dict[str, str]]) -> dict[str, str]:
    """Return the outcomes of `use`, which may take ten seconds and change `folder` only."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**28, resource.RLIM_INFINITY))
    signal.signal(signal.SIGALRM, _alarm)
    signal.setitimer(signal.ITIMER_REAL, CASE_SECONDS)
    guard.arm(folder)
    try:
        outcomes = use()
    except (Hang, Violation) as error:
        outcomes = {"died": f"BAD {type(error).__name__}: {error}"}
    finally:
        guard.armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    if guard.violations:
        outcomes["audit"] = f"BAD {guard.violations[0]}"
    return outcomes


def _alarm(_number: int, _frame: object) -> Never:
    msg = f"more than {CASE_SECONDS} s"
    raise Hang(msg)


def _attacks(group: str) -> Sequence[Attack]:
    return importlib.import_module(f".cases_{group}", __package__).ATTACKS


def main(folder: Path, groups: Sequence[str]) -> None:
    """Run all attacks of some groups, each in a fork of this process once that is warm."""
    attacks = {group: _attacks(group) for group in groups}
    sound = folder / "sound"
    sound.mkdir()
    guard = Guard()
    with use_disk(QuickDisk()), dask.config.set(scheduler="synchronous"):
        make_sound(sound)
        warm = folder / "warm"
        shutil.copytree(sound, warm)
        digest = read_all(warm / "s.zarr")
        assert verify_store(warm / "s.zarr").ok
        write(warm / "s.zarr", "live", "extra")
        read_results(warm / "r.zarr")
        guard.learn()
        say({"sound": digest})
        for group in groups:
            child = os.fork()
            if child == 0:
                try:
                    _run_group(attacks[group], sound, folder / group, guard)
                finally:
                    sys.stderr.flush()
                    os._exit(0)
            os.waitpid(child, 0)


def _run_group(attacks: Sequence[Attack], sound: Path, folder: Path, guard: Guard) -> None:
    read_results(sound / "r.zarr")  # zarr makes its event loop anew after a fork
    limit()
    try:
        for attack in attacks:
            say({"begin": attack.name})
            say(run_case(attack, sound, folder, guard))
    except BaseException:
        traceback.print_exc()
        raise


def say(line: object) -> None:
    """Print one JSON line."""
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def limit(cpu_seconds: int = 60) -> None:
    """Leave this warm process little more memory, and some time."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + HEADROOM_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 5))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
