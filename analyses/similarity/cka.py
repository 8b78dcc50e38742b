"""CKA: how similar the geometry of two arrays is, within a capture, between captures and stores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd

from ..errors import AnalysisInputError, MemoryBudgetError, MissingSitesError
from ..fold import ArrayKey
from ..memory import format_bytes
from ..plan import Outcome, Plan, Table
from ..selection import Selection
from .cka_exact import ExactPlan, plan_exact
from .cka_frames import FramePlan, conclude_frames, plan_frames
from .cka_pooled import Kernel, compare_pooled, list_kernels
from .exact_table import conclude_exact
from .flattened import FlatPlan, conclude_flattened, plan_flattened
from .gaussian import RULES
from .pairs import group_pairs

KERNELS = ("linear", "rbf")
"""Kernels of pooled features."""
_ROW_BYTES = 1300
"""Memory of one row of the table while it is built, joined and converted (measured: 1,296)."""
_SMALL_TABLE = 16 * 2**20
"""Tables below this are not refused: the check is there for those of very many pairs."""
_TABLE_SHARE = 0.5
"""Part of the memory that the table may take."""


@dataclass(frozen=True, slots=True)
class CKA:
    """CKA of all pairs: pooled; frames of a site by minibatch, or exactly; whole samples.

    Notes
    -----
    Flattened: a sample is the vector of all its rows · features numbers, so that position counts;
    arrays · samples² · rows · features multiplications, and 40 bytes for each pair of samples of
    each array.
    """

    frames: bool = True
    """Whether to compare frames as well."""
    frames_per_sample: int = 8
    """Frames drawn of each sample at most; fewer when they exceed a quarter of the memory."""
    flattened: bool = False
    """Whether to compare whole samples too, all their rows as one vector (`frames: all`)."""
    kernels: tuple[str, ...] = ("linear",)
    """Kernels of pooled features: `linear`, `rbf` (Gaussian, which triples the table)."""
    bandwidths: tuple[float, ...] = (0.5, 1.0)
    """Widths of the Gaussian kernels, in median distances of the array's samples."""
    bandwidth_rule: str = RULES[0]
    """Median of the distances of different samples (`offdiagonal`), or with the zero diagonal
    (`kornblith`)."""
    exact: bool = False
    """Whether to compare frames from every pair of rows as well (`exact_fold.py`)."""
    permutations: int | None = None
    """Permutations of samples within speakers; None: up to 1,000 where they are cheap; 0: none."""
    name: str = "cka"
    description: str = (
        "similarity of any two layers, sites and captures, with null ceiling, p and interval"
    )

    def __post_init__(self) -> None:
        """Refuse kernels and bandwidths that there are not."""
        unknown = [name for name in self.kernels if name not in KERNELS]
        if unknown or not self.kernels:
            msg = f"kernels {self.kernels}: choose from {', '.join(KERNELS)}."
            raise AnalysisInputError(msg)
        if self.bandwidth_rule not in RULES:
            msg = f"no bandwidth rule {self.bandwidth_rule!r}; there are {' and '.join(RULES)}."
            raise AnalysisInputError(msg)
        if self.frames_per_sample < 1:
            msg = f"{self.frames_per_sample} frames of each sample; at least 1 is drawn."
            raise AnalysisInputError(msg)
        if "rbf" in self.kernels and not all(factor > 0 for factor in self.bandwidths):
            msg = f"bandwidths {self.bandwidths}: each must be above 0 median distances."
            raise AnalysisInputError(msg)
        if self.permutations is not None and self.permutations < 0:
            msg = f"{self.permutations} permutations were asked for; 0 means none."
            raise AnalysisInputError(msg)

    def plan(self, selection: Selection) -> Plan:
        """Return the pooled arrays to compare, and a fold for the frames of each site."""
        views = [*selection.captures, *selection.others]
        keys = tuple(key for view in views for key in selection.pooled_keys(view))
        if not keys:
            msg = (
                "cka needs pooled features (mean_valid) or rows of a site, and the store holds "
                "none of those asked for. Record them: `record.pool: [mean_valid]`."
            )
            raise MissingSitesError(msg)
        kernels = list_kernels(self.kernels, self.bandwidths, self.bandwidth_rule)
        flat = plan_flattened(selection) if self.flattened else FlatPlan()
        rows_each = 3 * len(kernels) + 3 * self.exact
        _check_table(selection, ((keys, rows_each), (flat.arrays, 3)))
        frames = (
            plan_frames(selection, self.frames_per_sample) if self.frames else FramePlan((), (), ())
        )
        exact = plan_exact(selection) if self.exact else ExactPlan()
        conclude = partial(_conclude, self, keys, kernels, (frames, exact, flat))
        return Plan(conclude, (*frames.folds, *exact.folds), keys, exact.notes)


def _check_table(selection: Selection, parts: Sequence[tuple[Sequence[ArrayKey], int]]) -> None:
    """Raise MemoryBudgetError where the table does not fit: arrays, and rows for each pair."""
    rows = sum(_count_pairs(selection, keys) * rows_each for keys, rows_each in parts)
    need = rows * _ROW_BYTES
    if need > max(_SMALL_TABLE, _TABLE_SHARE * selection.memory_bytes):
        msg = (
            f"cka of {len(parts[0][0])} arrays is a table of {rows:,} rows, about "
            f"{format_bytes(need)}, and memory is {format_bytes(selection.memory_bytes)}. Allow "
            f"{format_bytes(need / _TABLE_SHARE)} (--memory), or choose captures, sites or layers."
        )
        raise MemoryBudgetError(msg)


def _count_pairs(selection: Selection, keys: Sequence[ArrayKey]) -> int:
    """Return how many pairs of arrays are compared."""
    count = {v.name: 0 for v in (*selection.captures, *selection.others)}
    for key in keys:
        count[key.capture] += 1
    return sum(
        count[a] * (count[a] + 1) // 2 if a == b else count[a] * count[b]
        for group in group_pairs(selection)
        for a, b in group.pairs
    )


def _conclude(
    analysis: CKA,
    keys: Sequence[ArrayKey],
    kernels: Sequence[Kernel],
    others: tuple[FramePlan, ExactPlan, FlatPlan],
    outcome: Outcome,
) -> dict[str, Table]:
    attrs: dict[str, object] = {
        "pairs": "each unordered pair of arrays once, with itself as well",
        "ratio": "HSIC(a, b) / sqrt(HSIC(a, a) HSIC(b, b)), not clamped",
        "null_ceiling_biased": "expected biased CKA of independent data of the same spectra",
        "null_ceiling_debiased": "debiased CKA that independent data exceed in 5 % of cases",
        "p_value": "debiased: Szekely-Rizzo t test, one-sided, wrong for samples of few speakers; "
        "between_groups: t test of the jackknife, one-sided, conservative",
        "interval": "delete-one-speaker jackknife, t quantile, 95 %",
        "between_groups": "HSIC from pairs, triples, quadruples of samples of different speakers",
        "pooled_from": "recorded mean_valid, else the mean of the stored rows that `mask` says",
    }
    tables = [
        frame
        for group in group_pairs(outcome.selection)
        for frame in compare_pooled(keys, group, kernels, analysis.permutations, outcome, attrs)
    ]
    tables += conclude_frames(others[0], outcome, attrs)
    tables += conclude_exact(others[1], outcome, attrs)
    tables += conclude_flattened(others[2], outcome, attrs)
    return {"cka": Table(pd.concat(tables, ignore_index=True), attrs)}
