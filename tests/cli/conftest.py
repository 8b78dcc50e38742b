"""Running a command in this process, as the console script does."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

# It takes its progress bars from the environment, once, when it is imported: `run` changes that.
import huggingface_hub.constants  # noqa: F401
import pytest

from lorascope.cli.errors import run_command


@dataclass(frozen=True)
class Ran:
    """What a command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    """Run a command with arguments; gives exit code, stdout and stderr."""
    for name in (
        "TRANSFORMERS_VERBOSITY",
        "HF_HUB_DISABLE_PROGRESS_BARS",
        "TOKENIZERS_PARALLELISM",
    ):
        monkeypatch.setenv(name, "error")  # the commands set these only where they are not set

    def run(command: click.Command, *arguments: object, **options: Any) -> Ran:
        capsys.readouterr()
        code = run_command(command, [str(argument) for argument in arguments], **options)
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run
