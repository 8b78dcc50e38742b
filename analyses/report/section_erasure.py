"""The report on interventions: what the answers lose when a part of the model is changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .curves import caption, capture_curves, curve_panel
from .frames import estimate, first, having, not_computed, strings, take, values, where
from .plots import Series
from .section import FigureGroup, Section
from .tables import view

if TYPE_CHECKING:
    import pandas as pd

    from .section import Panel
    from .study import Study

DRAWN = {
    "delta_uar": ("UAR, changed minus unchanged", "Recognition without a part"),
    "kl": ("KL(unchanged ‖ changed)", "How far the answers move"),
}
"""Columns with a figure: what the axis says, and what the panels answer together."""
MOST_CHANGES = 12
"""Kinds of change with a panel each; more are in the table alone."""


def erasure_section(table: pd.DataFrame, study: Study) -> Section:
    """Return paired differences by layer, a panel per kind of change, and the largest in words."""
    groups = [_group(table, study, y) for y in DRAWN]
    found = {
        capture: sentence
        for capture in study.captures
        if (sentence := _finding(where(table, "capture", capture), capture))
    }
    return Section(
        key="erasure",
        title="Interventions",
        question="What do the answers lose when a part of the model is erased, off or replaced?",
        findings=list(found.values()),
        headline=[found[capture] for capture in study.focus if capture in found],
        figures=[group for group in groups if group is not None],
        tables=[view(table, key="erasure", title="Changed minus unchanged")] if len(table) else [],
        missing=not_computed(table, "delta_uar", "difference"),
    )


def _group(table: pd.DataFrame, study: Study, y: str) -> FigureGroup | None:
    rows = having(having(table, "layer"), y)
    names = strings(rows, "change")
    # a single layer makes no curve: it is in the table
    changes = [
        change
        for change in dict.fromkeys(names)
        if len(set(values(take(rows, names == change), "layer"))) > 1
    ][:MOST_CHANGES]
    panels = [_panel(rows, study, y, str(change), i) for i, change in enumerate(changes)]
    if not panels:
        return None
    label, title = DRAWN[y]
    estimator = f"paired on the same samples; {label}"
    # the model and its head read every frame of the window, so does every difference
    text = caption(rows, estimator=estimator, value=y, mask="all")
    return FigureGroup(title, panels, text)


def _panel(rows: pd.DataFrame, study: Study, y: str, change: str, number: int) -> Panel:
    lines = capture_curves(where(rows, "change", change), study, y=y)
    if y == "delta_uar" and lines:
        ends = [x for line in lines for x in line.x]
        lines.append(Series("", [min(ends), max(ends)], [0.0, 0.0], style=None))
    limits = (0.0, None) if y == "kl" else (None, None)
    name = f"erasure-{y.replace('_', '-')}-{number}"
    return curve_panel(name, change, lines, y_label=DRAWN[y][0], y_limits=limits)


def _finding(rows: pd.DataFrame, capture: str) -> str:
    """Return the change that costs a capture the most, and how many do so beyond doubt."""
    rows = having(rows, "delta_uar")
    if rows.empty:
        return ""
    worst = take(rows, np.arange(len(rows)) == int(values(rows, "delta_uar").argmin()))
    layer = first(worst, "layer")
    place = f" at layer {int(layer)}" if np.isfinite(layer) else ""
    high = values(rows, "delta_uar_high")
    sure = int((high < 0).sum()) if np.isfinite(high).any() else None
    counted = (
        "no interval" if sure is None else f"{sure} of {len(rows)} lie below 0 with their interval"
    )
    return (
        f"{capture} loses most by {strings(worst, 'change')[0]}{place}: "
        f"UAR {estimate(worst, 'delta_uar')}, KL {estimate(worst, 'kl')} ({counted})."
    )
