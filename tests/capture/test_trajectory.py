"""Steps of a training: their weights, gradients and curves against loops written here."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from lorascope.capture import SilentReporter
from lorascope.capture.config_models import AdapterConfig, TrainConfig
from lorascope.capture.lora import extract_weights, named_weights, restore_weights
from lorascope.capture.training import Examples, train

ADAPTER = AdapterConfig(r=4, alpha=8, target_modules=("v_proj",))
DROPOUT = ADAPTER.model_copy(update={"dropout": 0.3})
SPEC = TrainConfig(epochs=3, learning_rate=1e-2, batch_size=4, weight_decay=0.1)
CLASSES = [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
STEPS = 9  # 3 epochs of batches of 4, 4 and 2
CLIP = 1.0  # the Trainer's own default


def trained(make_model, make_waves, *, adapter=None, spec=SPEC, at=(), dtype="float32"):
    loaded = make_model(adapter, dtype=dtype)
    waves = make_waves(len(CLASSES))
    trajectory = train(
        loaded,
        Examples(lambda i: waves[i], CLASSES),
        spec,
        adapter=adapter is not None,
        seed=0,
        reporter=SilentReporter(),
        at=at,
    )
    return loaded, trajectory


def fresh(make_model, make_waves, adapter):
    """An untrained model, its features, and the weights that training would change."""
    loaded = make_model(adapter)
    features = loaded.features(make_waves(len(CLASSES)))
    wanted = ("head.", "adapter.") if adapter else ("head.",)
    named = named_weights(loaded.model, loaded.family)
    weights = {name: w for name, w in named.items() if name.startswith(wanted)}
    for weight in weights.values():
        weight.requires_grad = True
    return loaded, features, weights


def gradients_of(loaded, features, weights, batch):
    """Mean cross-entropy of a batch through the whole model, and its gradient by autograd."""
    logits = loaded.model(features[list(batch)]).logits
    loss = nn.functional.cross_entropy(logits, torch.tensor([CLASSES[i] for i in batch]))
    gradients = torch.autograd.grad(loss, list(weights.values()))
    return float(loss.detach()), dict(zip(weights, gradients, strict=True))


@pytest.mark.parametrize("adapter", [None, ADAPTER])
def test_every_step_is_that_of_a_plain_loop(make_model, make_waves, adapter):
    loaded, seen = trained(make_model, make_waves, adapter=adapter, at=range(STEPS))
    assert sorted(seen.states) == list(range(STEPS))
    batches = [seen.states[step].examples for step in range(STEPS)]
    for epoch in range(3):
        assert sorted(sum(batches[3 * epoch : 3 * epoch + 3], ())) == list(range(10))
    assert batches[:3] != batches[3:6]

    plain, features, weights = fresh(make_model, make_waves, adapter)
    optimizer = torch.optim.AdamW(list(weights.values()), weight_decay=0.0)
    for step, batch in enumerate(batches):
        state = seen.states[step]
        for name, weight in weights.items():
            # Adam divides by the gradient's size, so rounding of 1e-7 there is 1e-7 of a step of
            # 1e-2 in the weight; gradients near 0 make it more: 1 % of a step
            np.testing.assert_allclose(state.weights[name], weight.detach(), atol=1e-4, rtol=0)
        loss, found = gradients_of(plain, features, weights, batch)
        assert seen.loss[step] == pytest.approx(loss, abs=1e-3)
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in found.values()))
        assert seen.gradient_norm[step] == pytest.approx(norm, rel=1e-2)
        scale = min(1.0, CLIP / norm)
        rate = SPEC.learning_rate * (1 - step / STEPS)
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.no_grad():
            for name, weight in weights.items():
                if not name.endswith("bias"):  # biases do not decay
                    weight.mul_(1 - rate * SPEC.weight_decay)
                weight.grad = found[name] * scale
        optimizer.step()
    last = extract_weights(loaded.model, loaded.family)
    for name, weight in weights.items():
        np.testing.assert_allclose(last[name], weight.detach(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("adapter", [None, ADAPTER])
def test_gradients_are_those_at_the_weights_of_the_step(make_model, make_waves, adapter):
    _, seen = trained(make_model, make_waves, adapter=adapter, at=[0, 4, 8])
    plain, features, weights = fresh(make_model, make_waves, adapter)
    for step, state in seen.states.items():
        restore_weights(plain.model, plain.family, state.weights)
        loss, found = gradients_of(plain, features, weights, state.examples)
        assert set(state.gradients) == set(weights)
        assert loss == pytest.approx(seen.loss[step], rel=1e-5)
        for name, gradient in found.items():
            # the head alone is trained on pooled features: float32 in another order
            scale = float(gradient.abs().max())
            np.testing.assert_allclose(
                state.gradients[name], gradient, atol=1e-4 * scale + 1e-7, rtol=0, err_msg=name
            )


def test_at_step_0_only_b_has_a_gradient(make_model, make_waves):
    _, seen = trained(make_model, make_waves, adapter=ADAPTER, at=[0, 1])
    first, second = seen.states[0], seen.states[1]
    for layer in range(4):
        name = f"adapter.{layer}.v_proj.lora"
        assert not first.weights[f"{name}_b"].any()
        assert not first.gradients[f"{name}_a"].any()
        assert first.gradients[f"{name}_b"].any()
        assert second.gradients[f"{name}_a"].any()


def test_step_0_is_the_model_before_training(make_model, make_waves):
    untouched = make_model(ADAPTER)
    before = extract_weights(untouched.model, untouched.family)
    _, seen = trained(make_model, make_waves, adapter=ADAPTER, at=[0])
    assert set(seen.states[0].weights) == set(before)
    for name, weight in before.items():
        np.testing.assert_array_equal(seen.states[0].weights[name], weight, err_msg=name)


@pytest.mark.parametrize("adapter", [None, DROPOUT])
def test_a_step_is_where_a_shorter_training_ends(make_model, make_waves, adapter):
    """With a constant rate, one epoch of three is a training of one epoch, dropout included."""
    long = SPEC.model_copy(update={"schedule": "constant"})
    short = long.model_copy(update={"epochs": 1})
    _, seen = trained(make_model, make_waves, adapter=adapter, spec=long, at=[3])
    loaded, alone = trained(make_model, make_waves, adapter=adapter, spec=short)
    for name, weight in extract_weights(loaded.model, loaded.family).items():
        np.testing.assert_array_equal(seen.states[3].weights[name], weight, err_msg=name)
    np.testing.assert_array_equal(seen.loss[:3], alone.loss)


@pytest.mark.parametrize("adapter", [None, DROPOUT])
def test_watching_changes_no_bit(make_model, make_waves, adapter):
    watched, seen = trained(make_model, make_waves, adapter=adapter, at=range(STEPS))
    alone, unseen = trained(make_model, make_waves, adapter=adapter)
    assert unseen.states == {}
    for name in ("loss", "learning_rate", "gradient_norm"):
        np.testing.assert_array_equal(getattr(seen, name), getattr(unseen, name))
    other = extract_weights(alone.model, alone.family)
    for name, weight in extract_weights(watched.model, watched.family).items():
        np.testing.assert_array_equal(weight, other[name], err_msg=name)


def expected_rate(schedule: str, step: int, warm: int) -> float:
    if step < warm:
        return step / warm
    done = (step - warm) / (STEPS - warm)
    return {"linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2, "constant": 1}[
        schedule
    ]


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize(("ratio", "warm"), [(0.0, 0), (0.3, 3)])  # ceil(2.7)
def test_the_learning_rate_follows_its_formula(make_model, make_waves, schedule, ratio, warm):
    spec = SPEC.model_copy(update={"schedule": schedule, "warmup_ratio": ratio})
    _, seen = trained(make_model, make_waves, spec=spec)
    expected = [SPEC.learning_rate * expected_rate(schedule, k, warm) for k in range(STEPS)]
    assert len(seen.loss) == len(seen.gradient_norm) == STEPS
    np.testing.assert_allclose(seen.learning_rate, expected, rtol=1e-12, atol=1e-18)


def test_the_first_loss_is_that_of_an_untrained_head(make_model, make_waves):
    _, seen = trained(make_model, make_waves, adapter=ADAPTER, at=[0])
    plain, features, weights = fresh(make_model, make_waves, ADAPTER)
    loss, _ = gradients_of(plain, features, weights, seen.states[0].examples)
    assert seen.loss[0] == pytest.approx(loss, rel=1e-6)
    assert seen.loss[-3:].mean() < seen.loss[:3].mean()


def test_half_precision_keeps_what_the_model_will_run_with(make_model, make_waves):
    _, seen = trained(make_model, make_waves, adapter=ADAPTER, at=[0, 4], dtype="bfloat16")
    for name, weight in seen.states[4].weights.items():
        kept = torch.from_numpy(weight)
        assert torch.equal(kept, kept.bfloat16().float()), name
    # training itself is in float32, and so are its gradients
    gradient = torch.from_numpy(seen.states[4].gradients["head.projector.weight"])
    assert not torch.equal(gradient, gradient.bfloat16().float())
