"""Gradients sample by sample: how large, how much samples agree, how noisy their mean is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..errors import MissingSitesError
from ..fold import ArrayKey
from ..plan import Outcome, Plan, Table, describe_exposure, mask_of
from ..pooled import DEFAULT_POOL
from ..selection import Selection, matches
from ..similarity.pairs import jackknife_groups
from ..source import View
from ..statistics.resampling import (
    cluster_bootstrap,
    jackknife_spread,
    weighted_mean,
    weighted_median,
)
from .gradient_fold import GradientFold, GradientSums

_PREFIX = "grad."
_WEIGHTS = ("grad.lora_a_weight", "grad.lora_b_weight")
"""Gradients of matrices: one vector a sample, without rows and pools."""
_MOST_GROUPS = 64
"""Speakers told apart; more are put together at random."""
_FEWEST = 4
"""Samples below which directions and noise say nothing."""
_ESTIMATES = ("within_class_cosine", "between_class_cosine", "noise_scale")


@dataclass(frozen=True, slots=True)
class Cells:
    """Class and speaker of each cell that the gradients of a capture are summed in."""

    class_c: NDArray[np.int64]
    """Class number, -1 where no label is known."""
    group_c: NDArray[np.int64]
    """Speaker (or speakers put together); each class its own where there are no speakers."""
    has_groups: bool
    """Whether the store names speakers."""
    cell_n: NDArray[np.int64]
    """Cell of each sample of the axis."""


@dataclass(frozen=True, slots=True)
class Gradients:
    """Table `gradients`: norms, cosines within and between classes, and the noise scale.

    Notes
    -----
    g_i is the sum of the gradient over the stored rows of sample i: that of the sample's loss with
    respect to a shift of all these rows by the same vector. (`grad.lora_a_weight`: with respect to
    the matrix itself. Where only a pool was recorded: the mean instead of the sum, see `mask`.)

    `norm_mean`, `norm_median` of ‖g_i‖. `within_class_cosine` and `between_class_cosine`: mean of
    cos(g_i, g_j) over all pairs i ≠ j of one class, of two classes; pairs of one speaker are left
    out where speakers are known. `noise_scale` [1]_: tr Σ / |G|² with tr Σ = Σ‖g_i - ḡ‖²/(n - 1)
    and the unbiased |G|² = ‖ḡ‖² - tr Σ/n, in samples: the batch size at which noise and signal of
    the mean gradient are equal. Where |G|² comes out at 0 or below, the mean gradient cannot be
    told from 0 and there is none. Samples count as independent: those of one speaker that resemble
    each other make it too small.

    Intervals: cluster bootstrap over speakers (norms), delete-one-speaker jackknife (cosines, and
    the logarithm of the noise scale).

    The samples that training saw are among them (`exposed`): their gradients are smaller.

    References
    ----------
    .. [1] McCandlish et al., An empirical model of large-batch training, arXiv 1812.06162.
    """

    name: str = "gradients"
    description: str = "per-sample gradients: norms, agreement within and between classes, noise"

    def plan(self, selection: Selection) -> Plan:
        """Return one fold for each gradient array."""
        cells = {view.name: make_cells(view, selection.seed) for view in selection.captures}
        folds = [
            GradientFold(
                key,
                view.info(key).width,
                cells[view.name].cell_n,
                cells[view.name].class_c.size,
            )
            for view in selection.captures
            for key in gradient_keys(view, selection)
        ]
        if not folds:
            msg = (
                "gradients needs a site `grad.<site>`; the store holds none of those asked for. "
                "Record them: `record.gradients: [resid_post, lora_a, lora_b]`."
            )
            raise MissingSitesError(msg)
        return Plan(partial(_conclude, folds, cells), tuple(folds))


def gradient_keys(view: View, selection: Selection) -> list[ArrayKey]:
    """Return the gradients of a capture: of rows, of matrices, and pools without their rows."""
    keys = [key for key in selection.row_keys(view) if key.site.startswith(_PREFIX)]
    for name, info in view.pooled.items():
        site, _, pool = name.rpartition(".")
        of_weight = any(matches(name, weight) for weight in _WEIGHTS)
        alone = name.startswith(_PREFIX) and pool == DEFAULT_POOL and site not in view.sites
        if (of_weight or alone) and selection.wants_site(name if of_weight else site):
            layers = (-1,) if info.layers is None else info.layers
            keys += [ArrayKey(view.name, site, n, pool) for n in layers if selection.wants_layer(n)]
    return keys


def make_cells(view: View, seed: int) -> Cells:
    """Return the classes and speakers of a capture, and which of them each sample belongs to."""
    labels, class_n = np.unique(view.label_n.astype(str), return_inverse=True)
    class_n = np.where(labels == "", -1, np.arange(labels.size))[class_n]
    everyone = np.arange(view.label_n.size)
    group_n = jackknife_groups(view, everyone, seed, _MOST_GROUPS)
    pairs, cell_n = np.unique(np.stack([class_n, group_n]), axis=1, return_inverse=True)
    return Cells(pairs[0], pairs[1], bool(view.group_name), cell_n.ravel())


def estimate(sums: GradientSums, cells: Cells, without: int | None = None) -> NDArray[np.float64]:
    """Return cosine within classes, between classes, and the noise scale, [3]; NaN where there is
    none.

    Parameters
    ----------
    sums
        Sums by cell.
    cells
        What the cells are.
    without
        A speaker that is left out.
    """  # noqa: D205 - the three of them are one sentence
    kept = np.ones(cells.class_c.size, bool) if without is None else cells.group_c != without
    class_c, group_c = cells.class_c[kept], cells.group_c[kept]
    cosine_cc = sums.unit_gram_cc[np.ix_(kept, kept)]
    count_c = sums.unit_count_c[kept].astype(np.float64)
    # a sample with itself is a pair of its own cell, of cosine 1
    cosine_cc = cosine_cc - np.diag(count_c)
    pairs_cc = np.outer(count_c, count_c) - np.diag(count_c)
    compared = np.outer(class_c >= 0, class_c >= 0)
    if cells.has_groups:
        compared &= group_c[:, None] != group_c
    same = class_c[:, None] == class_c
    found = [_ratio(cosine_cc, pairs_cc, compared & chosen) for chosen in (same, ~same)]
    return np.array([*found, noise_scale(sums, kept)])


def noise_scale(sums: GradientSums, kept: NDArray[np.bool_]) -> float:
    """Return tr Σ / |G|² of the samples of some cells; NaN where |G|² is not above 0."""
    n = int(sums.count_c[kept].sum())
    if n < 2:
        return float("nan")
    mean = float(sums.gram_cc[np.ix_(kept, kept)].sum()) / n**2
    # the difference of two sums is safe here: what it rounds away is 1e-16 n of |G|²
    trace = max(0.0, float(sums.square_c[kept].sum()) - n * mean) / (n - 1)
    signal = mean - trace / n
    # what is left of equal numbers is rounding, not a signal
    return trace / signal if signal > 1e-12 * mean else float("nan")


def _ratio(value_cc: NDArray, pairs_cc: NDArray, chosen: NDArray[np.bool_]) -> float:
    pairs = float(pairs_cc[chosen].sum())
    return float(value_cc[chosen].sum()) / pairs if pairs > 0 else float("nan")


def _conclude(
    folds: list[GradientFold], cells: dict[str, Cells], outcome: Outcome
) -> dict[str, Table]:
    rows = [_row(fold, cells[fold.key.capture], outcome) for fold in folds]
    attrs = {
        "gradient": "sum over the rows of a sample: with respect to a shift common to all of them",
        "cosine": "mean over pairs of two samples, pairs of one speaker left out where known",
        "noise_scale": "tr S / |G|^2 in samples, |G|^2 unbiased",
        "interval": (
            "cluster bootstrap over speakers (norms), delete-one-speaker jackknife, 95 % "
            "(cosines, log of the noise scale)"
        ),
    }
    return {"gradients": Table(pd.DataFrame(rows), attrs)}


def _row(fold: GradientFold, cells: Cells, outcome: Outcome) -> dict[str, object]:
    key, sums = fold.key, outcome.folds[fold]
    view = outcome.selection.source.views[key.capture]
    name = f"{key.site}.{key.pool}" if key.pool else key.site
    of_weight = any(matches(name, weight) for weight in _WEIGHTS)
    site = name if of_weight else key.site
    n = int(sums.count_c.sum())
    row: dict[str, object] = {
        "capture": key.capture,
        "site": site,
        "layer": key.layer,
        "mask": "all" if of_weight else key.pool or mask_of(view, site),
        "n": n,
        "exposed": describe_exposure(view, view.samples, through="head"),
    }
    if sums.bad:
        return {**row, "reason": f"NaN or infinite gradients in {sums.bad} samples"}
    if n == 0:
        return {**row, "reason": "no sample has rows"}
    row |= _norms(sums, view, outcome.selection.seed)
    if not sums.unit_count_c.any():
        return {**row, "reason": _why_zero(site)}
    if n < _FEWEST:
        return {**row, "reason": f"samples: {n}; at least {_FEWEST} are needed"}
    values = estimate(sums, cells)
    row |= dict(zip(_ESTIMATES, values.tolist(), strict=True))
    row |= _intervals(sums, cells, values)
    return {**row, "reason": "; ".join(_reasons(values, cells, sums))}


def _norms(sums: GradientSums, view: View, seed: int) -> dict[str, object]:
    """Return mean and median of the norms with their intervals."""
    known = np.isfinite(sums.norm_n)
    norm_n = sums.norm_n[known]
    speakers = view.group_n[sums.samples[known]].astype(str)
    group_n = np.unique(speakers, return_inverse=True)[1]
    mean, median = weighted_mean(norm_n[:, None]), weighted_median(norm_n)

    def both(weights_bn: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.concatenate([mean(weights_bn), median(weights_bn)[:, None]], axis=1)

    low, high = cluster_bootstrap(group_n, both, seed=seed)
    found: dict[str, object] = {}
    point = (norm_n.mean(), np.median(norm_n))
    for name, value, a, b in zip(("norm_mean", "norm_median"), point, low, high, strict=True):
        found |= {name: float(value), f"{name}_low": float(a), f"{name}_high": float(b)}
    return found


def _intervals(sums: GradientSums, cells: Cells, values: NDArray[np.float64]) -> dict[str, object]:
    """Return the ends of the jackknife intervals; nothing below 3 speakers."""
    groups = np.unique(cells.group_c) if cells.has_groups else np.empty(0)
    present = [g for g in groups if sums.count_c[cells.group_c == g].any()]
    if not present:
        return {}
    left_out = (_log_noise(estimate(sums, cells, without=int(g))) for g in present)
    with np.errstate(invalid="ignore", divide="ignore"):  # a noise scale of 0 has no logarithm
        middle = _log_noise(values)
        spread = jackknife_spread(middle, left_out, len(present))
        low, high = middle - spread, middle + spread
    low[2], high[2] = np.exp(low[2]), np.exp(high[2])
    return {
        f"{name}_{end}": float(at[i])
        for i, name in enumerate(_ESTIMATES)
        for end, at in (("low", low), ("high", high))
    }


def _log_noise(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the estimates with the logarithm of the noise scale, which is nearer to normal."""
    return np.array([values[0], values[1], np.log(values[2])])


def _why_zero(site: str) -> str:
    if matches(site, "grad.lora_a") or matches(site, _WEIGHTS[0]):
        return "every gradient is 0: B = 0 passes none to A"
    return "every gradient is 0"


def _reasons(values: NDArray[np.float64], cells: Cells, sums: GradientSums) -> list[str]:
    """Return why estimates are missing."""
    filled = sums.unit_count_c > 0
    classes = np.unique(cells.class_c[filled & (cells.class_c >= 0)])
    speakers = np.unique(cells.group_c[filled]).size
    reasons = []
    if np.isnan(values[:2]).any():
        if classes.size == 0:
            reasons.append("no sample has a label: no cosines")
        elif cells.has_groups and speakers < 2:
            reasons.append("one speaker: no pairs of two")
        else:
            if np.isnan(values[0]):
                reasons.append("no two samples of one class to compare")
            if np.isnan(values[1]):
                few = "one class" if classes.size == 1 else "no speakers with different classes"
                reasons.append(f"{few}: no cosine between classes")
    if np.isnan(values[2]):
        reasons.append("the mean gradient cannot be told from 0: no noise scale")
    return reasons
