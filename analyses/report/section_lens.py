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

TUNED = {
    "kl_final_layer": ("KL(final ‖ tuned layer)", (0.0, None)),
    "overlap": ("same answer as the model, tuned", (0.0, 1.02)),
}
"""The same of the tuned lens."""
_SHOWN = (
    *("capture", "site", "layer", "kl_final_layer", "kl_final_layer_low", "kl_final_layer_high"),
    *("lens_kl_final_layer", "delta_kl_final_layer", "delta_kl_final_layer_low"),
    *("delta_kl_final_layer_high", "chance_kl", "overlap", "lens_overlap", "uar", "lens_uar"),
    *("n", "exposed", "reason"),
)
"""Columns of the tuned lens that the page shows; the others are in the table's file."""


def lens_section(table: pd.DataFrame, tuned: pd.DataFrame, study: Study) -> Section:
    """Return divergence from the final answer, agreement with it, and UAR, by layer.

    `tuned` is the table `tuned_lens`; empty where it was not asked for.
    """
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
    groups = [FigureGroup(title, panels, text)] if panels else []
    views = [view(table, key="lens", title="Lens by capture and layer")] if len(table) else []
    missing = not_computed(table, "overlap", "lens")
    findings = list(found.values())
    if len(tuned):
        groups += _tuned_group(tuned, study)
        shown = tuned.loc[:, [name for name in _SHOWN if name in tuned]]
        views.append(view(shown, key="tuned_lens", title="Tuned lens by capture and layer"))
        missing += not_computed(tuned, "kl_final_layer", "tuned lens")
        findings += [s for c in study.captures if (s := _tuned_finding(tuned, c))]
    return Section(
        key="lens",
        title="Lens",
        question="At which depth is the model's answer there?",
        findings=findings,
        headline=[found[capture] for capture in study.focus if capture in found],
        figures=groups,
        tables=views,
        missing=missing,
    )


def _tuned_group(tuned: pd.DataFrame, study: Study) -> list[FigureGroup]:
    """Return the curves of the tuned lens, each beside the lens on the same samples."""
    path, ticks = along_the_model(tuned)
    panels = []
    for name, (label, limits) in TUNED.items():
        lines = capture_curves(path, study, y=name, x="position")
        bare = capture_curves(path, study, y=f"lens_{name}", x="position")
        lines += [Series("", line.x, line.y, style=line.style, dotted=True) for line in bare]
        if lines:
            file_name = f"lens-tuned-{name.replace('_', '-')}"
            panels.append(
                curve_panel(file_name, label, lines, y_label=label, y_limits=limits, ticks=ticks)
            )
    if not panels:
        return []
    estimator = "head after a translator of each layer, fitted without the speaker it is judged on"
    drawn = having(path, "kl_final_layer")
    text = caption(drawn, estimator=estimator, value="kl_final_layer", mask="all")
    text += " Dotted: the lens on the same samples."
    return [FigureGroup("A translator before the head", panels, text)]


def _tuned_finding(tuned: pd.DataFrame, capture: str) -> str:
    """Return at how many layers a translator helps, and where the answer is first readable."""
    rows = having(where(along_the_model(tuned)[0], "capture", capture), "kl_final_layer")
    rows = in_sequence(rows, "position")
    if rows.empty:
        return ""
    high = values(rows, "delta_kl_final_layer_high")
    if np.isfinite(high).any():
        helped = f"{int((high < 0).sum())} of {len(rows)} layers, interval below 0"
    else:
        below = values(rows, "delta_kl_final_layer") < 0
        helped = f"{int(below.sum())} of {len(rows)} layers, no interval"
    end = values(rows, "kl_final_layer_high")
    end = np.where(np.isfinite(end), end, values(rows, "kl_final_layer"))
    reached = np.flatnonzero(end < values(rows, "chance_kl"))
    text = f"{capture}: a translator brings the lens nearer to the answer at {helped}"
    if reached.size == 0:
        return f"{text}; no layer tells more of it than the mean answer does."
    begin = rows.iloc[[int(reached[0])]]
    chance = number(first(begin, "chance_kl"))
    return (
        f"{text}; it tells more than the mean answer (KL {chance}) first at {place(begin)}: "
        f"KL {estimate(begin, 'kl_final_layer')}."
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
