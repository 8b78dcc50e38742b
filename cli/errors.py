"""From exceptions to messages and exit codes: the only place that does so.

===== ==========================================================================
code  meaning
===== ==========================================================================
0     done
1     unexpected: a defect of lorascope
2     usage, configuration, input data, absent sites, a store of another run, or in
      another state (sealed, open, incomplete) than the command needs
3     invalid or damaged store; ``--json`` says the class of every damage
4     resources: disk, memory, device, a lock
5     remote
6     partly done
130   interrupted (Ctrl-C)
143   terminated
===== ==========================================================================
"""

import errno
import json
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import Never

import click

from .output import clean, command_line

UNEXPECTED, USAGE, STORE, RESOURCES = 1, 2, 3, 4
INTERRUPTED, TERMINATED = 130, 143

# By name, because importing the rooms for their classes would slow every command down. A test
# holds this table against the classes.
EXIT_CODES = {
    "InvalidStoreError": STORE,
    "DamagedStoreError": STORE,
    "LockedStoreError": RESOURCES,
    "StoreSpaceError": RESOURCES,
    "StoreWriteError": RESOURCES,
    "StoreError": USAGE,
    "DeviceMemoryError": RESOURCES,
    "CaptureError": USAGE,
    "MemoryBudgetError": RESOURCES,
    "DeviceError": RESOURCES,
    "AnalysisError": USAGE,
}
"""Class of an expected error -> exit code; the nearest ancestor that is listed counts."""

_RESOURCE_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
_INPUT_ERRNOS = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOENT,
    errno.EEXIST,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ELOOP,
}


class Terminated(BaseException):
    """SIGTERM arrived; unwinds the stack as Ctrl-C does, so that writers can close."""


_STOPS = (KeyboardInterrupt, click.Abort, Terminated)


def run_command(
    command: click.Command, arguments: Sequence[str] | None = None, *, resumes: bool = False
) -> int:
    """Run a click command and return its exit code.

    Parameters
    ----------
    command
        The command.
    arguments
        Its arguments; None: those of this process.
    resumes
        Whether the same command, given again, goes on where it was stopped.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    name = command.name or "lorascope"
    again = command_line(name, given) if resumes else None
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGTERM, _terminate)
    try:
        try:
            return _run(command, given, name)
        except _STOPS as stop:
            return _say_stopped(stop, name, again)
    except _STOPS as stop:  # a second signal, before the first one had the others ignored
        return _say_stopped(stop, name, again)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run(command: click.Command, given: list[str], name: str) -> int:
    try:
        result = command.main(given, prog_name=name, standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return USAGE
    except click.Abort:
        raise
    except Exception as error:
        if "--debug" in given:
            traceback.print_exc()
        return _report(error, name, as_json="--json" in given)


def exit_code(error: BaseException) -> int:
    """Return the exit code that an exception stands for."""
    for ancestor in type(error).__mro__:
        if ancestor.__module__.startswith("lorascope.") and ancestor.__name__ in EXIT_CODES:
            return EXIT_CODES[ancestor.__name__]
    if isinstance(error, MemoryError):
        return RESOURCES
    number = error.errno if isinstance(error, OSError) else None
    if number in _RESOURCE_ERRNOS:
        return RESOURCES
    named = getattr(error, "filename", None) is not None
    return USAGE if named and number in _INPUT_ERRNOS else UNEXPECTED


def message_of(error: BaseException) -> str:
    """Return what to say about an exception: what it says itself, or what class it is."""
    code = exit_code(error)
    text = str(error).strip()
    if isinstance(error, OSError) and error.strerror and code != UNEXPECTED and not _known(error):
        where = f" {os.fspath(error.filename)!r}" if error.filename is not None else ""
        text = f"cannot use{where}: {error.strerror}" if where else error.strerror
    elif code == UNEXPECTED:
        first = text.splitlines()[0] if text else ""
        text = f"unexpected {type(error).__name__}{': ' if first else ''}{first}\n"
        text += "this is a defect of lorascope; run again with --debug to see where"
    elif not text:
        text = "out of memory" if isinstance(error, MemoryError) else type(error).__name__
    notes = getattr(error, "__notes__", []) if code != UNEXPECTED else []
    return clean("\n".join([text, *notes]))


def _known(error: BaseException) -> bool:
    return any(a.__name__ in EXIT_CODES for a in type(error).__mro__)


def _report(error: Exception, name: str, *, as_json: bool) -> int:
    code = exit_code(error)
    message = message_of(error)
    if as_json:
        line = {"type": "error", "class": type(error).__name__, "message": message, "code": code}
        click.echo(json.dumps(line))
    click.echo(f"{name}: {message}", err=True)
    return code


def _say_stopped(stop: BaseException, name: str, again: str | None) -> int:
    """Say how to go on, undisturbed by further signals; the writers have closed by now."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    terminated = isinstance(stop, Terminated)
    click.echo(f"\n{name}: {'terminated' if terminated else 'interrupted'}", err=True)
    if again is not None:
        click.echo(f"what was committed is safe; to go on: {again}", err=True)
    return TERMINATED if terminated else INTERRUPTED


def _terminate(_number: int, _frame: FrameType | None) -> Never:
    raise Terminated
