"""Exceptions become one message and the right exit code."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

import lorascope.analyses.errors as analysis_errors
import lorascope.capture.errors as capture_errors
from lorascope import store
from lorascope.cli.errors import EXIT_CODES, Terminated, exit_code, message_of

EXPECTED = {
    store.InvalidStoreError: 3,
    store.DamagedStoreError: 3,
    store.RecordVersionError: 3,
    store.SealedStoreError: 2,
    store.UnsealedStoreError: 2,
    store.IncompleteCaptureError: 2,
    store.MissingCaptureError: 2,
    store.MissingSiteError: 2,
    store.ConfigMismatchError: 2,
    store.SampleError: 2,
    store.LockedStoreError: 4,
    store.StoreSpaceError: 4,
    store.StoreWriteError: 4,
    capture_errors.CaptureError: 2,
    capture_errors.ConfigError: 2,
    capture_errors.DataError: 2,
    capture_errors.ModelError: 2,
    capture_errors.DeviceMemoryError: 4,
    analysis_errors.AnalysisError: 2,
    analysis_errors.AnalysisInputError: 2,
    analysis_errors.MissingSitesError: 2,
    analysis_errors.MemoryBudgetError: 4,
}


def descendants(kind: type) -> set[type]:
    return {kind}.union(*(descendants(below) for below in kind.__subclasses__()))


@pytest.mark.parametrize(("kind", "code"), EXPECTED.items(), ids=str)
def test_exit_codes_of_expected_errors(kind: type[Exception], code: int):
    assert exit_code(kind("why")) == code
    assert message_of(kind("what, there, do")) == "what, there, do"


def test_every_expected_error_has_a_code():
    known = descendants(store.LorascopeError) - {store.LorascopeError}
    ours = {kind for kind in known if kind.__module__.startswith("lorascope.")}
    assert {kind.__name__ for kind in ours if exit_code(kind("x")) == 1} == set()
    assert set(EXIT_CODES) <= {kind.__name__ for kind in ours}


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (MemoryError(), 4, "out of memory"),
        (OSError(errno.ENOSPC, "No space left", "/d/x"), 4, "cannot use '/d/x': No space left"),
        (OSError(errno.ENOSPC, "No space left"), 4, "No space left"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/x"),
            2,
            "cannot use '/x': Permission",
        ),
        (OSError(errno.EIO, "Input/output error", "/x"), 1, "unexpected OSError"),
        (
            ValueError("a\nb"),
            1,
            "unexpected ValueError: a\nthis is a defect of lorascope; run again",
        ),
        (RuntimeError(), 1, "unexpected RuntimeError\nthis is a defect of lorascope; run again"),
    ],
    ids=str,
)
def test_other_errors(error: Exception, code: int, message: str):
    assert exit_code(error) == code
    assert message_of(error).startswith(message)


def test_a_class_of_the_same_name_from_elsewhere_is_not_ours():
    fake = type("ConfigError", (Exception,), {"__module__": "elsewhere"})
    assert exit_code(fake("x")) == 1


def test_notes_are_part_of_the_message():
    error = capture_errors.DataError("no audio")
    error.add_note("while reading utterance u1")
    assert message_of(error) == "no audio\nwhile reading utterance u1"


def command_that_raises(error: BaseException) -> click.Command:
    @click.command("work")
    @click.option("--debug", is_flag=True)
    @click.option("--json", "as_json", is_flag=True)
    def work(**_: object) -> None:
        raise error

    return work


def test_an_expected_error_is_a_message_without_a_traceback(run):
    ran = run(command_that_raises(capture_errors.DataError("no file 'x'\x1b[31m")))
    assert (ran.code, ran.out, ran.err) == (2, "", "work: no file 'x'?[31m\n")


def test_debug_shows_the_traceback_and_keeps_the_code(run):
    ran = run(command_that_raises(capture_errors.DataError("no file")), "--debug")
    assert ran.code == 2
    assert "Traceback" in ran.err
    assert ran.err.endswith("work: no file\n")


def test_json_tells_the_class(run):
    ran = run(command_that_raises(store.DamagedStoreError("bad")), "--json")
    assert json.loads(ran.out) == {
        "type": "error",
        "class": "DamagedStoreError",
        "message": "bad",
        "code": 3,
    }
    assert ran.code == 3


def test_an_unexpected_error_is_one_line_and_a_way_on(run):
    ran = run(command_that_raises(ZeroDivisionError("division by zero")))
    assert ran.code == 1
    assert ran.err == (
        "work: unexpected ZeroDivisionError: division by zero\n"
        "this is a defect of lorascope; run again with --debug to see where\n"
    )


def test_ctrl_c_says_how_to_go_on(run):
    ran = run(command_that_raises(KeyboardInterrupt()), resumes=True)
    assert ran.code == 130
    assert ran.err.endswith("work: interrupted\nwhat was committed is safe; to go on: work\n")
    assert "go on" not in run(command_that_raises(KeyboardInterrupt())).err


def test_usage_errors(run):
    ran = run(command_that_raises(ValueError()), "--nonsense")
    assert ran.code == 2
    assert "No such option" in ran.err
    assert ran.out == ""


def test_sigterm_unwinds_and_says_how_to_go_on(tmp_path: Path):
    script = tmp_path / "work.py"
    script.write_text(
        "import sys, time, click\n"
        "from lorascope.cli.errors import run_command\n"
        "@click.command('work')\n"
        "@click.argument('name')\n"
        "def work(name):\n"
        "    try:\n"
        "        print('ready', flush=True)\n"
        "        time.sleep(30)\n"
        "    finally:\n"
        "        print('closed', flush=True)\n"
        "sys.exit(run_command(work, resumes=True))\n"
    )
    with subprocess.Popen(
        [sys.executable, script, "a b"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        began = time.monotonic()
        os.kill(process.pid, signal.SIGTERM)
        out, err = process.communicate(timeout=20)
    assert time.monotonic() - began < 10
    assert process.returncode == 143
    assert out == "closed\n"
    assert err == "\nwork: terminated\nwhat was committed is safe; to go on: work 'a b'\n"


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_does_not_cut_off_how_to_go_on(run, monkeypatch, second):
    """It arrives while the message is being written."""
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    speak = click.echo

    def interrupted_speech(*args: object, **options: object) -> None:
        signal.raise_signal(second)
        speak(*args, **options)

    monkeypatch.setattr(click, "echo", interrupted_speech)
    ran = run(command_that_raises(Terminated()), resumes=True)
    assert ran.code == 143
    assert "what was committed is safe; to go on: " in ran.err
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_reader_that_leaves_is_no_error(tmp_path: Path):
    script = tmp_path / "work.py"
    script.write_text(
        "import sys, click\n"
        "from lorascope.cli.errors import run_command\n"
        "@click.command('work')\n"
        "def work():\n"
        "    for i in range(100000):\n"
        "        click.echo(i)\n"
        "sys.exit(run_command(work))\n"
    )
    done = subprocess.run(
        ["sh", "-c", f"'{sys.executable}' '{script}' | head -n 1"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("0\n", "")
