"""A device with too little memory gets smaller batches; nothing is lost, doubled or out of order."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lorascope.capture import DeviceMemoryError, SilentReporter, load_config, run_capture
from lorascope.capture.memory import BatchSizer
from lorascope.store import open_store, verify_store

CONFIG = """
seed: 0
model: {base: "demo:whisper", window_seconds: 1}
data: {corpus: demo, labels: [anger, sadness], per_class: 5}
captures: {untrained: {adapter: {type: lora, r: 2, alpha: 4, target_modules: [v_proj]}}}
run: {batch_size: 4, segment_samples: 8}
record: {sites: [embed, resid_post, lora_a], gradients: [resid_post], dtype: float32}
"""


class Notes(SilentReporter):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


class SmallDevice:
    """Refuses batches that are too large, in the middle of a forward or of a backward."""

    def __init__(self, monkeypatch, holds, *, where="forward", error=None, after=0):
        from lorascope.capture import condition_run

        self.holds, self.where, self.left = holds, where, after
        self.error = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        self.refused = []
        real = condition_run.load_model

        def load(*args, **kwargs):
            loaded = real(*args, **kwargs)
            loaded.model.encoder.layers[2].register_forward_hook(self.hook)
            return loaded

        monkeypatch.setattr(condition_run, "load_model", load)

    def hook(self, _module, _args, output):
        tensor = output[0] if isinstance(output, tuple) else output
        if len(tensor) <= self.holds:
            return
        if self.where == "forward":
            self.refuse(tensor)
        elif tensor.requires_grad:
            tensor.register_hook(self.refuse)

    def refuse(self, tensor):
        if self.left > 0:
            self.left -= 1
            return
        self.refused.append(len(tensor))
        raise self.error


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    path.write_text(CONFIG)
    return load_config(path)


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """What a device with enough memory records."""
    path = tmp_path_factory.mktemp("whole") / "s.zarr"
    run_capture(config, store_path=path)
    return open_store(path).capture("untrained")


def same_samples(capture, whole):
    """Every sample once, in order, with the values of its own (up to the batch's last bits)."""
    columns = ["id", "label", "exposed", "segment", "speaker", "valid_frames"]
    assert capture.samples[columns].equals(whole.samples[columns])
    for site in ("resid_post", "grad.resid_post", "lora_a.v_proj"):
        for layer in range(4):
            ours, theirs = capture.read_rows(site, layer), whole.read_rows(site, layer)
            # rounding of float32 where batches differ, relative to the largest
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())
    np.testing.assert_array_equal(
        capture.read_positions("encoder"), whole.read_positions("encoder")
    )


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_batches_are_halved_until_they_fit(config, whole, tmp_path, monkeypatch, where):
    device = SmallDevice(monkeypatch, 1, where=where)
    notes = Notes()
    summary = run_capture(config, store_path=tmp_path / "s.zarr", reporter=notes)
    # once for the certificate and once for the capture: what does not fit is not tried again
    assert device.refused == [4, 2, 4, 2]
    assert [note for note in notes.notes if "memory for 4 samples at once; going on with 2" in note]
    capture = open_store(tmp_path / "s.zarr").capture("untrained")
    same_samples(capture, whole)
    assert set(capture.samples["batch_size"]) == {1}
    assert list(whole.samples["batch_size"]) == [4] * 8 + [2] * 2
    assert summary.conditions[0].certificate["samples"] == 1
    assert "alone" not in summary.conditions[0].certificate
    assert verify_store(tmp_path / "s.zarr").ok


def test_memory_gets_short_in_the_middle(config, whole, tmp_path, monkeypatch):
    """Another process took some: batches before keep their size, and the table says so."""
    # the certificate runs two forwards of 4, then comes the first batch
    device = SmallDevice(monkeypatch, 2, after=3)
    run_capture(config, store_path=tmp_path / "s.zarr")
    assert device.refused == [4]
    capture = open_store(tmp_path / "s.zarr").capture("untrained")
    assert list(capture.samples["batch_size"]) == [4] * 4 + [2] * 6
    same_samples(capture, whole)
    first = whole.row_counts("encoder")[:4].sum()
    for layer in range(4):
        ours, theirs = capture.read_rows("resid_post", layer), whole.read_rows("resid_post", layer)
        np.testing.assert_array_equal(ours[:first], theirs[:first])


def test_a_run_that_was_short_of_memory_is_resumed(config, whole, tmp_path, monkeypatch):
    class Stop(SilentReporter):
        def progress(self, done, total, text):
            if text.startswith("capturing") and done == 8:
                raise KeyboardInterrupt

    path = tmp_path / "s.zarr"
    with monkeypatch.context() as patch:
        SmallDevice(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            run_capture(config, store_path=path, reporter=Stop())
    assert list(open_store(path).capture("untrained").samples["batch_size"]) == [2] * 8
    run_capture(config, store_path=path)
    capture = open_store(path).capture("untrained")
    assert list(capture.samples["batch_size"]) == [2] * 10
    same_samples(capture, whole)


def test_one_sample_alone_does_not_fit(config, tmp_path, monkeypatch):
    SmallDevice(monkeypatch, 0)
    with pytest.raises(DeviceMemoryError, match="too little memory for a single sample: CUDA out"):
        run_capture(config, store_path=tmp_path / "s.zarr")
    assert open_store(tmp_path / "s.zarr").samples.empty


def test_other_errors_are_not_taken_for_lack_of_memory(config, tmp_path, monkeypatch):
    device = SmallDevice(monkeypatch, 1, error=RuntimeError("sizes do not match"))
    with pytest.raises(RuntimeError, match="sizes do not match"):
        run_capture(config, store_path=tmp_path / "s.zarr")
    assert device.refused == [4]


def test_a_cpu_says_it_in_other_words():
    tried = []

    def act(samples):
        tried.append(list(samples))
        if len(samples) > 2:
            msg = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"
            raise RuntimeError(msg)

    sizer = BatchSizer(8, SilentReporter())
    sizer.act("abcdefg", act)
    assert tried == [list("abcdefg"), list("abc"), ["a"], *map(list, "bcdefg")]
