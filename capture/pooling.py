"""Which rows of a batch are kept, and the means over frames, all on the device that computes.

Shape suffixes: b batch, t frame, d feature, n kept rows of the batch (sample after sample).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from .errors import DataError, ModelError

if TYPE_CHECKING:
    from .families import Family


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


@dataclass(frozen=True, slots=True)
class Selection:
    """The kept rows and the valid frames of one batch."""

    shape: tuple[int, int]
    """Samples and frames of the batch."""
    positions: tuple[np.ndarray, ...]
    """Kept frames of each sample, int64."""
    index_n: torch.Tensor
    """Kept rows in the flattened batch."""
    weights_bt: torch.Tensor
    """1 / (valid frames of the sample) on its valid frames, 0 elsewhere, float32."""

    @property
    def counts(self) -> list[int]:
        """Kept rows of each sample."""
        return [len(kept) for kept in self.positions]

    def copy_rows(self, x_btd: torch.Tensor, out_nd: torch.Tensor) -> None:
        """Copy the kept rows, sample after sample, into `out_nd` on the CPU, in its dtype.

        On the CPU each sample is cast on its way, with one copy. On a device, selection and cast
        happen there, before the transfer.
        """
        if not x_btd.is_cpu:
            flat = x_btd.reshape(-1, x_btd.shape[-1]).index_select(0, self.index_n)
            out_nd.copy_(flat.to(out_nd.dtype))
            return
        for x_td, kept, out in zip(x_btd, self.positions, out_nd.split(self.counts), strict=True):
            out.copy_(_take(x_td, kept))

    def mean_valid(self, x_btd: torch.Tensor) -> torch.Tensor:
        """Return the mean over valid frames, float32 [b, d], from float32 values."""
        return torch.bmm(self.weights_bt[:, None, :], x_btd.float()).squeeze(1)


def _take(x_td: torch.Tensor, kept: np.ndarray) -> torch.Tensor:
    if len(kept) and kept[-1] - kept[0] + 1 == len(kept):
        return x_td[int(kept[0]) : int(kept[-1]) + 1]
    return x_td.index_select(0, torch.from_numpy(kept))


def select(mask_bt: np.ndarray, frames: str, *, device: torch.device) -> Selection:
    """Prepare the selection of one batch.

    Parameters
    ----------
    mask_bt
        Whether a frame holds audio, bool [batch, frame].
    frames
        See `kept_positions`.
    device
        Where the batch is computed.

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
    index = torch.from_numpy(flat).to(device)
    weights = torch.from_numpy((mask_bt / counts[:, None]).astype(np.float32)).to(device)
    return Selection((mask_bt.shape[0], length), positions, index, weights)


@dataclass(frozen=True, slots=True)
class FinalNorm:
    """The encoder's final layer norm, in float32 whatever the model computes in."""

    weight: torch.Tensor
    """Gain [d], float32."""
    bias: torch.Tensor
    """Shift [d], float32."""
    eps: float
    """Added to the variance."""

    def mean_all_normed(self, x_btd: torch.Tensor) -> torch.Tensor:
        """Return the mean over all frames of the normed frames, float32 [b, d].

        Norm and mean do not commute: only this order gives the model's own logits at the last
        layer.
        """
        x = x_btd.float()
        return nn.functional.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps).mean(1)


def final_norm(model: nn.Module, family: Family) -> FinalNorm:
    """Take the final norm out of `model`; ModelError if it is not a layer norm."""
    module = model.get_submodule(family.final_norm)
    if not isinstance(module, nn.LayerNorm):
        msg = f"the final norm {family.final_norm} is a {type(module).__name__}, not a LayerNorm."
        raise ModelError(msg)
    weight = module.weight.detach().float()
    bias = torch.zeros_like(weight) if module.bias is None else module.bias.detach().float()
    return FinalNorm(weight, bias, float(module.eps))
