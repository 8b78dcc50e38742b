"""A run that captures its training: what the store holds, how it resumes, what it refuses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from lorascope.analyses import analyze
from lorascope.capture import (
    CaptureError,
    ConfigError,
    SilentReporter,
    load_config,
    plan_capture,
    run_capture,
)
from lorascope.capture import condition_run as module
from lorascope.store import ConfigMismatchError, Writer, open_store, verify_store

CONFIG = """
seed: 0
model: {base: "demo:whisper", window_seconds: 1}
data: {corpus: demo, labels: [anger, happiness, neutral, sadness], per_class: 4}
split: {by: speaker, test: ["02", "07", "08"]}
captures:
  lora:
    adapter: {type: lora, r: 4, alpha: 8, target_modules: [v_proj], dropout: 0.1}
    train: {epochs: 3, learning_rate: 1.0e-2, batch_size: 5}
    at_steps: [0, 2, every:3, final]
run: {batch_size: 4, segment_samples: 4}
record:
  sites: [embed, resid_post, lora_a, lora_b]
  gradients: [lora_a]
  layers: [1]
  dtype: float32
"""
NAMES = ["lora.step0", "lora.step2", "lora.step3", "lora"]
"""Steps 0 to 6; the sixth is the final one: 10 samples in batches of 5, three times."""
TRAIN = 10


def config_of(folder, *overrides: str):
    path = folder / "config.yaml"
    if not path.exists():
        path.write_text(CONFIG)
    return load_config(path, overrides)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One undisturbed run."""
    folder = tmp_path_factory.mktemp("steps")
    config = config_of(folder)
    summary = run_capture(config, store_path=folder / "run.zarr")
    return config, summary, open_store(folder / "run.zarr")


def test_there_is_one_capture_a_step(run):
    config, summary, store = run
    assert list(store.captures) == NAMES
    assert [c.name for c in summary.conditions] == NAMES
    assert all(c.trained and c.captured == c.samples == 16 for c in summary.conditions)
    assert verify_store(store.path).damages == []
    moments = {name: store.capture(name).attrs for name in NAMES}
    assert [moments[name]["step"] for name in NAMES] == [0, 2, 3, 6]
    assert [moments[name]["epoch"] for name in NAMES] == [0, 1, 1.5, 3]
    assert {moments[name]["of"] for name in NAMES} == {"lora"}
    plan = plan_capture(config)
    assert [(c.name, c.step, c.samples) for c in plan.conditions] == [
        (name, moments[name]["step"], 16) for name in NAMES
    ]


def test_captures_are_aligned_by_row(run):
    *_, store = run
    final = store.capture("lora")
    for name in NAMES[:-1]:
        capture = store.capture(name)
        assert list(capture.samples["id"]) == list(final.samples["id"])
        assert list(capture.samples["segment"]) == list(final.samples["segment"])
        np.testing.assert_array_equal(
            capture.read_positions("encoder"), final.read_positions("encoder")
        )
        # what lies below the adapter is the same in each of them
        np.testing.assert_array_equal(
            capture.read_rows("embed", None), final.read_rows("embed", None)
        )


def test_the_steps_move_away_from_the_first(run):
    *_, store = run
    first = store.capture("lora.step0").read_rows("resid_post", 1)
    gone = [
        np.linalg.norm(store.capture(name).read_rows("resid_post", 1) - first) for name in NAMES
    ]
    assert gone[0] == 0
    assert all(distance > 0 for distance in gone[1:])
    assert not store.capture("lora.step0").read_rows("lora_b.v_proj", 1).any()


def test_nothing_is_exposed_before_the_first_update(run):
    *_, store = run
    first, later, last = (store.capture(name) for name in ("lora.step0", "lora.step2", "lora"))
    assert first.attrs["trained"] == []
    assert first.attrs["head"] == {"from": None}
    assert not first.samples["exposed"].to_numpy(bool).any()
    for capture in (later, last):
        assert capture.attrs["trained"] == ["head", "adapter"]
        assert capture.attrs["head"] == {"from": "lora"}
        assert capture.samples["exposed"].to_numpy(bool).sum() == TRAIN


