"""Interventions of a whole run: what the store holds of them, against captures and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lorascope.capture import SilentReporter, load_config, plan_capture, run_capture
from lorascope.capture.batching import per_sample_loss
from lorascope.capture.lora import restore_weights
from lorascope.capture.models import load_model
from lorascope.capture.pooling import prefix_mask
from lorascope.capture.streams import layer_modules
from lorascope.store import ConfigMismatchError, open_store, verify_store

CONFIG = """
seed: 0
model: {base: "demo:whisper", window_seconds: 2}
data: {corpus: demo, labels: [anger, happiness, neutral, sadness], per_class: 4}
split: {by: speaker, test: ["07", "08"]}
captures:
  frozen: {adapter: null, train: {epochs: 3, learning_rate: 1.0e-2}}
  random: {adapter: {r: 4, alpha: 8, target_modules: [v_proj], init: normal}}
run: {batch_size: 4, segment_samples: 8}
record: {sites: [embed, resid_post, attn_out], frames: all, pool: [], dtype: float32}
interventions:
  - {erase: {layer: 1, how: mean}, captures: [frozen]}
  - {erase: {layer: 2, how: resample}, captures: [frozen]}
  - {erase: {layer: together}, captures: [frozen]}
  - {lora_off: }
  - {name: same, scale_lora: {by: 1}}
  - {name: itself, patch: {site: attn_out, layer: 1, from: random}, captures: [random]}
  - {name: other, patch: {site: resid_post, layer: 3, from: frozen}}
