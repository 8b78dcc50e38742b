"""`capture-run` on wav2vec 2.0, HuBERT and WavLM: values, frames, batches, refusals, whole runs."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    HubertConfig,
    HubertForSequenceClassification,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForSequenceClassification,
    WavLMConfig,
    WavLMForSequenceClassification,
)

from lorascope.capture import (
    ConfigError,
    ModelError,
    Recorder,
    SilentReporter,
    load_config,
    plan_capture,
    run_capture,
)
from lorascope.capture.config_models import AdapterConfig, ModelConfig
from lorascope.capture.errors import CaptureError
from lorascope.capture.lora import attach_adapter
from lorascope.capture.models import load_model
from lorascope.capture.pooling import prefix_mask
from lorascope.store import open_store, verify_store

pytestmark = pytest.mark.filterwarnings(
    # WavLM as transformers writes it; only where a batch is padded or masked
    "ignore:Support for mismatched key_padding_mask and attn_mask:UserWarning"
)

CONFIG = """
seed: 0
model: {base: "demo:wav2vec2"}
data: {corpus: demo, labels: [anger, happiness, neutral, sadness], per_class: 4}
split: {by: speaker, test: ["07", "08"]}
captures:
  lora:
    adapter: {type: lora, r: 4, alpha: 8, target_modules: [q_proj, v_proj]}
    train: {epochs: 1, learning_rate: 1.0e-3}
    at_steps: [0]
  frozen: {adapter: null, train: {epochs: 2, learning_rate: 1.0e-2}}
run: {batch_size: 4, segment_samples: 8}
record:
  sites: [embed, resid_post, lora_a, lora_b]
  gradients: [lora_a]
  dtype: float32
