"""`RecorderCallback` in a Trainer: it records what is there, and the training does not notice."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

from lorascope.analyses import analyze
from lorascope.capture import Recorder
from lorascope.capture.undisturbed import undisturbed
from lorascope.store import open_store, verify_store

NAMES = ["anger", "happiness", "neutral", "sadness"]
STEPS = 4  # two epochs of two batches of four
SITES = ["resid_post", "lora_a", "lora_b"]


@pytest.fixture(scope="module")
def seen(make_study, tmp_path_factory):
    """One training with captures at every step."""
    folder = tmp_path_factory.mktemp("callback")
    study = make_study()
    watcher = study.watcher()
    options = {"gradients": ["lora_a"], "loss": study.loss, "at_steps": [0], "every": 1}
    trainer = study.train(
        folder, watcher, study.recorder(folder / "run.zarr", labels=NAMES, **options)
    )
    return study, watcher, trainer, open_store(folder / "run.zarr")


def test_there_is_one_capture_a_step(seen):
    _, _, _, store = seen
    assert store.captures == [f"training.step{k}" for k in range(STEPS + 1)]
    assert verify_store(store.path).damages == []
    for k, name in enumerate(store.captures):
        capture = store.capture(name)
        assert list(capture.samples["id"]) == [f"u{i}" for i in range(6)]
        assert list(capture.samples["speaker"]) == ["s0", "s1", "s2"] * 2
        assert list(capture.row_counts("encoder")) == [10 + 5 * i for i in range(6)]
        attrs = capture.attrs
        assert (attrs["of"], attrs["step"], attrs["steps"]) == ("training", k, STEPS)
        assert attrs["epoch"] == k / 2
        assert attrs["adapter"]["scaling"] == 2.0
        assert attrs["labels"] == NAMES
        # before the first update of this training, nothing was exposed to it
        assert attrs["trained"] == (["head", "adapter"] if k else [])
        assert list(capture.samples["exposed"]) == [i < 4 and k > 0 for i in range(6)]


def test_parameters_are_those_of_the_step(seen):
    _, watcher, trainer, store = seen
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == STEPS
    for k in range(STEPS + 1):
        parameters = store.capture(f"training.step{k}").parameters
        for name, weight in watcher.weights[k].items():
            np.testing.assert_array_equal(parameters[name], weight, err_msg=name)
        if k == 0:  # there is no training yet
            assert not any(name.startswith("training.") for name in parameters)
            continue
        rates = 1e-2 * (1 - np.arange(k) / STEPS)
        np.testing.assert_allclose(parameters["training.learning_rate"], rates, rtol=1e-12)
        # the Trainer logs a loss after the callbacks of its step
        assert ("training.loss" in parameters) == (k > 1)
        if k > 1:
            np.testing.assert_array_equal(parameters["training.loss_step"], 1 + np.arange(k - 1))
            np.testing.assert_array_equal(parameters["training.loss"], losses[: k - 1])


def test_activations_and_gradients_are_those_of_the_weights(seen, make_writer):
    """The model after training, recorded by hand, is the last capture."""
    study, _, _, store = seen
    model = study.model.eval().requires_grad_(requires_grad=False)
    writer = make_writer()
    with Recorder(model, writer, sites=SITES, gradients=["lora_a"], dtype="float32") as recorder:
        for batch in study.probes():
            with recorder.batch(batch.ids, mask=batch.mask):
                output = model(**batch.inputs)
                recorder.backward(study.loss(output, batch))
    capture = store.capture(f"training.step{STEPS}")
    for site in ("resid_post", "lora_b.v_proj", "grad.lora_a.v_proj"):
        rows = np.concatenate([writer.samples[f"u{i}"][site][2] for i in range(6)])
        np.testing.assert_array_equal(capture.read_rows(site, 2), rows, err_msg=site)
    logits = model(study.features[:3]).logits
    np.testing.assert_array_equal(capture.read_output("logits")[:3], logits)
    first = store.capture("training.step0")
    assert not first.read_rows("lora_b.v_proj", 2).any()
    assert capture.read_rows("lora_b.v_proj", 2).any()


def test_the_store_can_be_analysed(seen):
    *_, store = seen
    tables = analyze(store, ["cka", "svd", "lens", "outputs"], workers=1)
    assert set(tables["outputs"]["capture"].values) == set(store.captures)


def all_weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def peft_config():
    from peft import LoraConfig

    return LoraConfig(
        r=4, target_modules=["v_proj"], lora_dropout=0.3, modules_to_save=["classifier"]
    )


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", ["adapter", "peft model", "all weights"])
def test_the_training_does_not_notice(make_study, tmp_path, kind):
    def trained(folder, *, recorded):
        options = {"adapter": None} if kind != "adapter" else {}
        if kind == "peft model":
            options["peft"] = peft_config()
        study = make_study(**options)
        if kind == "all weights":
            study.model.requires_grad_(requires_grad=True)
            study.model.config.encoder_layerdrop = 0.0
            for module in study.model.encoder.layers:
                module.dropout = 0.3  # dropout of the model itself
        sites = ["resid_post"] if kind == "all weights" else SITES
        callback = study.recorder(
            folder / "run.zarr",
            sites=sites,
            gradients=["resid_post"],
            loss=study.loss,
            every=1,
            labels=NAMES,
            on_evaluate=True,
        )
        study.train(folder, *([callback] if recorded else []), eval_strategy="epoch")
        return all_weights(study.model), torch.rand(3), np.random.rand(3), random.random()  # noqa: NPY002

    with_it = trained(tmp_path / "with", recorded=True)
    without = trained(tmp_path / "without", recorded=False)
    assert len(with_it[0]) == len(without[0])
    for name, value in with_it[0].items():
        assert torch.equal(value, without[0][name]), name
    assert torch.equal(with_it[1], without[1])
    np.testing.assert_array_equal(with_it[2], without[2])
    assert with_it[3] == without[3]
    store = open_store(tmp_path / "with" / "run.zarr")
    assert len(store.captures) == STEPS
    parameters = set(store.capture("training.step4").parameters)
    assert ("adapter.0.v_proj.lora_a" in parameters) == (kind != "all weights")
    assert "head.classifier.weight" in parameters


def test_dropout_was_active(make_study, tmp_path):
    """The test above says nothing if training draws no random numbers."""
    with_dropout, without = (
        make_study(),
        make_study(adapter=make_study().ADAPTER.model_copy(update={"dropout": 0.0})),
    )
    with_dropout.train(tmp_path)
    without.train(tmp_path)
    first, second = all_weights(with_dropout.model), all_weights(without.model)
    assert any(not torch.equal(value, second[name]) for name, value in first.items())


def disturb(model):
    """Look at the model, as a capture does, and change everything that must come back."""
    with undisturbed(model):
        assert not any(module.training for module in model.modules())
        assert not any(p.requires_grad for p in model.parameters())
        for parameter in model.parameters():
            parameter.grad = None
        torch.rand(1)
        np.random.rand(1)  # noqa: NPY002
        random.random()
        raise KeyError


def test_everything_comes_back():
    inner = nn.Sequential(nn.Dropout(), nn.Linear(2, 2))
    model = nn.Sequential(nn.Linear(2, 2), inner)
    model.train()
    inner.training = False  # a module in eval mode with one in training mode below it
    model[0].weight.requires_grad = False
    model(torch.ones(1, 2)).sum().backward()
    modes = [module.training for module in model.modules()]
    flags = [p.requires_grad for p in model.parameters()]
    gradients = [p.grad for p in model.parameters()]
    drawn = np.random.get_state()[1].tolist()  # noqa: NPY002
    states = random.getstate(), torch.get_rng_state()
    with pytest.raises(KeyError):
        disturb(model)
    assert [module.training for module in model.modules()] == modes
    assert modes == [True, True, False, True, True]
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))
    assert np.random.get_state()[1].tolist() == drawn  # noqa: NPY002
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])
