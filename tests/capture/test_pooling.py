"""Rows, masks and plans agree about which frames are kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from lorascope.capture import DataError, ModelError
from lorascope.capture.families import WHISPER, find_speech_family
from lorascope.capture.pooling import count_rows, final_norm, kept_positions, prefix_mask, select

frames = st.sampled_from(["valid", "all", "every:1", "every:3", "every:100", "none"])


@given(valid=st.integers(1, 40), window=st.integers(1, 40), kind=frames)
def test_the_plan_counts_what_the_mask_keeps(valid, window, kind):
    valid = min(valid, window)
    kept = kept_positions(prefix_mask([valid], window)[0], kind)
    assert len(kept) == count_rows(valid, window, kind)
    assert (np.diff(kept) > 0).all()
    if kind != "all":
        assert all(position < valid for position in kept)


@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=4))
def test_device_and_host_select_the_same_rows(marks):
    mask = np.array(marks)
    mask[:, 2] = True
    x = torch.arange(mask.size * 3, dtype=torch.float32).reshape(len(marks), 5, 3)
    selection = select(mask, "valid")
    rows = torch.full((2, int(mask.sum()), 3), -1.0)
    selection.copy_rows(x, selection.targets(rows)[1])
    assert (rows[0] == -1).all(), "rows of another layer were changed"
    on_host = rows[1]
    flat = x.reshape(-1, 3).index_select(0, torch.from_numpy(selection.index_n))
    assert torch.equal(on_host, flat)
    assert torch.equal(on_host, x[torch.from_numpy(mask)])
    expected = np.stack([row[m].mean(0) for row, m in zip(x.double().numpy(), mask, strict=True)])
    np.testing.assert_allclose(selection.mean_valid(x), expected, rtol=1e-6)


def test_an_empty_sample_is_refused():
    with pytest.raises(DataError, match="sample 1 of the batch has no valid frame"):
        select(prefix_mask([3, 0], 5), "valid")


@pytest.mark.parametrize(
    ("samples", "expected"),
    [(1, 1), (320, 1), (321, 2), (72_640, 227), (72_641, 228), (480_000, 1500), (900_000, 1500)],
)
def test_valid_frames_of_whisper(samples, expected):
    assert WHISPER.valid_frames(samples, 1500) == expected


def test_the_rms_norm_is_the_models_own(make_model):
    norm = LlamaRMSNorm(64, eps=1e-3)
    nn.init.normal_(norm.weight)
    x = torch.randn(3, 7, 64, generator=torch.Generator().manual_seed(0))
    model = make_model().model
    model.encoder.layer_norm = norm
    final = final_norm(model, WHISPER)
    assert final is not None
    got = final.mean_all_normed(x, select(np.ones(x.shape[:2], bool), "none"))
    # float32 sums of 64 squares and of 7 frames
    torch.testing.assert_close(got, norm(x).mean(1), rtol=1e-5, atol=1e-6)


def test_other_final_norms_are_refused(make_model):
    model = make_model().model
    model.encoder.layer_norm = nn.BatchNorm1d(64)
    with pytest.raises(ModelError, match="BatchNorm1d, neither a LayerNorm nor an RMSNorm"):
        final_norm(model, WHISPER)


def test_families_that_capture_run_cannot_load_are_told():
    with pytest.raises(ModelError, match=r"'bert' model, and capture-run .* whisper.*Recorder"):
        find_speech_family("bert", base="this")
