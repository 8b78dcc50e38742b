"""Which rows of a batch are kept, and the means over frames, all on the device that computes.

Shape suffixes: b batch, t frame, d feature, n kept rows of the batch (sample after sample).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from .errors import DataError, ModelError
from .streams import find_streams

if TYPE_CHECKING:
    from .families import Family, SpeechFamily


def kept_positions(valid: np.ndarray, frames: str) -> np.ndarray:
    """Return the frames of one sample that become rows.

    Parameters
    ----------
    valid
        Whether each frame of the window holds audio, bool [frame].
    frames
        ``valid``, ``all``, ``every:K`` (each K-th valid frame, from the first) or ``none``.
    """
    if frames == "all":
        return np.arange(len(valid), dtype=np.int64)
    if frames == "none":
        return np.zeros(0, dtype=np.int64)
    step = int(frames.partition(":")[2] or 1)
    return np.flatnonzero(valid)[::step].astype(np.int64)


def count_rows(valid_frames: int, all_frames: int, frames: str) -> int:
    """Return how many rows a sample gives; the arithmetic of `kept_positions`, for plans."""
    if frames == "all":
        return all_frames
    if frames == "none":
        return 0
    step = int(frames.partition(":")[2] or 1)
    return -(-valid_frames // step)


def prefix_mask(counts: Sequence[int], frames: int) -> np.ndarray:
    """Return the mask [batch, frame] of samples whose first `counts` frames are valid."""
    return np.arange(frames)[None, :] < np.asarray(counts)[:, None]


@dataclass(frozen=True)
class Selection:
    """The kept rows and the valid frames of one batch."""

    shape: tuple[int, int]
    """Samples and frames of the batch."""
    positions: tuple[np.ndarray, ...]
    """Kept frames of each sample, int64."""
    index_n: np.ndarray
    """Kept rows in the flattened batch, int64."""
    weights_bt: np.ndarray
    """1 / (valid frames of the sample) on its valid frames, 0 elsewhere, float32."""
    _on_device: dict[tuple[str, torch.device], torch.Tensor]
    """Copies of both where they were needed: layers of one model may be on several devices."""

    @property
    def counts(self) -> list[int]:
        """Kept rows of each sample."""
        return [len(kept) for kept in self.positions]

    def _on(self, name: str, device: torch.device) -> torch.Tensor:
        found = self._on_device.get((name, device))
        if found is None:
            found = torch.from_numpy(getattr(self, name)).to(device)
            self._on_device[name, device] = found
        return found

    @cached_property
    def _stretches(self) -> list[int] | None:
        """Lengths of what is skipped and what is kept of the flattened batch, in turn.

        None where the kept frames lie so scattered that gathering them by index is cheaper.
        """
        n_samples, n_frames = self.shape
        breaks = np.flatnonzero(np.diff(self.index_n) != 1) + 1
        if len(breaks) >= 2 * n_samples:
            return None
        starts = self.index_n[np.concatenate([[0], breaks])]
        stops = self.index_n[np.concatenate([breaks - 1, [-1]])] + 1
        edges = np.stack([starts, stops], axis=1).ravel()
        return np.diff(edges, prepend=0, append=n_samples * n_frames).tolist()

    def targets(self, rows_lnd: torch.Tensor) -> Sequence[Sequence[torch.Tensor]]:
        """Return where `copy_rows` puts the rows of each layer: made once a batch, not a tensor."""
        stretches = self._stretches
        if stretches is None:
            return [(layer,) for layer in rows_lnd.unbind(0)]
        if stretches == [0, len(self.index_n), 0]:
            shape = (len(rows_lnd), *self.shape, rows_lnd.shape[-1])
            return [(layer,) for layer in rows_lnd.view(shape).unbind(0)]
        kept = rows_lnd.split_with_sizes(stretches[1::2], dim=1)
        return list(zip(*(part.unbind(0) for part in kept), strict=True))

    def copy_rows(self, x_btd: torch.Tensor, targets: Sequence[torch.Tensor]) -> None:
        """Copy the kept rows of a tensor on the CPU, cast on their way, with one copy each.

        `targets` are those of one layer, as `targets` gave them.
        """
        if targets[0].ndim == 3:  # every frame is kept
            targets[0].copy_(x_btd)
            return
        flat_nd, stretches = x_btd.flatten(0, 1), self._stretches
        if stretches is None:
            targets[0].copy_(flat_nd.index_select(0, self._on("index_n", x_btd.device)))
            return
        for target, kept in zip(targets, flat_nd.split_with_sizes(stretches)[1::2], strict=True):
            target.copy_(kept)

    def take_rows(self, x_btd: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return the kept rows [n, d], selected and cast on the device of the tensor."""
        index = self._on("index_n", x_btd.device)
        return x_btd.reshape(-1, x_btd.shape[-1]).index_select(0, index).to(dtype)

    def mean_valid(self, x_btd: torch.Tensor) -> torch.Tensor:
        """Return the mean over valid frames, float32 [b, d], from float32 values."""
        weights = self._on("weights_bt", x_btd.device)
        return torch.bmm(weights[:, None, :], x_btd.float()).squeeze(1)