"""

SHORT = (
    "data.per_class=2",
    "captures={lora: {adapter: {type: lora, r: 4, alpha: 8, target_modules: [q_proj]},"
    " train: {epochs: 1}}}",
    "record={sites: [resid_post], dtype: float32}",
)
"""One condition, 8 samples, few arrays."""

TINY = {
    "vocab_size": 32,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": (16,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "classifier_proj_size": 16,
    "num_labels": 4,
    "initializer_range": 0.2,
}
KINDS: dict[str, tuple[Any, Any]] = {
    "wav2vec2": (Wav2Vec2Config, Wav2Vec2ForSequenceClassification),
    "hubert": (HubertConfig, HubertForSequenceClassification),
    "wavlm": (WavLMConfig, WavLMForSequenceClassification),
}
ADAPTER = AdapterConfig(r=2, alpha=4, target_modules=("q_proj",), init="normal")


def config_of(folder: Path, *overrides: str):
    path = folder / "config.yaml"
    path.write_text(CONFIG)
    return load_config(path, overrides)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return what makes a tiny model directory of a kind, with group or layer norm."""

    def make(kind: str, norm: str) -> Path:
        folder = tmp_path_factory.mktemp(f"{kind}-{norm}")
        config_class, model_class = KINDS[kind]
        config = config_class(
            **TINY, feat_extract_norm=norm, do_stable_layer_norm=norm == "layer", conv_bias=True
        )
        torch.manual_seed(0)
        model_class(config).save_pretrained(folder)
        Wav2Vec2FeatureExtractor(return_attention_mask=norm == "layer").save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One undisturbed run on the embedded model."""
    folder = tmp_path_factory.mktemp("wav2vec2")
    config = config_of(folder)
    summary = run_capture(config, store_path=folder / "run.zarr")
    return config, summary, folder / "run.zarr"


def load(base: str | Path):
    return load_model(ModelConfig(base=str(base)), 4, seed=0, device="cpu")


def waves_of(*lengths: int) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.standard_normal(n).astype(np.float32) for n in lengths]


@pytest.mark.parametrize("kind", list(KINDS))
def test_recorded_values_are_the_models_own(kind, saved, make_writer):
    loaded = load(saved(kind, "layer"))
    lengths = (16000, 9000)
    inputs = loaded.inputs(waves_of(*lengths))
    valid = [loaded.family.valid_frames(n, loaded.frames) for n in lengths]
    assert valid[0] == 49  # 1 s
    writer = make_writer()
    backbone: Any = loaded.model.get_submodule(kind)
    last: dict[str, torch.Tensor] = {}

    def keep(_module: nn.Module, _args: object, output: Any) -> None:
        last["x"] = (output[0] if isinstance(output, tuple) else output).detach().clone()

    backbone.encoder.layers[-1].register_forward_hook(keep)
    with torch.no_grad():
        states = loaded.model(**inputs, output_hidden_states=True).hidden_states
        with (
            Recorder(
                loaded.model, writer, sites=["embed", "resid_post"], dtype="float32"
            ) as recorder,
            recorder.batch(["0", "1"], mask=prefix_mask(valid, states[0].shape[1])),
        ):
            logits = loaded.model(**inputs).logits
    for i, n in enumerate(valid):
        got = writer.samples[str(i)]
        np.testing.assert_array_equal(got["embed"], states[0][i, :n])
        np.testing.assert_array_equal(got["resid_post"][0], states[1][i, :n])
        np.testing.assert_array_equal(got["resid_post"][1], last["x"][i, :n])
        # the lens ends at the model's own logits, in a padded batch too
        pooled = torch.from_numpy(np.array(got["resid_post.mean_all_normed"][-1]))
        ends = loaded.family.head.apply(loaded.model, pooled[None])[0]
        torch.testing.assert_close(ends, logits[i], rtol=0, atol=1e-5)


@pytest.mark.parametrize("n", [400, 719, 720, 8000, 16000, 48001])
def test_the_frames_of_a_length_are_those_of_the_convolutions(n, demo):
    with torch.no_grad():
        made = demo.model.wav2vec2(**demo.inputs(waves_of(n))).last_hidden_state
    assert made.shape[1] == demo.family.valid_frames(n, demo.frames)


@pytest.fixture(scope="module")
def demo():
    return load("demo:wav2vec2")


def test_nothing_is_padded_to_the_window(demo):
    assert demo.frames == 1499
    inputs = demo.inputs(waves_of(16000, 12000))
    assert inputs["input_values"].shape == (2, 16000)
    assert inputs["attention_mask"].sum(1).tolist() == [16000, 12000]
    with pytest.raises(ModelError, match=r"sees at most 30 s, and at least one frame"):
        load_model(ModelConfig(base="demo:wav2vec2", window_seconds=0.01), 4, seed=0, device="cpu")


@pytest.mark.parametrize("target", ["q_proj", "k_proj", "v_proj", "out_proj"])
def test_wavlm_refuses_adapters_that_would_never_run(target, saved):
    from peft import LoraConfig, inject_adapter_in_model

    base = saved("wavlm", "layer")
    loaded = load(base)
    spec = ADAPTER.model_copy(update={"target_modules": (target,)})
    with pytest.raises(ModelError, match=r"without calling these modules.*intermediate_dense"):
        attach_adapter(loaded.model, loaded.family, spec, seed=0)
    # what the refusal is for: an adapter with B != 0 changes nothing there
    inputs = loaded.inputs(waves_of(8000))
    with torch.no_grad():
        before = loaded.model(**inputs).logits
        forced = LoraConfig(r=2, target_modules=[target], init_lora_weights=False)
        inject_adapter_in_model(forced, loaded.model)
        assert torch.equal(loaded.model.eval()(**inputs).logits, before)


def test_wavlm_takes_adapters_on_its_feed_forward_part(saved):
    loaded = load(saved("wavlm", "layer"))
    inputs = loaded.inputs(waves_of(8000))
    with torch.no_grad():
        before = loaded.model(**inputs).logits
        spec = ADAPTER.model_copy(update={"target_modules": ("output_dense",)})
        attach_adapter(loaded.model, loaded.family, spec, seed=0)
        assert not torch.equal(loaded.model(**inputs).logits, before)
    assert loaded.description["attention"] == "eager"


class Notes(SilentReporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_group_norm_batches_hold_one_length(saved, tmp_path):
    config = config_of(
        tmp_path,
        f"model.base={saved('hubert', 'group')}",
        *SHORT,
    )
    notes = Notes()
    run_capture(config, store_path=tmp_path / "run.zarr", reporter=notes)
    assert any("only utterances of one length share a batch" in note for note in notes.notes)
    assert any("mean_all_normed is left out" in note for note in notes.notes)
    run_capture(
        config_of(
            tmp_path,
            f"model.base={config.model.base}",
            *SHORT,
            "run.batch_size=1",
        ),
        store_path=tmp_path / "alone.zarr",
    )
    together, alone = (
        open_store(tmp_path / name).capture("lora") for name in ("run.zarr", "alone.zarr")
    )
    sizes = together.samples["batch_size"].to_list()
    frames = together.samples["valid_frames"].to_list()
    longest = max(len(list(group)) for _, group in groupby(frames))
    assert max(sizes) <= min(4, longest)
    for layer in range(2):
        np.testing.assert_allclose(
            together.read_rows("resid_post", layer, slice(0, 8)),
            alone.read_rows("resid_post", layer, slice(0, 8)),
            rtol=0,
            atol=1e-4,  # rounding: padding would change a third of the values
        )


def test_a_padded_batch_gives_the_values_of_single_utterances(demo):
    waves = waves_of(16000, 9000)
    with torch.no_grad():
        both = demo.model(**demo.inputs(waves)).logits
        single = torch.cat([demo.model(**demo.inputs([wave])).logits for wave in waves])
    torch.testing.assert_close(both, single, rtol=0, atol=1e-5)


def test_the_plan_is_what_is_written(run):
    config, _, path = run
    plan = plan_capture(config)
    written = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    assert abs(plan.forecast.bytes - written) <= 0.1 * written


def test_a_run_is_complete_and_certified(run):
    _, summary, path = run
    verify_store(path)
    assert {"lora", "lora.step0", "frozen"} == {result.name for result in summary.conditions}
    for result in summary.conditions:
        assert result.certificate["hooks"] == 0.0
        assert result.certificate.get("recomposed", 0.0) < 1e-5
    capture = open_store(path).capture("lora")
    assert capture.attrs["final_norm"] == {"kind": "layer_norm", "eps": 1e-5}
    assert capture.attrs["model"]["family"] == "wav2vec2"
    pooled = np.asarray(capture.read_pooled("resid_post.mean_all_normed", 3), np.float64)
    weights = capture.parameters
    x = pooled @ weights["head.projector.weight"].T + weights["head.projector.bias"]
    lens = x @ weights["head.classifier.weight"].T + weights["head.classifier.bias"]
    np.testing.assert_allclose(lens, capture.read_output("logits"), rtol=0, atol=1e-4)
    a = capture.read_rows("grad.lora_a.q_proj", 0, slice(0, 4))
    assert np.isfinite(a).all()


def test_the_longest_come_first(run):
    """A batch then holds samples of about one length: less padding than in the corpus' order."""
    _, _, path = run
    for name in ("lora", "frozen"):  # rows stay aligned between conditions
        frames = open_store(path).capture(name).samples["valid_frames"].to_list()
        assert frames == sorted(frames, reverse=True)
        assert len(set(frames)) > 3


