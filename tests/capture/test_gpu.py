"""On a CUDA device: what is recorded is still what passes in the model, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lorascope.capture import CaptureError, Recorder

from .family_models import CASES
from .test_families import IDS, adapted, assert_recorded, total, watch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False"),
    pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask"),
]


@pytest.mark.parametrize("name", CASES)
def test_recorded_is_what_passes_in_the_model(name, writer):
    case = CASES[name]
    model = adapted(case).cuda()
    inputs = {key: value.cuda() for key, value in case.inputs(model).items()}
    names = [*case.places, "lora_a", "lora_b"]
    recorder = Recorder(model, writer, sites=names, gradients=names, dtype="float32", pool=())
    writer.streams = {site.name: site.stream for site in recorder.recorded}
    with recorder, recorder.batch(IDS, mask=case.masks or None):
        seen, handles = watch(model.get_base_model(), case)
        output = model(**inputs)
        for tensors in seen.values():
            for tensor in tensors:
                tensor.retain_grad()
        recorder.backward(total({k: v.cpu() for k, v in output.items() if k in TOTALLED}))
    for handle in handles:
        handle.remove()
    assert_recorded(case, seen, writer)


TOTALLED = ("logits", "last_hidden_state")
"""Outputs of which a loss is made."""


def test_rows_are_copied_before_the_forward_writes_over_them(writer):
    """Many batches whose forward reuses memory at once: a copy without its events would tear."""
    model = torch.nn.Sequential(torch.nn.Linear(512, 512), torch.nn.ReLU()).cuda()
    x = torch.randn(64, 256, 512, generator=torch.Generator().manual_seed(0))
    recorder = Recorder(model, writer, sites=["module.0"], dtype="bfloat16", pool=())
    with torch.no_grad(), recorder:
        for start in range(0, 64, 4):
            with recorder.batch([str(i) for i in range(start, start + 4)]):
                y = model(x[start : start + 4].cuda())
                y.fill_(float("nan"))  # the memory of the output is given away, and written to
        expected = model[0](x.cuda()).bfloat16().view(torch.int16).cpu().numpy()
    for i in range(64):
        got = writer.samples[str(i)]["module.0"].view(np.int16)
        np.testing.assert_array_equal(got, expected[i])


def test_float16_overflow_is_refused_on_the_device(writer):
    linear = torch.nn.Linear(4, 4)
    with torch.no_grad():
        linear.bias.fill_(1e5)
    model = torch.nn.Sequential(linear).cuda()
    recorder = Recorder(model, writer, sites=["module.0"], dtype="float16", pool=())
    with recorder, pytest.raises(CaptureError, match="float16"), recorder.batch(["a"]):
        model(torch.zeros(1, 3, 4).cuda())
    assert not writer.samples
