"""Every problem of a configuration is told in one pass, with line, column and suggestion."""

from pathlib import Path

import pytest

from lorascope.capture.config import ConfigError, load_config

MINIMAL = """\
model: {base: "demo:whisper"}
data: {corpus: demo}
captures:
  frozen: {adapter: null}
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


def test_every_problem_is_told_in_one_pass_with_its_place(write):
    text = """\
sed: 1
model:
  base: demo:whisper
  dtype: flota32
  window_seconds: 45
data: {corpus: iemocap, per_class: 2.5}
split: {by: speaker, test: [01, "2"]}
captures:
  frozen: {adapter: null, train: {epochs: 0, learning_rat: 1e-3}}
  lora: {adapter: {r: 32, target_modules: v_proj}, at_steps: [0, final]}
head: {from: frozn}
run: {buffer: plenty, batch_size: yes}
interventions: [{erase: 1}]
record:
  sites: [embed, resid_pots]
  layers: [0, 0]
  frames: every:0
  lora_b: halved
  lora_b: dense
"""
    assert problems(write(text)) == [
        "run.yaml:1:1: unknown key 'sed'; did you mean 'seed'?",
        "run.yaml:4:10: model.dtype: unknown compute dtype 'flota32'; did you mean 'float32'? "
        "(known: float32, bfloat16, float16)",
        "run.yaml:5:19: model.window_seconds: must be at most 30, got 45",
        "run.yaml:6:16: data.corpus: corpus 'iemocap' is not in this version, which offers demo, "
        "manifest, ravdess",
        "run.yaml:6:36: data.per_class: expected a whole number, got the number 2.5",
        'run.yaml:7:29: split.test[0]: expected text, got the number 1; write it in quotes: "01"',
        "run.yaml:9:43: captures.frozen.train.epochs: must be at least 1, got 0",
        "run.yaml:9:46: unknown key 'learning_rat' in captures.frozen.train; did you mean "
        "'learning_rate'?",
        "run.yaml:10:10: missing key 'captures.lora.adapter.alpha'",
        "run.yaml:10:43: captures.lora.adapter.target_modules: expected a list, got the text "
        "'v_proj'",
        "run.yaml:10:62: captures.lora.at_steps: the capture has no `train`, so it has no steps; "
        "leave at_steps out, or say how it is trained",
        "run.yaml:11:14: head.from: no capture 'frozn'; did you mean 'frozen'?",
        "run.yaml:12:15: run.buffer: expected a size such as 256MiB or 1GB, got the text 'plenty'",
        "run.yaml:12:35: run.batch_size: expected a whole number, got the text 'yes'",
        "run.yaml:13:25: interventions[0].erase: expected a mapping of keys, got the number 1",
        "run.yaml:15:18: record.sites: unknown site 'resid_pots'; did you mean 'resid_post'? "
        "(known: embed, resid_pre, resid_post, attn_out, mlp_out, lora_a, lora_b, base_out, "
        "encoder_out, attention, lora_a_weight, lora_b_weight)",
        "run.yaml:16:11: record.layers: 0 is listed twice",
        "run.yaml:17:11: record.frames: expected valid, all, none or every:K (K >= 1), got the "
        "text 'every:0'",
        "run.yaml:18:11: record.lora_b: unknown storage of lora_b 'halved' (known: dense, "
        "factored)",
        "run.yaml:19:3: duplicate key 'lora_b', first used in line 18",
    ]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("split: {test: ['01'], fold: 2}", "run.yaml:5:23: split: give either test or fold"),
        ("split: {by: speaker}", "run.yaml:5:8: split: says not what is held out"),
        ("split: {by: session, fold: 1}", "run.yaml:5:13: split.by: group 'session' is not in"),
        ("head: {from: frozen}", "run.yaml:5:14: head.from: capture 'frozen' has no `train`"),
        ("record: {sites: [embed, lora_a]}", "run.yaml:5:25: record.sites: 'lora_a' exists only"),
        ("record: {gradients: {lora_b: {}}}", "run.yaml:5:30: record.gradients: 'lora_b' exists"),
        ("record: {sites: [logits]}", "run.yaml:5:18: record.sites: logits are written for"),
        ("record: {sites: [attention]}", "run.yaml:1:1: record: attention weights exist only"),
        ("record: {sites: [lora_a_weight]}", "run.yaml:5:18: record.sites: 'lora_a_weight' is a"),
        ("record: {frames: none, pool: []}", "run.yaml:5:30: record.pool: frames is none and pool"),
        ("record: {sites: {embed: {dtyp: float32}}}", "run.yaml:5:26: unknown key 'dtyp' in rec"),
        ("record: {pool: [mean_vald]}", "run.yaml:5:17: record.pool[0]: unknown pool 'mean_vald'"),
        ("record: {layers: [-1]}", "run.yaml:5:19: record.layers[0]: must be at least 0, got -1"),
        ("record: {layers: some}", "run.yaml:5:18: record.layers: expected all or a list"),
        ("run: {profile: archive}", "run.yaml:5:16: run.profile: profile 'archive' is not in this"),
        ("run: 3", "run.yaml:5:6: run: expected a mapping of keys, got the number 3"),
        ("seed: !!python/name:os.system x", "run.yaml:5:7: the tag"),
        ("seed: .inf", "run.yaml:5:7: seed: expected a whole number, got the number inf"),
        ("<<: {seed: 1}", "run.yaml:5:1: merge keys (<<) are not YAML 1.2"),
        ("? [1, 2]\n: 3", "run.yaml:5:3: a key must be plain text"),
    ],
)
def test_one_problem(write, change: str, expected: str):
    found = problems(write(MINIMAL + change + "\n"))
    assert len(found) == 1
    assert found[0].startswith(expected)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("demo:whisper", "demo:whisprr", "1:15: model.base: no model 'demo:whisprr'; did you mean"),
        ("demo:whisper", "./nowhere", "1:15: model.base: no folder"),
        ("demo:whisper", "open ai/whisper", "1:15: model.base: no folder"),
        ("corpus: demo", "corpus: ravdess", "2:1: missing key 'data.root'"),
        ("corpus: demo", "corpus: manifest", "2:1: missing key 'data.manifest'"),
        ("corpus: demo", "corpus: demo, root: x", "2:22: data.root: the demo corpus is synth"),
        ("corpus: demo", "corpus: demo, manifest: x", "2:22: data.manifest: belongs to"),
        ("frozen: {adapter: null}", "{}", "3:11: captures: needs at least 1 entry, got 0"),
        ("  frozen:", "  lo/ra:", "4:3: captures: 'lo/ra' is not a usable name"),
        ("  frozen:", "  .hidden:", "4:3: captures: '.hidden' is not a usable name"),
        ("{adapter: null}", "{train: {}}", "missing key 'split': 'frozen' is trained"),
    ],
)
def test_one_problem_in_place(write, old: str, new: str, expected: str):
    text = MINIMAL.replace(old, new) if new != "{}" else MINIMAL.replace(":\n  " + old, ": {}")
    found = problems(write(text))
    assert len(found) == 1
    assert expected in found[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "run.yaml:1:1: the file is empty"),
        ("- 1\n", "run.yaml:1:1: expected keys such as model: and data:"),
        ("a: [1,\nb: 2", "run.yaml:2:5: not YAML: while parsing a flow sequence"),
        ("a: 1\n---\nb: 2\n", "run.yaml:2:1: not YAML: expected a single document"),
        ("a:\n\t- b\n", "run.yaml:2:1: not YAML: while scanning for the next token"),
        ("a: *nope\n", "run.yaml:1:4: not YAML: found undefined alias"),
        ("[" * 1_000, "run.yaml:1:1: not usable: nested too deeply"),
    ],
)
def test_a_text_that_is_no_configuration(write, text: str, expected: str):
    found = problems(write(text))
    assert len(found) == 1
    assert found[0].startswith(expected)


def test_an_alias_that_grows_without_end_is_refused(write):
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    found = problems(write("\n".join(rows)))
    assert any("grows without end" in line for line in found)


def test_files_that_cannot_be_read(tmp_path: Path, write):
    write(MINIMAL, "study.yaml")
    assert problems(str(tmp_path / "studi.yaml"))[0].endswith("; did you mean 'study.yaml'?")
    assert problems(str(tmp_path / "nothing-like-it"))[0].endswith("the file does not exist")
    assert "is a folder" in problems(str(tmp_path))[0]
    (tmp_path / "latin.yaml").write_bytes("seed: é".encode("latin-1"))
    assert "not UTF-8 text (byte 6)" in problems(str(tmp_path / "latin.yaml"))[0]
