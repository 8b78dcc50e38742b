"""A whole run on the embedded model and corpus: what the store holds, and how a run resumes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from lorascope.capture import (
    ConfigError,
    DataError,
    ModelError,
    SilentReporter,
    load_config,
    plan_capture,
    run_capture,
)
from lorascope.capture.conditions import order_conditions
from lorascope.store import ConfigMismatchError, open_store, verify_store

CONFIG = """
seed: 0
model: {base: "demo:whisper", window_seconds: 1}
data: {corpus: demo, labels: [anger, happiness, neutral, sadness], per_class: 8}
split: {by: speaker, test: ["07", "08"]}
captures:
  random: {adapter: {type: lora, r: 4, alpha: 8, target_modules: [v_proj], init: normal}}
  untrained: {adapter: {type: lora, r: 4, alpha: 8, target_modules: [v_proj]}}
  lora:
    adapter: {type: lora, r: 4, alpha: 8, target_modules: [v_proj]}
    train: {epochs: 2, learning_rate: 1.0e-2}
  frozen: {adapter: null, train: {epochs: 3, learning_rate: 1.0e-2}}
run: {batch_size: 4, segment_samples: 16}
record:
  sites: [embed, resid_post, attn_out, mlp_out, lora_a, lora_b, encoder_out]
  gradients: [resid_post, lora_a, lora_b]
  dtype: float32
"""


SMALL = (
    "data.per_class=4",
    "run.segment_samples=4",
    "captures={lora: {adapter: {type: lora, r: 4, alpha: 8, target_modules: [v_proj]},"
    " train: {epochs: 2}}, frozen: {adapter: null, train: {epochs: 3}}}",
    "record={sites: [embed, lora_a, lora_b], gradients: [resid_post, lora_a], layers: [1]}",
)
"""Two conditions, 16 samples, 4 segments, few arrays: for the tests that run it again and again."""


def config_of(folder: Path, *overrides: str):
    path = folder / "config.yaml"
    if not path.exists():
        path.write_text(CONFIG)
    return load_config(path, overrides)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One undisturbed run."""
    folder = tmp_path_factory.mktemp("run")
    config = config_of(folder)
    summary = run_capture(config, store_path=folder / "run.zarr")
    return config, summary, open_store(folder / "run.zarr")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """One undisturbed small run: its configuration and its digest."""
    folder = tmp_path_factory.mktemp("small")
    config = config_of(folder, *SMALL)
    run_capture(config, store_path=folder / "run.zarr")
    return config, open_store(folder / "run.zarr").content_digest()


def test_conditions_run_with_the_giver_of_the_head_first(run):
    config, summary, store = run
    assert [c.name for c in order_conditions(config)] == ["frozen", "random", "untrained", "lora"]
    assert [c.name for c in summary.conditions] == ["frozen", "random", "untrained", "lora"]
    assert set(store.captures) == {"frozen", "random", "untrained", "lora"}
    assert summary.samples == 32


def test_the_store_is_whole(run):
    _, summary, store = run
    assert verify_store(summary.store_path).damages == []
    tables = [store.capture(name).samples for name in store.captures]
    for table in tables:
        assert list(table["id"]) == list(tables[0]["id"])
        assert list(table["label"]) == list(tables[0]["label"])
        assert {"speaker", "raw_label", "valid_frames"} <= set(table.columns)


def test_which_sites_each_condition_has(run):
    *_, store = run
    plain = {"embed", "resid_post", "attn_out", "mlp_out", "encoder_out", "grad.resid_post"}
    adapted = {"lora_a.v_proj", "lora_b.v_proj", "grad.lora_a.v_proj", "grad.lora_b.v_proj"}
    assert set(store.capture("frozen").sites) == plain
    for name in ("random", "untrained", "lora"):
        capture = store.capture(name)
        assert set(capture.sites) == plain | adapted
        assert {s.stream for s in capture.sites.values()} == {"encoder"}
    pooled = set(store.capture("frozen").pooled)
    assert pooled == {f"{s}.mean_valid" for s in plain} | {
        "embed.mean_all_normed",
        "resid_post.mean_all_normed",
    }


def test_the_head_rule(run):
    *_, store = run
    head = {name: dict(store.capture(name).parameters) for name in store.captures}
    for part in ("projector.weight", "projector.bias", "classifier.weight", "classifier.bias"):
        for name in ("random", "untrained"):
            np.testing.assert_array_equal(
                head[name][f"head.{part}"], head["frozen"][f"head.{part}"]
            )
        assert not np.array_equal(head["lora"][f"head.{part}"], head["frozen"][f"head.{part}"])
    assert store.capture("random").attrs["head"] == {"from": "frozen"}
    assert store.capture("lora").attrs["head"] == {"from": "lora"}
    trained = {name: store.capture(name).attrs["trained"] for name in store.captures}
    assert trained == {
        "frozen": ["head"],
        "random": ["head"],
        "untrained": ["head"],
        "lora": ["head", "adapter"],
    }


