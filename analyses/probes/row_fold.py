"""Ridge and LDA of single rows, out of core: sums of every speaker in one pass, then counts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..fold import ArrayKey, Block
from ..pooled import runs_of
from ..source import Source
from ..spectra.scatter import TILE_ROWS, Scatter, add_rows, merge_scatter
from .closed_form import Linear, fit_lda, fit_ridge
from .row_labels import RowLabels
from .statistics import GroupSums

PROBES = ("ridge", "lda")


@dataclass(slots=True)
class RowSums:
    """What was seen of every group."""

    scatters: list[Scatter]
    count_gsk: NDArray[np.float64]
    sum_gdsk: NDArray[np.float64]


@dataclass(frozen=True, eq=False, slots=True)
class RowFold:
    """Scatter and class sums of the rows of each group of one array; then all left-out probes.

    Notes
    -----
    O(groups · features² + groups · features · label sets · classes) memory, one pass.
    """

    key: ArrayKey
    labels: RowLabels
    width: int
    penalty: float
    shrinkage: float | None

    @property
    def columns(self) -> int:
        """Label sets times classes."""
        return (self.labels.shuffles + 1) * len(self.labels.classes)

    @property
    def result_bytes(self) -> int:
        """Size of what `finish` gives: weights of both probes for every group left out."""
        return 2 * 8 * len(self.labels.groups) * (self.width + 1) * self.columns

    @property
    def needs(self) -> tuple[ArrayKey, ...]:
        """The rows, and their classes."""
        return (self.key, self.labels.key)

    @property
    def scratch_bytes(self) -> int:
        """A tile of rows and labels, their products."""
        tile = TILE_ROWS * (3 * self.width + 2 * self.columns)
        return 8 * (tile + 2 * self.width**2 + self.width * self.columns)

    def state_bytes(self, workers: int) -> int:
        """Return the sums of each worker, and once more as they are put together."""
        groups, width = len(self.labels.groups), self.width
        return 8 * groups * width * (width + self.columns) * (workers + 1) + 24 * width**2

    def empty(self) -> RowSums:
        """Return the sums of no rows."""
        groups, sets = len(self.labels.groups), self.labels.shuffles + 1
        shape = sets, len(self.labels.classes)
        return RowSums(
            [Scatter.empty(self.width) for _ in range(groups)],
            np.zeros((groups, *shape)),
            np.zeros((groups, self.width, *shape)),
        )

    def add(self, state: RowSums, block: Block) -> RowSums:
        """Return the sums with the rows of one block."""
        group_n, class_ns = self.labels.classify(block[self.labels.key])
        x_nd, n_classes = block[self.key].values, len(self.labels.classes)
        for group in np.unique(group_n[group_n >= 0]):
            members = np.flatnonzero(group_n == group)
            for start in range(0, members.size, TILE_ROWS):
                rows = members[start : start + TILE_ROWS]
                part_nd = x_nd[rows]
                add_rows(state.scatters[group], part_nd)
                one_hot = class_ns[rows][:, :, None] == np.arange(n_classes)
                state.count_gsk[group] += one_hot.sum(axis=0)
                flat = one_hot.reshape(rows.size, -1).astype(np.float64)
                with np.errstate(invalid="ignore"):  # infinite features end as a reason
                    sums = part_nd.T.astype(np.float64) @ flat
                state.sum_gdsk[group] += sums.reshape(state.sum_gdsk[group].shape)
        return state

    def merge(self, left: RowSums, right: RowSums) -> RowSums:
        """Return the sums of both."""
        for own, other in zip(left.scatters, right.scatters, strict=True):
            merge_scatter(own, other)
        left.count_gsk += right.count_gsk
        left.sum_gdsk += right.sum_gdsk
        return left

    def finish(self, state: RowSums) -> dict[str, list[Linear]] | str:
        """Return both probes of every group left out, by name; or why there are none."""
        sums = _about_one_point(state)
        scatter = sums.scatter_gdd.sum(axis=0)
        if not np.isfinite(scatter).all():
            return "NaN or infinite features"
        if not np.diagonal(scatter).any():
            return "constant features"
        models: dict[str, list[Linear]] = {name: [] for name in PROBES}
        for group in range(len(self.labels.groups)):
            training = sums.without(group)
            shown = training.count_sk[0] > 0
            training.count_sk = training.count_sk[:, shown]
            training.cross_dsk = np.ascontiguousarray(training.cross_dsk[:, :, shown])
            fitted = fit_ridge(training, self.penalty), fit_lda(training, self.shrinkage)
            for name, linear in zip(PROBES, fitted, strict=True):
                models[name].append(_spread(linear, shown))
        return models


def _about_one_point(state: RowSums) -> GroupSums:
    """Return the sums of all groups about their common mean."""
    n_g = np.array([scatter.n for scatter in state.scatters], dtype=np.float64)
    mean_gd = np.stack([scatter.mean_d for scatter in state.scatters])
    shift_d = n_g @ mean_gd / max(n_g.sum(), 1.0)
    scatter_gdd = np.stack([scatter.scatter_dd for scatter in state.scatters])
    with np.errstate(invalid="ignore", over="ignore"):
        for group, n in enumerate(n_g):
            offset_d = mean_gd[group] - shift_d
            scatter_gdd[group] += np.outer(n * offset_d, offset_d)
        sum_gdsk = state.sum_gdsk - shift_d[:, None, None] * state.count_gsk[:, None]
    return GroupSums(shift_d, state.count_gsk, sum_gdsk, scatter_gdd)


def _spread(linear: Linear, shown: NDArray[np.bool_]) -> Linear:
    """Return weights for all classes; one that was not shown never wins."""
    weight = np.zeros((*linear.weight_dsk.shape[:2], shown.size))
    intercept = np.full((linear.intercept_sk.shape[0], shown.size), -np.inf)
    weight[:, :, shown] = linear.weight_dsk
    intercept[:, shown] = linear.intercept_sk
    return Linear(weight, intercept, linear.penalty)


def count_answers(
    source: Source, fold: RowFold, models: dict[str, list[Linear]]
) -> dict[str, NDArray[np.int64]]:
    """Return how often each class was taken for each, in the group left out.

    Returns
    -------
    dict
        By probe: [groups, label sets, true, predicted]. The rows are read a second time.
    """
    labels, n_classes = fold.labels, len(fold.labels.classes)
    shape = len(labels.groups), labels.shuffles + 1, n_classes, n_classes
    counts = {name: np.zeros(shape, dtype=np.int64) for name in models}
    samples = np.flatnonzero(labels.group_n >= 0)
    for run in runs_of(samples, source.sizes(fold.key)):
        group_n, class_ns = labels.classify(source.read(labels.key, *run))
        x_nd = source.read(fold.key, *run).values
        for group in np.unique(group_n[group_n >= 0]):
            rows = np.flatnonzero(group_n == group)
            for first in range(0, rows.size, TILE_ROWS):
                _count(counts, models, x_nd, class_ns, int(group), rows[first : first + TILE_ROWS])
    return counts


def _count(
    counts: dict[str, NDArray[np.int64]],
    models: dict[str, list[Linear]],
    x_nd: NDArray,
    class_ns: NDArray[np.int64],
    group: int,
    rows: NDArray[np.int64],
) -> None:
    """Add the answers for some rows of one group."""
    for name, linears in models.items():
        guess_ns = linears[group].score(x_nd[rows].astype(np.float64)).argmax(axis=2)
        for s in range(guess_ns.shape[1]):
            np.add.at(counts[name][group, s], (class_ns[rows, s], guess_ns[:, s]), 1)
