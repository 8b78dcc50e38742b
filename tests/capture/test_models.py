"""Loading models: dtype, window, head, and every way in which it can fail."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import BertConfig, WhisperFeatureExtractor

from lorascope.capture import ModelError
from lorascope.capture.config_models import ModelConfig
from lorascope.capture.models import build_shape, load_model


@pytest.fixture
def saved(make_model, tmp_path):
    """The embedded model as a transformers directory, in float16, with a 30 s window."""
    loaded = make_model(window_seconds=30.0)
    loaded.model.half().save_pretrained(tmp_path / "saved")
    loaded.extractor.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_the_embedded_model_is_always_the_same(make_model):
    state = torch.random.get_rng_state()
    first, other = make_model(), make_model(seed=1)
    assert torch.equal(state, torch.random.get_rng_state())
    assert first.description == other.description
    assert first.description["n_layers"] == 4
    assert first.description["frames"] == first.frames == 50
    assert not torch.equal(first.model.classifier.weight, other.model.classifier.weight)
    assert torch.equal(first.model.classifier.weight, make_model().model.classifier.weight)


def test_a_saved_model_loads_in_the_dtype_that_is_asked(make_model, saved, make_waves):
    loaded = make_model(base=str(saved), window_seconds=1.0)
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    assert loaded.description["base"] == "saved"
    embedded = make_model()
    waves = make_waves(2)
    with torch.no_grad():
        got = loaded.model.encoder(loaded.features(waves)).last_hidden_state
        expected = embedded.model.encoder(embedded.features(waves)).last_hidden_state
    # the file is float16: weights are off by up to 2^-11 of themselves, four layers deep
    torch.testing.assert_close(got, expected, rtol=0, atol=0.05)


def test_a_shorter_window_cuts_positions_and_features(make_model, make_waves):
    short, full = make_model(window_seconds=0.5), make_model(window_seconds=30.0)
    assert short.frames == 25
    assert short.features(make_waves(2)).shape == (2, 80, 50)
    assert full.features(make_waves(1)).shape == (1, 80, 3000)
    own, cut = full.model.encoder.embed_positions.weight, short.model.encoder.embed_positions.weight
    assert torch.equal(own[:25], cut)
    assert short.description["sha256"] != full.description["sha256"]
    with torch.no_grad():
        assert short.model(short.features(make_waves(2))).logits.shape == (2, 4)


def test_features_of_a_long_utterance_are_those_of_its_beginning(make_model):
    loaded = make_model(window_seconds=0.5)
    wave = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
    assert torch.equal(loaded.features([wave]), loaded.features([wave[:8000]]))


def test_the_shape_without_weights(saved):
    model, family, frames = build_shape(ModelConfig(base=str(saved), window_seconds=5.0), 4)
    assert family.name == "whisper"
    assert frames == 250
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_a_window_that_does_not_fit(make_model):
    with pytest.raises(ModelError, match=r"window_seconds is 1.01.*in steps of 0.02 s"):
        make_model(window_seconds=1.01)


def test_a_missing_directory(make_model, tmp_path):
    with pytest.raises(ModelError, match=r"model directory .* does not exist"):
        make_model(base=str(tmp_path / "nowhere"))


def test_a_directory_without_a_model(make_model, tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ModelError, match=r"no config.json. There: notes.txt"):
        make_model(base=str(tmp_path))


def test_another_family(make_model, tmp_path):
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(
        ModelError,
        match=r"'bert' model, .* models of speech: hubert, wav2vec2, wavlm, whisper\. .* Recorder",
    ):
        make_model(base=str(tmp_path))


def test_a_directory_without_weights(make_model, saved):
    (saved / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot be loaded in that directory"):
        make_model(base=str(saved))


def test_weights_that_cannot_be_read(make_model, saved):
    (saved / "model.safetensors").write_bytes(b"\x00" * 64)
    with pytest.raises(ModelError, match="cannot be loaded in that directory"):
        make_model(base=str(saved))


def test_weights_of_another_model(make_model, saved):
    config = json.loads((saved / "config.json").read_text())
    config["encoder_layers"] = 6
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"lack \d+ of the encoder's, such as encoder.layers.4"):
        make_model(base=str(saved))


def test_an_unreachable_hub(make_model, monkeypatch):
    def fail(*_args, **_kwargs):
        msg = "We couldn't connect to the hub"
        raise OSError(msg)

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", fail)
    with pytest.raises(ModelError, match=r"'some/model' cannot be loaded \(no such directory"):
        make_model(base="some/model")


def test_a_missing_extractor(make_model, saved):
    (saved / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match="cannot be loaded in that directory"):
        make_model(base=str(saved))
    WhisperFeatureExtractor(feature_size=80).save_pretrained(saved)
    assert load_model(ModelConfig(base=str(saved)), 2, seed=0, device="cpu").frames == 1500
