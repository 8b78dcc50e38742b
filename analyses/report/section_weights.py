"""The report on adapter weights: how many directions A, B and BA use, and what they share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .curves import caption, capture_curves, curve_panel
from .frames import having, in_order, not_computed, number, strings, take, values, where
from .section import FigureGroup, Section
from .tables import view

if TYPE_CHECKING:
    import pandas as pd

    from .study import Study

MATRICES = ("A", "B", "BA")
MOST_MODULES = 4
"""Modules with panels; more are in the table alone."""
READ = (
    " The effective rank counts directions, weighted by size: r where all are equally large, near "
    "1 where one carries all. A line that is missing belongs to matrices that are 0."
)


def weights_section(table: pd.DataFrame, shared: pd.DataFrame, study: Study) -> Section:
    """Return effective ranks by layer, a panel per module and matrix, and shared directions."""
    group = _group(table, study)
    found = _findings(table, study)
    tables = [view(table, key="weights", title="A, B and BA by capture, layer and module")]
    common = _all_directions(shared)
    if len(common):
        title = "Directions that captures share (all that both have)"
        tables.append(view(common, key="subspaces", title=title))
    return Section(
        key="weights",
        title="Adapter weights",
        question="How many directions do A, B and BA use, and how far have they moved?",
        findings=[*found, *_overlaps(common, study)],
        headline=found[:1],
        figures=[] if group is None else [group],
        tables=tables if len(table) else [],
        missing=not_computed(table, "erank", "effective rank"),
    )


def _group(table: pd.DataFrame, study: Study) -> FigureGroup | None:
    rows = having(having(table, "layer"), "erank")
    panels = []
    for module in list(dict.fromkeys(strings(rows, "module")))[:MOST_MODULES]:
        for matrix in in_order(strings(rows, "matrix"), MATRICES):
            part = where(where(rows, "module", str(module)), "matrix", matrix)
            lines = capture_curves(part, study, y="erank")
            if lines:
                name, title = f"weights-erank-{len(panels)}", f"{matrix} of {module}"
                label = "effective rank"
                panels.append(curve_panel(name, title, lines, y_label=label, y_limits=(0, None)))
    if not panels:
        return None
    estimator = "entropy of the singular values"
    text = caption(rows, estimator=estimator, value="erank", unit="directions (rank)")
    return FigureGroup("Effective rank of the adapter", panels, text + READ)


def _findings(table: pd.DataFrame, study: Study) -> list[str]:
    rows = where(table, "matrix", "BA")
    means = []
    for capture in study.captures:
        part = having(where(rows, "capture", capture), "erank")
        if len(part):
            rank, size = values(part, "erank").mean(), values(part, "n").mean()
            means.append(
                f"{number(float(rank), digits=1)} of {number(size, digits=0)} in {capture}"
            )
    sentence = f"BA uses this many directions (effective rank, mean): {', '.join(means)}."
    return [sentence] if means else []


def _all_directions(shared: pd.DataFrame) -> pd.DataFrame:
    """Return the rows about all directions that both captures have, one a module and matrix."""
    rows = having(shared, "overlap")
    keys = [strings(rows, k) for k in ("capture_a", "capture_b", "module", "layer", "matrix")]
    last = {key: i for i, key in enumerate(zip(*keys, strict=True))}
    return take(rows, np.isin(np.arange(len(rows)), list(last.values())))


def _overlaps(common: pd.DataFrame, study: Study) -> list[str]:
    """Return how much of the reference's or another capture's directions the adapted one has."""
    sentences = []
    for other in study.captures:
        rows = where(where(common, "capture_a", other), "capture_b", study.adapted)
        parts = [
            f"{number(float(values(part, 'overlap').mean()))} of {matrix} "
            f"(random: {number(float(values(part, 'overlap_random').mean()))})"
            for matrix in ("A", "B")
            if len(part := where(rows, "matrix", matrix))
        ]
        if parts:
            sentences.append(f"{study.adapted} shares with {other}: {', '.join(parts)}.")
    return sentences
