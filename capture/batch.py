"""One batch between hooks and writer: selected, cast and pooled where it is computed."""

from __future__ import annotations

from collections.abc import Sequence

import ml_dtypes
import numpy as np
import torch

from .errors import CaptureError
from .pooling import FinalNorm, Selection
from .sites import RecordedSite
from .transfer import HostCopies

TORCH_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}

WEIGHT = "weight"
"""Key of the gradient of a matrix among what is kept of each sample."""


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """Return a tensor on the CPU as numpy, without a copy; bfloat16 through its bits."""
    if tensor.dtype is torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


class BatchBuffer:
    """What one forward (and backward) of a batch leaves behind in one stream of rows.

    Holds only kept rows in the storage dtype and pooled values; the tensors of the model
    themselves are never kept.

    Parameters
    ----------
    recorded
        The recorded sites of all streams.
    stream
        The stream whose sites this buffer takes.
    selection
        Kept rows and valid frames of this batch.
    norm
        The final norm, for ``mean_all_normed``; None where the stream has none.
    device
        Where the batch is computed: rows wait in pinned memory if that is no CPU.
    copies
        The copies of the recorder.
    """

    def __init__(
        self,
        recorded: Sequence[RecordedSite],
        stream: str,
        selection: Selection,
        norm: FinalNorm | None,
        *,
        device: torch.device,
        copies: HostCopies,
    ) -> None:
        self._sites = {i: site for i, site in enumerate(recorded) if site.stream == stream}
        self._selection = selection
        self._norm = norm
        self._copies = copies
        self._overflows: list[tuple[int, int, torch.Tensor]] = []
        # one array [layer, row, feature] a site, the rows of one sample after those of the other:
        # what the writer will own
        self._rows = {
            index: torch.empty(
                (len(site.taps), sum(selection.counts), site.width),
                dtype=TORCH_DTYPES[site.dtype],
                pin_memory=device.type == "cuda",
            )
            for index, site in self._sites.items()
            if site.has_rows
        }
        # views of the layers, made at once: one by one they would cost as much as the copies
        self._layers = {index: rows.unbind(0) for index, rows in self._rows.items()}
        self._targets = {index: selection.targets(rows) for index, rows in self._rows.items()}
        self._shapes = {i: (*selection.shape, site.width) for i, site in self._sites.items()}
        self._pools: dict[tuple[int, int, str], torch.Tensor] = {}
        self._taken: set[tuple[int, int]] = set()

    def _claim(self, index: int, position: int) -> None:
        """Note that a tensor is being taken; CaptureError if it was already."""
        place = (index, position)
        if place in self._taken:
            site = self._sites[index]
            path = site.taps[position].path or "the model"
            msg = (
                f"{path} ran twice in one batch, so {site.name} is ambiguous: one forward and one "
                "backward a batch; a module that a forward uses twice cannot be recorded."
            )
            raise CaptureError(msg)
        self._taken.add(place)

    def put(self, index: int, position: int, tensor: torch.Tensor) -> None:
        """Take one tensor of site `index`, layer number `position`.

        [batch, frame, feature]; of attention [batch, head, frame, key].
        """
        self._claim(index, position)
        site = self._sites[index]
        x = tensor.detach() if tensor.requires_grad else tensor
        if site.kind == "heads":
            x = _rows_of_heads(x, site)
        if x.shape != self._shapes[index]:
            msg = (
                f"{site.name} has shape {tuple(x.shape)}, but (samples, frames, features) of "
                f"this batch are {self._shapes[index]}; a mask must have one entry a frame."
            )
            raise CaptureError(msg)
        if site.has_rows:
            self._keep(index, position, x)
        for pool in site.pools:
            self._pools[index, position, pool] = self._pooled(pool, x)

    def put_weight(
        self, index: int, position: int, given_bti: torch.Tensor, gradient_bto: torch.Tensor
    ) -> None:
        """Take the gradient of a matrix, sample by sample, from both sides of its module.

        For y = x W' it is the sum over all frames of the outer products of g(y) and x: exact, and
        what autograd would give for W on a batch of that sample alone.
        """
        self._claim(index, position)
        given, gradient = given_bti.detach().float(), gradient_bto.detach().float()
        weight_boi = torch.bmm(gradient.transpose(1, 2), given)
        self._pools[index, position, WEIGHT] = weight_boi.flatten(1)

    def _pooled(self, pool: str, x: torch.Tensor) -> torch.Tensor:
        if pool == "mean_valid":
            return self._selection.mean_valid(x)
        assert self._norm is not None  # the pool is left out of sites without a final norm
        return self._norm.mean_all_normed(x, self._selection)

    def _keep(self, index: int, position: int, x: torch.Tensor) -> None:
        kept = self._layers[index][position]
        if x.is_cpu:
            rows = kept
            self._selection.copy_rows(x, self._targets[index][position])
        else:
            rows = self._selection.take_rows(x, kept.dtype)
            self._copies.start(rows, kept)
        if kept.dtype is torch.float16:
            self._overflows.append((index, position, ~torch.isfinite(rows).all()))
            if x.is_cpu:
                self._check_overflow()

    def _check_overflow(self) -> None:
        """Refuse float16 rows that are not finite; on a device, only when the batch is over."""
        for index, position, found in self._overflows:
            if not bool(found):
                continue
            site = self._sites[index]
            layer = "" if site.layers is None else f" of layer {site.layers[position]}"
            msg = (
                f"{site.name}{layer} holds values that float16 cannot (beyond 65504). "
                "Record with dtype: bfloat16 or float32."
            )
            raise CaptureError(msg)
        self._overflows.clear()

    @property
    def n_missing(self) -> int:
        """How many tensors were not taken yet."""
        return sum(len(site.taps) for site in self._sites.values()) - len(self._taken)

    def missing(self) -> list[str]:
        """Return the names of sites, with layers, that were never seen."""
        return [
            site.name if site.layers is None else f"{site.name} layer {site.layers[position]}"
            for index, site in self._sites.items()
            for position in range(len(site.taps))
            if (index, position) not in self._taken
        ]

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays of the batch, owned by the taker: no view of the model leaves.

        Rows are [layer, row, feature], pools [layer, sample, feature]; without the layer axis for
        sites without layers.
        """
        self._copies.wait()
        self._check_overflow()
        arrays: dict[str, np.ndarray] = {}
        for index, site in self._sites.items():
            at = slice(None) if site.layers is not None else 0
            if index in self._rows:
                arrays[site.name] = to_numpy(self._rows[index][at])
            for pool in site.pools:
                arrays[f"{site.name}.{pool}"] = self._stacked(index, pool)[at]
            if site.kind == "weight":
                arrays[site.name] = self._stacked(index, WEIGHT)[at]
        return arrays

    def _stacked(self, index: int, pool: str) -> np.ndarray:
        taps = self._sites[index].taps
        return to_numpy(torch.stack([self._pools[index, i, pool].cpu() for i in range(len(taps))]))


def _rows_of_heads(x_bhqk: torch.Tensor, site: RecordedSite) -> torch.Tensor:
    """Return attention weights as rows [batch, query, head * key], absent keys as zeros."""
    if x_bhqk.ndim != 4 or x_bhqk.shape[-1] > site.keys:
        msg = (
            f"{site.name} has shape {tuple(x_bhqk.shape)}, but (samples, heads, queries, keys) "
            f"with at most {site.keys} keys were expected. Ask for more: SiteRequest(keys=N)."
        )
        raise CaptureError(msg)
    padded = torch.nn.functional.pad(x_bhqk, (0, site.keys - x_bhqk.shape[-1]))
    return padded.transpose(1, 2).flatten(2)
