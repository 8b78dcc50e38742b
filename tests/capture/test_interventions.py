"""Every change of a model against its closed form, and that the model is whole afterwards."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from lorascope.capture import CaptureError
from lorascope.capture.config_models import AdapterConfig
from lorascope.capture.families import Tap
from lorascope.capture.intervention import Intervention
from lorascope.capture.intervention_material import draw_cycle, make_change, other_matrices
from lorascope.capture.interventions import (
    adapter_matrices,
    patch_taps,
    put_rows,
    replace_matrices,
    replace_updates,
    scale_adapter,
    watch_updates,
)
from lorascope.capture.streams import layer_modules

ADAPTER = AdapterConfig(r=4, alpha=8, target_modules=("v_proj", "q_proj"), init="normal")
LAYERS = (0, 1, 2, 3)


@pytest.fixture(scope="module")
def adapted(make_model):
    return make_model(ADAPTER)


@pytest.fixture(scope="module")
def features(adapted, make_waves):
    return adapted.features(make_waves(5))


@torch.no_grad()
def states(loaded, features):
    """The input of the first layer and the output of every layer, as the model computes them."""
    seen = {}
    layers = layer_modules(loaded.model, loaded.family)
    handles = [
        layers[0].register_forward_pre_hook(
            lambda _m, args, kwargs: seen.update(
                {-1: args[0] if args else kwargs["hidden_states"]}
            ),
            with_kwargs=True,
        ),
        *(
            layer.register_forward_hook(lambda _m, _a, out, i=i: seen.update({i: out}))
            for i, layer in enumerate(layers)
        ),
    ]
    seen["logits"] = loaded.model(features).logits
    for handle in handles:
        handle.remove()
    return {key: value.clone() for key, value in seen.items()}


def state_of(model):
    """Everything that a change could leave behind: weights, scalings and hooks."""
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    scalings = {
        n: dict(m.scaling) for n, m in model.named_modules() if isinstance(m, BaseTunerLayer)
    }
    hooks = {
        n: (len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in model.named_modules()
    }
    return weights, scalings, hooks


@pytest.fixture
def unharmed(adapted, features):
    """Check after the test that the model is what it was, bit for bit."""
    before, logits = state_of(adapted.model), states(adapted, features)["logits"]
    yield
    after = state_of(adapted.model)
    assert all(torch.equal(before[0][name], after[0][name]) for name in before[0])
    assert before[1:] == after[1:]
    assert torch.equal(states(adapted, features)["logits"], logits)


@pytest.mark.usefixtures("unharmed")
def test_erasing_every_layer_by_zero_lets_the_embedding_pass(adapted, features):
    plain = states(adapted, features)
    with replace_updates(adapted.model, adapted.family, dict.fromkeys(LAYERS)):
        erased = states(adapted, features)
    model = adapted.model
    for layer in LAYERS:
        assert torch.equal(erased[layer], plain[-1])
    with torch.no_grad():
        pooled = model.encoder.layer_norm(plain[-1]).mean(1)
        expected = model.classifier(model.projector(pooled))
    # the model projects each frame and then takes the mean: another order of float32 sums
    torch.testing.assert_close(erased["logits"], expected, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("unharmed")
def test_a_replaced_update_is_input_plus_update(adapted, features):
    plain = states(adapted, features)
    update = torch.linspace(-1, 1, plain[0].shape[-1])
    with replace_updates(adapted.model, adapted.family, {2: update}):
        changed = states(adapted, features)
    assert torch.equal(changed[1], plain[1])
    assert torch.equal(changed[2], plain[1] + update)
    whole = torch.randn(plain[0].shape, generator=torch.Generator().manual_seed(0))
    with replace_updates(adapted.model, adapted.family, {0: whole}):
        assert torch.equal(states(adapted, features)[0], plain[-1] + whole)


@pytest.mark.usefixtures("unharmed")
def test_a_watched_update_is_output_minus_input(adapted, features):
    plain, seen = states(adapted, features), {}
    with watch_updates(adapted.model, adapted.family, (1, 3), seen.__setitem__), torch.no_grad():
        adapted.model(features)
    assert set(seen) == {1, 3}
    for layer, update in seen.items():
        assert torch.equal(update, plain[layer] - plain[layer - 1])


@pytest.mark.usefixtures("unharmed")
def test_an_update_of_another_length_is_refused(adapted, features):
    wrong = torch.zeros(5, 49, 64)
    with (
        replace_updates(adapted.model, adapted.family, {0: wrong}),
        pytest.raises(CaptureError, match="samples of equal length"),
    ):
        adapted.model(features)
    with (
        pytest.raises(CaptureError, match="no layer 4: the model has layers 0 to 3"),
        replace_updates(adapted.model, adapted.family, {4: None}),
    ):
        pass


@pytest.mark.usefixtures("unharmed")
def test_lora_off_everywhere_is_the_bare_model(adapted, features, make_model):
    frozen = make_model()
    for path in adapted.family.head.modules.values():
        frozen.model.get_submodule(path).load_state_dict(
            adapted.model.get_submodule(path).state_dict()
        )
    expected = states(frozen, features)
    assert not torch.equal(states(adapted, features)["logits"], expected["logits"])
    with scale_adapter(adapted.model, adapted.family, LAYERS, by=0.0):
        off = states(adapted, features)
    for key, value in expected.items():
        assert torch.equal(off[key], value), key


@pytest.mark.usefixtures("unharmed")
def test_scaling(adapted, features):
    plain = states(adapted, features)
    with scale_adapter(adapted.model, adapted.family, LAYERS, by=1.0):
        assert torch.equal(states(adapted, features)["logits"], plain["logits"])
    off = make_change(Intervention("o", "lora_off", (1, 2)), Bare(adapted))
    with off(()):
        switched = states(adapted, features)
    with scale_adapter(adapted.model, adapted.family, (1, 2), by=0.0):
        assert torch.equal(states(adapted, features)["logits"], switched["logits"])
    assert torch.equal(switched[0], plain[0])
    assert not torch.equal(switched[1], plain[1])
    # s B (A x) is linear in B, so the factor can as well be in B
    doubled = {
        key: weight * 2
        for key, weight in adapter_matrices(adapted.model, adapted.family, "B").items()
    }
    with replace_matrices(adapted.model, adapted.family, "B", doubled):
        expected = states(adapted, features)["logits"]
    with scale_adapter(adapted.model, adapted.family, LAYERS, by=2.0):
        assert torch.equal(states(adapted, features)["logits"], expected)


class Bare:
    """Material for changes that draw on nothing but the model."""

    def __init__(self, loaded):
        self.loaded, self.seed = loaded, 0


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("matrix", ["A", "B"])
def test_an_ablated_matrix(adapted, features, matrix):
    def ablation(how, layers=LAYERS):
        return Intervention("x", "ablate", layers, how=how, matrix=matrix)

    weights = adapter_matrices(adapted.model, adapted.family, matrix)
    with scale_adapter(adapted.model, adapted.family, LAYERS, by=0.0):
        off = states(adapted, features)["logits"]
    with make_change(ablation("zero"), Bare(adapted))(()):
        assert torch.equal(states(adapted, features)["logits"], off)

    drawn = other_matrices(adapted, ablation("random"), seed=0)
    again = other_matrices(adapted, ablation("random", (2,)), seed=0)
    assert set(again) == {(2, "q_proj"), (2, "v_proj")}
    for key, value in drawn.items():
        norm = float(weights[key].detach().double().norm())
        # each float32 value is off by at most 2^-24 of itself
        assert float(value.double().norm()) == pytest.approx(norm, rel=2.0**-23)
        assert not torch.equal(value, weights[key])
        assert key not in again or torch.equal(value, again[key])
    assert not torch.equal(
        drawn[0, "v_proj"], other_matrices(adapted, ablation("random"), seed=1)[0, "v_proj"]
    )

    taken = other_matrices(adapted, ablation("resample"), seed=0)
    for short in ("q_proj", "v_proj"):
        given = [
            next(i for i in LAYERS if torch.equal(taken[layer, short], weights[i, short]))
            for layer in LAYERS
        ]
        assert sorted(given) == list(LAYERS)
        assert all(i != layer for layer, i in zip(LAYERS, given, strict=True))
    with make_change(ablation("resample"), Bare(adapted))(()):
        changed = adapter_matrices(adapted.model, adapted.family, matrix)
        assert all(torch.equal(changed[key], value) for key, value in taken.items())


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize(
    "change",
    [
        lambda m, f: scale_adapter(m, f, LAYERS, by=3.0),
        lambda m, f: replace_matrices(m, f, "A", {(0, "v_proj"): torch.zeros(4, 64)}),
        lambda m, f: replace_updates(m, f, {0: None}),
        lambda m, _: patch_taps(m, {Tap("encoder.layers.1", "input"): lambda x: x * 0}),
    ],
    ids=["scale", "matrix", "erase", "patch"],
)
def test_an_exception_leaves_the_model_whole(adapted, change):
    with pytest.raises(ZeroDivisionError), change(adapted.model, adapted.family):
        raise ZeroDivisionError


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize(
    ("path", "side", "key"),
    [
        ("encoder.layers.0", "input", -1),
        ("encoder.layers.1", "", 1),
        ("encoder.layers.2.self_attn", "", None),
    ],
)
def test_a_patch_puts_rows_where_they_belong(adapted, features, path, side, key):
    plain = states(adapted, features)
    tap = Tap(path, side or "output")
    seen = []
    with patch_taps(adapted.model, {tap: lambda x: seen.append(x.clone()) or x}):
        assert torch.equal(states(adapted, features)["logits"], plain["logits"])
    (x,) = seen
    assert key is None or torch.equal(x, plain[key])
    positions = [np.arange(0, 50, 3), np.arange(10), np.arange(0), np.array([49]), np.arange(50)]
    own = torch.cat([x[i, torch.from_numpy(p)] for i, p in enumerate(positions)])
    with patch_taps(adapted.model, {tap: put_rows(own, positions)}):
        assert torch.equal(states(adapted, features)["logits"], plain["logits"])
    expected = x.clone()
    for i, p in enumerate(positions):
        expected[i, torch.from_numpy(p)] += 1
    assert torch.equal(put_rows(own + 1, positions)(x), expected)
    with patch_taps(adapted.model, {tap: put_rows(own + 1, positions)}):
        assert not torch.equal(states(adapted, features)["logits"], plain["logits"])


def test_rows_that_do_not_fit_are_refused():
    x = torch.zeros(2, 4, 3)
    for rows, positions in (
        (torch.zeros(2, 3), [np.array([0]), np.array([4])]),
        (torch.zeros(1, 3), [np.array([0])]),
        (torch.zeros(2, 5), [np.array([0]), np.array([1])]),
    ):
        with pytest.raises(CaptureError, match="do not fit"):
            put_rows(rows, positions)(x)


def test_a_cycle_goes_through_everything():
    items = [f"u{i}" for i in range(9)]
    cycle = draw_cycle(items, 0, "x")
    at, visited = "u0", []
    for _ in items:
        at = cycle[at]
        visited.append(at)
    assert sorted(visited) == items
    assert draw_cycle(items, 0, "x") == cycle
    assert draw_cycle(items, 1, "x") != cycle
    assert draw_cycle(["a", "b"], 5, "y") == {"a": "b", "b": "a"}
