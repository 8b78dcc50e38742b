"""One batch between hooks and writer: selected, cast and pooled where it is computed."""

from __future__ import annotations

from collections.abc import Sequence

import ml_dtypes
import numpy as np
import torch

from .errors import CaptureError
from .pooling import FinalNorm, Selection
from .sites import RecordedSite

TORCH_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """Return a tensor on the CPU as numpy, without a copy; bfloat16 through its bits."""
    if tensor.dtype is torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


class BatchBuffer:
    """What one forward (and backward) of a batch leaves behind, until the writer takes it.

    Holds only kept rows in the storage dtype and pooled values; the tensors of the model
    themselves are never kept.

    Parameters
    ----------
    recorded
        The recorded sites.
    selection
        Kept rows and valid frames of this batch.
    norm
        The final norm, for ``mean_all_normed``.
    """

    def __init__(
        self, recorded: Sequence[RecordedSite], selection: Selection, norm: FinalNorm
    ) -> None:
        self._recorded = recorded
        self._selection = selection
        self._norm = norm
        # one array [layer, row, feature] a site, the rows of one sample after those of the other:
        # what the writer will own
        self._rows = {
            index: torch.empty(
                (len(site.taps), sum(selection.counts), site.width), dtype=TORCH_DTYPES[site.dtype]
            )
            for index, site in enumerate(recorded)
            if site.frames != "none"
        }
        self._pools: dict[tuple[int, int, str], torch.Tensor] = {}
        self._taken: set[tuple[int, int]] = set()

    def has(self, index: int, position: int) -> bool:
        """Whether this tensor was taken already."""
        return (index, position) in self._taken

    @torch.no_grad()
    def put(self, index: int, position: int, x_btd: torch.Tensor) -> None:
        """Take one tensor [batch, frame, feature] of site `index`, layer number `position`."""
        site = self._recorded[index]
        expected = (*self._selection.shape, site.width)
        if tuple(x_btd.shape) != expected:
            msg = (
                f"{site.name} has shape {tuple(x_btd.shape)}, but (samples, frames, features) of "
                f"this batch are {expected}; a mask must have one entry a frame."
            )
            raise CaptureError(msg)
        x = x_btd.detach()
        if site.frames != "none":
            self._keep(index, position, x)
        for pool in site.pools:
            valid = pool == "mean_valid"
            mean = self._selection.mean_valid if valid else self._norm.mean_all_normed
            self._pools[index, position, pool] = mean(x)
        self._taken.add((index, position))

    def _keep(self, index: int, position: int, x: torch.Tensor) -> None:
        site, kept = self._recorded[index], self._rows[index][position]
        self._selection.copy_rows(x, kept)
        if kept.dtype is torch.float16 and not bool(torch.isfinite(kept).all()):
            layer = "" if site.layers is None else f" of layer {site.layers[position]}"
            msg = (
                f"{site.name}{layer} holds values that float16 cannot (beyond 65504). "
                "Record with dtype: bfloat16 or float32."
            )
            raise CaptureError(msg)

    def missing(self) -> list[str]:
        """Return the names of sites, with layers, that were never seen."""
        return [
            site.name if site.layers is None else f"{site.name} layer {site.layers[position]}"
            for index, site in enumerate(self._recorded)
            for position in range(len(site.taps))
            if not self.has(index, position)
        ]

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays of the batch, owned by the taker: no view of the model leaves.

        Rows are [layer, row, feature], pools [layer, sample, feature]; without the layer axis for
        sites without layers.
        """
        arrays: dict[str, np.ndarray] = {}
        for index, site in enumerate(self._recorded):
            at = slice(None) if site.layers is not None else 0
            if index in self._rows:
                arrays[site.name] = to_numpy(self._rows[index][at])
            for pool in site.pools:
                parts = [self._pools[index, i, pool] for i in range(len(site.taps))]
                arrays[f"{site.name}.{pool}"] = to_numpy(torch.stack(parts).cpu()[at])
        return arrays
