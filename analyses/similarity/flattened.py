"""CKA of whole samples: all numbers of a sample's rows as one vector, position by position."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..backend import to_device, to_host
from ..errors import MemoryBudgetError
from ..fold import ArrayKey
from ..memory import format_bytes
from ..plan import Outcome, mask_of
from ..selection import Selection
from ..source import AGAINST, Source, View
from .cka_estimate import estimate, no_estimate
from .matrices import sum_grams
from .pairs import Compared, PairGroup, blank, explain_arrays, group_pairs, jackknife_groups

_SHARE = 0.36
"""Part of the memory that all of this may take: pooled features may hold the rest."""
_COPIES = 5
"""Gram matrices of all arrays that exist at a time: as made, of common samples, centred, summed."""
_BLOCK = 2**18
"""Numbers of a panel that are multiplied at a time, in float64."""
_CONSTANT = 1e-24
"""Samples whose centred square sum is below this part of the uncentred one are constant."""
_CHECK_SAMPLES = 512
"""Samples whose row positions are compared at a time."""


@dataclass(frozen=True, slots=True)
class FlatPlan:
    """Which arrays are compared as whole samples, and which cannot be."""

    arrays: tuple[ArrayKey, ...] = ()
    refused: tuple[tuple[ArrayKey, str], ...] = ()
    """Arrays whose samples have no rows in common positions, with the reason."""


def plan_flattened(selection: Selection) -> FlatPlan:
    """Return the row arrays of which every sample has rows at the same positions.

    Raises
    ------
    MemoryBudgetError
        Their Gram matrices do not fit into their part of the memory.
    """
    arrays: list[ArrayKey] = []
    refused: list[tuple[ArrayKey, str]] = []
    known: dict[tuple[str, str], str] = {}
    for view in (*selection.captures, *selection.others):
        for key in selection.row_keys(view):
            stream = (view.name, view.sites[key.site].stream)
            if stream not in known:
                known[stream] = _explain(selection.source, view, stream[1])
            if known[stream]:
                refused.append((key, known[stream]))
            else:
                arrays.append(key)
    _check_fits(selection, arrays)
    return FlatPlan(tuple(arrays), tuple(refused))


def _explain(source: Source, view: View, stream: str) -> str:
    """Return why the samples of a stream cannot be laid out as vectors of the same numbers."""
    counts = view.rows[stream][view.samples]
    first = source.ids[view.samples[0]]
    other = np.flatnonzero(counts != counts[0])
    if other.size:
        return (
            f"samples have unequal rows: {first!r} has {counts[0]} and "
            f"{source.ids[view.samples[other[0]]]!r} {counts[other[0]]}; record `frames: all`"
        )
    if not counts[0]:
        return "samples have no rows"
    expected = source.read_positions(view.name, stream, view.samples[:1])
    for start in range(0, view.samples.size, _CHECK_SAMPLES):
        some = view.samples[start : start + _CHECK_SAMPLES]
        found_nt = source.read_positions(view.name, stream, some).reshape(some.size, -1)
        if not (found_nt == expected).all():
            return "samples have rows at different positions; record `frames: all`"
    return ""


def _count_gram_bytes(selection: Selection, arrays: Sequence[ArrayKey]) -> int:
    views = selection.source.views
    return sum(8 * views[key.capture].samples.size ** 2 for key in arrays)


def _count_sample_bytes(selection: Selection, key: ArrayKey) -> int:
    """Return the size of one sample of an array."""
    return int(selection.source.sizes(key).max(initial=0))


def _check_fits(selection: Selection, arrays: Sequence[ArrayKey]) -> None:
    grams = _COPIES * _count_gram_bytes(selection, arrays)
    largest = max((_count_sample_bytes(selection, key) for key in arrays), default=0)
    need = (grams + 6 * largest + 16 * _BLOCK) / _SHARE  # one worker: two samples, a mean, a read
    if arrays and need > selection.memory_bytes:
        msg = (
            f"cka of {len(arrays)} flattened arrays needs pairs of samples of each, about "
            f"{format_bytes(need)}, and memory is {format_bytes(selection.memory_bytes)}. Allow "
            "that much (--memory), choose captures, sites or layers, or leave flattened out."
        )
        raise MemoryBudgetError(msg)


@dataclass(frozen=True, slots=True)
class _Flat:
    """Samples of one array as vectors."""

    source: Source
    key: ArrayKey
    samples: NDArray[np.int64]
    columns: int
    panel: int
    """Samples that are held at a time, twice."""
    device: str

    def gram(self) -> tuple[NDArray[np.float64], str]:
        """Return the Gram matrix of samples less their mean, and what is wrong with the array."""
        n = self.samples.size
        gram_nn = np.zeros((n, n))
        mean_c, square = self._moments()
        if not np.isfinite(square):
            return gram_nn, "NaN or infinite features"
        panels = [slice(a, min(n, a + self.panel)) for a in range(0, n, self.panel)]
        for i, rows in enumerate(panels):
            x = self._read(rows)
            for columns in panels[i:]:
                y = x if columns == rows else self._read(columns)
                product = self._multiply(x, y, mean_c)
                gram_nn[rows, columns] = product
                gram_nn[columns, rows] = product.T
        constant = float(np.trace(gram_nn)) <= _CONSTANT * square
        return gram_nn, "constant features" * constant

    def _read(self, part: slice) -> NDArray:
        """Return samples as vectors, [samples, columns]."""
        some = self.samples[part]
        piece = self.source.read(self.key, int(some[0]), int(some[-1]) + 1)
        return piece.values.reshape(some.size, self.columns)

    def _blocks(self, rows: int) -> Iterator[slice]:
        width = max(1, _BLOCK // rows)
        return (slice(a, min(self.columns, a + width)) for a in range(0, self.columns, width))

    def _moments(self) -> tuple[NDArray[np.float64], float]:
        """Return the mean of every column, and the sum of all squares."""
        mean_c, square = np.zeros(self.columns), 0.0
        with np.errstate(invalid="ignore", over="ignore"):  # infinite features end as a fault
            for first in range(0, self.samples.size, self.panel):
                x = self._read(slice(first, first + self.panel))
                for block in self._blocks(len(x)):
                    part = x[:, block].astype(np.float64)
                    mean_c[block] += part.sum(axis=0) / self.samples.size
                    square += float(np.vdot(part, part))
        return mean_c, square

    def _multiply(self, x: NDArray, y: NDArray, mean_c: NDArray) -> NDArray[np.float64]:
        """Return the inner products of two panels, [samples, samples], block by block."""
        total = np.zeros((len(x), len(y)))
        for block in self._blocks(max(len(x), len(y))):
            a = to_device(x[:, block] - mean_c[block], self.device)
            b = a if y is x else to_device(y[:, block] - mean_c[block], self.device)
            total += to_host(a @ b.T)
        return total


def conclude_flattened(
    plan: FlatPlan, outcome: Outcome, attrs: dict[str, object]
) -> list[pd.DataFrame]:
    """Return the rows of the table for whole samples."""
    if not plan.arrays and not plan.refused:
        return []
    attrs["flattened"] = "all numbers of a sample's rows, less their mean over the samples"
    grams = _make_grams(plan, outcome)
    tables = [
        frame
        for group in group_pairs(outcome.selection)
        for frame in _compare(plan.arrays, grams, group, outcome)
    ]
    return tables + _refuse(plan, outcome)


def _make_grams(
    plan: FlatPlan, outcome: Outcome
) -> dict[ArrayKey, tuple[NDArray[np.float64], str]]:
    """Return the Gram matrix of every array over all samples of its capture, and its fault."""
    selection, runner = outcome.selection, outcome.runner
    views = selection.source.views
    room = int(_SHARE * selection.memory_bytes)
    room -= _COPIES * _count_gram_bytes(selection, plan.arrays)
    largest = max((_count_sample_bytes(selection, key) for key in plan.arrays), default=0)
    workers = max(1, min(runner.workers, room // (6 * largest + 16 * _BLOCK + 1)))

    def make(key: ArrayKey) -> tuple[NDArray[np.float64], str]:
        view, size = views[key.capture], _count_sample_bytes(selection, key)
        columns = int(view.rows[view.sites[key.site].stream].max()) * view.sites[key.site].width
        panel = (room // workers - 16 * _BLOCK - 2 * size) // max(4 * size, 1)
        panel = max(1, min(view.samples.size, panel))
        flat = _Flat(selection.source, key, view.samples, columns, panel, runner.device)
        return flat.gram()

    found = runner.map(make, plan.arrays, workers) if plan.arrays else []
    return dict(zip(plan.arrays, found, strict=True))


def _compare(
    keys: Sequence[ArrayKey],
    grams: dict[ArrayKey, tuple[NDArray[np.float64], str]],
    group: PairGroup,
    outcome: Outcome,
) -> list[pd.DataFrame]:
    """Return the rows of all pairs of arrays over one set of samples."""
    selection = outcome.selection
    views, arrays = selection.source.views, group.arrays(keys, selection)
    if not arrays:
        return []
    view = views[arrays[0].capture]
    most = int(0.01 * selection.memory_bytes) // (8 * 8 * len(arrays) ** 2)
    group_n = jackknife_groups(view, group.samples, selection.seed, most)
    faults = [grams[key][1] for key in arrays]
    found = no_estimate(len(arrays))
    if group.samples.size >= 4:
        found = estimate(sum_grams([_take(grams, k, group, views) for k in arrays], group_n))
    masks = tuple(mask_of(views[key.capture], key.site) for key in arrays)
    reasons = explain_arrays(faults, group.samples.size, arrays)
    n_groups = int(group_n.max(initial=0)) + 1
    compared = Compared(selection, group, arrays, masks, reasons, n_groups)
    frames = compared.frames(blank(found, faults), granularity="flattened", kernel="linear")
    return list(frames)


def _take(
    grams: dict[ArrayKey, tuple[NDArray[np.float64], str]],
    key: ArrayKey,
    group: PairGroup,
    views: dict[str, View],
) -> NDArray[np.float64]:
    """Return the Gram matrix of one array over the samples of a group."""
    own = views[key.capture].samples
    if own.size == group.samples.size:
        return grams[key][0]
    at = np.searchsorted(own, group.samples)
    return grams[key][0][np.ix_(at, at)]


def _refuse(plan: FlatPlan, outcome: Outcome) -> list[pd.DataFrame]:
    """Return one row, without a value, for each array that is no matrix of samples."""
    selection, frames = outcome.selection, list[pd.DataFrame]()
    for key, reason in plan.refused:
        if key.capture.startswith(AGAINST):
            continue
        view = selection.source.views[key.capture]
        group = PairGroup(view.samples, {(key.capture, key.capture)})
        mask = (mask_of(view, key.site),)
        compared = Compared(selection, group, (key,), mask, (f"{reason}: {key}",), 0)
        nothing = {"debiased": no_estimate(1)["debiased"]}
        frames += compared.frames(nothing, granularity="flattened", kernel="linear")
    return frames
