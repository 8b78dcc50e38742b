"""The same identities on real weights and real speech, which random weights never show."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from lorascope.capture import Recorder, load_config, load_corpus, run_capture
from lorascope.capture.config_models import AdapterConfig
from lorascope.capture.lora import extract_weights
from lorascope.capture.pooling import prefix_mask
from lorascope.store import open_store

pytestmark = pytest.mark.real

ADAPTER = AdapterConfig(r=8, alpha=16, target_modules=("v_proj",), init="normal")


@pytest.fixture(scope="module")
def recorded(real_root, make_model, make_writer):
    """Eight utterances of two speakers through Whisper tiny.en with a 5 s window."""
    loaded = make_model(ADAPTER, base=str(real_root / "whisper-tiny-en"), window_seconds=5.0)
    corpus = load_corpus("ravdess", real_root / "ravdess", per_class=2)
    waves = [corpus.read(utterance) for utterance in corpus.utterances]

    def run(chosen, classes):
        writer = make_writer()
        valid = [loaded.family.valid_frames(len(wave), loaded.frames) for wave in chosen]
        features = loaded.features(chosen)
        recorder = Recorder(
            loaded.model,
            writer,
            sites=["embed", "resid_post", "attn_out", "mlp_out", "lora_a", "lora_b"],
            gradients=["resid_post", "lora_a", "lora_b"],
            dtype="float32",
        )
        ids = [str(i) for i in range(len(chosen))]
        with recorder, recorder.batch(ids, mask=prefix_mask(valid, loaded.frames)):
            logits = loaded.model(features).logits
            target = torch.tensor(classes)
            recorder.backward(nn.functional.cross_entropy(logits, target, reduction="none"))
            recorder.output(logits=logits)
        return writer, features, valid

    classes = [i % 4 for i in range(8)]
    together = run(waves, classes)
    alone = [run([wave], [class_])[0] for wave, class_ in zip(waves, classes, strict=True)]
    return loaded, *together, alone


def test_recorded_is_the_models_own(recorded):
    loaded, writer, features, valid, _ = recorded
    with torch.no_grad():
        states = loaded.model(features, output_hidden_states=True).hidden_states
    largest = 0.0
    for i, n in enumerate(valid):
        got = writer.samples[str(i)]
        np.testing.assert_array_equal(got["embed"], states[0][i, :n])
        for layer in range(3):
            np.testing.assert_array_equal(got["resid_post"][layer], states[layer + 1][i, :n])
        largest = max(largest, float(np.abs(got["resid_post"]).max()))
    assert largest > 50  # massive activations: what this test adds to random weights


def test_identities(recorded):
    loaded, writer, _, _, _ = recorded
    weights = extract_weights(loaded.model, loaded.family)
    for got in writer.samples.values():
        for layer in range(4):
            b = weights[f"adapter.{layer}.v_proj.lora_b"].astype(np.float64)
            a_out, g_b = got["lora_a.v_proj"][layer], got["grad.lora_b.v_proj"][layer]
            b_out, g_a = got["lora_b.v_proj"][layer], got["grad.lora_a.v_proj"][layer]
            # float32 sums of 8 and of 384 products: a few units in the last place (2^-23) of the
            # sum of their sizes
            for found, left, right in ((b_out, a_out, b.T), (g_a, g_b, b)):
                bound = 2.0**-21 * (np.abs(left) @ np.abs(right)).max()
                np.testing.assert_allclose(found, left @ right, rtol=0, atol=bound)


def test_lens_ends_at_the_logits(recorded):
    loaded, writer, _, _, _ = recorded
    p = {k: v.astype(np.float64) for k, v in extract_weights(loaded.model, loaded.family).items()}
    for i in range(8):
        pooled = writer.samples[str(i)]["resid_post.mean_all_normed"][-1]
        hidden = p["head.projector.weight"] @ pooled + p["head.projector.bias"]
        lens = p["head.classifier.weight"] @ hidden + p["head.classifier.bias"]
        logits = writer.details[str(i)]["outputs"]["logits"]
        np.testing.assert_allclose(lens, logits, rtol=0, atol=1e-5)


def test_a_batch_records_what_single_samples_record(recorded):
    _, writer, _, _, alone = recorded
    for i, single in enumerate(alone):
        for key, expected in single.samples["0"].items():
            scale = np.abs(expected).max()
            # matrix products of another height sum in another order; measured 9e-7 of the largest
            # value for gradients, and no difference at all for activations
            np.testing.assert_allclose(
                writer.samples[str(i)][key], expected, rtol=0, atol=1e-5 * scale, err_msg=key
            )


def test_a_small_run_on_real_speech(real_root, tmp_path):
    (tmp_path / "real.yaml").write_text(f"""
seed: 0
model: {{base: {real_root / "whisper-tiny-en"}, window_seconds: 2}}
data: {{corpus: ravdess, root: {real_root / "ravdess"}, per_class: 12}}
split: {{by: speaker, test: ["11", "12"]}}
captures:
  frozen: {{adapter: null, train: {{epochs: 2}}}}
  random: {{adapter: {{type: lora, r: 8, alpha: 16, target_modules: [v_proj], init: normal}}}}
record: {{sites: {{resid_post: {{dtype: float32}}, lora_a: {{}}}}, layers: [0, 3]}}
interventions:
  - {{lora_off: }}
  - {{name: itself, patch: {{site: resid_post, layer: 3, from: random}}, captures: [random]}}
""")
    summary = run_capture(load_config(tmp_path / "real.yaml"), store_path=tmp_path / "real.zarr")
    capture = open_store(tmp_path / "real.zarr").capture("random")
    assert capture.attrs["model"]["base"] == "whisper-tiny-en"
    assert str(real_root) not in str(capture.attrs)
    assert summary.samples == len(capture.samples) == 48
    assert capture.row_counts("encoder").max() == 100
    rows = capture.read_rows("resid_post", 3)
    assert np.isfinite(rows).all()
    assert len(rows) == capture.row_counts("encoder").sum()
    store = open_store(tmp_path / "real.zarr")
    for changed, same in (("random.lora_off", "frozen"), ("random.itself", "random")):
        expected = store.capture(same).read_output("logits")
        np.testing.assert_array_equal(store.capture(changed).read_output("logits"), expected)
