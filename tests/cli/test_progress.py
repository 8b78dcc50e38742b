"""Progress: lines where there is no terminal, a bar where there is, silence on request."""

import io

import pytest

from lorascope.cli import progress
from lorascope.cli.progress import ProgressReporter


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_a_plain_line_every_few_seconds(clock: Clock):
    stream = io.StringIO()
    with ProgressReporter(stream=stream) as reporter:
        reporter.stage("lora: capturing")
        for done in range(1, 21):
            clock.now += 1
            reporter.progress(done, 20, "capturing lora")
        reporter.note("odd\x1b[0m")
    assert stream.getvalue().splitlines() == [
        "lora: capturing",
        "lora: capturing: 5 of 20 (25 %)",
        "lora: capturing: 10 of 20 (50 %)",
        "lora: capturing: 15 of 20 (75 %)",
        "lora: capturing: 20 of 20 (100 %)",
        "note: odd?[0m",
    ]


def test_bytes_and_steps_that_say_more_than_their_stage(clock: Clock):
    stream = io.StringIO()
    with ProgressReporter(stream=stream, in_bytes=True) as reporter:
        reporter.stage("analysing s.zarr")
        clock.now += 6
        reporter.progress(2**20, 2**22, "reading slab 3")
    assert stream.getvalue().splitlines()[1:] == [
        "analysing s.zarr: reading slab 3: 1.0 MiB of 4.0 MiB (25 %)"
    ]


def test_verbose_says_how_long_a_stage_took(clock: Clock):
    stream = io.StringIO()
    with ProgressReporter(stream=stream, verbose=True) as reporter:
        reporter.stage("one")
        clock.now += 2
        reporter.stage("two")
        clock.now += 0.5
    assert stream.getvalue().splitlines() == ["one", "note: one: 2.0 s", "two", "note: two: 0.5 s"]


def test_quiet_is_silent_also_on_a_terminal(clock: Clock):
    for stream in (io.StringIO(), Terminal()):
        with ProgressReporter(stream=stream, quiet=True) as reporter:
            reporter.stage("one")
            clock.now += 60
            reporter.progress(1, 2)
            reporter.note("something")
        assert stream.getvalue() == ""


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    stream = Terminal()
    with ProgressReporter(stream=stream) as reporter:
        reporter.stage("lora: training [bold]")
        reporter.progress(3, 7, "training")
        reporter.note("seen [red]")
        reporter.stage("lora: capturing")
    assert "note: seen [red]" in stream.getvalue()  # names are no markup


def test_progress_without_a_stage(clock: Clock):
    stream = io.StringIO()
    with ProgressReporter(stream=stream) as reporter:
        clock.now += 6
        reporter.progress(0, 0, "starting")
    assert stream.getvalue() == "starting: 0 of 0\n"
