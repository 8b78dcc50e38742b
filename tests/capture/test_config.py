"""The configuration: what it accepts, what it resolves to, and how the command line changes it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lorascope.capture.config import (
    DEMO_CONFIG_PATH,
    CaptureConfig,
    ConfigError,
    load_config,
    parse_size,
)

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))

MINIMAL = """\
model: {base: "demo:whisper"}
data: {corpus: demo}
captures:
  frozen: {adapter: null}
"""

FULL = """\
store: out.zarr
seed: 3
model:
  base: demo:whisper
  dtype: float32
  window_seconds: 5
data:
  corpus: demo
  labels: [anger, sadness]
  per_class: 4
split: {by: speaker, test: ["07", "08"]}
captures:
  frozen: {adapter: null, train: {epochs: 5}}
  lora:
    adapter: &lora {type: lora, r: 32, alpha: 64, target_modules: [v_proj]}
    train: {epochs: 5, learning_rate: 1e-4}
  again: {adapter: *lora}
run: {buffer: 1.5GiB, segment_rows: auto, segment_samples: 16}
record:
  sites: [embed, resid_post, lora_a.v_proj]
  gradients:
    resid_post: {layers: [0, 2], frames: none}
  frames: every:3
"""


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str, name: str = "run.yaml") -> str:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def problems(path: str, *overrides: str) -> list[str]:
    """Problems of a file, without the folder in front."""
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    assert str(caught.value) == "\n".join(caught.value.problems)
    folder = str(Path(path).parent)
    return [line.replace(folder + "/", "") for line in caught.value.problems]


def test_defaults_are_filled_in(write):
    config = load_config(write(MINIMAL))
    assert config.seed == 0
    assert config.run.buffer == 2**30
    assert config.run.segment_rows is None
    assert config.record.frames == "valid"
    assert list(config.record.sites) == ["resid_post"]
    assert config.split is None
    assert config.head.from_ is None


def test_every_section_is_read(write):
    config = load_config(write(FULL))
    assert config.captures["lora"].train is not None
    # YAML 1.1 readers take 1e-4 for text.
    assert config.captures["lora"].train.learning_rate == 1e-4
    assert config.captures["again"].adapter == config.captures["lora"].adapter
    assert config.run.buffer == 1.5 * 2**30
    assert config.run.segment_samples == 16
    assert config.head.from_ == "frozen"
    assert config.record.options("embed").frames == "every:3"
    gradient = config.record.options("resid_post", gradient=True)
    assert (gradient.layers, gradient.frames, gradient.dtype) == ((0, 2), "none", "bfloat16")


def test_head_comes_from_the_first_trained_capture_without_frozen(write):
    config = load_config(write(FULL.replace("  frozen:", "  base:")))
    assert config.head.from_ == "base"


def test_resolved_is_json_and_reads_back_to_the_same(write):
    config = load_config(write(FULL))
    resolved = config.resolved()
    assert json.loads(json.dumps(resolved)) == resolved
    assert resolved["head"] == {"from": "frozen"}
    assert resolved["run"]["segment_rows"] == "auto"
    assert resolved["record"]["layers"] == "all"
    assert resolved["record"]["gradients"] == {
        "resid_post": {"layers": [0, 2], "frames": "none"},
    }
    assert CaptureConfig.model_validate(resolved) == config


def test_the_configuration_cannot_be_changed(write):
    config = load_config(write(MINIMAL))
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 1  # pyright: ignore[reportAttributeAccessIssue]


def test_the_embedded_default_is_valid():
    config = load_config(DEMO_CONFIG_PATH)
    assert list(config.captures) == ["frozen", "untrained", "random", "lora"]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_examples_are_valid(path: Path, tmp_path: Path):
    demo = "corpus: demo" in path.read_text()
    elsewhere = [] if demo else ["model.base=demo:whisper", f"data.root={tmp_path}"]
    config = load_config(path, elsewhere)
    assert config.store is not None


def test_input_paths_start_from_the_folder_of_the_file(tmp_path: Path, write, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "weights").mkdir()
    text = "store: s.zarr\nmodel: {base: ../weights}\n"
    text += "data: {corpus: manifest, manifest: list.csv, root: ../audio}\ncaptures: {a: {}}\n"
    path = write(text, "configs/run.yaml")
    monkeypatch.chdir("/")
    config = load_config(path, ["data.root=tmp"])
    assert config.model.base == str(tmp_path / "weights")
    assert config.data.manifest == str(tmp_path / "configs" / "list.csv")
    assert config.data.root == "/tmp"  # from the command line: from where the user is
    assert config.store == "s.zarr"


def test_a_hub_id_stays_as_it_is(write):
    config = load_config(write(MINIMAL), ["model.base=openai/whisper-base"])
    assert config.model.base == "openai/whisper-base"


@pytest.mark.parametrize(
    ("override", "where", "value"),
    [
        ("seed=7", ("seed",), 7),
        ("data.labels=[anger, sadness]", ("data", "labels"), ["anger", "sadness"]),
        ("captures.frozen.train.epochs=2", ("captures", "frozen", "train", "epochs"), 2),
        ("captures.lora.fold03.train={epochs: 9}", ("captures", "lora.fold03", "train"), None),
        ("split={fold: 2}", ("split", "fold"), 2),
        ("data.per_class=", ("data", "per_class"), None),
        ("record.gradients.resid_post.dtype=float32", ("record", "gradients"), None),
    ],
)
def test_overrides_change_values(write, override: str, where: tuple[str, ...], value: object):
    text = FULL.replace("  again:", "  lora.fold03:")
    found = load_config(write(text), [override]).resolved()
    for key in where:
        found = found[key]
    if where[-1] == "train":
        assert found["epochs"] == 9
    elif where[-1] == "gradients":
        assert found["resid_post"]["dtype"] == "float32"
        assert found["resid_post"]["layers"] == [0, 2]
    else:
        assert found == value


def test_an_override_through_an_alias_leaves_the_anchor_alone(write):
    config = load_config(write(FULL), ["captures.again.adapter.r=4"])
    adapters = {name: spec.adapter for name, spec in config.captures.items()}
    assert adapters["again"] is not None
    assert adapters["again"].r == 4
    assert adapters["lora"] is not None
    assert adapters["lora"].r == 32


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("sede=3", "--set sede=3: unknown key 'sede'; did you mean 'seed'?"),
        ("run.bufer=1", "--set run.bufer=1: unknown key 'bufer' in run; did you mean 'buffer'?"),
        ("captures.lroa.train.epochs=1", "no 'lroa' in captures; did you mean 'lora'?"),
        ("seed.x=1", "seed has no keys below it"),
        ("seed", "expected key.path=value"),
        ("=1", "expected key.path=value"),
        ("seed=[", "not YAML"),
        ("seed=x", "--set seed=x: seed: expected a whole number, got the text 'x'"),
        ("data.labels=[01, a]", "data.labels[0]: expected text, got the number 1; write it in quo"),
        ("record.sites.embed.dtype=float32", "record.sites is a list here; set it as a whole"),
    ],
)
def test_overrides_that_cannot_be_used(write, override: str, expected: str):
    found = problems(write(FULL), override)
    assert len(found) == 1
    assert found[0].startswith("--set " + override)
    assert expected in found[0]


def test_problems_of_file_and_overrides_come_together(write):
    found = problems(write(FULL + "sed: 1\n"), "sede=3")
    assert [line.split(":")[0] for line in found] == ["run.yaml", "--set sede=3"]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("256MiB", 2**28),
        ("1.5 GiB", 3 * 2**29),
        ("1GB", 10**9),
        ("10k", 10_000),
        ("64", 64),
        (4096, 4096),
        ("2 Ti", 2**41),
        ("7B", 7),
    ],
)
def test_sizes(text: object, size: int):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1GB", "1 XB", "0", -3, True, None, 1.5, "1e9"])
def test_what_is_no_size(text: object):
    with pytest.raises(ValueError, match="expected a size such as 256MiB"):
        parse_size(text)


def test_reading_a_configuration_loads_no_heavy_library():
    code = (
        "import sys\n"
        "from lorascope.capture.config import DEMO_CONFIG_PATH, load_config\n"
        "load_config(DEMO_CONFIG_PATH)\n"
        "print([m for m in ('torch', 'transformers', 'peft', 'dask', 'matplotlib', 'scipy') "
        "if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
