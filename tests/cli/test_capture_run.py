"""capture-run: every kind of bad input is one message and a code; good input is a table."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from lorascope.cli import capture_run as module
from lorascope.cli.capture_run import capture_run
from lorascope.cli.lorascope import lorascope
from lorascope.store import open_store

HEAD_ONLY = "captures={frozen: {train: {epochs: 1}}}"
ADAPTER = "{r: 2, alpha: 4, target_modules: [v_proj]}"


@pytest.fixture
def demo(run, tmp_path: Path) -> Callable:
    """Run a demo so small that it takes a second: 32 utterances, the head only, pools only."""

    def demo(*more: str, store: str = "s.zarr"):
        settings = ["data.per_class=8", HEAD_ONLY, "record={sites: [resid_post], frames: none}"]
        sets = [word for setting in settings for word in ("--set", setting)]
        return run(capture_run, "demo", "--store", tmp_path / store, *sets, *more)

    return demo


@pytest.fixture
def audio(tmp_path: Path) -> Path:
    """A manifest of four speakers with two labels, three seconds of noise each."""
    rng = np.random.default_rng(0)
    rows = ["path,label,speaker"]
    for speaker in range(4):
        for label in ("joy", "grief"):
            name = f"{speaker}-{label}.wav"
            soundfile.write(tmp_path / name, 0.1 * rng.standard_normal(16_000), 16_000)
            rows.append(f"{name},{label},s{speaker}")
    path = tmp_path / "list.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def of_manifest(audio: Path) -> list[str]:
    data = f"data={{corpus: manifest, manifest: {audio}}}"
    return ["--set", data, "--set", "split={test: [s3]}"]


def test_a_run_ends_with_a_table_and_the_next_command(demo, tmp_path: Path):
    ran = demo()
    assert ran.code == 0, ran.err
    header, frozen, fidelity, scored, following = ran.out.splitlines()
    assert header.split() == ["capture", "samples", "new", "scored", "UAR", "WAR", "seconds"]
    assert frozen.split()[:4] == ["frozen", "32", "32", "16"]
    assert fidelity.startswith("fidelity of frozen: logits with and without recording equal; alone")
    assert scored == "scored: speakers no training saw (03, 04, 05, 06)"
    assert following == f"next: analyze --store {tmp_path}/s.zarr"
    assert "frozen: training" in ran.err
    again = demo("-q")
    assert again.code == 0
    assert again.err == ""
    assert again.out.splitlines()[1].split()[:3] == ["frozen", "32", "0"]


def test_json_lines(demo):
    lines = [json.loads(line) for line in demo("--json", "-q").out.splitlines()]
    assert [line["type"] for line in lines] == ["capture", "run"]
    assert lines[0]["capture"] == "frozen"
    assert sum(map(sum, lines[0]["confusion"])) == lines[0]["n"] == 16
    assert lines[0]["certificate"]["hooks"] == lines[0]["nonfinite"] == 0
    assert lines[1]["labels"] == ["anger", "happiness", "neutral", "sadness"]


def test_the_store_does_not_learn_the_folders_of_this_machine(demo, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(module.sys, "argv", ["capture-run", "demo", f"--store={tmp_path}/s.zarr"])
    assert demo().code == 0
    attrs = open_store(tmp_path / "s.zarr").capture("frozen").attrs
    assert attrs["command"] == "capture-run demo --store=s.zarr"


def test_a_plan_writes_nothing(demo, tmp_path: Path):
    ran = demo("--plan")
    assert ran.code == 0, ran.err
    assert not (tmp_path / "s.zarr").exists()
    assert "base: demo:whisper" in ran.out
    assert "resid_post.mean_valid" in ran.out
    assert "32 samples" in ran.out
    line = json.loads(demo("--plan", "--json").out)
    assert line["type"] == "plan"
    assert line["config"]["data"]["per_class"] == 8
    assert line["bytes"] == sum(site["bytes"] for site in line["sites"]["frozen"])


def test_a_plan_names_the_steps_of_a_training_together(demo):
    ran = demo("--plan", "--set", "captures.frozen.at_steps=[0, every:1, final]")
    assert ran.code == 0, ran.err
    lines = [line for line in ran.out.splitlines() if " resid_post.mean_valid " in line]
    assert [line.partition("  ")[0] for line in lines] == [
        "frozen.step0 .. frozen.step1 (2, each)",
        "frozen",
    ]
    beyond = demo("--set", "captures.frozen.at_steps=[40]")
    assert beyond.code == 2
    assert "captures.frozen.at_steps: 40 lies beyond the training, which has 2 steps" in beyond.err


def test_misspelt_keys(run, tmp_path: Path):
    config = tmp_path / "run.yaml"
    config.write_text("modle: {}\ndata: {corpus: demo}\ncaptures: {a: {}}\n")
    ran = run(capture_run, config, "--store", tmp_path / "s.zarr")
    assert ran.code == 2
    assert ran.out == ""
    assert ran.err == (
        f"capture-run: {config}:1:1: missing key 'model'\n"
        f"{config}:1:1: unknown key 'modle'; did you mean 'model'?\n"
    )


def test_a_configuration_that_is_not_there(run, tmp_path: Path):
    ran = run(capture_run, tmp_path / "run.yaml")
    assert ran.code == 2
    assert ran.err == (
        f"capture-run: no configuration '{tmp_path}/run.yaml': the file does not exist\n"
    )


def test_no_configuration_and_no_store(run, tmp_path: Path):
    ran = run(capture_run)
    assert ran.code == 2
    assert "Missing argument 'CONFIG.yaml'" in ran.err
    config = tmp_path / "run.yaml"
    text = "model: {base: 'demo:whisper'}\ndata: {corpus: demo}\ncaptures: {a: {}}\n"
    config.write_text(text)
    ran = run(capture_run, config)
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert "no store" in ran.err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-q", "-v"], "-q and -v contradict each other"),
        (["--device", "tpu"], "'tpu' is not one of 'cpu', 'cuda'"),
        (["--workers", "0"], "0 is not in the range"),
        (["--stroe", "x"], "No such option '--stroe'."),
    ],
)
def test_usage(run, arguments: list[str], expected: str):
    ran = run(capture_run, "demo", *arguments)
    assert ran.code == 2
    assert expected in ran.err


def test_an_unknown_label(demo):
    ran = demo("--set", "data.labels=[angr, sadness]")
    assert ran.code == 2
    assert ran.err.endswith(
        "capture-run: corpus demo has no label 'angr'; did you mean 'anger'?\n"
        "there are: anger (40), happiness (40), neutral (40), sadness (40)\n"
    )


def test_an_unknown_speaker(demo):
    ran = demo("--set", "split.test=['09']")
    assert ran.code == 2
    assert "corpus demo has no speaker '09'" in ran.err


def test_a_missing_and_an_unreadable_audio_file(demo, audio: Path, tmp_path: Path):
    (audio.parent / "0-joy.wav").unlink()
    ran = demo(*of_manifest(audio), "--set", "data.per_class=")
    assert ran.code == 2
    assert f"{audio}:2: no audio file" in ran.err
    (audio.parent / "0-joy.wav").write_bytes(b"this is no audio")
    ran = demo(*of_manifest(audio))
    assert ran.code == 2
    assert "cannot read audio file" in ran.err
    assert "Traceback" not in ran.err
    assert not (tmp_path / "s.zarr").exists()


def test_audio_that_breaks_in_the_middle_of_a_run(demo, audio: Path, tmp_path: Path):
    wave = 0.1 * np.random.default_rng(0).standard_normal(16_000)
    wave[8_000] = np.nan
    soundfile.write(audio.parent / "3-grief.wav", wave, 16_000, subtype="FLOAT")
    ran = demo(*of_manifest(audio))
    assert ran.code == 2
    assert "3-grief.wav' holds NaN" in ran.err
    # Weights that were trained before are safe: mending the file lets the same command go on.
    soundfile.write(audio.parent / "3-grief.wav", np.nan_to_num(wave), 16_000, subtype="FLOAT")
    ran = demo(*of_manifest(audio), store="other.zarr")
    assert ran.code == 0, ran.err


def test_a_target_module_that_matches_nothing(demo, tmp_path: Path):
    adapter = "{r: 2, alpha: 4, target_modules: [v_porj]}"
    ran = demo("--set", f"captures={{lora: {{adapter: {adapter}, train: {{epochs: 1}}}}}}")
    assert ran.code == 2
    assert "v_porj" in ran.err
    assert "v_proj" in ran.err
    assert "Traceback" not in ran.err
    assert not (tmp_path / "s.zarr").exists()


def test_a_store_of_another_run(demo, tmp_path: Path):
    assert demo().code == 0
    digest = open_store(tmp_path / "s.zarr").content_digest()
    ran = demo("--set", "captures.frozen.train.epochs=2")
    assert ran.code == 2
    assert "train.epochs" in ran.err
    assert "Traceback" not in ran.err
    assert open_store(tmp_path / "s.zarr").content_digest() == digest


def test_a_damaged_store(demo, tmp_path: Path):
    assert demo().code == 0
    records = sorted((tmp_path / "s.zarr" / "__commits__").glob("*"))
    record = next(path for path in records if path.is_file() and path.stat().st_size)
    content = bytearray(record.read_bytes())
    content[len(content) // 2] ^= 1
    record.write_bytes(content)
    ran = demo("--json")
    assert ran.code == 3
    assert json.loads(ran.out)["class"] == "DamagedStoreError"
    assert "Traceback" not in ran.err


def test_a_path_that_is_no_store(demo, tmp_path: Path):
    (tmp_path / "s.zarr").mkdir()
    (tmp_path / "s.zarr" / "notes.txt").write_text("mine")
    ran = demo()
    assert ran.code == 3
    assert (tmp_path / "s.zarr" / "notes.txt").read_text() == "mine"


def test_without_the_extra_one_line_says_what_to_install(demo, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        module.importlib.util,
        "find_spec",
        lambda name: None if name in ("torch", "peft") else real(name),
    )
    ran = demo()
    assert ran.code == 2
    assert ran.err == (
        'capture-run: capture-run needs torch, peft: pip install "lorascope[capture]"\n'
    )


def test_adding_a_capture_to_a_store(demo, tmp_path: Path):
    assert demo().code == 0
    both = f"captures={{frozen: {{train: {{epochs: 1}}}}, untrained: {{adapter: {ADAPTER}}}}}"
    ran = demo("--set", both)
    assert ran.code == 0, ran.err
    new = [line.split()[:3] for line in ran.out.splitlines()[1:3]]
    assert new == [["frozen", "32", "0"], ["untrained", "32", "32"]]
    assert open_store(tmp_path / "s.zarr").captures == ["frozen", "untrained"]


def test_after_a_repair_the_same_command_records_what_is_missing(demo, run, tmp_path: Path):
    """A segment and the trained head are damaged; then the store is sealed and stays as it is."""
    cut = ("--set", "run.segment_samples=8")
    assert demo(*cut).code == 0
    path = tmp_path / "s.zarr"
    digest = open_store(path).content_digest()
    shard = next(path.glob("captures/frozen/pooled/*/values/c.0.1.0"))
    weight = next(path.glob("captures/frozen/parameters/*/c.*"))
    for victim in (shard, weight):
        content = bytearray(victim.read_bytes())
        content[5] ^= 2
        victim.write_bytes(content)
    assert run(lorascope, "verify", path).code == 3
    assert run(lorascope, "repair", path).code == 0
    assert 0 < len(open_store(path).samples) < 32
    ran = demo(*cut)
    assert ran.code == 0, ran.err
    assert run(lorascope, "verify", path).code == 0
    assert open_store(path).content_digest() == digest
    assert run(lorascope, "seal", path).code == 0
    ran = demo(*cut)
    assert ran.code == 2
    assert "is sealed and never changes" in ran.err
