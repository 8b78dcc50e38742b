"""Classes of single rows: a row column has one whole number a row.

It is a row site without layers, of width 1, or was added to the store later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..fold import ArrayKey, Piece
from ..pooled import runs_of
from ..source import Source, View
from ..statistics.draws import seeded

MAX_CLASSES = 128
"""More classes than this are not probed: sums and weights grow with their number."""


@dataclass(frozen=True, eq=False, slots=True)
class RowLabels:
    """The classes of the rows of one stream of one capture, and who is left out."""

    key: ArrayKey
    """The row column."""
    classes: tuple[int, ...]
    """The values that occur in the samples that are used, ascending."""
    names: tuple[str, ...]
    """What each of `classes` is called; its number where nobody said."""
    group_n: NDArray[np.int64]
    """Number of the group of each sample of the axis, -1 for a sample that is not used."""
    groups: tuple[str, ...]
    ids: NDArray[np.object_]
    """Sample ids along the axis, which control labels are drawn by."""
    shuffles: int
    seed: int
    reason: str = ""
    """Why nothing can be predicted; empty otherwise."""

    def classify(self, column: Piece) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return group and classes of every row of a block.

        Parameters
        ----------
        column
            The row column of the block.

        Returns
        -------
        tuple
            [rows], -1 for a row that is not used, and [rows, label sets]: its class number, then
            those of rows of the same sample in random order.
        """
        value_n = column.values[:, 0]
        counts = np.diff(column.offsets)
        group_n = np.repeat(self.group_n[column.samples], counts)
        labelled = np.isfinite(value_n) & (value_n >= 0)
        group_n = np.where(labelled, group_n, -1)
        class_n = np.searchsorted(self.classes, np.where(group_n >= 0, value_n, self.classes[0]))
        class_ns = np.repeat(class_n[:, None], self.shuffles + 1, axis=1)
        for i, sample in enumerate(column.samples):
            start, stop = column.offsets[i], column.offsets[i + 1]
            rows = start + np.flatnonzero(group_n[start:stop] >= 0)
            if self.shuffles and rows.size > 1:
                rng = seeded(f"{self.seed}/rows/{self.ids[sample]}")
                for s in range(1, self.shuffles + 1):
                    class_ns[rows, s] = class_n[rows][rng.permutation(rows.size)]
        return group_n, class_ns


def row_columns(view: View) -> list[ArrayKey]:
    """Return the row columns of a capture: added ones, row sites of width 1 without layers."""
    names = [name for name, info in view.sites.items() if info.width == 1 and info.layers is None]
    names += view.added
    return [ArrayKey(view.name, name, -1) for name in sorted(names)]


def name_classes(source: Source, key: ArrayKey, classes: Sequence[int]) -> tuple[str, ...]:
    """Return what classes of a row column are called; their numbers where nobody said."""
    added = source.views[key.capture].added.get(key.site)
    names = source.capture(key.capture).class_names(key.site) if added is None else added.names
    return tuple(names[n] if n < len(names) else str(n) for n in classes)


def find_classes(
    source: Source, key: ArrayKey, samples: NDArray[np.int64]
) -> tuple[int, ...] | None:
    """Return the classes in a row column; None where it holds no whole numbers.

    Values below 0 and NaN say that a row has no class. Stops beyond `MAX_CLASSES`.
    """
    found: set[int] = set()
    for run in runs_of(samples, source.sizes(key)):
        piece = source.read(key, *run)
        values = np.unique(piece.values[np.isfinite(piece.values) & (piece.values >= 0)])
        if (values != np.floor(values)).any():
            return None
        found |= {int(value) for value in values}
        if len(found) > MAX_CLASSES:
            break
    return tuple(sorted(found))