def select(mask_bt: np.ndarray, frames: str) -> Selection:
    """Prepare the selection of one batch in one stream.

    Parameters
    ----------
    mask_bt
        Whether a frame holds audio, bool [batch, frame].
    frames
        See `kept_positions`.

    Raises
    ------
    DataError
        A sample has no valid frame.
    """
    counts = mask_bt.sum(axis=1)
    if (counts == 0).any():
        msg = f"sample {int(np.argmin(counts))} of the batch has no valid frame: it is empty."
        raise DataError(msg)
    positions = tuple(kept_positions(valid, frames) for valid in mask_bt)
    length = mask_bt.shape[1]
    flat = np.concatenate([kept + i * length for i, kept in enumerate(positions)])
    weights = (mask_bt / counts[:, None]).astype(np.float32)
    return Selection((mask_bt.shape[0], length), positions, flat, weights, {})


@dataclass(frozen=True, slots=True)
class FinalNorm:
    """The norm after the last layer, in float32 whatever the model computes in."""

    kind: str
    """``layer_norm`` or ``rms_norm``."""
    weight: torch.Tensor
    """Gain [d], float32."""
    bias: torch.Tensor | None
    """Shift [d], float32; None for an RMS norm."""
    eps: float
    """Added to the variance, or to the mean square."""
    frames: str = "all"
    """Frames that the head averages: ``all``, or ``valid`` where a padded batch has others."""

    def mean_all_normed(self, x_btd: torch.Tensor, selection: Selection) -> torch.Tensor:
        """Return the mean over all frames of the normed frames, float32 [b, d].

        Norm and mean do not commute: only this order gives the model's own logits at the last
        layer. Frames that only pad a batch are none of a sample's.
        """
        normed = self.apply(x_btd)
        return selection.mean_valid(normed) if self.frames == "valid" else normed.mean(1)

    def apply(self, x_btd: torch.Tensor) -> torch.Tensor:
        """Return the normed frames, float32 [b, t, d]."""
        x, weight = x_btd.float(), self.weight.to(x_btd.device)
        if self.bias is None:
            return nn.functional.rms_norm(x, x.shape[-1:], weight, self.eps)
        bias = self.bias.to(x_btd.device)
        return nn.functional.layer_norm(x, x.shape[-1:], weight, bias, self.eps)


def norm_at(model: nn.Module, path: str) -> FinalNorm:
    """Take the norm at `path` out of `model`; ModelError if it is neither layer nor RMS norm."""
    from accelerate.utils import align_module_device

    module: Any = model.get_submodule(path)
    kind = type(module).__name__
    # where `device_map` keeps its weights off the device, they are here within this block only
    with align_module_device(module):
        if isinstance(module, nn.LayerNorm):
            weight = module.weight.detach().float()
            bias = torch.zeros_like(weight) if module.bias is None else module.bias.detach().float()
            return FinalNorm("layer_norm", weight, bias, float(module.eps))
        if "RMSNorm" in kind:
            eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
            return FinalNorm("rms_norm", module.weight.detach().float(), None, float(eps or 0.0))
    msg = f"the final norm {path} is a {kind}, neither a LayerNorm nor an RMSNorm."
    raise ModelError(msg)


def final_norms(model: nn.Module, family: Family) -> dict[str, FinalNorm]:
    """Return the final norm of every stream of `model` that has one."""
    norms = {}
    for stream in find_streams(model, family):
        path = stream.final_norm(model.config)
        if path is not None:
            norms[stream.name] = replace(norm_at(model, path), frames=stream.pooled_frames)
    return norms


def final_norm(model: nn.Module, family: SpeechFamily) -> FinalNorm | None:
    """Return the final norm of the stream that ``capture-run`` captures; None without one."""
    return final_norms(model, family).get(family.stream)
