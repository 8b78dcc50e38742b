"""`RecorderCallback`: when it captures, how it goes on, what it refuses."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from torch import nn
from transformers import TrainerCallback

from lorascope.capture import (
    CaptureError,
    ConfigError,
    DataError,
    ModelError,
    ProbeBatch,
    RecorderCallback,
)
from lorascope.capture.probe_batch import OnlyNew
from lorascope.store import NewSample, Site, open_store, verify_store

SITES = ["resid_post", "lora_a", "lora_b"]


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
        study.train(tmp_path, study.recorder(path))
        digests.append(open_store(path).content_digest())
    assert digests[0] == digests[1]
    other = make_study()
    message = r"holds 'training.step0' of another training: weight_decay is 0.0 there and 0.1 now"
    with pytest.raises(CaptureError, match=message):
        other.train(tmp_path, other.recorder(path, at_steps=[3]), weight_decay=0.1)


def test_a_training_that_died_in_a_capture_ends_in_the_same_digest(make_study, tmp_path):
    study = make_study()
    study.train(tmp_path, study.recorder(tmp_path / "whole.zarr", at_steps=[0, 2]))
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
    again.train(tmp_path, again.recorder(path, at_steps=[0, 2]))
    assert open_store(path).content_digest() == open_store(tmp_path / "whole.zarr").content_digest()


def test_a_training_that_goes_on_from_a_checkpoint(make_study, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2}
    whole = make_study()
    whole.train(tmp_path, whole.recorder(tmp_path / "whole.zarr"), **options)
    path = tmp_path / "cut.zarr"
    resumed = make_study()

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            control.should_training_stop = state.global_step == 2

    first = make_study()
    first.train(tmp_path, first.recorder(path, at_steps=[0, 4]), Stop(), **options)
    assert open_store(path).captures == ["training.step0"]
    checkpoint = str(tmp_path / "trainer" / "checkpoint-2")
    resumed.train(tmp_path, resumed.recorder(path, at_steps=[0, 4]), resume=checkpoint)
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
        study.train(tmp_path, study.recorder(path), model=Wrapper(study.model))
    callback = study.recorder(path, model=study.model)
    study.train(tmp_path, callback, model=Wrapper(study.model))
    assert open_store(path).captures == ["training.step0", "training.step4"]


def test_other_ranks_record_nothing(make_study, tmp_path):
    study = make_study()
    callback = study.recorder(tmp_path / "run.zarr", every=1)
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
    watcher = study.watcher()
    with pytest.raises(error, match=message):
        study.train(tmp_path, study.recorder(tmp_path / "run.zarr", **options), watcher)
    assert watcher.weights == {}
    assert not (tmp_path / "run.zarr").exists()


def test_sharded_training_is_refused(make_study, tmp_path):
    study = make_study()
    callback = study.recorder(tmp_path / "run.zarr")
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