def test_all_steps_are_scored_on_the_same_samples(run):
    _, summary, store = run
    assert {c.scores.n for c in summary.conditions} == {16 - TRAIN}
    for result in summary.conditions:
        capture = store.capture(result.name)
        held_out = capture.samples["speaker"].isin(["02", "07", "08"]).to_numpy()
        logits = np.asarray(capture.read_output("logits"))[held_out]
        true = capture.samples["label"][held_out].map(capture.attrs["labels"].index)
        assert result.scores.war == pytest.approx((logits.argmax(1) == true).mean())


def test_the_logits_are_those_of_the_stored_weights(run):
    *_, store = run
    for name in NAMES:
        capture = store.capture(name)
        pooled = np.asarray(capture.read_pooled("resid_post.mean_all_normed", 1), np.float64)
        assert pooled.shape[0] == 16
        weights = {key: np.asarray(value) for key, value in capture.parameters.items()}
        a = capture.read_rows("lora_a.v_proj", 1)
        b = capture.read_rows("lora_b.v_proj", 1)
        # one product in float32
        expected = a @ weights["adapter.1.v_proj.lora_b"].T
        np.testing.assert_allclose(b, expected, rtol=0, atol=1e-5)


def test_parameters_of_the_steps(run):
    *_, store = run
    final, second = store.capture("lora"), store.capture("lora.step2")
    curves = {"training.loss", "training.learning_rate", "training.gradient_norm"}
    assert curves <= set(final.parameters)
    assert final.parameters["training.loss"].shape == (6,)
    np.testing.assert_allclose(
        final.parameters["training.learning_rate"], 1e-2 * (1 - np.arange(6) / 6), rtol=1e-12
    )
    weights = {n for n in final.parameters if n.startswith(("head.", "adapter.", "norm."))}
    gradients = {f"grad.{n}" for n in weights if not n.startswith("norm.")}
    scores = {"metrics.confusion", "metrics.uar", "metrics.war"}
    assert set(second.parameters) == weights | gradients | scores
    assert set(final.parameters) == weights | curves | scores
    squares = [np.square(second.parameters[n], dtype=np.float64).sum() for n in gradients]
    assert np.sqrt(sum(squares)) == pytest.approx(
        final.parameters["training.gradient_norm"][2], rel=1e-4
    )
    said = second.parameter_attrs["gradient"]
    assert said["clipped"] is False
    assert said["clipped_at"] == 1.0
    assert len(said["batch"]) == 5
    exposed = final.samples.loc[final.samples["exposed"].to_numpy(bool), "id"]
    assert set(said["batch"]) <= set(exposed)


def test_the_final_capture_is_the_same_without_the_others(run, tmp_path):
    _, _, store = run
    config = config_of(tmp_path, "captures.lora.at_steps=[final]")
    run_capture(config, store_path=tmp_path / "alone.zarr")
    alone, beside = open_store(tmp_path / "alone.zarr").capture("lora"), store.capture("lora")
    for site in ("resid_post", "lora_b.v_proj", "grad.lora_a.v_proj"):
        np.testing.assert_array_equal(alone.read_rows(site, 1), beside.read_rows(site, 1))
    assert alone.config == beside.config

    # and the others can be added to it: it is trained again, to the same weights
    grown = run_capture(config_of(tmp_path), store_path=tmp_path / "alone.zarr")
    assert [(c.name, c.trained, c.captured) for c in grown.conditions] == [
        (name, True, 0 if name == "lora" else 16) for name in NAMES
    ]
    assert open_store(tmp_path / "alone.zarr").content_digest() == store.content_digest()


def test_running_again_does_nothing(run):
    config, summary, store = run
    digest = store.content_digest()
    again = run_capture(config, store_path=summary.store_path)
    assert [(c.trained, c.captured) for c in again.conditions] == [(False, 0)] * 4
    assert open_store(summary.store_path).content_digest() == digest


