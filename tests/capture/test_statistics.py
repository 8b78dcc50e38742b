"""The figures of the recorded values: against float64, in every type, and merged over anything."""

from __future__ import annotations

from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lorascope.capture import SilentReporter, condition_run, load_config, run_capture
from lorascope.capture.statistics import (
    Watcher,
    describe_nonfinite,
    measure,
    places,
    statistics_output,
    summarise,
)
from lorascope.store import NewSample, SampleRows, Site, create_store, open_store

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]


def reference(values, counts):
    """Return the same figures, from float64, sample by sample."""
    bounds = np.cumsum([0, *counts])
    figures = np.zeros((len(values), len(counts), 2))
    for i, (start, stop) in enumerate(pairwise(bounds)):
        own = values[:, start:stop].astype(np.float64).reshape(len(values), -1)
        finite = np.isfinite(own)
        figures[:, i, 0] = np.abs(np.where(finite, own, 0)).max(axis=1, initial=0)
        figures[:, i, 1] = (~finite).sum(axis=1)
    return figures


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
@given(data=st.data())
def test_the_bits_say_what_float64_says(dtype, data):
    counts = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=4))
    shape = (data.draw(st.integers(1, 2)), sum(counts), data.draw(st.integers(1, 3)))
    floats = st.floats(width=16, allow_nan=True, allow_infinity=True)
    values = data.draw(arrays.arrays(np.float32, shape, elements=floats)).astype(dtype)
    expected = reference(values, counts)
    np.testing.assert_array_equal(measure(values, counts), expected.astype(np.float32))
    np.testing.assert_array_equal(measure(values[0], counts), expected[:1].astype(np.float32))


def test_signs_zeros_and_what_is_no_number():
    values = np.array([[-3, 2], [0, -0.0], [np.nan, -5], [-np.inf, np.inf], [-np.nan, -np.nan]])
    for dtype in DTYPES:
        figures = measure(values.astype(dtype), [1] * 5)[0]
        np.testing.assert_array_equal(figures, [[3, 0], [0, 0], [5, 1], [0, 2], [0, 2]])


SITES = [
    Site("a", [0, 2], 3, dtype="bfloat16"),
    Site("b", None, 2),
    Site("a.mean_valid", [0, 2], 3, kind="sample"),
]


def write(path, rows, batches, *, rank=0, ranks=1):
    """Write samples of known rows in batches, through a watcher."""
    rng = np.random.default_rng(0)
    values = {
        "a": rng.normal(size=(2, sum(rows), 3)).astype(ml_dtypes.bfloat16),
        "b": rng.normal(size=(sum(rows), 2)).astype(np.float32),
        "a.mean_valid": rng.normal(size=(2, len(rows), 3)).astype(np.float32),
    }
    values["a"][1, 4, 0] = np.nan
    values["a.mean_valid"][0, 1, 2] = -np.inf
    bounds = np.cumsum([0, *rows])
    plan = [SampleRows(f"s{i}", {"tokens": n}) for i, n in enumerate(rows)]
    with create_store(
        path,
        capture="c",
        sites=SITES,
        outputs=[statistics_output(SITES)],
        plan=plan,
        segment_samples=2,
        batch_size=2,
        rank=rank,
        ranks=ranks,
    ) as writer:
        mine = {i for segment in writer.segments for i in segment.samples}
        for batch in batches:
            samples = [i for i in batch if f"s{i}" in mine]
            if not samples:
                continue
            span = slice(bounds[samples[0]], bounds[samples[-1] + 1])
            of_samples = slice(samples[0], samples[-1] + 1)
            part = {
                "a": values["a"][:, span],
                "b": values["b"][span],
                "a.mean_valid": values["a.mean_valid"][:, of_samples],
            }
            Watcher(writer, SITES).append_batch(
                [NewSample(f"s{i}", {"tokens": rows[i]}) for i in samples], part
            )
    return values


@pytest.mark.parametrize("batches", [[[0, 1], [2, 3], [4]], [[0], [1], [2], [3], [4]]])
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_capture_sums_over_batches_segments_and_ranks(tmp_path, batches, ranks):
    rows = [3, 2, 4, 1, 5]
    values = write(tmp_path / "s", rows, batches, rank=0, ranks=ranks)
    for rank in range(1, ranks):
        write(tmp_path / "s", rows, batches, rank=rank, ranks=ranks)
    extents = summarise(open_store(tmp_path / "s").capture("c"))
    assert [(e.site, e.layer) for e in extents] == places(SITES)
    assert [(e.nonfinite, e.samples) for e in extents] == [(0, 0), (1, 1), (0, 0), (1, 1), (0, 0)]
    a = values["a"].astype(np.float64)
    a[~np.isfinite(a)] = 0
    assert [e.max_abs for e in extents[:2]] == list(np.abs(a).max(axis=(1, 2)))
    assert extents[2].max_abs == np.abs(values["b"]).max()
    assert describe_nonfinite(extents) == (
        "values that are NaN or infinite were recorded: a layer 2: 1 in 1 samples; "
        "a.mean_valid layer 0: 1 in 1 samples."
    )
    assert describe_nonfinite(extents[:1]) is None


CONFIG = """
seed: 0
model: {base: "demo:whisper", window_seconds: 1}
data: {corpus: demo, labels: [anger, sadness], per_class: 4}
captures: {plain: {adapter: null}}
run: {batch_size: 4}
record: {sites: [resid_post, mlp_out], dtype: float32}
"""


def test_a_run_tells_of_a_nan_and_keeps_the_count(tmp_path, monkeypatch):
    """One frame of one sample in layer 1 of the MLP is broken; from then on all of the sample is."""
    real, notes = condition_run.load_model, []
    calls = []

    def load(*args, **kwargs):
        loaded = real(*args, **kwargs)

        def spoil(_module, _args, output):
            calls.append(len(output))
            if len(calls) > 3:  # the certificate's forwards stay sound
                output = output.clone()
                output[1, 0, 5] = np.nan
            return output

        loaded.model.encoder.layers[1].fc2.register_forward_hook(spoil)
        return loaded

    class Notes(SilentReporter):
        def note(self, text):
            notes.append(text)

    monkeypatch.setattr(condition_run, "load_model", load)
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    summary = run_capture(load_config(path), store_path=tmp_path / "s.zarr", reporter=Notes())
    extents = {(e.site, e.layer): e for e in summary.conditions[0].extents}
    assert extents["mlp_out", 0].nonfinite == extents["resid_post", 0].nonfinite == 0
    assert extents["mlp_out", 1].nonfinite == 2
    assert extents["mlp_out", 1].samples == 2
    rows = open_store(tmp_path / "s.zarr").capture("plain").row_counts("encoder")[[1, 5]].sum()
    assert extents["resid_post", 2].nonfinite == rows * 64
    flagged = [note for note in notes if "NaN" in note]
    assert len(flagged) == 1
    assert flagged[0].startswith("plain: values that are NaN or infinite were recorded: resid_post")
    assert "mlp_out layer 1: 2 in 2 samples" in flagged[0]