"""
FRAMES = 100
NAMES = [
    "frozen.erase1-mean",
    "frozen.erase2-resample",
    "frozen.erase0to3-zero",
    "random.lora_off",
    "random.same",
    "random.itself",
    "random.other",
]


def config_of(folder, *overrides):
    path = folder / "config.yaml"
    if not path.exists():
        path.write_text(CONFIG)
    return load_config(path, overrides)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("interventions")
    config = config_of(folder)
    summary = run_capture(config, store_path=folder / "run.zarr")
    return config, summary, open_store(folder / "run.zarr")


def logits(store, name):
    return np.asarray(store.capture(name).read_output("logits"))


def test_each_is_a_capture_of_outputs_beside_its_own(run):
    config, summary, store = run
    assert [result.name for result in summary.interventions] == NAMES
    assert [plan.name for plan in plan_capture(config).interventions] == NAMES
    assert set(store.captures) == {"frozen", "random", *NAMES}
    assert verify_store(store.path).damages == []
    for result in summary.interventions:
        changed, base = store.capture(result.name), store.capture(result.of)
        assert (changed.sites, changed.pooled) == ({}, {})
        assert changed.attrs["of"] == result.of == changed.config["of"]
        assert changed.attrs["intervention"] == result.intervention.describe()
        assert changed.attrs["labels"] == base.attrs["labels"]
        assert changed.attrs["trained"] == base.attrs["trained"]
        assert "record" not in changed.attrs
        columns = ["id", "label", "speaker", "exposed", "raw_label", "valid_frames"]
        assert changed.samples[columns].equals(base.samples[columns])
        assert result.captured == result.scores.n + 12 == 16
        true = [base.attrs["labels"].index(label) for label in changed.samples["label"]]
        expected = per_sample_loss(torch.from_numpy(logits(store, result.name)), torch.tensor(true))
        np.testing.assert_array_equal(changed.read_output("loss"), expected)


def test_identities(run):
    *_, store = run
    frozen, random = logits(store, "frozen"), logits(store, "random")
    assert not np.array_equal(frozen, random)
    # the same head, so without its adapter the one is the other, bit for bit
    np.testing.assert_array_equal(logits(store, "random.lora_off"), frozen)
    np.testing.assert_array_equal(logits(store, "random.same"), random)
    np.testing.assert_array_equal(logits(store, "random.itself"), random)
    # the last layer of the other capture goes through the same norm and head
    np.testing.assert_array_equal(logits(store, "random.other"), frozen)


def test_all_layers_erased_is_the_head_on_the_embedding(run):
    *_, store = run
    capture = store.capture("frozen")
    p = {key: np.asarray(value, np.float64) for key, value in capture.parameters.items()}
    x = capture.read_rows("embed", None).reshape(16, FRAMES, 64).astype(np.float64)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    pooled = (x * p["norm.weight"] + p["norm.bias"]).mean(1)
    hidden = pooled @ p["head.projector.weight"].T + p["head.projector.bias"]
    expected = hidden @ p["head.classifier.weight"].T + p["head.classifier.bias"]
    # float32 in the model
    found = logits(store, "frozen.erase0to3-zero")
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_the_mean_is_that_of_valid_frames_of_the_training_part(run):
    *_, store = run
    capture, changed = store.capture("frozen"), store.capture("frozen.erase1-mean")
    table = capture.samples
    rows = [capture.read_rows("resid_post", layer).reshape(16, FRAMES, 64) for layer in (0, 1)]
    update = (rows[1] - rows[0]).astype(np.float64)
    mask = prefix_mask(table["valid_frames"].to_list(), FRAMES)
    mask[~table["exposed"].to_numpy(bool)] = False
    assert mask.sum() < 12 * FRAMES  # some utterances are shorter than the window
    stored = np.asarray(changed.parameters["intervention.mean"])
    np.testing.assert_allclose(stored, [update[mask].mean(0)], rtol=0, atol=1e-6)
    assert changed.parameter_attrs == {
        "layers": [1],
        "reference_samples": 12,
        "reference_frames": int(mask.sum()),
    }
    expected = continue_from(store, rows[0] + stored[0], first=2)
    np.testing.assert_array_equal(logits(store, changed.name), expected)


@torch.no_grad()
def continue_from(store, states, *, first):
    """The logits of the frozen model from layer `first` on, from states [sample, frame, d]."""
    config = load_config_of(store)
    loaded = load_model(config.model, 4, seed=0, device="cpu")
    parameters = dict(store.capture("frozen").parameters)
    restore_weights(loaded.model, loaded.family, parameters)
    parts = []
    for batch in torch.from_numpy(states).split(4):
        x = batch
        for layer in layer_modules(loaded.model, loaded.family)[first:]:
            output = layer(x, attention_mask=None)
            x = output[0] if isinstance(output, tuple) else output
        encoded = loaded.model.encoder.layer_norm(x)
        parts.append(loaded.model.classifier(loaded.model.projector(encoded).mean(dim=1)))
    return torch.cat(parts)


def load_config_of(store):
    return load_config(store.path.parent / "config.yaml")


def test_a_resampled_update_is_that_of_another_sample(run):
    *_, store = run
    capture = store.capture("frozen")
    rows = [capture.read_rows("resid_post", layer).reshape(16, FRAMES, 64) for layer in (1, 2)]
    found = logits(store, "frozen.erase2-resample")
    givers = []
    for i in range(16):
        # every sample's update on top of this sample's input, through what is left of the model
        candidates = continue_from(store, rows[0][i] + (rows[1] - rows[0]), first=3)
        distances = np.abs(candidates.numpy() - found[i]).max(1)
        givers.append(int(distances.argmin()))
        # other batches sum in another order
        assert distances.min() < 1e-5 < np.delete(distances, givers[-1]).min()
    assert sorted(givers) == list(range(16))
    assert all(i != giver for i, giver in enumerate(givers))


def test_batches_change_nothing_but_rounding(run, tmp_path):
    *_, store = run
    other = tmp_path / "other.zarr"
    only = "interventions=[{erase: {layer: 2, how: resample}}, {erase: {layer: 1, how: mean}}]"
    captures = "captures={frozen: {adapter: null, train: {epochs: 3, learning_rate: 1.0e-2}}}"
    config = config_of(tmp_path, "run.batch_size=7", only, captures)
    run_capture(config, store_path=other)
    weights = [dict(s.capture("frozen").parameters) for s in (store, open_store(other))]
    for name in ("head.projector.weight", "head.classifier.bias"):
        np.testing.assert_array_equal(weights[0][name], weights[1][name])
    for name in ("frozen", "frozen.erase2-resample", "frozen.erase1-mean"):
        # float32 sums of another order; a resampled sample from elsewhere would differ by 1e-2
        np.testing.assert_allclose(
            logits(open_store(other), name), logits(store, name), rtol=0, atol=1e-5
        )


def test_running_again_does_nothing(run):
    config, _, store = run
    digest = store.content_digest()
    again = run_capture(config, store_path=store.path)
    assert [result.captured for result in again.interventions] == [0] * len(NAMES)
    assert open_store(store.path).content_digest() == digest


class Interrupt(Exception):
    """Stands for anything that ends a run."""


class Interrupter(SilentReporter):
    """Ends the run after a number of batches, or at a stage."""

    def __init__(self, text, after):
        self.text, self.left = text, after

    def stage(self, text):
        if text == self.text:
            raise Interrupt

    def progress(self, done, total, text):
        if text == self.text:
            self.left -= 1
            if self.left == 0:
                raise Interrupt


@pytest.mark.parametrize(
    ("text", "after", "left"),
    [
        ("intervening frozen.erase1-mean", 3, 8),
        ("frozen.erase2-resample: intervening", 0, 0),
        ("intervening random.other", 4, 0),
    ],
)
def test_an_interrupted_run_goes_on(run, tmp_path, text, after, left):
    config, _, store = run
    path = tmp_path / "cut.zarr"
    with pytest.raises(Interrupt):
        run_capture(config, store_path=path, reporter=Interrupter(text, after))
    assert verify_store(path).damages == []
    cut = open_store(path).captures
    resumed = run_capture(config, store_path=path)
    captured = {result.name: result.captured for result in resumed.interventions}
    name = text.removeprefix("intervening ").removesuffix(": intervening")
    before = NAMES[: NAMES.index(name)]
    assert all(captured[earlier] == 0 for earlier in before)
    assert set(before) <= set(cut)
    if text.startswith("intervening"):
        assert captured[name] == left
    assert open_store(path).content_digest() == store.content_digest()
    assert verify_store(path).damages == []


def test_interventions_are_added_to_an_existing_store(run, tmp_path):
    config, _, store = run
    path = tmp_path / "grow.zarr"
    few = config.model_copy(update={"interventions": config.interventions[2:5]})
    run_capture(few, store_path=path)
    grown = run_capture(config, store_path=path)
    assert [r.captured for r in grown.conditions] == [0, 0]
    assert [r.captured for r in grown.interventions] == [16, 16, 0, 0, 0, 16, 16]
    assert open_store(path).content_digest() == store.content_digest()


def test_another_change_of_the_same_name_is_refused(run, tmp_path):
    _, _, store = run
    other = config_of(tmp_path, "interventions=[{name: same, scale_lora: {by: 2}}]")
    with pytest.raises(ConfigMismatchError, match=r"intervention\.by"):
        run_capture(other, store_path=store.path)


def test_a_mean_over_everything_where_nothing_is_trained(tmp_path):
    config = config_of(
        tmp_path,
        "captures={plain: {adapter: null}}",
        "split=null",
        "interventions=[{erase: {layer: 0, how: mean}}]",
    )
    run_capture(config, store_path=tmp_path / "plain.zarr")
    changed = open_store(tmp_path / "plain.zarr").capture("plain.erase0-mean")
    assert changed.parameter_attrs["reference_samples"] == 16
    assert not changed.samples["exposed"].to_numpy(bool).any()


def test_a_patch_of_valid_frames_leaves_the_padding(tmp_path):
    """Patched from itself the rows are the model's own, so nothing moves; dtype bfloat16 rounds."""
    overrides = (
        "captures={plain: {adapter: null}}",
        "split=null",
        "interventions=[{name: p, patch: {site: mlp_out, layer: 2, from: plain},"
        " captures: [plain]}]",
    )
    for dtype in ("float32", "bfloat16"):
        sites = f"record={{sites: [mlp_out], frames: valid, pool: [], dtype: {dtype}}}"
        run_capture(config_of(tmp_path, *overrides, sites), store_path=tmp_path / dtype)
        store = open_store(tmp_path / dtype)
        assert store.capture("plain").row_counts("encoder").sum() < 16 * FRAMES
        gap = np.abs(logits(store, "plain.p") - logits(store, "plain")).max()
        assert gap == 0 if dtype == "float32" else 0 < gap < 0.1