class Interrupt(BaseException):
    """Stands for anything that ends a run."""


class Deadly(SilentReporter):
    """Ends a run at some progress, or before the n-th set of parameters is written.

    As a program it does so by SIGKILL: ``python test_run_steps.py CONFIG STORE TEXT NUMBER``.
    """

    def __init__(self, text: str, number: int, die):
        self.text, self.number, self.die = text, number, die
        self.writes = 0

    def progress(self, done, total, text):
        if text == self.text and done >= self.number:
            self.die()

    def counted(self, write):
        def count_and_write(*args, **options):
            self.writes += 1
            if self.text == "write" and self.writes == self.number:
                self.die()
            write(*args, **options)

        return count_and_write


def raise_interrupt():
    raise Interrupt


def kill_self():
    os.kill(os.getpid(), signal.SIGKILL)


def run_and_die(config_path, store_path, reporter, patch):
    patch(Writer, "write_parameters", reporter.counted(Writer.write_parameters))
    run_capture(load_config(config_path), store_path=store_path, reporter=reporter)


MOMENTS = {
    "in training": ("training", 4),
    "between the weights of two steps": ("write", 2),
    "before the final weights": ("write", 4),
    "capturing a step": ("capturing lora.step2", 8),
    "capturing the final one": ("capturing lora", 12),
}
LOST = list(MOMENTS)[:3]
"""Where the weights are not yet all durable, so that a resumed run trains again."""


def check_resumed(run, path, moment):
    config, _, undisturbed = run
    assert verify_store(path).damages == []
    resumed = run_capture(config, store_path=path)
    assert [c.trained for c in resumed.conditions] == [moment in LOST] * 4
    assert open_store(path).content_digest() == undisturbed.content_digest()
    assert verify_store(path).damages == []


@pytest.mark.parametrize(
    "moment", ["in training", "before the final weights", "capturing the final one"]
)
def test_an_interrupted_run_ends_in_the_same_digest(run, tmp_path, monkeypatch, moment):
    config_of(tmp_path)
    path = tmp_path / "cut.zarr"
    reporter = Deadly(*MOMENTS[moment], raise_interrupt)
    with monkeypatch.context() as patched, pytest.raises(Interrupt):
        run_and_die(tmp_path / "config.yaml", path, reporter, patched.setattr)
    check_resumed(run, path, moment)


@pytest.mark.parametrize("moment", ["between the weights of two steps", "capturing a step"])
def test_a_killed_run_ends_in_the_same_digest(run, tmp_path, moment):
    config_of(tmp_path)
    path = tmp_path / "kill.zarr"
    words = [tmp_path / "config.yaml", path, *MOMENTS[moment]]
    env = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    child = subprocess.run([sys.executable, __file__, *map(str, words)], env=env, check=False)
    assert child.returncode == -signal.SIGKILL
    check_resumed(run, path, moment)


def test_a_training_that_went_otherwise_is_refused(run, tmp_path, monkeypatch):
    """Where training again gives other weights, no step is put beside those of the first."""
    config = config_of(tmp_path, "captures.lora.at_steps=[final]")
    path = tmp_path / "other.zarr"
    run_capture(config, store_path=path)
    train = module.train

    def drifting(loaded, *args, **options):
        trajectory = train(loaded, *args, **options)
        with torch.no_grad():
            loaded.model.classifier.bias[0] += 1e-6
        return trajectory

    monkeypatch.setattr(module, "train", drifting)
    message = r"trained again, because the store lacks lora.step0.*head.classifier.bias differs"
    with pytest.raises(CaptureError, match=message):
        run_capture(config_of(tmp_path), store_path=path)
    store = open_store(path)
    assert not any(len(store.capture(name)) for name in NAMES[:-1])
    assert not any(len(store.capture(name).parameters) for name in NAMES[:-1])
    assert verify_store(path).damages == []


