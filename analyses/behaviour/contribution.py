"""How much attention, MLP and LoRA add to the residual stream, frame by frame."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..errors import MissingSitesError
from ..fold import ArrayKey, Block, Piece
from ..plan import Outcome, Plan, Table, describe_exposure, mask_of
from ..selection import Selection, matches
from ..source import View
from ..statistics.histogram import COSINE_BINS, RATIO_BINS
from ..statistics.resampling import cluster_bootstrap, weighted_mean

_TILE_ROWS = 2048
"""Rows worked on at once, in float64."""


@dataclass(slots=True)
class Shares:
    """Ratios and cosines of the frames seen so far, for each component."""

    samples: list[NDArray[np.int64]] = field(default_factory=list)
    """Places on the sample axis, one array a block."""
    means: list[NDArray[np.float64]] = field(default_factory=list)
    """Mean over the frames of each sample, [samples, components, 2]: ratio, cosine."""
    ratio_counts: list[NDArray[np.int64]] = field(default_factory=list)
    """One histogram for each component."""
    cosine_counts: list[NDArray[np.int64]] = field(default_factory=list)
    n: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """Frames with a ratio, for each component."""


@dataclass(frozen=True, slots=True)
class ContributionFold:
    """Norm ratios and cosines of what one layer adds.

    Notes
    -----
    With h the layer's input, a the attention output and m the MLP output: ‖a‖/‖h‖ and cos(a, h),
    ‖m‖/‖h + a‖ and cos(m, h + a), ‖a + m‖/‖h‖ and cos(a + m, h), for every frame. For LoRA:
    s‖B_out‖/‖base_out‖. Constant memory apart from six numbers a sample; one pass; rows · features
    time.
    """

    components: tuple[str, ...]
    """`attention`, `mlp`, `layer`; or `lora`."""
    arrays: tuple[ArrayKey, ...]
    """h, a, m; or base_out, lora_b."""
    scaling: float
    """Factor of the adapter's output (alpha / r); 1 where it plays no part."""
    n_samples: int
    width: int

    @property
    def needs(self) -> tuple[ArrayKey, ...]:
        """The layer's input and what is added to it."""
        return self.arrays

    @property
    def scratch_bytes(self) -> int:
        """Float64 tiles of the inputs and their sums."""
        return 8 * _TILE_ROWS * self.width * 6

    def state_bytes(self, workers: int) -> int:
        """Histograms for each worker, means of all samples together."""
        bins = RATIO_BINS.count + COSINE_BINS.count + 4
        return len(self.components) * (8 * bins * workers + 16 * self.n_samples)

    def empty(self) -> Shares:
        """Return the shares of no frames."""
        k = len(self.components)
        counts = [RATIO_BINS.empty() for _ in range(k)], [COSINE_BINS.empty() for _ in range(k)]
        return Shares([], [], *counts, np.zeros(k, np.int64))

    def add(self, state: Shares, block: Block) -> Shares:
        """Return the shares with the frames of the block."""
        pieces = [block[key] for key in self.arrays]
        shares = np.concatenate(
            [self._measure(pieces, start) for start in range(0, len(pieces[0].values), _TILE_ROWS)]
            or [np.empty((0, len(self.components), 2))]
        )
        state.samples.append(pieces[0].samples)
        state.means.append(_mean_samples(shares, pieces[0]))
        for k in range(len(self.components)):
            state.ratio_counts[k] += RATIO_BINS.tally(shares[:, k, 0])
            state.cosine_counts[k] += COSINE_BINS.tally(shares[:, k, 1])
        state.n += np.isfinite(shares[:, :, 0]).sum(axis=0)
        return state

    def merge(self, left: Shares, right: Shares) -> Shares:
        """Return the shares of both."""
        return Shares(
            left.samples + right.samples,
            left.means + right.means,
            [a + b for a, b in zip(left.ratio_counts, right.ratio_counts, strict=True)],
            [a + b for a, b in zip(left.cosine_counts, right.cosine_counts, strict=True)],
            left.n + right.n,
        )

    def finish(self, state: Shares) -> Shares:
        """Return the shares with the samples in the order of the axis."""
        samples = np.concatenate(state.samples)
        order = np.argsort(samples)
        state.samples = [samples[order]]
        state.means = [np.concatenate(state.means)[order]]
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


def _mean_samples(shares: NDArray[np.float64], piece: Piece) -> NDArray[np.float64]:
    """Return the mean over the frames of each sample that have one, [samples, components, 2]."""
    known = np.isfinite(shares)
    sums = np.zeros((piece.samples.size, *shares.shape[1:]))
    counts = np.zeros_like(sums)
    filled = np.diff(piece.offsets) > 0
    starts = piece.offsets[:-1][filled]
    if starts.size:
        sums[filled] = np.add.reduceat(np.where(known, shares, 0.0), starts, axis=0)
        counts[filled] = np.add.reduceat(known.astype(np.float64), starts, axis=0)
    return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)


@dataclass(frozen=True, slots=True)
class Contribution:
    """Norm ratios and cosines of attention, MLP, the whole layer and LoRA."""

    name: str = "contribution"
    description: str = "what attention, MLP, each layer and LoRA add to the residual stream"

    def plan(self, selection: Selection) -> Plan:
        """Return one fold for each layer of each capture that holds its input and its parts."""
        folds: list[ContributionFold] = []
        absent: list[dict[str, object]] = []
        for view in selection.captures:
            made = _layer_folds(view, selection)
            folds += made
            lora, missing = _lora_folds(view, selection)
            folds += lora if made else []
            absent += missing if made else []
        if not folds:
            present = sorted({site for view in selection.captures for site in view.sites})
            msg = (
                "contribution needs the rows of attn_out, mlp_out and the layer's input "
                "(embed for layer 0, resid_post of the layer before otherwise) of the same layer. "
                f"Present: {', '.join(present) or 'none'}. "
                "Record them with `record.sites: [embed, resid_post, attn_out, mlp_out]`."
            )
            raise MissingSitesError(msg)
        return Plan(partial(_conclude, folds, absent), tuple(folds))


