"""Norms and cosines of what a layer adds, for frames of audio and of padding apart."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..fold import ArrayKey, Block, Piece
from ..masks import Frames
from ..statistics.histogram import COSINE_BINS, RATIO_BINS

_TILE_ROWS = 2048
"""Rows worked on at once, in float64."""
_BINS = (RATIO_BINS, COSINE_BINS)


@dataclass(slots=True)
class Shares:
    """Ratios and cosines of the frames seen so far, for each part of the frames and component."""

    samples: list[NDArray[np.int64]]
    """Places on the sample axis, one array a block."""
    sums: list[NDArray[np.float64]]
    """Over the frames of each sample, [samples, parts, components, 2]: ratio, cosine."""
    counts: list[NDArray[np.float64]]
    """Frames behind each of the sums, of the same shape."""
    histograms: tuple[NDArray[np.int64], NDArray[np.int64]]
    """Of ratios and of cosines, [parts, components, bins]."""

    def of(self, parts: list[int], component: int) -> MaskShares:
        """Return what some parts of the frames show together of one component."""
        sums = self.sums[0][:, parts, component].sum(axis=1)
        counts = self.counts[0][:, parts, component].sum(axis=1)
        means = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
        medians = [
            bins.median(of[parts, component].sum(axis=0))
            for bins, of in zip(_BINS, self.histograms, strict=True)
        ]
        return MaskShares(means, (medians[0], medians[1]), int(counts[:, 0].sum()))


@dataclass(frozen=True, slots=True)
class MaskShares:
    """Ratio and cosine of one component over the frames of one mask."""

    means: NDArray[np.float64]
    """Mean over the frames of each sample, [samples, 2]; NaN without one."""
    medians: tuple[float, float]
    """Over frames."""
    n: int
    """Frames with a ratio."""


@dataclass(frozen=True, slots=True)
class ContributionFold:
    """Norm ratios and cosines of what one layer adds.

    Notes
    -----
    With h the layer's input, a the attention output and m the MLP output: ‖a‖/‖h‖ and cos(a, h),
    ‖m‖/‖h + a‖ and cos(m, h + a), ‖a + m‖/‖h‖ and cos(a + m, h), for every frame. For LoRA:
    s‖B_out‖/‖base_out‖. Frames of audio and padding are kept apart where they can be told. Constant
    memory apart from twelve numbers a sample for each of the two; one pass; rows · features time.
    """

    components: tuple[str, ...]
    """`attention`, `mlp`, `layer`; or `lora`."""
    arrays: tuple[ArrayKey, ...]
    """h, a, m; or base_out, lora_b."""
    scaling: float
    """Factor of the adapter's output (alpha / r); 1 where it plays no part."""
    n_samples: int
    width: int
    frames: Frames = field(default=Frames("", "valid"))
    """Which of the rows hold audio."""

    @property
    def masks(self) -> dict[str, list[int]]:
        """Which parts of the frames each mask takes together."""
        parts = {"valid": [0], "pad": [1], "all": [0, 1]} if self.n_parts > 1 else {}
        return {mask: parts.get(mask, [0]) for mask in self.frames.masks}

    @property
    def n_parts(self) -> int:
        """Audio and padding, or frames that are not told apart."""
        return 2 if len(self.frames.masks) > 1 else 1

    @property
    def needs(self) -> tuple[ArrayKey, ...]:
        """The layer's input and what is added to it."""
        return self.arrays

    @property
    def scratch_bytes(self) -> int:
        """Float64 tiles of the inputs and their sums."""
        return 8 * _TILE_ROWS * self.width * 6

    def state_bytes(self, workers: int) -> int:
        """Histograms for each worker, sums of all samples together."""
        bins = sum(one.count + 2 for one in _BINS)
        own = self.n_parts * len(self.components)
        return own * (8 * bins * workers + 32 * self.n_samples)

    def empty(self) -> Shares:
        """Return the shares of no frames."""
        shape = self.n_parts, len(self.components)
        ratios, cosines = (np.tile(bins.empty(), (*shape, 1)) for bins in _BINS)
        return Shares([], [], [], (ratios, cosines))

    def add(self, state: Shares, block: Block) -> Shares:
        """Return the shares with the frames of the block."""
        pieces = [block[key] for key in self.arrays]
        shares = np.concatenate(
            [self._measure(pieces, start) for start in range(0, len(pieces[0].values), _TILE_ROWS)]
            or [np.empty((0, len(self.components), 2))]
        )
        audio = self.frames.mark(pieces[0])
        parts = [audio, ~audio][: self.n_parts] if self.n_parts > 1 else [np.ones_like(audio)]
        sums, counts = [], []
        for p, part in enumerate(parts):
            known = np.isfinite(shares) & part[:, None, None]
            sums.append(_sum_samples(np.where(known, shares, 0.0), pieces[0]))
            counts.append(_sum_samples(known.astype(np.float64), pieces[0]))
            for i, (bins, histogram) in enumerate(zip(_BINS, state.histograms, strict=True)):
                for k in range(len(self.components)):
                    histogram[p, k] += bins.tally(shares[part, k, i])
        state.samples.append(pieces[0].samples)
        state.sums.append(np.stack(sums, axis=1))
        state.counts.append(np.stack(counts, axis=1))
        return state

    def merge(self, left: Shares, right: Shares) -> Shares:
        """Return the shares of both."""
        ratios, cosines = (a + b for a, b in zip(left.histograms, right.histograms, strict=True))
        return Shares(
            left.samples + right.samples,
            left.sums + right.sums,
            left.counts + right.counts,
            (ratios, cosines),
        )

    def finish(self, state: Shares) -> Shares:
        """Return the shares with the samples in the order of the axis."""
        samples = np.concatenate(state.samples)
        order = np.argsort(samples)
        state.samples = [samples[order]]
        state.sums = [np.concatenate(state.sums)[order]]
        state.counts = [np.concatenate(state.counts)[order]]
        return state

    def _measure(self, pieces: list[Piece], start: int) -> NDArray[np.float64]:
        """Return ratio and cosine of every frame of a tile, [rows, components, 2]."""
        tile = slice(start, start + _TILE_ROWS)
        parts = [piece.values[tile].astype(np.float64) for piece in pieces]
        if self.components == ("lora",):
            base_nd, added_nd = parts
            return np.stack([compare_rows(self.scaling * added_nd, base_nd)], axis=1)
        h_nd, a_nd, m_nd = parts
        pairs = ((a_nd, h_nd), (m_nd, h_nd + a_nd), (a_nd + m_nd, h_nd))
        return np.stack([compare_rows(added, base) for added, base in pairs], axis=1)


def compare_rows(
    added_nd: NDArray[np.float64], base_nd: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return ‖added‖/‖base‖ and their cosine, [rows, 2]; NaN where a norm below the line is 0."""
    added_n = np.sqrt(np.einsum("nd,nd->n", added_nd, added_nd))
    base_n = np.sqrt(np.einsum("nd,nd->n", base_nd, base_nd))
    dot_n = np.einsum("nd,nd->n", added_nd, base_nd)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio_n = np.where(base_n > 0, added_n / base_n, np.nan)
        cosine_n = np.where((base_n > 0) & (added_n > 0), dot_n / (added_n * base_n), np.nan)
    return np.stack([ratio_n, cosine_n], axis=1)


def _sum_samples(values: NDArray[np.float64], piece: Piece) -> NDArray[np.float64]:
    """Return the sum over the frames of each sample, [samples, …]."""
    sums = np.zeros((piece.samples.size, *values.shape[1:]))
    filled = np.diff(piece.offsets) > 0
    starts = piece.offsets[:-1][filled]
    if starts.size:
        sums[filled] = np.add.reduceat(values, starts, axis=0)
    return sums
