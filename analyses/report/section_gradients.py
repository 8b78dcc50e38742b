"""The report on gradients: how large they are, and whether samples pull the same way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .curves import caption, capture_curves, curve_panel
from .frames import having, not_computed, number, strings, take, values, where
from .section import FigureGroup, Section
from .tables import view

if TYPE_CHECKING:
    import pandas as pd

    from .study import Study

KINDS = ("within", "between")
MOST_SITES = 4
"""Sites with panels; more are in the table alone."""
DRAWN = {
    "norm_mean": ("‖gradient‖", "Size of the gradient of a sample", ""),
    "within_class_cosine": (
        "cosine within classes",
        "Agreement of samples of one class",
        " 1: all samples of a class pull the same way; 0: none has to do with another.",
    ),
    "between_class_cosine": (
        "cosine between classes",
        "Agreement of samples of two classes",
        " Below 0: what helps one class costs the other; the lowest mean that K class directions "
        "can have is \N{MINUS SIGN}1/(K \N{MINUS SIGN} 1).",
    ),
}
"""Columns with a figure: axis, title, and how to read it."""


def gradients_section(table: pd.DataFrame, study: Study) -> Section:
    """Return norms and cosines by layer, a panel per site."""
    groups = [_group(table, study, y) for y in DRAWN]
    found = _findings(table, study)
    title = "Gradients by capture, site and layer"
    return Section(
        key="gradients",
        title="Gradients",
        question="How large are the gradients of samples, and do they point the same way?",
        findings=found,
        headline=found[:1],
        figures=[group for group in groups if group is not None],
        tables=[view(table, key="gradients", title=title)] if len(table) else [],
        missing=[
            *not_computed(table, "within_class_cosine", "cosine within classes"),
            *not_computed(table, "noise_scale", "noise scale"),
        ],
    )


def _group(table: pd.DataFrame, study: Study, y: str) -> FigureGroup | None:
    rows = having(having(table, "layer"), y)
    sites = _sites(rows)
    label, title, read = DRAWN[y]
    panels = []
    for site in sites:
        lines = capture_curves(where(rows, "site", site), study, y=y)
        if lines:
            name = f"gradients-{y.replace('_', '-')}-{len(panels)}"
            limits = (0, None) if y == "norm_mean" else (None, None)
            panels.append(curve_panel(name, site, lines, y_label=label, y_limits=limits))
    if not panels:
        return None
    shown = take(rows, np.isin(strings(rows, "site"), sites))
    text = caption(shown, estimator="sum over the rows of each sample", value=y)
    return FigureGroup(title, panels, text + read)


def _sites(rows: pd.DataFrame) -> list[str]:
    return [str(site) for site in dict.fromkeys(strings(rows, "site"))][:MOST_SITES]


def _findings(table: pd.DataFrame, study: Study) -> list[str]:
    sentences = []
    for site in _sites(table):
        means = []
        for capture in study.captures:
            part = where(where(table, "site", site), "capture", capture)
            within, between = (_mean(part, f"{kind}_class_cosine") for kind in KINDS)
            if np.isfinite(within):
                means.append(f"{number(within)} and {number(between)} in {capture}")
        if means:
            sentences.append(
                f"{site}: cosine of two samples of one class and of two classes (mean over "
                f"layers): {', '.join(means)}."
            )
    return sentences


def _mean(rows: pd.DataFrame, name: str) -> float:
    found = values(having(rows, name), name)
    return float(found.mean()) if found.size else float("nan")