@pytest.mark.parametrize("command", [plan_capture, run_capture])
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("captures.lora.at_steps=[0, 7]", r"captures.lora.at_steps: 7 lies beyond .*6 steps \(2"),
        ("captures.lora.at_steps=[every:9]", r"every:9 lies beyond the training"),
        (
            "captures.lora.step_samples={per_class: 3, part: test}",
            r"captures.lora.step_samples.per_class asks for 3 of each label",
        ),
        (
            "captures={lora: {train: {}, at_steps: [0]}, LORA.step0: {}}",
            r"captures.LORA.step0: 'lora' captures its step 0 under that name",
        ),
    ],
)
def test_bad_steps_are_told_before_anything_is_written(tmp_path, command, override, message):
    config = config_of(tmp_path, override, "record={sites: [embed]}")
    options = {"store_path": tmp_path / "bad.zarr"} if command is run_capture else {}
    with pytest.raises(ConfigError, match=message):
        command(config, **options)
    assert not (tmp_path / "bad.zarr").exists()


def test_a_subset_for_the_steps_and_a_head_alone(tmp_path):
    config = config_of(
        tmp_path,
        "captures={frozen: {train: {epochs: 2}, at_steps: [0, epochs],"
        " step_samples: {per_class: 1, part: test}}, plain: {adapter: null}}",
        "record={sites: [resid_post], layers: [3]}",
    )
    path = tmp_path / "subset.zarr"
    summary = run_capture(config, store_path=path)
    names = ["frozen.step0", "frozen.step2", "frozen", "plain"]
    assert [(c.name, c.samples) for c in summary.conditions] == list(
        zip(names, [4, 4, 16, 16], strict=True)
    )
    store = open_store(path)
    final = store.capture("frozen").samples["id"].to_list()
    for name in names[:2]:
        capture = store.capture(name)
        ids = capture.samples["id"].to_list()
        assert ids == [i for i in final if i in ids]
        at = [final.index(i) for i in ids]
        # the encoder is frozen: the same samples have the same rows at every step
        starts = np.cumsum([0, *store.capture("frozen").row_counts("encoder")])
        rows = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in at])
        np.testing.assert_allclose(
            capture.read_rows("resid_post", 3),
            store.capture("frozen").read_rows("resid_post", 3)[rows],
            # other batches, float32 products in another order, stored as bfloat16
            rtol=2e-2,
            atol=1e-3,
        )
        assert {f"grad.head.{p}" for p in ("classifier.bias", "projector.weight")} <= set(
            capture.parameters
        )
    heads = [store.capture(n).parameters["head.classifier.weight"] for n in names]
    assert not np.array_equal(heads[0], heads[1])
    assert not np.array_equal(heads[1], heads[2])
    np.testing.assert_array_equal(heads[2], heads[3])  # the head of the last step is the one given
    other = config_of(
        tmp_path,
        "captures={frozen: {train: {epochs: 2}, at_steps: [0, epochs],"
        " step_samples: {per_class: 1}}}",
        "record={sites: [resid_post], layers: [3]}",
    )
    with pytest.raises(ConfigMismatchError, match=r"step_samples.part is 'test' there"):
        run_capture(other, store_path=path)


def test_the_default_analyses_take_steps_as_captures(run):
    *_, store = run
    tables = analyze(store, workers=1)
    assert {"cka", "svd", "probe", "lens", "outputs"} <= set(tables)
    for name in ("svd", "outputs"):
        assert set(tables[name]["capture"].values) == set(NAMES)
    cka = tables["cka"].to_dataframe()
    same = cka[
        (cka["site_a"] == "resid_post")
        & (cka["site_b"] == "resid_post")
        & (cka["granularity"] == "pooled")
        & (cka["estimator"] == "biased")
    ]
    assert len(same) == len(NAMES) * (len(NAMES) + 1) // 2
    assert same["value"].between(0, 1 + 1e-9).all()


if __name__ == "__main__":
    config_path, store_path, text, number = sys.argv[1:]
    run_and_die(config_path, store_path, Deadly(text, int(number), kill_self), setattr)