def _holds(view: View, key: ArrayKey) -> bool:
    info = view.sites.get(key.site)
    return info is not None and key.layer in ((-1,) if info.layers is None else info.layers)


def _layer_folds(view: View, selection: Selection) -> list[ContributionFold]:
    """Return the folds of the layers whose input and both parts are stored."""
    folds = []
    info = view.sites.get("attn_out")
    for layer in () if info is None or info.layers is None else info.layers:
        before = ("resid_post", layer - 1) if layer else ("embed", -1)
        keys = tuple(
            ArrayKey(view.name, *place)
            for place in (before, ("attn_out", layer), ("mlp_out", layer))
        )
        if selection.wants_layer(layer) and all(_holds(view, key) for key in keys):
            parts = ("attention", "mlp", "layer")
            size = view.samples.size, view.info(keys[0]).width
            folds.append(ContributionFold(parts, keys, 1.0, *size))
    return folds


def _lora_folds(
    view: View, selection: Selection
) -> tuple[list[ContributionFold], list[dict[str, object]]]:
    """Return the folds of LoRA against its base module, and table rows for what cannot be told."""
    folds, absent = [], []
    for site, info in view.sites.items():
        if not matches(site, "lora_b"):
            continue
        base = "base_out" + site.removeprefix("lora_b")
        scaling = (view.attrs.get("adapter") or {}).get("scaling")
        for layer in info.layers or (-1,):
            keys = (ArrayKey(view.name, base, layer), ArrayKey(view.name, site, layer))
            if not selection.wants_layer(layer):
                continue
            if _holds(view, keys[0]) and scaling is not None:
                size = view.samples.size, info.width
                part = ("lora",)
                folds.append(ContributionFold(part, keys, float(scaling), *size))
                continue
            what = (
                f"{base} was not recorded"
                if scaling is not None
                else "the adapter's scaling is unknown"
            )
            row = {"capture": view.name, "layer": layer, "component": "lora", "reason": what}
            absent.append({**row, "mask": mask_of(view, site)})
    return folds, absent


def _conclude(
    folds: list[ContributionFold], absent: list[dict[str, object]], outcome: Outcome
) -> dict[str, Table]:
    rows = [row for fold in folds for row in _rows(fold, outcome)]
    rows += [{**row, "n": 0, "exposed": "none"} for row in absent]
    order = {"attention": 0, "mlp": 1, "layer": 2, "lora": 3}
    captures = list(outcome.selection.source.views)
    frame = pd.DataFrame(rows)
    component = frame["component"].map(order.__getitem__)
    place = frame.assign(capture=frame["capture"].map(captures.index), component=component)
    frame = frame.loc[place.sort_values(["capture", "layer", "component"], kind="stable").index]
    attrs = {
        "definition": "|a|/|h|, |m|/|h+a|, |a+m|/|h| and the cosines of the same pairs, per frame",
        "mean": "over the frames of a sample, then over samples",
        "median": "over frames, from bins of 0.46 % (ratios) and 0.0005 (cosines)",
        "interval": "cluster bootstrap over speakers of the mean",
    }
    return {"contribution": Table(frame.reset_index(drop=True), attrs)}


def _rows(fold: ContributionFold, outcome: Outcome) -> list[dict[str, object]]:
    shares: Shares = outcome.folds[fold]
    samples, means = shares.samples[0], shares.means[0]
    key = fold.arrays[-1]
    view = outcome.selection.source.views[key.capture]
    group_n = np.unique(view.group_n[samples].astype(str), return_inverse=True)[1]
    rows = []
    for k, component in enumerate(fold.components):
        row: dict[str, object] = {
            "capture": key.capture,
            "layer": key.layer,
            "component": component,
        }
        row |= {
            "mask": mask_of(view, key.site),
            "n": int(shares.n[k]),
            "exposed": describe_exposure(view, view.samples),
        }
        reasons = []
        for i, (quantity, bins, counts) in enumerate(
            (
                ("ratio", RATIO_BINS, shares.ratio_counts),
                ("cosine", COSINE_BINS, shares.cosine_counts),
            )
        ):
            mean, low, high = _average(means[:, k, i], group_n, outcome.selection.seed)
            row |= {f"{quantity}_mean": mean, f"{quantity}_mean_low": low}
            row |= {f"{quantity}_mean_high": high, f"{quantity}_median": bins.median(counts[k])}
            reasons += [f"no frame has a {quantity}: a norm is 0"] * bool(np.isnan(mean))
        rows.append({**row, "reason": "; ".join(reasons)})
    return rows


def _average(
    values: NDArray[np.float64], group_n: NDArray[np.int64], seed: int
) -> tuple[float, float, float]:
    """Return mean over the samples that have a value, and the ends of its interval."""
    known = np.isfinite(values)
    if not known.any():
        return float("nan"), float("nan"), float("nan")
    groups = np.unique(group_n[known], return_inverse=True)[1]
    low, high = cluster_bootstrap(groups, weighted_mean(values[known, None]), seed=seed)
    return float(values[known].mean()), float(low[0]), float(high[0])
