"""A warm parent that forks `capture-run`: a fresh Python needs ten times as long to load torch.

Run as a program: it reads lines of JSON, a list of processes to run at the same time, each with
``arguments``, ``environment``, ``log`` (a file for its output) and ``kill``: None, or the signal to
send, a log, the words in it to wait for, and the seconds to wait after them. It answers with their exit
codes. The parent has loaded the libraries and computed nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LONGEST_SECONDS = 120.0


@dataclass(frozen=True)
class Kill:
    """When to send which signal."""

    signal: int
    log: str
    """The log that is watched, maybe of another process."""
    after: str
    """Words in it."""
    seconds: float
    """To wait after them."""


@dataclass(frozen=True)
class Command:
    """One process that runs `capture-run`."""

    arguments: list[str]
    log: str
    kill: Kill | None = None
    environment: dict[str, str] = field(default_factory=dict)


class Commands:
    """The warm parent, as a test sees it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.proof.commands"],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, *commands: Command) -> list[int]:
        """Run processes at the same time; return their exit codes, or minus their signals."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([asdict(command) for command in commands]) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        """End the parent."""
        self._process.communicate(timeout=60)


def _fork(order: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.update(order["environment"])
        from lorascope.cli.capture_run import capture_run
        from lorascope.cli.errors import run_command

        code = run_command(capture_run, order["arguments"], resumes=True)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _kill(pid: int, kill: dict[str, Any]) -> None:
    log = Path(kill["log"])
    deadline = time.monotonic() + LONGEST_SECONDS
    while time.monotonic() < deadline:
        if log.exists() and kill["after"] in log.read_text():
            time.sleep(kill["seconds"])
            os.kill(pid, kill["signal"])  # one that has ended waits until it is asked for its code
            return
        time.sleep(0.01)


def _serve(orders: list[dict[str, Any]]) -> list[int]:
    for order in orders:
        Path(order["log"]).unlink(missing_ok=True)
    pids = [_fork(order) for order in orders]
    killers = [
        threading.Thread(target=_kill, args=(pid, order["kill"]))
        for pid, order in zip(pids, orders, strict=True)
        if order["kill"] is not None
    ]
    for killer in killers:
        killer.start()
    for pid in pids:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    for killer in killers:
        killer.join()
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def main() -> None:
    """Serve until the input ends."""
    import accelerate  # noqa: F401
    import peft  # noqa: F401
    import soundfile  # noqa: F401
    from transformers import Trainer, WhisperFeatureExtractor  # noqa: F401
    from transformers import WhisperForAudioClassification as _  # noqa: F401

    import lorascope.capture.corpora.demo
    import lorascope.capture.run  # noqa: F401

    for line in sys.stdin:
        sys.stdout.write(json.dumps(_serve(json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