def test_the_adapter_starts_where_untrained_is(run):
    *_, store = run
    untrained, lora = (store.capture(n).parameters for n in ("untrained", "lora"))
    assert not np.asarray(untrained["adapter.2.v_proj.lora_b"]).any()
    assert np.asarray(lora["adapter.2.v_proj.lora_b"]).any()
    moved = np.asarray(lora["adapter.2.v_proj.lora_a"]) - untrained["adapter.2.v_proj.lora_a"]
    # 6 steps of Adam, about 1e-2 each at most, from the same seeded A
    assert 0 < np.abs(moved).max() <= 0.07


def test_exposed_is_the_training_part(run):
    *_, store = run
    for name in store.captures:
        table = store.capture(name).samples
        held_out = table["speaker"].isin(["07", "08"])
        np.testing.assert_array_equal(table["exposed"].to_numpy(bool), ~held_out.to_numpy())
        assert held_out.sum() == 8


def test_untrained_is_frozen_plus_zeros(run):
    *_, store = run
    frozen, untrained = store.capture("frozen"), store.capture("untrained")
    for layer in range(4):
        np.testing.assert_array_equal(
            frozen.read_rows("resid_post", layer), untrained.read_rows("resid_post", layer)
        )
        assert not untrained.read_rows("lora_b.v_proj", layer).any()
        assert not untrained.read_rows("grad.lora_a.v_proj", layer).any()
        assert untrained.read_rows("grad.lora_b.v_proj", layer).any()
    np.testing.assert_array_equal(frozen.read_output("logits"), untrained.read_output("logits"))


