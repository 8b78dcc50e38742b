"""Progress: lines where there is no terminal, a bar where there is, silence on request."""

import io

import pytest

from lorascope.cli import progress
from lorascope.cli.output import format_duration
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


def test_bytes_come_with_their_rate_and_the_time_left(clock: Clock):
    """2 MiB each second; then a line every 30 s, from passes that the analysis names."""
    stream = io.StringIO()
    with ProgressReporter(stream=stream, in_bytes=True) as reporter:
        reporter.stage("analysing s.zarr")
        for second in range(1, 70):
            clock.now += 1
            text = f"pass {1 + second // 50} of 2: samples {second} to {second + 1}"
            reporter.progress(second * 2**21, 2**30, text)
        reporter.progress(2**30, 2**30, "computing svd")
    assert stream.getvalue().splitlines()[1:] == [
        "analysing s.zarr: pass 1 of 2: samples 5 to 6: "
        "10.0 MiB of 1.0 GiB (1 %), 2.0 MiB/s, 8 min left",
        "analysing s.zarr: pass 1 of 2: samples 35 to 36: "
        "70.0 MiB of 1.0 GiB (7 %), 2.0 MiB/s, 8 min left",
        "analysing s.zarr: pass 2 of 2: samples 65 to 66: "
        "130.0 MiB of 1.0 GiB (13 %), 2.0 MiB/s, 7 min left",
    ]


def test_the_rate_forgets_what_was_long_ago_and_what_was_before():
    """What a restart found counts for nothing; after five minutes of 1 MiB/s so does the start."""
    rate = progress.Rate()
    rate.update(100 * 2**20, 0.0)
    assert rate.describe(2**20) == ""
    rate.update(101 * 2**20, 1.0)
    assert rate.describe(2**20) == ""  # of one second nothing is told
    for second in range(2, 11):
        rate.update((100 + 10 * second) * 2**20, float(second))
    assert rate.describe(600 * 2**20) == ", 10.0 MiB/s, 60 s left"
    for second in range(11, 311):
        rate.update((190 + second) * 2**20, float(second))
    told = rate.describe(600 * 2**20)
    assert told == ", 1.0 MiB/s, 10 min left"
    assert rate.describe(0) == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (99, "99 s"), (100, "2 min"), (5900, "98 min"), (11_100, "3 h 5 min")],
)
def test_durations(seconds: float, text: str):
    assert format_duration(seconds) == text


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
