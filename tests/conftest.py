"""What all tests share: real input where there is some, and how much the proofs do.

`make test` runs the figures of every change. `make proof` sets ``LORASCOPE_PROOF=release``: every
proof then runs its release figure, or the number in ``LORASCOPE_PROOF_<NAME>``, and appends one
JSON line to the file in ``LORASCOPE_PROOF_LOG``, from which `docs/proof.md` is made.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # so it is in the background of a shell, and every process started here would ignore it too
    signal.signal(signal.SIGINT, signal.default_int_handler)

type Amount = Callable[..., int]
type Note = Callable[..., None]


@pytest.fixture(scope="session")
def real_root() -> Path:
    """The folder of real weights and real speech that LORASCOPE_REAL names."""
    named = os.environ.get("LORASCOPE_REAL")
    if not named:
        pytest.skip("LORASCOPE_REAL names no folder with real weights and real speech")
    root = Path(named).resolve()
    if not (root / "whisper-tiny-en").is_dir():
        pytest.skip(f"LORASCOPE_REAL={named} holds no whisper-tiny-en")
    return root


@pytest.fixture
def amount() -> Amount:
    """A function that says how often to do something: its figure here or at a release."""

    def choose(name: str, *, change: int, release: int) -> int:
        asked = os.environ.get(f"LORASCOPE_PROOF_{name.upper()}")
        if asked is not None:
            return int(asked)
        return release if os.environ.get("LORASCOPE_PROOF") == "release" else change

    return choose


@pytest.fixture
def ram(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in memory where the system has one: these proofs make some 100,000 files."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path_factory.mktemp("ram")
        return
    with tempfile.TemporaryDirectory(prefix="lorascope-proof-", dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.fixture
def seed() -> int:
    """Seed of every draw; another one with ``LORASCOPE_PROOF_SEED``."""
    return int(os.environ.get("LORASCOPE_PROOF_SEED", "20261124"))


@pytest.fixture
def note(request: pytest.FixtureRequest, seed: int) -> Iterator[Note]:
    """A function that writes down what a proof saw, once the test has passed."""
    began = time.perf_counter()
    seen: list[dict[str, object]] = []

    def write(proved: str, **counts: int | str) -> None:
        seen.append({"proved": proved, "counts": counts})

    yield write
    log = os.environ.get("LORASCOPE_PROOF_LOG")
    for entry in seen if log else []:
        test = request.node.nodeid.rpartition("/")[2]
        line = {**entry, "test": test, "seed": seed, "seconds": time.perf_counter() - began}
        with Path(str(log)).open("a") as file:
            file.write(json.dumps(line) + "\n")
