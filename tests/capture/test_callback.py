"""`RecorderCallback` in a Trainer: it records what is there, and the training does not notice."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from lorascope.analyses import analyze
from lorascope.capture import (
    CaptureError,
    ConfigError,
    DataError,
    ModelError,
    ProbeBatch,
    Recorder,
    RecorderCallback,
)
from lorascope.capture.config_models import AdapterConfig
from lorascope.capture.lora import extract_weights, named_weights
from lorascope.capture.probe_batch import OnlyNew
from lorascope.capture.undisturbed import undisturbed
from lorascope.store import NewSample, Site, open_store, verify_store

ADAPTER = AdapterConfig(r=4, alpha=8, target_modules=("v_proj",), dropout=0.3)
CLASSES = [0, 1, 2, 3, 0, 1, 2, 3]
NAMES = ["anger", "happiness", "neutral", "sadness"]
STEPS = 4  # two epochs of two batches of four
SITES = ["resid_post", "lora_a", "lora_b"]
FRAMES = 50


def sample_loss(output, batch):
    target = torch.tensor([NAMES.index(label) for label in batch.labels])
    return nn.functional.cross_entropy(output.logits, target, reduction="none")


class Study:
    """A model, its training data and its probe batches, the same each time."""

    def __init__(self, make_model, make_waves, *, adapter=ADAPTER, peft=None):
        self.loaded = make_model(adapter)
        self.model = self.loaded.model
        self.features = self.loaded.features(make_waves(len(CLASSES)))
        if peft is not None:
            from peft import get_peft_model

            torch.manual_seed(0)
            self.model = get_peft_model(self.model, peft)
        else:
            for name, weight in named_weights(self.model, self.loaded.family).items():
                weight.requires_grad = name.startswith(("head.", "adapter."))

    def probes(self, size=3):
        for start in range(0, 6, size):
            at = range(start, min(start + size, 6))
            yield ProbeBatch(
                ids=[f"u{i}" for i in at],
                inputs={"input_features": self.features[list(at)]},
                labels=[NAMES[CLASSES[i]] for i in at],
                mask=np.arange(FRAMES)[None] < np.array([[10 + 5 * i] for i in at]),
                groups={"speaker": [f"s{i % 3}" for i in at]},
                exposed=[i < 4 for i in at],
            )

    def train(self, folder, *callbacks, model=None, **options):
        arguments = TrainingArguments(
            output_dir=str(folder / "trainer"),
            num_train_epochs=2,
            learning_rate=1e-2,
            per_device_train_batch_size=4,
            seed=0,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            **{
                "save_strategy": "no",
                "logging_steps": 1,
                "remove_unused_columns": False,
                **options,
            },
        )
        data = [
            {"input_features": f, "labels": torch.tensor(c)}
            for f, c in zip(self.features, CLASSES, strict=True)
        ]
        trainer = Trainer(model or self.model, arguments, train_dataset=data, eval_dataset=data[:4])
        for callback in callbacks:
            trainer.add_callback(callback)
        trainer.train()
        return trainer


class Watcher(TrainerCallback):
    """Keeps the weights after each update, independently."""

    def __init__(self, study):
        self.study, self.weights = study, {}

    def on_train_begin(self, args, state, control, **_):
        self.on_step_end(args, state, control)

    def on_step_end(self, args, state, control, **_):
        self.weights[state.global_step] = extract_weights(
            self.study.model, self.study.loaded.family
        )


@pytest.fixture
def make_study(make_model, make_waves):
    def make(**options):
        return Study(make_model, make_waves, **options)

    return make


def recorder_of(study, path, **options):
    return RecorderCallback(path, study.probes, **{"sites": SITES, "dtype": "float32", **options})


@pytest.fixture(scope="module")
def seen(make_model, make_waves, tmp_path_factory):
    """One training with captures at every step."""
    folder = tmp_path_factory.mktemp("callback")
    study = Study(make_model, make_waves)
    watcher = Watcher(study)
    options = {"gradients": ["lora_a"], "loss": sample_loss, "at_steps": [0], "every": 1}
    trainer = study.train(
        folder, watcher, recorder_of(study, folder / "run.zarr", labels=NAMES, **options)
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
                recorder.backward(sample_loss(output, batch))
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
        callback = recorder_of(
            study,
            folder / "run.zarr",
            sites=sites,
            gradients=["resid_post"],
            loss=sample_loss,
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
        make_study(adapter=ADAPTER.model_copy(update={"dropout": 0.0})),
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


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, [0, 4]),
        ({"at_steps": ["final"]}, [4]),
        ({"at_steps": ["epochs"]}, [2, 4]),
        ({"at_steps": [1, "every:3"]}, [1, 3]),
        ({"every": 2}, [2, 4]),
        ({"on_evaluate": True}, [2, 4]),
        ({"on_evaluate": True, "at_steps": [0]}, [0, 2, 4]),
    ],
)
def test_when_it_captures(make_study, tmp_path, options, steps):
    study = make_study()
    batches = study.probes()  # an iterator is read once
    callback = RecorderCallback(
        tmp_path / "run.zarr", batches, sites=["lora_a"], frames="none", capture="run", **options
    )
    study.train(tmp_path, callback, eval_strategy="epoch")
    assert open_store(tmp_path / "run.zarr").captures == [f"run.step{k}" for k in steps]


def test_the_same_training_again_records_nothing_twice(make_study, tmp_path):
    path = tmp_path / "run.zarr"
    digests = []
    for _ in range(2):
        study = make_study()
        study.train(tmp_path, recorder_of(study, path))
        digests.append(open_store(path).content_digest())
    assert digests[0] == digests[1]
    other = make_study()
    message = r"holds 'training.step0' of another training: weight_decay is 0.0 there and 0.1 now"
    with pytest.raises(CaptureError, match=message):
        other.train(tmp_path, recorder_of(other, path, at_steps=[3]), weight_decay=0.1)


def test_a_training_that_died_in_a_capture_ends_in_the_same_digest(make_study, tmp_path):
    study = make_study()
    study.train(tmp_path, recorder_of(study, tmp_path / "whole.zarr", at_steps=[0, 2]))
    dying = make_study()
    looks = 0

    def probes():
        nonlocal looks
        looks += 1
        batches = list(dying.probes())
        yield batches[0]
        if looks == 2:
            raise KeyError
        yield batches[1]

    path = tmp_path / "cut.zarr"
    callback = RecorderCallback(path, probes, sites=SITES, dtype="float32", at_steps=[0, 2])
    with pytest.raises(KeyError):
        dying.train(tmp_path, callback)
    assert verify_store(path).damages == []
    again = make_study()
    again.train(tmp_path, recorder_of(again, path, at_steps=[0, 2]))
    assert open_store(path).content_digest() == open_store(tmp_path / "whole.zarr").content_digest()


def test_a_training_that_goes_on_from_a_checkpoint(make_study, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2}
    whole = make_study()
    whole.train(tmp_path, recorder_of(whole, tmp_path / "whole.zarr"), **options)
    path = tmp_path / "cut.zarr"
    resumed = make_study()

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            control.should_training_stop = state.global_step == 2

    first = make_study()
    first.train(tmp_path, recorder_of(first, path, at_steps=[0, 4]), Stop(), **options)
    assert open_store(path).captures == ["training.step0"]
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "trainer"),
        num_train_epochs=2,
        learning_rate=1e-2,
        per_device_train_batch_size=4,
        seed=0,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        logging_steps=1,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        save_strategy="no",
    )
    data = [
        {"input_features": f, "labels": torch.tensor(c)}
        for f, c in zip(resumed.features, CLASSES, strict=True)
    ]
    trainer = Trainer(resumed.model, arguments, train_dataset=data)
    trainer.add_callback(recorder_of(resumed, path, at_steps=[0, 4]))
    trainer.train(resume_from_checkpoint=str(tmp_path / "trainer" / "checkpoint-2"))
    last = open_store(path).capture("training.step4")
    expected = open_store(tmp_path / "whole.zarr").capture("training.step4")
    np.testing.assert_array_equal(
        last.read_rows("lora_b.v_proj", 1), expected.read_rows("lora_b.v_proj", 1)
    )
    rates = last.parameters["training.learning_rate"]
    assert np.isnan(rates[:2]).all()
    np.testing.assert_allclose(rates[2:], [5e-3, 2.5e-3], rtol=1e-12)


def test_a_wrapped_model(make_study, tmp_path):
    class Wrapper(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.inner = model

        def forward(self, input_features, labels):
            return self.inner(input_features, labels=labels)

    study = make_study()
    path = tmp_path / "run.zarr"
    with pytest.raises(ModelError, match=r"trains a Wrapper, which is no transformers model"):
        study.train(tmp_path, recorder_of(study, path), model=Wrapper(study.model))
    callback = recorder_of(study, path, model=study.model)
    study.train(tmp_path, callback, model=Wrapper(study.model))
    assert open_store(path).captures == ["training.step0", "training.step4"]


def test_other_ranks_record_nothing(make_study, tmp_path):
    study = make_study()
    callback = recorder_of(study, tmp_path / "run.zarr", every=1)
    state = SimpleNamespace(is_world_process_zero=False, global_step=1, max_steps=2)
    for event in ("on_train_begin", "on_step_end", "on_epoch_end", "on_evaluate", "on_train_end"):
        getattr(callback, event)(SimpleNamespace(), state, None, model=study.model)
    assert not (tmp_path / "run.zarr").exists()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"at_steps": [5]}, ConfigError, r"at_steps\): 5 lies beyond the training.*4 steps \(2 an"),
        ({"every": 9}, ConfigError, r"every:9 lies beyond the training"),
        ({"every": 0}, ConfigError, r"'every:0' is no moment of a training"),
        ({"at_steps": ["end"]}, ConfigError, r"'end' is no moment of a training"),
        ({"gradients": ["lora_a"]}, ConfigError, r"gradients need a loss"),
        ({"layer": [1]}, ConfigError, r"unknown option 'layer'; did you mean 'layers'"),
        ({"sites": ["resid_pots"]}, ConfigError, r"unknown site 'resid_pots'"),
        ({"layers": [7]}, ConfigError, r"has no layer 7"),
    ],
)
def test_what_is_refused_before_the_first_step(make_study, tmp_path, options, error, message):
    study = make_study()
    watcher = Watcher(study)
    with pytest.raises(error, match=message):
        study.train(tmp_path, recorder_of(study, tmp_path / "run.zarr", **options), watcher)
    assert watcher.weights == {}
    assert not (tmp_path / "run.zarr").exists()


def test_sharded_training_is_refused(make_study, tmp_path):
    study = make_study()
    callback = recorder_of(study, tmp_path / "run.zarr")
    state = SimpleNamespace(is_world_process_zero=True, global_step=0, max_steps=2)
    arguments = SimpleNamespace(fsdp=["full_shard"], deepspeed=None)
    with pytest.raises(ModelError, match="FSDP or DeepSpeed shard"):
        callback.on_train_begin(arguments, state, None, model=study.model)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda b: b[:0], ConfigError, "probe batches are empty"),
        (lambda b: [b[0], b[0]], DataError, "sample 'u0' is in the probe batches twice"),
    ],
)
def test_probe_batches_that_make_no_sense(make_study, tmp_path, change, error, message):
    study = make_study()
    batches = change(list(study.probes()))
    with pytest.raises(error, match=message):
        study.train(tmp_path, RecorderCallback(tmp_path / "r.zarr", batches, sites=SITES))


def test_probe_batches_that_change(make_study, tmp_path):
    study = make_study()
    orders = iter([[0, 1], [1, 0]])

    def probes():
        batches = list(study.probes())
        return [batches[i] for i in next(orders)]

    with pytest.raises(CaptureError, match="other samples than at the first step"):
        study.train(tmp_path, RecorderCallback(tmp_path / "r.zarr", probes, sites=SITES))


def test_a_batch_whose_parts_differ_in_length():
    with pytest.raises(DataError, match="names 2 ids, but 3 labels"):
        ProbeBatch(["a", "b"], {}, labels=["x", "y", "z"])
    with pytest.raises(DataError, match="names 2 ids, but 1 speaker"):
        ProbeBatch(["a", "b"], {}, groups={"speaker": ["s"]})


def test_the_rest_of_a_batch_is_written(make_writer):
    """Of samples a, b, c with 1, 2, 3 rows the store has b already."""
    inner = make_writer()
    inner.committed = {"b"}
    sites = [
        Site("resid_post", [0, 1], 2, stream="encoder"),
        Site("embed", None, 2, stream="encoder"),
        Site("resid_post.mean_valid", [0, 1], 2, kind="sample", stream="encoder"),
    ]
    samples = [NewSample(n, {"encoder": r}) for n, r in (("a", 1), ("b", 2), ("c", 3))]
    rows = np.arange(24, dtype=np.float32).reshape(2, 6, 2)
    pooled = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    values = {"resid_post": rows, "embed": rows[0], "resid_post.mean_valid": pooled}
    OnlyNew(inner, sites).append_batch(samples, values)
    assert list(inner.samples) == ["a", "c"]
    np.testing.assert_array_equal(inner.samples["a"]["resid_post"], rows[:, :1])
    np.testing.assert_array_equal(inner.samples["c"]["resid_post"], rows[:, 3:])
    np.testing.assert_array_equal(inner.samples["c"]["embed"], rows[0, 3:])
    np.testing.assert_array_equal(inner.samples["c"]["resid_post.mean_valid"], pooled[:, 2])