def test_a_stopped_run_goes_on_to_the_same_digest(run, tmp_path):
    config, _, path = run

    class Stop(SilentReporter):
        def progress(self, done: int, total: int, text: str) -> None:
            if text == "capturing frozen" and done > 8:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_capture(config, store_path=tmp_path / "run.zarr", reporter=Stop())
    run_capture(config, store_path=tmp_path / "run.zarr")
    assert open_store(tmp_path / "run.zarr").content_digest() == open_store(path).content_digest()


def test_frames_of_a_window_are_refused_where_there_is_none(tmp_path):
    with pytest.raises(ConfigError, match=r"wav2vec2 has no window.*frames: valid"):
        plan_capture(config_of(tmp_path, "record.frames=all"))


def test_interventions_run_on_padded_batches(tmp_path):
    config = config_of(
        tmp_path,
        "data.per_class=2",
        "captures={random: {adapter: {type: lora, r: 2, alpha: 4, target_modules: [v_proj],"
        " init: normal}}}",
        "record={sites: [resid_post], dtype: float32}",
        "interventions=[{erase: {layer: [1], how: mean}}, {lora_off: {layer: all}}]",
    )
    summary = run_capture(config, store_path=tmp_path / "run.zarr")
    assert len(summary.interventions) == 5  # one layer, one adapter off in each of four
    with pytest.raises(ConfigError, match=r"differ in their frames"):
        plan_capture(
            config_of(
                tmp_path,
                "record.sites=[resid_post]",
                "interventions=[{erase: {layer: [1], how: resample}}]",
            )
        )


def test_a_dropped_layer_is_told(saved, make_writer):
    loaded = load(saved("wav2vec2", "layer"))
    loaded.model.config.layerdrop = 1.0
    inputs = loaded.inputs(waves_of(8000))
    loaded.model.train()
    recorder = Recorder(loaded.model, make_writer(), sites=["resid_post"])
    with recorder, pytest.raises(CaptureError, match=r"LayerDrop skips layers"), torch.no_grad():
        loaded.model(**inputs)


def test_training_with_layerdrop_and_masks_is_seeded(saved, tmp_path):
    base = saved("wav2vec2", "group")
    digests = []
    for name in ("a", "b"):
        config = config_of(
            tmp_path,
            f"model.base={base}",
            *SHORT,
        )
        run_capture(config, store_path=tmp_path / f"{name}.zarr")
        digests.append(open_store(tmp_path / f"{name}.zarr").content_digest())
    assert digests[0] == digests[1]
