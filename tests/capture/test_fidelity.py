"""The certificate of a capture, and what a resumed one is compared with."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lorascope.capture import CaptureError, SilentReporter, condition_run, load_config, run_capture
from lorascope.capture.fidelity import describe_doubt
from lorascope.store import open_store

CONFIG = """
seed: 0
model: {base: "demo:whisper", window_seconds: 1}
data: {corpus: demo, labels: [anger, sadness], per_class: 6}
captures:
  normal: {adapter: {type: lora, r: 4, alpha: 8, target_modules: [v_proj, fc1], init: normal}}
run: {batch_size: 4, segment_samples: 4}
record: {sites: [resid_post, lora_a], gradients: [resid_post], frames: none}
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    path.write_text(CONFIG)
    return load_config(path)


def certificate_of(path):
    return open_store(path).capture("normal").parameter_attrs["certificate"]


def with_hook(monkeypatch, path, hook):
    """Put a hook on a module of every model that is loaded from now on."""
    real = condition_run.prepare_model

    def prepare(*args):
        loaded = real(*args)
        loaded.model.get_submodule(path).register_forward_hook(hook)
        return loaded

    monkeypatch.setattr(condition_run, "prepare_model", prepare)


class Stop(SilentReporter):
    def progress(self, done, total, text):
        if text.startswith("capturing") and done == 8:
            raise KeyboardInterrupt


def test_a_sound_capture(config, tmp_path):
    summary = run_capture(config, store_path=tmp_path / "s.zarr")
    certificate = certificate_of(tmp_path / "s.zarr")
    assert summary.conditions[0].certificate == certificate
    assert certificate["samples"] == 4
    assert certificate["hooks"] == 0
    # the same three float32 operations as in the module, maybe in another order
    assert 0 <= certificate["recomposed"] < 1e-6
    alone = certificate["alone"]
    assert 0 <= alone["logits"] < 1e-4
    assert 0 <= alone["residual"] < 1e-4 * alone["residual_scale"]
    assert describe_doubt(certificate, "float32") is None


def test_the_figures_of_batching_are_those_of_an_independent_forward(config, tmp_path):
    run_capture(config, store_path=tmp_path / "four.zarr")
    one = config.model_copy(update={"run": config.run.model_copy(update={"batch_size": 1})})
    run_capture(one, store_path=tmp_path / "one.zarr")
    assert "alone" not in certificate_of(tmp_path / "one.zarr")
    logits = [
        open_store(tmp_path / name).capture("normal").read_output("logits")[0]
        for name in ("four.zarr", "one.zarr")
    ]
    difference = float(np.abs(logits[0] - logits[1]).max())
    assert certificate_of(tmp_path / "four.zarr")["alone"]["logits"] == difference


def test_a_model_that_mixes_the_samples_of_a_batch_is_seen(config, tmp_path, monkeypatch):
    """As group norms with padding do: the figure is what the mixing adds."""

    def mix(_module, _args, output):
        return output + (torch.full_like(output, 0.5) if len(output) > 1 else 0)

    with_hook(monkeypatch, "encoder.layers.3", mix)
    run_capture(config, store_path=tmp_path / "s.zarr")
    alone = certificate_of(tmp_path / "s.zarr")["alone"]
    assert alone["residual"] == pytest.approx(0.5, abs=1e-4)


def test_recording_that_changes_the_logits_is_refused(config, tmp_path, monkeypatch):
    """A module that behaves differently once a gradient is wanted of its input."""

    def shift(_module, _args, output):
        return output + 0.25 * output.requires_grad

    with_hook(monkeypatch, "encoder.layers.2", shift)
    with pytest.raises(
        CaptureError, match=r"differ in 4 of 4 samples .* not what the model computes"
    ):
        run_capture(config, store_path=tmp_path / "s.zarr")
    assert open_store(tmp_path / "s.zarr").samples.empty


def test_a_model_that_is_not_deterministic_is_told_as_such(config, tmp_path, monkeypatch):
    with_hook(
        monkeypatch, "encoder.layers.2", lambda _m, _a, output: output + torch.rand_like(output)
    )
    with pytest.raises(CaptureError, match="the model is not deterministic"):
        run_capture(config, store_path=tmp_path / "s.zarr")


def test_something_between_adapter_and_module_is_told(config, tmp_path, monkeypatch):
    notes = []

    class Notes(SilentReporter):
        def note(self, text):
            notes.append(text)

    with_hook(monkeypatch, "encoder.layers.1.fc1", lambda _m, _a, output: 1.01 * output)
    run_capture(config, store_path=tmp_path / "s.zarr", reporter=Notes())
    certificate = certificate_of(tmp_path / "s.zarr")
    assert certificate["recomposed"] == pytest.approx(0.01 / 1.01, rel=1e-3)
    assert any("base(x) + s B(A(x)) is not the output of an adapted module" in n for n in notes)


def test_a_resumed_run_keeps_the_certificate(config, tmp_path):
    path = tmp_path / "s.zarr"
    with pytest.raises(KeyboardInterrupt):
        run_capture(config, store_path=path, reporter=Stop())
    before = certificate_of(path)
    resumed = run_capture(config, store_path=path)
    assert certificate_of(path) == resumed.conditions[0].certificate == before


def test_a_model_that_is_not_the_one_of_before_cannot_go_on(config, tmp_path, monkeypatch):
    """As with another version of a library: weights are the same, logits are not."""
    path = tmp_path / "s.zarr"
    with pytest.raises(KeyboardInterrupt):
        run_capture(config, store_path=path, reporter=Stop())
    with monkeypatch.context() as patch:
        with_hook(patch, "projector", lambda _m, _a, output: output * 1.05)
        with pytest.raises(CaptureError, match=r"cannot go on: .* its first 4 samples .*torch 2"):
            run_capture(config, store_path=path)
    assert len(open_store(path).samples) == 8
    with monkeypatch.context() as patch:
        # another device's rounding: far below the tolerance
        with_hook(patch, "projector", lambda _m, _a, output: output * (1 + 1e-7))
        run_capture(config, store_path=path)
    assert len(open_store(path).samples) == 12


@pytest.mark.parametrize(
    ("certificate", "said"),
    [
        ({"recomposed": 1e-3}, "the difference is 0.001 of the largest output"),
        ({"recomposed": None}, "the difference is not a number"),
        ({"recomposed": 1e-7}, None),
        ({}, None),
    ],
)
def test_doubts(certificate, said):
    doubt = describe_doubt(certificate, "float32")
    assert (doubt is None) if said is None else (said in (doubt or ""))