def test_outputs_and_metrics(run):
    _, summary, store = run
    for result in summary.conditions:
        capture = store.capture(result.name)
        table = capture.samples
        logits = np.asarray(capture.read_output("logits"), np.float64)
        true = np.array([capture.attrs["labels"].index(label) for label in table["label"]])
        shifted = logits - logits.max(1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
        # float32 against float64, losses of size 1
        expected = -log_p[np.arange(len(true)), true]
        np.testing.assert_allclose(capture.read_output("loss"), expected, rtol=0, atol=1e-5)
        test = ~table["exposed"].to_numpy(bool)
        right = logits[test].argmax(1) == true[test]
        assert result.scores.n == test.sum() == 8
        assert result.scores.war == pytest.approx(right.mean())
        stored = capture.parameters
        np.testing.assert_array_equal(stored["metrics.confusion"], result.scores.confusion)
        assert float(np.asarray(stored["metrics.uar"])) == result.scores.uar


def test_the_lens_ends_at_the_logits(run):
    *_, store = run
    for name in store.captures:
        capture = store.capture(name)
        pooled = np.asarray(capture.read_pooled("resid_post.mean_all_normed", 3), np.float64)
        p = {key: np.asarray(value, np.float64) for key, value in capture.parameters.items()}
        hidden = pooled @ p["head.projector.weight"].T + p["head.projector.bias"]
        lens = hidden @ p["head.classifier.weight"].T + p["head.classifier.bias"]
        np.testing.assert_allclose(lens, capture.read_output("logits"), rtol=0, atol=1e-5)


def test_attributes_say_what_analyses_need(run):
    *_, store = run
    attrs = store.capture("lora").attrs
    assert attrs["model"]["base"] == "demo:whisper"
    assert attrs["model"]["frames"] == 50
    assert attrs["adapter"]["scaling"] == 2.0
    assert attrs["split"] == {"by": "speaker", "test": ["07", "08"]}
    assert attrs["final_norm"] == {"kind": "layer_norm", "eps": 1e-5}
    assert store.capture("frozen").attrs["adapter"] is None


def test_the_plan_says_what_comes(run, tmp_path):
    config, summary, store = run
    plan = plan_capture(config)
    assert plan.samples == 32
    assert plan.train_samples == 24
    for condition in plan.conditions:
        capture = store.capture(condition.name)
        rows = {s.name: s for s in condition.sites if s.kind == "row"}
        assert set(rows) == set(capture.sites)
        assert {s.name for s in condition.sites if s.kind == "sample"} == set(capture.pooled)
        assert rows["embed"].rows == capture.row_counts("encoder").sum() == plan.rows
        assert condition.segments == capture.samples["segment"].nunique() == 2
    files = sum(f.stat().st_size for f in summary.store_path.rglob("c.*") if f.is_file())
    assert plan.bytes <= files <= 1.3 * plan.bytes
    assert not list(tmp_path.iterdir())


def test_running_again_does_nothing(run):
    config, summary, store = run
    digest = store.content_digest()
    again = run_capture(config, store_path=summary.store_path)
    assert [(c.trained, c.captured) for c in again.conditions] == [(False, 0)] * 4
    assert [c.scores.uar for c in again.conditions] == [c.scores.uar for c in summary.conditions]
    assert open_store(summary.store_path).content_digest() == digest


class Interrupt(Exception):
    """Stands for anything that ends a run."""


class Interrupter(SilentReporter):
    """Ends the run after a number of captured batches, or at a training step."""

    def __init__(self, text, after):
        self.text, self.left = text, after

    def progress(self, done, total, text):
        if text == self.text:
            self.left -= 1
            if self.left == 0:
                raise Interrupt


@pytest.mark.parametrize(
    ("text", "after", "left"),
    [
        # batch and segment are both 4 samples; the batch that is interrupted is complete
        ("capturing frozen", 1, 28),
        ("capturing frozen", 3, 20),
        ("training", 7, 16),
        ("capturing lora", 4, 0),
    ],
)
def test_an_interrupted_run_goes_on(small, tmp_path, text, after, left):
    config, digest = small
    path = tmp_path / "cut.zarr"
    with pytest.raises(Interrupt):
        run_capture(config, store_path=path, reporter=Interrupter(text, after))
    assert verify_store(path).damages == []
    resumed = run_capture(config, store_path=path)
    assert open_store(path).content_digest() == digest
    assert verify_store(path).damages == []
    assert sum(c.captured for c in resumed.conditions) == left
    trained = {c.name: c.trained for c in resumed.conditions}
    assert trained == {"frozen": False, "lora": text != "capturing lora"}


def test_kill_in_the_middle_of_a_capture(small, tmp_path):
    config, digest = small
    config_of(tmp_path)
    code = f"""
        import time
        from lorascope.capture import SilentReporter, load_config, run_capture

        class Slow(SilentReporter):
            def progress(self, done, total, text):
                if text == "capturing lora":
                    print(done, flush=True)
                    time.sleep(0.3)

        config = load_config("config.yaml", {SMALL!r})
        run_capture(config, store_path="kill.zarr", reporter=Slow())
    """
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    assert child.stdout is not None
    for line in child.stdout:
        if int(line) >= 12:
            break
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    child.stdout.close()
    path = tmp_path / "kill.zarr"
    assert verify_store(path).damages == []
    committed = len(open_store(path).capture("lora").samples)
    assert committed < 16
    resumed = run_capture(config, store_path=path)
    assert {c.name: (c.trained, c.captured) for c in resumed.conditions} == {
        "frozen": (False, 0),
        "lora": (False, 16 - committed),
    }
    assert open_store(path).content_digest() == digest


def test_a_compact_run_records_the_same(small, tmp_path):
    config, digest = small
    compact = config.model_copy(
        update={"run": config.run.model_copy(update={"profile": "compact"})}
    )
    run_capture(compact, store_path=tmp_path / "compact.zarr")
    store = open_store(tmp_path / "compact.zarr")
    assert {store.capture(name).profile for name in store.captures} == {"compact"}
    assert store.content_digest() == digest
    assert verify_store(store.path).ok
    with pytest.raises(ConfigMismatchError, match="profile is 'compact' there and 'fast' now"):
        run_capture(config, store_path=store.path)


def test_a_condition_is_added_to_an_existing_store(small, tmp_path):
    both, digest = small
    path = tmp_path / "grow.zarr"
    few = both.model_copy(update={"captures": {"frozen": both.captures["frozen"]}})
    run_capture(few, store_path=path)
    grown = run_capture(both, store_path=path)
    assert [c.captured for c in grown.conditions] == [0, 16]
    assert open_store(path).content_digest() == digest


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("captures.frozen.train.epochs=4", "train.epochs"),
        ("data.per_class=4", "data.samples"),
        ("model.window_seconds=2", "model"),
        ("run.batch_size=8", "batch_size"),
        ('split.test=["01"]', "split.test"),
        ("record.frames=all", "record.frames"),
    ],
)
def test_another_run_is_refused(run, tmp_path, override, field):
    _, summary, store = run
    before = store.content_digest()
    with pytest.raises(ConfigMismatchError, match=field):
        run_capture(config_of(tmp_path, override), store_path=summary.store_path)
    assert open_store(summary.store_path).content_digest() == before


def test_another_buffer_is_the_same_run(run, tmp_path):
    _, summary, _ = run
    same = config_of(tmp_path, "run.buffer=1MiB")
    again = run_capture(same, store_path=summary.store_path)
    assert sum(c.captured for c in again.conditions) == 0


