"""Whether what is recorded is what the model computes: the certificate, and the check on resuming.

The certificate of a capture is made once, before its first sample is recorded, always of the first
batch of the plan, and is committed together with the weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from .adapters import adapters_of
from .batching import Batch, Pass, gradient_mode, prepare_batch, record_batch
from .errors import CaptureError
from .hooks import pick_tensor
from .memory import BatchSizer
from .recorder import Recorder
from .streams import layer_modules

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..store import Capture
    from .models import LoadedModel
    from .reporting import Reporter
    from .samples import Sample

LOGIT_TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
"""How far logits may be from stored ones, relative to the largest (at least 1): another batch size,
thread count or device changes the last bits; another head changes the first digit."""
RECOMPOSED_TOLERANCE = {"float32": 1e-5, "float16": 1e-2, "bfloat16": 5e-2}
"""How far base(x) + s B(A(x)) may be from the output, relative to the largest, and not be told."""


class _Nowhere:
    """A writer that keeps nothing."""

    def append_batch(self, samples: object, values: object) -> None:
        """Forget a batch."""


class _Seen:
    """What the recorded forward shows besides: the last residual, and each adapter's parts."""

    def __init__(self) -> None:
        self.residual = torch.zeros(0)
        self.recomposed: float | None = None
        self._parts: list[torch.Tensor] = []

    @contextmanager
    def watch(self, loaded: LoadedModel) -> Iterator[None]:
        """Look at one forward."""
        with ExitStack() as stack:

            def hook(module: nn.Module, take: Any) -> None:  # noqa: ANN401
                handle = module.register_forward_hook(
                    lambda _module, _args, output: take(pick_tensor(output, 0, "a layer").detach())
                )
                stack.callback(handle.remove)

            hook(layer_modules(loaded.model, loaded.family)[-1], self._take_residual)
            adapters = adapters_of(loaded.model, loaded.family)
            for adapter in adapters:
                hook(adapter.lora_b, lambda x, s=adapter.scaling: self._parts.append(s * x.float()))
            for module in dict.fromkeys(adapter.module for adapter in adapters):
                hook(module.base_layer, lambda x: self._parts.append(x.float()))
                hook(module, self._recompose)
            yield

    def _take_residual(self, x_btd: torch.Tensor) -> None:
        self.residual = x_btd[0].float().cpu()

    def _recompose(self, output: torch.Tensor) -> None:
        whole = torch.stack(self._parts).sum(0)
        self._parts.clear()
        error = float((whole - output.float()).abs().max() / output.abs().max().clamp_min(1e-30))
        # not max(): it would drop a NaN
        worse = self.recomposed is None or not error <= self.recomposed
        self.recomposed = error if worse else self.recomposed


def certify(loaded: LoadedModel, job: Pass, reporter: Reporter) -> dict[str, Any]:
    """Measure on the first batch of the plan how faithful recording it is.

    Parameters
    ----------
    loaded
        The model with its final weights.
    job
        What will be captured.
    reporter
        Hears when the batch does not fit into the device.

    Returns
    -------
    dict
        JSON-able. ``samples``: size of the batch. ``hooks``: largest difference of logits with and
        without recording (0, or it is an error). ``recomposed``: largest difference of
        base(x) + s B(A(x)) to an adapted module's output, relative to its largest output; absent
        without an adapter. ``alone``, absent for a batch of one: largest difference between the
        first sample alone and in the batch, of its ``logits`` and of its ``residual`` (after the
        last layer, valid frames), whose largest magnitude is ``residual_scale``. NaN is None.

    Raises
    ------
    CaptureError
        Recording changes the logits.
    """
    first = next(job.table.batches(job.table.samples, job.batch_size))
    sizer = BatchSizer(job.batch_size, reporter)
    return sizer.attempt(first, lambda samples: _certify(loaded, job, samples))[1]


