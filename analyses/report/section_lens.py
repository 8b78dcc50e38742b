"""The report on the lens: what the model's own head says when it reads an earlier layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .curves import along_the_model, caption, capture_curves, curve_panel, place
from .frames import estimate, first, having, in_sequence, not_computed, number, values, where
from .plots import Series
from .section import FigureGroup, Section
from .tables import view

if TYPE_CHECKING:
    import pandas as pd

    from .section import Panel
    from .study import Study

DRAWN = {
    "kl_final_layer": ("KL(final ‖ layer)", (0.0, None)),
    "overlap": ("same answer as the model", (0.0, 1.02)),
    "uar": ("UAR", (0.0, 1.02)),
}
"""Columns with a panel: what the axis says and where it starts and ends."""


def lens_section(table: pd.DataFrame, study: Study) -> Section:
    """Return divergence from the final answer, agreement with it, and UAR, by layer."""
    path, ticks = along_the_model(table)
    panels = [panel for name in DRAWN if (panel := _panel(path, ticks, name, study)) is not None]
    found = {
        capture: sentence
        for capture in study.captures
        if (sentence := _finding(where(path, "capture", capture), capture))
    }
    estimator = "head on the mean over frames of the final norm of each layer"
    drawn = having(path, "overlap")
    text = caption(drawn, estimator=estimator, value="overlap", mask="all")
    text += " Dotted: what chance gives, from how often each answer is given."
    title = "The head reads every layer"
    return Section(
        key="lens",
        title="Lens",
        question="At which depth is the model's answer there?",
        findings=list(found.values()),
        headline=[found[capture] for capture in study.focus if capture in found],
        figures=[FigureGroup(title, panels, text)] if panels else [],
        tables=[view(table, key="lens", title="Lens by capture and layer")] if len(table) else [],
        missing=not_computed(table, "overlap", "lens"),
    )


def _panel(
    path: pd.DataFrame, ticks: tuple[list[float], list[str]], name: str, study: Study
) -> Panel | None:
    lines = capture_curves(path, study, y=name, x="position")
    if not lines:
        return None
    label, limits = DRAWN[name]
    if name == "overlap":
        lines += [
            Series("", line.x, line.y, style=line.style, dotted=True)
            for line in capture_curves(path, study, y="chance_overlap", x="position")
        ]
    if name == "uar" and study.chance is not None:
        lines.append(Series("chance", [*lines[0].x], [study.chance] * len(lines[0].x), style=None))
    file_name = f"lens-{name.replace('_', '-')}"
    return curve_panel(file_name, label, lines, y_label=label, y_limits=limits, ticks=ticks)


def _finding(rows: pd.DataFrame, capture: str) -> str:
    """Return from which layer on the lens beats chance, and what it says at the last layer."""
    rows = in_sequence(having(rows, "overlap"), "position")
    if rows.empty:
        return ""
    low, chance = values(rows, "overlap_low"), values(rows, "chance_overlap")
    sure = np.isfinite(low)
    above = np.flatnonzero(np.where(sure, low, values(rows, "overlap")) > chance)
    last = rows.iloc[[-1]]
    end = (
        f"at {place(last)} overlap {estimate(last, 'overlap')}, "
        f"KL {number(first(last, 'kl_final_layer'))}"
    )
    if above.size == 0:
        return f"{capture} agrees with its own answer no more than chance anywhere; {end}."
    begin = rows.iloc[[int(above[0])]]
    how = "with its whole interval" if sure.all() else "no interval"
    chance_text = f"{number(first(begin, 'chance_overlap'))}, {how}"
    return (
        f"{capture} agrees with its own answer above chance ({chance_text}) first at "
        f"{place(begin)}: {estimate(begin, 'overlap')}; {end}."
    )
