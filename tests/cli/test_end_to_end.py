"""The main job as a user runs it: two commands, from another folder, and what they leave."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import pytest

from lorascope.store import open_store

SETTINGS = (
    "data.per_class=8",
    "captures.frozen.train.epochs=2",
    "captures.lora.train.epochs=2",
    "record.sites=[embed, resid_post, attn_out, mlp_out, lora_a, lora_b]",
    "record.gradients=[lora_b]",
)


def start(name: str, *arguments: str, folder: Path) -> subprocess.Popen[str]:
    module = name.replace("-", "_")
    code = f"import sys; sys.argv[0] = {name!r}; from lorascope.cli.{module} import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


def command(name: str, *arguments: str, folder: Path) -> Done:
    with start(name, *arguments, folder=folder) as process:
        out, err = process.communicate()
    return Done(process.returncode, out, err)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("user")


@pytest.fixture(scope="module")
def captured(folder: Path) -> Done:
    """Capture, stopped once in the middle by SIGTERM and started again with the same command."""
    sets = [word for setting in SETTINGS for word in ("--set", setting)]
    with start("capture-run", "demo", *sets, folder=folder) as process:
        assert process.stderr is not None
        lines = list(takewhile(lambda line: line != "untrained: capturing\n", process.stderr))
        process.terminate()
        _, rest = process.communicate(timeout=60)
    assert "frozen: capturing\n" in lines
    assert process.returncode == 143, rest
    assert "what was committed is safe; to go on: capture-run demo --set " in rest
    done = command("capture-run", "demo", *sets, folder=folder)
    assert done.code == 0, done.err
    return done


def test_capture(folder: Path, captured: Done):
    rows = [line.split() for line in captured.out.splitlines()[1:5]]
    assert [row[0] for row in rows] == ["frozen", "untrained", "random", "lora"]
    assert {(row[1], row[3]) for row in rows} == {("32", "16")}
    assert (rows[0][2], rows[3][2]) == ("0", "32")  # what was there is not captured again
    assert captured.out.endswith("next: analyze --store demo.zarr\n")
    assert "Traceback" not in captured.err
    assert "Warning" not in captured.err
    store = open_store(folder / "demo.zarr")
    assert store.captures == ["frozen", "untrained", "random", "lora"]
    # B = 0: an untrained adapter changes nothing, so it scores what frozen scores.
    assert rows[1][4] == rows[0][4]


def test_verify(folder: Path, captured: Done):
    done = command("lorascope", "verify", "demo.zarr", "--json", folder=folder)
    assert done.code == 0, done.out
    assert json.loads(done.out)["samples"] == 4 * 32


def test_analyze(folder: Path, captured: Done):
    done = command("analyze", "--store", "demo.zarr", folder=folder)
    assert done.code == 0, done.err
    assert done.out.endswith("report: demo.zarr-analysis/report.html\n")
    assert "Traceback" not in done.err
    out = folder / "demo.zarr-analysis"
    tables = {path.stem for path in (out / "tables").glob("*.csv")}
    assert {"cka", "svd", "spectrum", "probe", "lens", "contribution"} <= tables
    assert (
        (out / "report.html").read_text(encoding="utf-8").lstrip().lower().startswith("<!doctype")
    )
    assert any((out / "figures").glob("*.svg"))
    summary = json.loads((out / "summary.json").read_text())
    assert summary["command"] == "analyze --store demo.zarr"
    assert summary["store"]["uuid"] == open_store(folder / "demo.zarr").uuid
