"""A warm parent that forks writers to be killed or told to end: ten a second.

It serves orders ``{"path", "run", "log", "signals"}``. For each a child carries the run out as a
command does, writes the ids that it has seen committed to the file ``log`` and what it says to
``<log>.said``; ``signals`` are pairs of seconds to wait and the signal that is sent then. The answer is the child's exit code. The parent
has loaded the store but has not touched zarr, which does not survive a fork.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

from lorascope.cli.errors import run_command

from .small_run import Run
from .warm import serve

PATIENCE_SECONDS = 60
"""A child that lives longer is ended, and fails the test by its exit code."""


def write(order: dict[str, Any]) -> None:
    """Write the run, in the child."""
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    said: set[str] = set()

    def committed(ids: set[str]) -> None:
        for name in sorted(ids - said):
            os.write(log, f"{name}\n".encode())
        said.update(ids)

    Run(**order["run"]).write(Path(order["path"]), committed=committed)


def command(order: dict[str, Any]) -> int:
    """Write the run as a command of the shell does, with its way to end at a signal."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    signal.alarm(PATIENCE_SECONDS)
    sys.stderr = Path(f"{order['log']}.said").open("w")  # noqa: SIM115  to its end
    debug = click.Option(["--debug"], is_flag=True, expose_value=False)
    writing = click.Command("write", callback=lambda: write(order), params=[debug])
    return run_command(writing, ["--debug"], resumes=True)


def fork(order: dict[str, Any]) -> int:
    """Fork a writer, send it its signals, and return its exit code."""
    pid = os.fork()
    if pid == 0:
        sys.exit(command(order))
    for seconds, number in order["signals"]:
        time.sleep(seconds)
        os.kill(pid, number)  # one that has ended waits until it is asked for its code
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    np.ones(2).sum()
    serve(fork)
