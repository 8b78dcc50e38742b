"""From sums over batches of frames to CKA with its intervals and p-values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..statistics.resampling import jackknife_spread
from .between import MIN_GROUPS as MIN_BETWEEN
from .cka_estimate import debiased_ceiling, one_sided, to_ratio
from .frame_fold import BATCH
from .minibatch import GroupTotals

MINIBATCH = "minibatch"
"""The estimator that takes all pairs of a batch, of one speaker too."""
BETWEEN = "minibatch_between_groups"
"""The one that takes no two frames of one speaker."""


@dataclass(frozen=True, slots=True)
class FrameEstimate:
    """One estimator's CKA of frames of all pairs of arrays, every field [arrays, arrays]."""

    value: NDArray[np.float64]
    spread: NDArray[np.float64]
    """Half the width of the 95 % interval, NaN below 3 groups."""
    p_value: NDArray[np.float64]


def estimate_frames(totals: GroupTotals) -> dict[str, FrameEstimate]:
    """Return CKA of all pairs by `minibatch`, from 5 groups on `minibatch_between_groups` too.

    Notes
    -----
    Frames of one utterance depend on each other, and so may utterances of one speaker, so the error
    is that over speakers: delete-one-speaker jackknife of the ratio of sums, t quantile. The
    p-value is that of the same t, one-sided; for independent data both err on the safe side. What
    utterances of one speaker share, in both arrays, counts as similarity in `minibatch`, and not in
    `minibatch_between_groups`, which takes frames of different speakers only.
    """
    found = {MINIBATCH: _jackknife(totals.pairs_ll, totals.pairs_left_gll)}
    if totals.n_groups >= MIN_BETWEEN:
        found[BETWEEN] = _jackknife(totals.between_ll, totals.between_left_gll)
    return found


def _jackknife(total_ll: NDArray[np.float64], left_gll: NDArray[np.float64]) -> FrameEstimate:
    ratio_ll, n_groups = to_ratio(total_ll), len(left_gll)
    spread_ll = jackknife_spread(ratio_ll, (to_ratio(left_ll) for left_ll in left_gll), n_groups)
    return FrameEstimate(ratio_ll, spread_ll, one_sided(ratio_ll, spread_ll, n_groups))


def find_ceiling(n: int) -> float:
    """Return the null ceiling of so many samples in batches.

    Draws of the same utterances depend on each other: only one of them counts.
    """
    batches = np.array_split(np.arange(n), -(-n // BATCH))
    pairs = sum(batch.size * (batch.size - 3) / 2 for batch in batches)
    return debiased_ceiling((3 + np.sqrt(9 + 8 * pairs)) / 2)
