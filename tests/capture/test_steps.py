"""Which steps and which samples a configuration names, and what it is refused for."""

from __future__ import annotations

import re

import pytest

from lorascope.capture import ConfigError, load_config, load_corpus
from lorascope.capture.conditions import fingerprint, order_conditions
from lorascope.capture.config_models import CaptureSpec, SplitConfig, StepSamplesConfig, TrainConfig
from lorascope.capture.families import FAMILIES
from lorascope.capture.samples import make_table
from lorascope.capture.split import make_split
from lorascope.capture.steps import (
    TrainingSteps,
    choose_samples,
    count_steps,
    find_steps,
)

CONFIG = """\
model: {base: "demo:whisper", window_seconds: 1}
data: {corpus: demo, per_class: 4}
split: {by: speaker, test: ["07", "08"]}
captures:
  frozen: {adapter: null, train: {}}
"""
STEPS = TrainingSteps(total=12, per_epoch=4)


def load(folder, text):
    path = folder / "run.yaml"
    path.write_text(CONFIG + text, encoding="utf-8")
    return load_config(path)


def problems(folder, text):
    with pytest.raises(ConfigError) as caught:
        load(folder, text)
    return [line.replace(f"{folder}/", "") for line in caught.value.problems]


@pytest.mark.parametrize(
    ("moments", "found"),
    [
        (["final"], [12]),
        ([], []),
        ([0, 5, "final"], [0, 5, 12]),
        ([5, 0], [0, 5]),
        ([0, "every:5", "final"], [0, 5, 10, 12]),
        (["every:4", "epochs", 8], [4, 8, 12]),
        (["epochs"], [4, 8, 12]),
        (["every:12"], [12]),
        ([12], [12]),
    ],
)
def test_steps_that_moments_name(moments, found):
    assert find_steps(moments, STEPS, where="x") == found


@pytest.mark.parametrize("moment", [13, "every:13"])
def test_a_step_beyond_the_training_is_refused_with_how_many_there_are(moment):
    with pytest.raises(ConfigError, match=rf"captures.lora.at_steps: {moment} .*12 steps \(4 an"):
        find_steps([0, moment], STEPS, where="captures.lora.at_steps")


def test_steps_are_counted_as_the_trainer_makes_them():
    spec = CaptureSpec(train=TrainConfig(epochs=3, batch_size=4))
    assert count_steps(spec, 10) == TrainingSteps(total=9, per_epoch=3)
    assert count_steps(spec, 12) == TrainingSteps(total=9, per_epoch=3)
    assert count_steps(spec, 13) == TrainingSteps(total=12, per_epoch=4)
    assert count_steps(CaptureSpec(), 13) is None
    assert TrainingSteps(total=9, per_epoch=3).epoch(4) == 4 / 3


@pytest.mark.parametrize(
    ("moments", "message"),
    [
        ("50", "expected a list such as [0, every:50, final], got the number 50"),
        ("[-1]", "the number -1 is no moment of a training: give the number of a step"),
        ("[1.5]", "the number 1.5 is no moment of a training"),
        ("[true]", "true is no moment of a training"),
        ("[every:0]", "the text 'every:0' is no moment of a training"),
        ("[last]", "the text 'last' is no moment of a training"),
        ("[0, 5, 0]", "0 is listed twice"),
    ],
)
def test_moments_that_are_none(tmp_path, moments, message):
    text = f"  lora: {{train: {{}}, at_steps: {moments}}}\n"
    found = problems(tmp_path, text)
    assert len(found) == 1
    assert re.match(rf"run.yaml:6:\d+: {re.escape(f'captures.lora.at_steps: {message}')}", found[0])


@pytest.mark.parametrize(
    ("capture", "message"),
    [
        ("{at_steps: [0, final]}", "captures.lora.at_steps: the capture has no `train`"),
        (
            "{train: {}, step_samples: {per_class: 2}}",
            "captures.lora.step_samples: at_steps names no step before the final one",
        ),
        (
            "{train: {}, at_steps: [0], step_samples: {per_class: 2, total: 3}}",
            "captures.lora.step_samples: give either per_class or total",
        ),
        (
            "{train: {}, at_steps: [0], step_samples: {part: test}}",
            "captures.lora.step_samples: give either per_class or total",
        ),
        (
            "{train: {}, at_steps: [0], step_samples: {total: 2, part: dev}}",
            "captures.lora.step_samples.part: unknown part 'dev' (known: all, train, test)",
        ),
        ("{train: {schedule: cosin}}", "captures.lora.train.schedule: unknown schedule"),
        ("{train: {warmup_ratio: 1}}", "captures.lora.train.warmup_ratio: must be less"),
    ],
)
def test_one_problem(tmp_path, capture, message):
    found = problems(tmp_path, f"  lora: {capture}\n")
    assert len(found) == 1
    assert re.match(rf"run.yaml:6:\d+: {re.escape(message)}", found[0])


