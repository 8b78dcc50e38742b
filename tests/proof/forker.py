"""A warm parent that forks writers to be killed: ten a second, where a fresh Python takes one.

Run as a program: it reads lines of JSON ``{"path", "run", "log", "kill_after"}``. For each a child
carries the run out and writes the ids that it has seen committed to the file ``log``; after
``kill_after`` seconds (None: never) it is killed, and the answer is its exit code. The parent has
loaded the store but has not touched zarr, which does not survive a fork.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from lorascope.store import StoreError

from .small_run import Run


def carry_out(order: dict[str, object]) -> None:
    """Write the run, in the child."""
    log = os.open(str(order["log"]), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    said: set[str] = set()

    def committed(ids: set[str]) -> None:
        for name in sorted(ids - said):
            os.write(log, f"{name}\n".encode())
        said.update(ids)

    run = Run(**order["run"])  # pyright: ignore[reportCallIssue]  what the test wrote
    run.write(Path(str(order["path"])), committed=committed)


def main() -> None:
    """Serve until the input ends."""
    np.ones(2).sum()
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                carry_out(order)
                code = 0
            except StoreError as error:
                sys.stderr.write(f"{error}\n")
            finally:
                os._exit(code)
        if order["kill_after"] is not None:
            time.sleep(order["kill_after"])
            os.kill(pid, signal.SIGKILL)  # one that has ended waits until it is asked for its code
        _, status = os.waitpid(pid, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
