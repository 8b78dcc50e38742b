"""Adapters: their initial states, their weights in and out, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from lorascope.capture import ModelError
from lorascope.capture.adapters import adapters_of, find_adapters
from lorascope.capture.config_models import AdapterConfig
from lorascope.capture.lora import (
    adapter_scaling,
    attach_adapter,
    extract_weights,
    restore_weights,
)
from lorascope.capture.naming import short_names


def adapter(**changes):
    return AdapterConfig(**{"r": 4, "alpha": 8, "target_modules": ("v_proj",), **changes})


def weights_of(loaded):
    return extract_weights(loaded.model, loaded.family)


def test_names_and_shapes_of_weights(make_model):
    weights = weights_of(make_model(adapter(target_modules=("v_proj", "fc1"))))
    assert {name: w.shape for name, w in weights.items() if not name.startswith("adapter.")} == {
        "head.projector.weight": (64, 64),
        "head.projector.bias": (64,),
        "head.classifier.weight": (4, 64),
        "head.classifier.bias": (4,),
        "norm.weight": (64,),
        "norm.bias": (64,),
    }
    assert weights["adapter.3.v_proj.lora_a"].shape == (4, 64)
    assert weights["adapter.3.v_proj.lora_b"].shape == (64, 4)
    assert weights["adapter.0.fc1.lora_b"].shape == (128, 4)
    assert sum(name.startswith("adapter.") for name in weights) == 16


def test_own_initial_state_is_seeded_and_b_is_zero(make_model):
    state = torch.random.get_rng_state()
    first, again = weights_of(make_model(adapter())), weights_of(make_model(adapter()))
    other = weights_of(make_model(adapter(), seed=1))
    assert torch.equal(state, torch.random.get_rng_state())
    for layer in range(4):
        a, b = f"adapter.{layer}.v_proj.lora_a", f"adapter.{layer}.v_proj.lora_b"
        np.testing.assert_array_equal(first[a], again[a])
        assert not np.array_equal(first[a], other[a])
        assert not first[b].any()
        # Kaiming-uniform with a = sqrt(5): |A| <= 1 / sqrt(d_in)
        assert 0.9 / 8 < np.abs(first[a]).max() <= 1 / 8


def test_normal_initial_state(make_model):
    weights = weights_of(make_model(adapter(r=32, init="normal")))
    for part in ("lora_a", "lora_b"):
        drawn = np.concatenate([w.ravel() for name, w in weights.items() if name.endswith(part)])
        # 8192 values: the standard error of the deviation is 0.8 %, of the mean 2.2e-4
        assert abs(drawn.std() - 0.02) < 0.02 * 0.04
        assert abs(drawn.mean()) < 0.001
    again = weights_of(make_model(adapter(r=32, init="normal")))
    np.testing.assert_array_equal(
        weights["adapter.0.v_proj.lora_b"], again["adapter.0.v_proj.lora_b"]
    )


def test_a_fresh_adapter_is_in_eval_mode(make_model):
    loaded = make_model(adapter(dropout=0.5))
    assert not any(module.training for module in loaded.model.modules())


def test_scaling(make_model):
    loaded = make_model(adapter(r=8, alpha=20))
    assert adapter_scaling(loaded.model, loaded.family) == 2.5
    stable = make_model(adapter(r=16, alpha=20, rslora=True))
    assert adapter_scaling(stable.model, stable.family) == 5.0
    bare = make_model()
    assert adapter_scaling(bare.model, bare.family) is None


def test_restored_weights_give_the_same_logits(make_model, make_waves):
    trained = make_model(adapter(init="normal"), seed=5)
    fresh = make_model(adapter())
    features = fresh.features(make_waves(2))
    with torch.no_grad():
        expected = trained.model(features).logits
        assert not torch.equal(fresh.model(features).logits, expected)
        restore_weights(fresh.model, fresh.family, weights_of(trained))
        assert torch.equal(fresh.model(features).logits, expected)


def test_restoring_only_the_head(make_model):
    giver, taker = make_model(seed=3), make_model(adapter(init="normal"))
    before = weights_of(taker)
    restore_weights(taker.model, taker.family, weights_of(giver), prefix="head.")
    after = weights_of(taker)
    np.testing.assert_array_equal(
        after["head.projector.weight"], weights_of(giver)["head.projector.weight"]
    )
    np.testing.assert_array_equal(
        after["adapter.1.v_proj.lora_b"], before["adapter.1.v_proj.lora_b"]
    )


def test_missing_and_misshapen_weights_are_told(make_model):
    loaded = make_model(adapter())
    weights = weights_of(loaded)
    lost = {k: v for k, v in weights.items() if k != "adapter.2.v_proj.lora_b"}
    with pytest.raises(ModelError, match=r"lack 'adapter\.2\.v_proj\.lora_b'"):
        restore_weights(loaded.model, loaded.family, lost)
    weights["norm.bias"] = np.zeros(3)
    with pytest.raises(ModelError, match=r"'norm.bias' has shape \(3,\), the model's \(64,\)"):
        restore_weights(loaded.model, loaded.family, weights)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("vproj", r"'vproj' matches no linear module.*did you mean 'v_proj'\? Linear modules.*fc1"),
        ("conv1", "'conv1' exists, but is no linear module inside a layer"),
        ("self_attn", "'self_attn' exists, but is no linear module"),
        ("classifier", "belongs to the head"),
    ],
)
def test_targets_that_match_nothing_are_told(make_model, target, message):
    with pytest.raises(ModelError, match=message):
        make_model(adapter(target_modules=("v_proj", target)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_dora": True}, r"layers\.0\.self_attn\.v_proj uses Dora.*not base"),
        ({"target_modules": ["conv1"]}, "encoder.conv1 is made of Conv1d modules"),
        ({"target_modules": ["embed_positions"]}, "embed_positions is that of an embedding"),
    ],
)
def test_other_kinds_of_lora_are_refused(make_model, options, message):
    from peft import LoraConfig, inject_adapter_in_model

    loaded = make_model()
    config = LoraConfig(**{"r": 2, "target_modules": ["v_proj"], **options})
    inject_adapter_in_model(config, loaded.model)
    with pytest.raises(ModelError, match=message):
        adapters_of(loaded.model, loaded.family)


def test_a_merged_adapter_is_refused(make_model):
    loaded = make_model(adapter(init="normal"))
    loaded.model.encoder.layers[2].self_attn.v_proj.merge()
    with pytest.raises(ModelError, match=r"layers\.2\.self_attn\.v_proj is merged"):
        adapters_of(loaded.model, loaded.family)


def test_adapters_outside_of_the_layers_are_named_by_their_path(make_model):
    from peft import LoraConfig, inject_adapter_in_model

    loaded = make_model()
    config = LoraConfig(r=2, target_modules=["projector", "q_proj"])
    inject_adapter_in_model(config, loaded.model)
    found = adapters_of(loaded.model, loaded.family)
    assert [(a.layer, a.name) for a in found[-2:]] == [(3, "q_proj"), (None, "projector")]
    assert found[-1].parameter == "adapter.projector"
    assert found[0].parameter == "adapter.0.q_proj"


@pytest.mark.filterwarnings("ignore:Already found a .peft_config.:UserWarning")
def test_of_several_adapters_the_active_ones_count(make_model):
    from peft import LoraConfig, inject_adapter_in_model

    loaded = make_model(adapter())
    config = LoraConfig(r=2, target_modules=["v_proj"])
    inject_adapter_in_model(config, loaded.model, adapter_name="second")
    modules = [a.module for a in adapters_of(loaded.model, loaded.family)]
    assert len(modules) == 4
    for module in modules:
        module.set_adapter("second")
    found, refused = find_adapters(loaded.model, loaded.family)
    assert not refused
    assert {(a.name, a.key) for a in found} == {("v_proj", "second")}
    for module in modules:
        module.set_adapter(["default", "second"])
    names = [a.name for a in adapters_of(loaded.model, loaded.family)]
    assert names[:2] == ["v_proj.default", "v_proj.second"]


def test_short_names_of_a_whisper_layer(make_model):
    loaded = make_model()
    attach_adapter(loaded.model, loaded.family, adapter(), seed=0)
    names = short_names(loaded.model.encoder.layers[0])
    assert names["self_attn.v_proj"] == "v_proj"
    assert names["fc1"] == "fc1"
    assert not any("lora" in path for path in names)


def test_short_names_that_end_alike():
    layer = nn.Module()
    layer.attention = nn.Module()
    layer.attention.output = nn.Module()
    layer.attention.output.dense = nn.Linear(1, 1)
    layer.output = nn.Module()
    layer.output.dense = nn.Linear(1, 1)
    layer.intermediate = nn.Module()
    layer.intermediate.first = nn.Linear(1, 1)
    names = short_names(layer)
    assert names["attention.output.dense"] == "attention.output.dense"
    assert names["output.dense"] == "output.dense"
    assert names["intermediate.first"] == "first"
