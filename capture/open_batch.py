"""The batch that a `Recorder` has open: what is known of its samples, and what was seen so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..store import NewSample
from .batch import BatchBuffer, to_numpy
from .errors import CaptureError
from .pooling import FinalNorm, select
from .sites import RecordedSite, row_frames
from .transfer import HostCopies


@dataclass(frozen=True, slots=True)
class SampleInfo:
    """What is known of the samples of a batch besides their tensors; one entry a sample."""

    ids: Sequence[str]
    """Ids."""
    labels: Sequence[str] | None = None
    """Labels; None: unknown."""
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Group name to groups."""
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Column name to values."""
    exposed: Sequence[bool] | None = None
    """Whether training saw the sample; None: it did not."""
    masks: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Stream to valid frames, bool [sample, frame]; all, where a stream is absent."""

    def fields(self, i: int) -> dict[str, Any]:
        """Return the fields of `NewSample` that describe sample `i`."""
        return {
            "label": "" if self.labels is None else self.labels[i],
            "groups": {name: values[i] for name, values in self.groups.items()},
            "columns": {name: values[i] for name, values in self.columns.items()},
            "exposed": False if self.exposed is None else bool(self.exposed[i]),
        }


class OpenBatch:
    """Takes tensors from hooks and, at the end, gives complete samples to a writer.

    Parameters
    ----------
    recorded
        The recorded sites.
    norms
        Stream to its final norm.
    copies
        What brings rows from a device to the host.
    info
        The samples; None where nothing names them, and `number_from` numbers them.
    number_from
        First running number.
    skips
        Whether the model may leave out layers.
    """

    def __init__(
        self,
        recorded: Sequence[RecordedSite],
        norms: Mapping[str, FinalNorm],
        copies: HostCopies,
        *,
        info: SampleInfo | None,
        number_from: int = 0,
        skips: bool = False,
    ) -> None:
        self._skips = skips
        self._recorded, self._norms, self._copies = recorded, norms, copies
        self._info = info
        self._number_from = number_from
        self._buffers: dict[str, BatchBuffer] = {}
        self._positions: dict[str, tuple[np.ndarray, ...]] = {}
        self._outputs: dict[str, torch.Tensor] = {}
        self.explicit = info is not None
        self.forward_ran = False
        self.backward_running = False
        self.backward_ran = False

    @property
    def size(self) -> int | None:
        """Number of samples; None before the first tensor of a batch that nothing named."""
        return None if self._info is None else len(self._info.ids)

    def receive(
        self, index: int, position: int, tensor: torch.Tensor, given: torch.Tensor | None = None
    ) -> None:
        """Take an activation, or wait for the gradient of one (or, with `given`, of a weight).

        A gradient that no parameter asks for starts at its own tensor: nothing is kept below.
        """
        site = self._recorded[index]
        if site.gradient and torch.is_grad_enabled() and not tensor.requires_grad:
            tensor.requires_grad_()
        if self.backward_running:
            return  # a checkpointed module runs again: its first run was recorded
        buffer = self._buffers.get(site.stream) or self._begin(site.stream, tensor, site.kind)
        if not site.gradient:
            buffer.put(index, position, tensor)
            return
        if not tensor.requires_grad:
            msg = (
                f"{site.name} is not reached by autograd: run the forward outside torch.no_grad, "
                "and without reentrant gradient checkpointing."
            )
            raise CaptureError(msg)
        kept = None if given is None else given.detach()
        tensor.register_hook(lambda gradient: self._put(buffer, index, position, gradient, kept))

    def _begin(self, stream: str, tensor: torch.Tensor, kind: str) -> BatchBuffer:
        n_samples, n_frames = tensor.shape[0], tensor.shape[2 if kind == "heads" else 1]
        if self._info is None:
            self._info = SampleInfo([str(self._number_from + i) for i in range(n_samples)])
        mask = self._info.masks.get(stream)
        mask = np.ones((n_samples, n_frames), bool) if mask is None else mask
        if len(self._info.ids) != n_samples or len(mask) != n_samples:
            msg = (
                f"the model ran on {n_samples} samples, but recorder.batch named "
                f"{len(self._info.ids)} ids and {len(mask)} rows of mask."
            )
            raise CaptureError(msg)
        frames = row_frames(self._recorded, stream)
        selection = select(mask, frames)
        if frames != "none":
            self._positions[stream] = selection.positions
        buffer = BatchBuffer(
            self._recorded,
            stream,
            selection,
            self._norms.get(stream),
            device=tensor.device,
            copies=self._copies,
        )
        self._buffers[stream] = buffer
        return buffer

    def _put(
        self,
        buffer: BatchBuffer,
        index: int,
        position: int,
        gradient: torch.Tensor,
        given: torch.Tensor | None,
    ) -> None:
        if given is None:
            buffer.put(index, position, gradient)
        else:
            buffer.put_weight(index, position, given, gradient)

    @property
    def complete(self) -> bool:
        """Whether every recorded tensor was taken."""
        streams = {site.stream for site in self._recorded}
        buffers = self._buffers
        return len(buffers) == len(streams) and not any(b.n_missing for b in buffers.values())

    def _missing(self) -> list[str]:
        streams = {site.stream for site in self._recorded}
        absent = sorted(streams - self._buffers.keys())
        return [
            *(f"every site of the {stream}" for stream in absent),
            *(name for buffer in self._buffers.values() for name in buffer.missing()),
        ]

    def output(self, values: Mapping[str, torch.Tensor]) -> None:
        """Keep per-sample outputs, [sample, ...]."""
        self._outputs.update({name: value.detach() for name, value in values.items()})

    def finish(self, writer: Any) -> None:  # noqa: ANN401
        """Give every sample to `writer`; CaptureError if a tensor never came."""
        info, missing = self._info, self._missing()
        if info is None or missing:
            why = "no forward ran" if not self.forward_ran else "it was not reached"
            wants_gradient = any(site.gradient for site in self._recorded)
            if self.forward_ran and not self.backward_ran and wants_gradient:
                why = "recorder.backward did not run"
            elif self.forward_ran and self._skips:
                why += ", because LayerDrop skips layers in training mode: set config.layerdrop = 0"
            msg = f"nothing was recorded for {', '.join(missing[:5])} in this batch: {why}."
            raise CaptureError(msg)
        outputs = {name: to_numpy(value.cpu()) for name, value in self._outputs.items()}
        samples = []
        for i, id_ in enumerate(info.ids):
            rows = {stream: positions[i] for stream, positions in self._positions.items()}
            samples.append(
                NewSample(
                    id_,
                    n_rows={stream: len(kept) for stream, kept in rows.items()},
                    positions=rows,
                    outputs={name: values[i] for name, values in outputs.items()},
                    **info.fields(i),
                )
            )
        arrays: dict[str, np.ndarray] = {}
        for buffer in self._buffers.values():
            arrays |= buffer.arrays()
        writer.append_batch(samples, arrays)
