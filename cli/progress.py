"""Progress of a long command: a bar on a terminal, a plain line now and then elsewhere."""

import math
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

from .output import clean, format_bytes, format_duration

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

LINE_SECONDS = 5.0
"""Time between two plain lines of steps, and until the first one."""
BYTE_LINE_SECONDS = 30.0
"""Time between two plain lines of bytes, which are read for hours."""
_MEMORY_SECONDS = 60.0
"""What was read that long ago counts for a third in the rate of reading."""
_FIRST_SECONDS = 2.0
"""No rate is told of less time than that."""


class Rate:
    """Bytes per second of late, and what follows for the time that is left.

    What was there at the first call counts for nothing: it may be from before a restart.
    """

    def __init__(self) -> None:
        self._last: tuple[int, float] | None = None
        self._bytes = self._seconds = 0.0

    def update(self, done: int, now: float) -> None:
        """Take in how many bytes there are."""
        if self._last is not None:
            seconds = now - self._last[1]
            kept = math.exp(-seconds / _MEMORY_SECONDS)
            self._bytes = kept * self._bytes + done - self._last[0]
            self._seconds = kept * self._seconds + seconds
        self._last = done, now

    def describe(self, left: int) -> str:
        """Return `, 120.0 MiB/s, 5 min left`; empty where nothing is left or known."""
        if left <= 0 or self._seconds < _FIRST_SECONDS or self._bytes <= 0:
            return ""
        rate = self._bytes / self._seconds
        return f", {format_bytes(rate)}/s, {format_duration(left / rate)} left"


class ProgressReporter:
    """Tells on stderr what a command is doing; a context manager.

    Serves as the `Reporter` of a capture and as the progress function of an analysis.

    Parameters
    ----------
    quiet
        Say nothing at all.
    verbose
        Say also how long each stage took.
    in_bytes
        Progress counts bytes instead of steps, and tells how many a second and the time left.
    stream
        Where to; None: stderr.
    """

    def __init__(
        self,
        *,
        quiet: bool = False,
        verbose: bool = False,
        in_bytes: bool = False,
        stream: TextIO | None = None,
    ) -> None:
        self._quiet = quiet
        self._verbose = verbose
        self._in_bytes = in_bytes
        self._stream = sys.stderr if stream is None else stream
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._text = ""
        self._rate = Rate()
        self._began = time.monotonic()
        self._next_line = 0.0

    def __enter__(self) -> Self:
        """Open the bar, where there is a terminal."""
        if not self._quiet and self._stream.isatty():
            self._bar = _make_bar(self._stream, in_bytes=self._in_bytes)
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the bar, also when something failed."""
        if kind is None:
            self._end_stage()
        if self._bar is not None:
            self._bar.stop()

    def stage(self, text: str) -> None:
        """Tell that a new stage begins."""
        self._end_stage()
        self._text = clean(text, lines=False)
        self._rate = Rate()
        self._began = time.monotonic()
        self._next_line = self._began + LINE_SECONDS
        if self._bar is None:
            self._line(self._text)
            return
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(self._text, total=None, amount="")

    def progress(self, done: int, total: int, text: str = "") -> None:
        """Tell how far the stage is."""
        label = _join(self._text, clean(text, lines=False))
        now = time.monotonic()
        amount = self._amount(done, total, now)
        if self._bar is not None:
            if self._task is None:
                self._task = self._bar.add_task(label, total=total, amount=amount)
            self._bar.update(
                self._task, completed=done, total=total, description=label, amount=amount
            )
            return
        if now >= self._next_line:
            self._next_line = now + (BYTE_LINE_SECONDS if self._in_bytes else LINE_SECONDS)
            self._line(f"{label}: {amount}")

    def note(self, text: str) -> None:
        """Tell something that the user should know."""
        spelled = f"note: {clean(text)}"
        if self._bar is not None:
            self._bar.console.print(spelled, markup=False, highlight=False, soft_wrap=True)
        else:
            self._line(spelled)

    def _end_stage(self) -> None:
        if self._verbose and self._text:
            self.note(f"{self._text}: {time.monotonic() - self._began:.1f} s")
        self._text = ""

    def _amount(self, done: int, total: int, now: float) -> str:
        share = f" ({100 * done / total:.0f} %)" if total else ""
        if not self._in_bytes:
            return f"{done} of {total}{share}"
        self._rate.update(done, now)
        rate = self._rate.describe(total - done)
        return f"{format_bytes(done)} of {format_bytes(total)}{share}{rate}"

    def _line(self, text: str) -> None:
        if not self._quiet:
            print(text, file=self._stream, flush=True)


def _join(stage: str, text: str) -> str:
    """Name stage and step, but not twice what the stage says already."""
    said = stage.replace(":", " ").split()
    if not stage or all(word in said for word in text.split()):
        return stage or text
    return f"{stage}: {text}"


def _make_bar(stream: TextIO, *, in_bytes: bool) -> "Progress":
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[amount]}", markup=False),
        *([] if in_bytes else [TimeRemainingColumn()]),  # the amount of bytes says it
        console=Console(file=stream),
        transient=True,
    )