def test_what_a_configuration_says_of_steps(tmp_path):
    text = "  lora: {train: {}, at_steps: [0, every:2, final], step_samples: {total: 3}}\n"
    config = load(tmp_path, text)
    assert config.captures["frozen"].at_steps == ("final",)
    resolved = config.resolved()["captures"]["lora"]
    assert resolved["at_steps"] == [0, "every:2", "final"]
    assert resolved["step_samples"] == {"per_class": None, "total": 3, "part": "all"}
    assert resolved["train"]["schedule"] == "linear"
    assert resolved["train"]["warmup_ratio"] == 0


def test_stores_from_before_there_were_schedules_are_the_same_run(tmp_path):
    """Defaults of options that came later are no part of what identifies a capture."""
    model = dict.fromkeys(("family", "dtype", "window_seconds", "sha256"), "x")
    corpus = load_corpus("demo", per_class=2)

    def identity(text):
        config = load(tmp_path, text)
        (condition,) = [c for c in order_conditions(config) if c.name == "lora"]
        split = make_split(corpus, config.split)
        return fingerprint(config, condition, split, model=model, data={}, device="cpu")

    plain = identity("  lora: {train: {}}\n")
    keys = {"epochs", "learning_rate", "batch_size", "weight_decay"}
    assert set(plain["train"]) == keys
    assert identity("  lora: {train: {}, at_steps: [0, 2]}\n") == plain
    assert identity("  lora: {train: {schedule: cosine}}\n")["train"] == {
        **plain["train"],
        "schedule": "cosine",
    }
    borrowed = identity("  lora: {}\n")["head"]
    assert set(borrowed["train"]) == keys


@pytest.fixture(scope="module")
def everything():
    corpus = load_corpus("demo", per_class=8)
    split = make_split(corpus, SplitConfig(test=("07", "08")))
    return make_table(corpus, FAMILIES["whisper"], 50), split


def ids_of(table):
    return [sample.utterance.id for sample in table.samples]


def test_a_subset_is_seeded_balanced_and_in_order(everything):
    table, split = everything
    spec = StepSamplesConfig(per_class=4)
    chosen = choose_samples(table, split, spec, seed=0, where="x")
    ids = ids_of(chosen)
    assert ids == [i for i in ids_of(table) if i in ids]
    labels = [sample.utterance.label for sample in chosen.samples]
    assert {label: labels.count(label) for label in labels} == dict.fromkeys(labels, 4)
    # evenly over the speakers: no speaker twice for one label
    pairs = [(sample.utterance.label, sample.utterance.speaker) for sample in chosen.samples]
    assert len(set(pairs)) == len(pairs)
    assert ids == ids_of(choose_samples(table, split, spec, seed=0, where="x"))
    assert ids != ids_of(choose_samples(table, split, spec, seed=1, where="x"))
    assert chosen.corpus is table.corpus


@pytest.mark.parametrize("part", ["all", "train", "test"])
@pytest.mark.parametrize("spec", [{"per_class": 1}, {"total": 5}])
def test_a_subset_of_one_part(everything, part, spec):
    table, split = everything
    chosen = choose_samples(table, split, StepSamplesConfig(part=part, **spec), seed=0, where="x")
    speakers = {sample.utterance.speaker for sample in chosen.samples}
    assert len(chosen.samples) == spec.get("total", 1 * len(table.corpus.labels))
    if part != "all":
        assert speakers <= ({"07", "08"} if part == "test" else set(f"0{i}" for i in range(1, 7)))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"per_class": 9}, r"step_samples.per_class asks for 9 of each label, and '\w+' has 8\."),
        ({"per_class": 3, "part": "test"}, r"and '\w+' has 2 in the test part\."),
        ({"total": 33}, r"step_samples.total asks for 33 samples, and there are 32\."),
        ({"total": 25, "part": "train"}, r"there are 24 in the train part\."),
    ],
)
def test_more_samples_than_there_are(everything, spec, message):
    table, split = everything
    with pytest.raises(ConfigError, match=message):
        choose_samples(
            table, split, StepSamplesConfig(**spec), seed=0, where="captures.lora.step_samples"
        )