def _certify(loaded: LoadedModel, job: Pass, samples: Sequence[Sample]) -> dict[str, Any]:
    batch = prepare_batch(loaded, job, samples)
    plain = _logits(loaded, job, batch)
    seen = _Seen()
    recorder = Recorder(loaded.model, _Nowhere(), sites=job.sites, gradients=job.gradients)
    with seen.watch(loaded), recorder:
        recorded = record_batch(loaded, recorder, job, batch)
    _check_hooks(plain, recorded, lambda: _logits(loaded, job, batch))
    certificate: dict[str, Any] = {"samples": len(samples), "hooks": 0.0}
    if seen.recomposed is not None:
        certificate["recomposed"] = _number(seen.recomposed)
    if len(samples) > 1:
        single = _Seen()
        with single.watch(loaded):
            logits = _logits(loaded, job, prepare_batch(loaded, job, samples[:1]))
        kept = slice(0, samples[0].valid_frames)
        together, own = seen.residual[kept], single.residual[kept]
        certificate["alone"] = {
            "logits": _number(np.abs(logits[0] - recorded[0]).max()),
            "residual": _number((together - own).abs().max()),
            "residual_scale": _number(together.abs().max()),
        }
    return certificate


def describe_doubt(certificate: Mapping[str, Any], dtype: str) -> str | None:
    """Say what a certificate has against the recording of LoRA; None if nothing."""
    allowed = RECOMPOSED_TOLERANCE[dtype]
    recomposed = certificate.get("recomposed", 0.0)
    if recomposed is not None and recomposed <= allowed:
        return None
    figure = "not a number" if recomposed is None else f"{recomposed:.2g} of the largest output"
    return (
        f"base(x) + s B(A(x)) is not the output of an adapted module: the difference is {figure} "
        f"(rounding explains {allowed:.0e}). Does something else change that module?"
    )


def _logits(loaded: LoadedModel, job: Pass, batch: Batch) -> np.ndarray:
    with gradient_mode(job):
        return loaded.model(**batch.inputs).logits.detach().float().cpu().numpy()


def _number(value: Any) -> float | None:  # noqa: ANN401
    number = float(value)
    return number if np.isfinite(number) else None


def _check_hooks(plain: np.ndarray, recorded: np.ndarray, again: Any) -> None:  # noqa: ANN401
    if plain.tobytes() == recorded.tobytes():
        return
    differ = int((plain != recorded).any(axis=1).sum())
    what = (
        f"logits with and without recording differ in {differ} of {len(plain)} samples of the "
        f"first batch, by up to {np.abs(plain - recorded).max():.3g}"
    )
    second = again()
    if second.tobytes() != plain.tobytes():
        msg = (
            f"{what}; so do two forwards without recording, by up to "
            f"{np.abs(second - plain).max():.3g}: the model is not deterministic. Is dropout "
            "active, or does a kernel of this device add in random order?"
        )
        raise CaptureError(msg)
    msg = (
        f"{what}: what would be recorded is not what the model computes by itself. Something "
        "else may have put hooks on the model; with gradients, the device may take another "
        "attention kernel: record without them, or with less adaptive kernels."
    )
    raise CaptureError(msg)


def check_restored(loaded: LoadedModel, job: Pass, capture: Capture, reporter: Reporter) -> None:
    """Compare the logits of the first samples of a capture with those that are stored.

    Parameters
    ----------
    loaded
        The model with restored weights.
    job
        What is captured.
    capture
        What is there of it.
    reporter
        Hears when the batch does not fit into the device.

    Raises
    ------
    CaptureError
        The restored model is not the one that recorded them.
    """
    table = capture.samples
    if not len(table):
        return
    by_id = job.table.by_id()
    size = int(table["batch_size"].iloc[0]) if "batch_size" in table else job.batch_size
    samples = [by_id[i] for i in table["id"].iloc[:size]]
    stored = np.asarray(capture.read_output("logits", slice(0, len(samples))))
    sizer = BatchSizer(len(samples), reporter)

    def compare(part: Sequence[Sample]) -> np.ndarray:
        return _logits(loaded, job, prepare_batch(loaded, job, part))

    count, logits = sizer.attempt(samples, compare)
    stored = stored[:count]
    allowed = LOGIT_TOLERANCE[loaded.description["dtype"]] * max(1.0, float(np.abs(stored).max()))
    difference = float(np.abs(logits - stored).max())
    same = difference <= allowed or np.array_equal(logits, stored, equal_nan=True)
    if not same:
        raise CaptureError(_not_the_same(capture, count, difference, allowed))


def _not_the_same(capture: Capture, count: int, difference: float, allowed: float) -> str:
    versions: Mapping[str, str] = capture.attrs.get("versions", {})
    made_with = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"capture {capture.name!r} cannot go on: the restored model gives logits that differ from "
        f"the stored ones of its first {count} samples by up to {difference:.3g} (allowed: "
        f"{allowed:.3g}). It was recorded with {made_with or 'unknown versions'}: go on with the "
        "same, or record into another store."
    )
