"""Writers that race for one store: forked together, some of them killed.

It serves orders: ``run``, ``path``, ``places`` (rank and number of ranks of every process),
``kills`` (seconds after which each is killed, or None), ``pause`` (seconds after each batch),
``wait_seconds``. The answer is the exit codes; a writer that was refused because another one holds
the store ends with `REFUSED`.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from lorascope.store import LockedStoreError

from .small_run import Run
from .warm import serve

REFUSED = 7


def race(order: dict[str, Any]) -> list[int]:
    """Fork all writers, kill some, and return how each ended."""
    pids = [_fork(order, rank, ranks) for rank, ranks in order["places"]]
    for pid, seconds in zip(pids, order["kills"], strict=True):
        if seconds is not None:
            threading.Thread(target=_kill_after, args=(pid, seconds), daemon=True).start()
    # None is reaped before all have ended: a kill then never meets a foreign process.
    for pid in pids:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    time.sleep(max((s for s in order["kills"] if s is not None), default=0))
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def _kill_after(pid: int, seconds: float) -> None:
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)


def _fork(order: dict[str, Any], rank: int, ranks: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        run = Run(**order["run"])
        pace = {"pause": order["pause"], "wait_seconds": order["wait_seconds"]}
        run.write(Path(order["path"]), rank=rank, ranks=ranks, **pace)
        code = 0
    except LockedStoreError:
        code = REFUSED
    except BaseException as error:
        sys.stderr.write(f"rank {rank}: {type(error).__name__}: {error}\n")
    finally:
        os._exit(code)


if __name__ == "__main__":
    serve(race)
