"""Draws random frames of every utterance in the pass, then sums HSIC over batches of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..backend import to_device
from ..fold import ArrayKey, Block
from ..statistics.draws import hash_text, seeded
from .minibatch import GroupTotals, sum_batch

type Drawn = list[tuple[NDArray[np.int64], list[NDArray]]]
"""Parts: places among the samples, and the draws of every array, [samples, draws, features]."""

BATCH = 256
"""Frames in a batch, at most."""


@dataclass(frozen=True, slots=True)
class FrameSums:
    """Sums of HSIC over batches, for all pairs of arrays of one site."""

    totals: GroupTotals
    n: int
    """Samples."""
    rows: int
    """Frames drawn in all."""
    faults: tuple[str, ...]
    """Why an array has no similarity; empty where it has."""


@dataclass(frozen=True, slots=True, eq=False)
class FrameFold:
    """Draws frames of every array of a site, then sums HSIC over batches of one frame an utterance.

    Notes
    -----
    Frames of one utterance depend on each other, so a batch never holds two of one. Which frames
    are drawn depends on the seed and the sample's id only. Memory: samples · frames · Σ features
    numbers, and groups · arrays² for the sums without each group.
    """

    arrays: tuple[ArrayKey, ...]
    """All layers of the site in all captures that can be compared."""
    samples: NDArray[np.int64]
    """Places on the sample axis that all these captures have, ascending."""
    draws_nk: NDArray[np.int64]
    """Row of each draw within its sample, [samples, draws]."""
    order_kn: NDArray[np.int64]
    """Order in which each draw's samples are split into batches, [draws, samples]."""
    widths: tuple[int, ...]
    wide: bool
    """Whether values are float64."""
    compute_device: str = "cpu"
    """Where batches are multiplied; the frames are drawn and kept on the host."""
    group_n: NDArray[np.int64] | None = None
    """Group 0 … G-1 of every sample, each of which is left out in turn; None: none is."""

    @property
    def needs(self) -> tuple[ArrayKey, ...]:
        """All arrays of the site."""
        return self.arrays

    @property
    def scratch_bytes(self) -> int:
        """Drawing copies nothing but the draws."""
        return 0

    def state_bytes(self, workers: int) -> int:
        """Return the size of all draws, once more for putting them in order, and of one batch."""
        item = 8 if self.wide else 4
        largest = max(self.widths)
        batch = min(BATCH, self.samples.size)
        drawn = self.draws_nk.size * item * (sum(self.widths) + largest)
        sums = GroupTotals.count_bytes(self.n_groups, len(self.arrays), batch)
        return drawn + sums + 8 * batch * 2 * largest

    @property
    def n_groups(self) -> int:
        """Groups of the jackknife."""
        return 0 if self.group_n is None else int(self.group_n.max()) + 1

    def empty(self) -> Drawn:
        """Return no draws."""
        return []

    def add(self, state: Drawn, block: Block) -> Drawn:
        """Return the draws and those of the block."""
        first, last = np.searchsorted(self.samples, [block.start, block.stop])
        places = np.arange(first, last)
        drawn = []
        for key in self.arrays:
            piece = block[key]
            at = np.searchsorted(piece.samples, self.samples[places])
            rows_nk = piece.offsets[at][:, None] + self.draws_nk[places]
            drawn.append(piece.values[rows_nk])
        return [*state, (places, drawn)]

    def merge(self, left: Drawn, right: Drawn) -> Drawn:
        """Return the draws of both."""
        return left + right

    def finish(self, state: Drawn) -> FrameSums:
        """Return the sums over all batches."""
        places = np.concatenate([part for part, _ in state])
        back = np.argsort(places)
        drawn = []
        for a in range(len(self.arrays)):
            drawn.append(np.concatenate([values[a] for _, values in state])[back])
            for _, values in state:
                values[a] = values[a][:0]  # the whole replaces its parts one array at a time
        faults = tuple(_find_fault(values) for values in drawn)
        scales = [
            1.0 if fault else float(np.abs(x).max()) for x, fault in zip(drawn, faults, strict=True)
        ]
        totals = GroupTotals.empty(self.n_groups, len(drawn))
        n_batches = -(-self.samples.size // BATCH)
        for draw, order in enumerate(self.order_kn):
            for some in np.array_split(order, n_batches):
                batch = (
                    some
                    if self.group_n is None
                    else some[np.argsort(self.group_n[some], kind="stable")]
                )
                rows = [
                    np.zeros((batch.size, 1)) if fault else x[batch, draw] / scale
                    for x, fault, scale in zip(drawn, faults, scales, strict=True)
                ]
                moved = [to_device(x, self.compute_device) for x in rows]
                if self.group_n is None:
                    sum_batch(moved, totals.pairs_ll)
                else:
                    totals.add(moved, self.group_n[batch])
        return FrameSums(totals, self.samples.size, self.draws_nk.size, faults)


def _find_fault(values: NDArray) -> str:
    if not np.isfinite(values).all():
        return "NaN or infinite features"
    return "constant features" if (values == values[:1, :1]).all() else ""


def draw_rows(
    ids: Sequence[str], counts: NDArray[np.int64], draws: int, seed: int
) -> NDArray[np.int64]:
    """Return which rows of each sample are drawn, [samples, draws].

    They depend on seed, id and row count of the sample alone, and are all different while it has
    enough of them; asking for more draws extends the same list.
    """
    drawn = []
    for sample, count in zip(ids, counts.tolist(), strict=True):
        rng = seeded(f"{seed}/{sample}")
        rounds = [rng.permutation(count) for _ in range(-(-draws // count))]
        drawn.append(np.concatenate(rounds)[:draws])
    return np.stack(drawn).astype(np.int64)


def order_samples(ids: Sequence[str], draws: int, seed: int) -> NDArray[np.int64]:
    """Return in which order the samples of each draw are cut into batches, [draws, samples]."""
    keys = [[hash_text(f"{seed}/{draw}/{sample}") for sample in ids] for draw in range(draws)]
    return np.argsort(np.asarray(keys, dtype=np.uint64), axis=1)
