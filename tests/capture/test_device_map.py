"""Models that `device_map` spreads: recorded as if they were in one place."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from accelerate import dispatch_model

from lorascope.capture import Recorder

PLACES = {
    "model.embed_tokens": "cpu",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.layers.2": "disk",
    "model.norm": "disk",
    "model.rotary_emb": "cpu",
    "lm_head": "cpu",
}


def make_model() -> transformers.LlamaForCausalLM:
    config = transformers.LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=32,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.model.norm.weight.uniform_(0.5, 2)  # ones would hide a norm that is not there
    return model


def record(model, writer):
    tokens = torch.arange(14).reshape(2, 7)
    names = ["embed", "resid_post", "mlp_out"]
    recorder = Recorder(model, writer, sites=names, gradients=["resid_post"])
    with recorder, recorder.batch(["a", "b"]):
        logits = model(input_ids=tokens).logits
        recorder.backward(logits.square().mean(dim=(1, 2)))
    return writer.samples


@pytest.mark.filterwarnings("ignore:.*were offloaded to the disk")
def test_weights_on_disk_change_nothing(make_writer, tmp_path) -> None:
    """Activations, gradients and pools through the final norm, whose weights are elsewhere too."""
    expected = record(make_model(), make_writer())
    spread = dispatch_model(make_model(), PLACES, main_device="cpu", offload_dir=tmp_path)
    for path in ("model.norm", "model.layers.2.mlp.down_proj"):
        assert spread.get_submodule(path).weight.is_meta
    found = record(spread, make_writer())
    assert found.keys() == expected.keys() == {"a", "b"}
    for sample, values in expected.items():
        assert "resid_post.mean_all_normed" in values
        for name, value in values.items():
            np.testing.assert_array_equal(found[sample][name], value, err_msg=name)
