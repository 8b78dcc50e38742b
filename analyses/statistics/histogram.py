"""Histograms with fixed bins, so that medians of any number of blocks merge by adding counts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Bins:
    """Equal bins between two ends, on a linear or a logarithmic axis, with one beyond each end."""

    low: float
    """Lower end; on a logarithmic axis its log10."""
    high: float
    count: int
    logarithmic: bool

    def empty(self) -> NDArray[np.int64]:
        """Return the counts of nothing, [bins + 2]."""
        return np.zeros(self.count + 2, dtype=np.int64)

    def tally(self, values: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return how many finite values fall into each bin; the first of a log axis holds 0."""
        finite = values[np.isfinite(values)]
        if self.logarithmic:
            with np.errstate(divide="ignore"):
                finite = np.log10(finite)
        scaled = np.clip(
            (finite - self.low) * (self.count / (self.high - self.low)), -1, self.count
        )
        return np.bincount(np.floor(scaled).astype(np.int64) + 1, minlength=self.count + 2)

    def median(self, counts: NDArray[np.int64]) -> float:
        """Return the median of what was counted, straight within its bin; NaN of nothing."""
        total = int(counts.sum())
        if total == 0:
            return float("nan")
        cumulated = np.cumsum(counts)
        bin_ = int(np.searchsorted(cumulated, total / 2))
        before = int(cumulated[bin_ - 1]) if bin_ else 0
        inside = min(
            max(bin_ - 1 + (total / 2 - before) / int(counts[bin_]), 0.0), float(self.count)
        )
        point = self.low + inside * (self.high - self.low) / self.count
        return float(10**point) if self.logarithmic else float(point)


RATIO_BINS = Bins(-8.0, 8.0, 16 * 500, logarithmic=True)
"""For ratios of norms, 1e-8 … 1e8: a bin is 0.46 % wide."""
COSINE_BINS = Bins(-1.0, 1.0, 4000, logarithmic=False)
"""For cosines: a bin is 0.0005 wide."""
