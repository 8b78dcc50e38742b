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
    mask: np.ndarray | None = None
    """Valid frames, bool [sample, frame]; None: all."""

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
    norm
        The final norm.
    stream
        The row space of the sites.
    info
        The samples; None where nothing names them, and `number_from` numbers them.
    number_from
        First running number.
    """

    def __init__(
        self,
        recorded: Sequence[RecordedSite],
        norm: FinalNorm,
        stream: str,
        *,
        info: SampleInfo | None,
        number_from: int = 0,
    ) -> None:
        self._recorded, self._norm, self._stream = recorded, norm, stream
        self._frames = row_frames(recorded)
        self._info = info
        self._number_from = number_from
        self._buffer: BatchBuffer | None = None
        self._positions: tuple[np.ndarray, ...] = ()
        self._outputs: dict[str, torch.Tensor] = {}
        self.explicit = info is not None
        self.forward_ran = False
        self.backward_running = False
        self.backward_ran = False

    @property
    def size(self) -> int | None:
        """Number of samples; None before the first tensor of a batch that nothing named."""
        return None if self._info is None else len(self._info.ids)

    def receive(self, index: int, position: int, tensor: torch.Tensor) -> None:
        """Take an activation, or wait for the gradient of one."""
        if self.backward_running:
            return  # a checkpointed module runs again: its first run was recorded
        buffer = self._buffer or self._begin(tensor)
        site = self._recorded[index]
        if not site.gradient:
            self._put(buffer, index, position, tensor)
            return
        if not tensor.requires_grad:
            msg = (
                f"{site.name} is not reached by autograd: run the forward outside torch.no_grad, "
                "and without reentrant gradient checkpointing."
            )
            raise CaptureError(msg)
        tensor.register_hook(lambda gradient: self._put(buffer, index, position, gradient))

    def _begin(self, tensor: torch.Tensor) -> BatchBuffer:
        n_samples, n_frames = tensor.shape[:2]
        if self._info is None:
            self._info = SampleInfo([str(self._number_from + i) for i in range(n_samples)])
        mask = self._info.mask
        mask = np.ones((n_samples, n_frames), bool) if mask is None else mask
        if len(self._info.ids) != n_samples or len(mask) != n_samples:
            msg = (
                f"the model ran on {n_samples} samples, but recorder.batch named "
                f"{len(self._info.ids)} ids and {len(mask)} rows of mask."
            )
            raise CaptureError(msg)
        selection = select(mask, self._frames, device=tensor.device)
        self._positions = selection.positions
        self._buffer = BatchBuffer(self._recorded, selection, self._norm)
        return self._buffer

    def _put(self, buffer: BatchBuffer, index: int, position: int, tensor: torch.Tensor) -> None:
        if buffer.has(index, position):
            site = self._recorded[index]
            path = site.taps[position].path or "the model"
            msg = (
                f"{path} ran twice in one batch, so {site.name} is ambiguous: one forward and one "
                "backward a batch; a module that a forward uses twice cannot be recorded."
            )
            raise CaptureError(msg)
        buffer.put(index, position, tensor)

    def output(self, values: Mapping[str, torch.Tensor]) -> None:
        """Keep per-sample outputs, [sample, ...]."""
        self._outputs.update({name: value.detach() for name, value in values.items()})

    def finish(self, writer: Any) -> None:  # noqa: ANN401
        """Give every sample to `writer`; CaptureError if a tensor never came."""
        buffer, info = self._buffer, self._info
        missing = ["every site"] if buffer is None else buffer.missing()
        if buffer is None or info is None or missing:
            why = "no forward ran" if not self.forward_ran else "it was not reached"
            wants_gradient = any(site.gradient for site in self._recorded)
            if self.forward_ran and not self.backward_ran and wants_gradient:
                why = "recorder.backward did not run"
            msg = f"nothing was recorded for {', '.join(missing[:5])} in this batch: {why}."
            raise CaptureError(msg)
        outputs = {name: to_numpy(value.cpu()) for name, value in self._outputs.items()}
        samples = []
        for i, kept in enumerate(self._positions):
            rows = {} if self._frames == "none" else {self._stream: kept}
            samples.append(
                NewSample(
                    info.ids[i],
                    n_rows={stream: len(positions) for stream, positions in rows.items()},
                    positions=rows,
                    outputs={name: values[i] for name, values in outputs.items()},
                    **info.fields(i),
                )
            )
        writer.append_batch(samples, buffer.arrays())