def test_nothing_trained_means_nothing_exposed(tmp_path):
    path = tmp_path / "plain.zarr"
    config = config_of(
        tmp_path, "captures={plain: {adapter: null}}", "record={sites: [resid_post], frames: none}"
    )
    summary = run_capture(config, store_path=path)
    capture = open_store(path).capture("plain")
    assert capture.attrs["trained"] == []
    assert capture.attrs["head"] == {"from": None}
    assert not capture.samples["exposed"].to_numpy(bool).any()
    assert capture.sites == {}
    assert summary.conditions[0].scores.n == 32


def test_fold_leaves_one_speaker_out(tmp_path):
    config = config_of(
        tmp_path,
        "captures={frozen: {adapter: null, train: {epochs: 1}}}",
        "split={by: speaker, fold: 2}",
        "record={sites: [resid_post], layers: [3], frames: none}",
    )
    run_capture(config, store_path=tmp_path / "fold.zarr")
    table = open_store(tmp_path / "fold.zarr").capture("frozen").samples
    assert set(table["speaker"][~table["exposed"].to_numpy(bool)]) == {"02"}


def test_notes_say_what_is_cut(tmp_path):
    class Notes(SilentReporter):
        def __init__(self):
            self.notes = []

        def note(self, text):
            self.notes.append(text)

    notes = Notes()
    config = config_of(
        tmp_path,
        "captures={plain: {adapter: null}}",
        "record={sites: [resid_post], layers: [0], frames: none}",
    )
    run_capture(config, store_path=tmp_path / "cut.zarr", reporter=notes)
    assert sum("are cut to 1 s" in note for note in notes.notes) == 1


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["record.layers=[0, 9]"], ConfigError, r"captures.frozen: resid_post has no layer 9"),
        (
            ["captures.lora.adapter.target_modules=[v_prj]"],
            ModelError,
            r"'v_prj' matches no linear module.*did you mean 'v_proj'",
        ),
        (['split.test=["77"]'], DataError, "no speaker '77'"),
        (["data.labels=[anger, joy]"], DataError, "no label 'joy'"),
        (
            ['split.test=["01","02","03","04","05","06","07","08"]'],
            DataError,
            "training part is empty",
        ),
        (["model.window_seconds=1.013"], ModelError, "in steps of 0.02 s"),
        (["record.sites={embed: {frames: all}, resid_post: {}}"], ConfigError, "frames asked for"),
    ],
)
def test_bad_input_is_told_before_anything_is_written(tmp_path, overrides, error, message):
    config = config_of(tmp_path, *overrides)
    with pytest.raises(error, match=message):
        plan_capture(config)
    with pytest.raises(error, match=message):
        run_capture(config, store_path=tmp_path / "bad.zarr")
    assert not (tmp_path / "bad.zarr").exists()


def test_devices_and_paths_are_checked(tmp_path):
    config = config_of(tmp_path)
    with pytest.raises(ConfigError, match="no store: give"):
        run_capture(config)
    with pytest.raises(ConfigError, match="unknown device 'tpu'"):
        run_capture(config, store_path=tmp_path / "x.zarr", device="tpu")
    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match="sees no CUDA device"):
            run_capture(config, store_path=tmp_path / "x.zarr", device="cuda")
    assert not (tmp_path / "x.zarr").exists()


def test_factored_b_outputs_read_like_dense_ones(run, tmp_path):
    dense = run[2]
    config = config_of(tmp_path, "record.lora_b=factored", "record.gradients=[]")
    run_capture(config, store_path=tmp_path / "f.zarr")
    store = open_store(tmp_path / "f.zarr")
    capture = store.capture("lora")
    assert "lora_b.v_proj" in capture.sites
    assert not (tmp_path / "f.zarr/captures/lora/sites/lora_b.v_proj").exists()
    # pools are small, and stay what the model gave, bit for bit
    pool = "lora_b.v_proj.mean_valid"
    expected = dense.capture("lora").read_pooled(pool, 3)
    np.testing.assert_array_equal(capture.read_pooled(pool, 3), expected)
    for layer in range(4):
        own = dense.capture("lora").read_rows("lora_b.v_proj", layer)
        got = capture.read_rows("lora_b.v_proj", layer)
        # 4 float32 products in another order
        np.testing.assert_allclose(got, own, atol=1e-6 * np.abs(own).max())
    assert "lora_b.v_proj" not in store.capture("frozen").sites


def test_factored_b_outputs_need_the_rows_of_a(tmp_path):
    config = config_of(tmp_path, "record.lora_b=factored", "record.sites=[lora_b]")
    with pytest.raises(ConfigError, match=r"rows of lora_a\.v_proj and B.*Add lora_a"):
        plan_capture(config)
