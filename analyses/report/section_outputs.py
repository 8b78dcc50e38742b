"""The report on what the models answer: recalls and confusions of each capture's own head."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .curves import caption
from .frames import count_text, estimate, having, not_computed, number, strings, values, where
from .plots import heatmap_figure
from .section import FigureGroup, Panel, Section
from .tables import view

if TYPE_CHECKING:
    import pandas as pd

    from .study import Study


def outputs_section(table: pd.DataFrame, confusion: pd.DataFrame, study: Study) -> Section:
    """Return UAR and WAR in words and in a table, and a confusion matrix per capture."""
    estimator = "counted answers, coloured by their share of the true class"
    text = caption(table, estimator=estimator, value="uar", mask="all")
    panels = [
        _panel(f"outputs-{i}", capture, rows)
        for i, capture in enumerate(study.captures)
        if values(rows := where(confusion, "capture", capture), "count").sum() > 0
    ]
    found = {
        capture: sentence
        for capture in study.captures
        if (sentence := _finding(where(table, "capture", capture), capture, study))
    }
    return Section(
        key="outputs",
        title="Recognition",
        question="How well does each condition recognise samples that it was not trained on?",
        findings=list(found.values()),
        headline=[found[capture] for capture in study.focus if capture in found],
        figures=[FigureGroup("Confusion", panels, text)] if panels else [],
        tables=[view(table, key="outputs", title="Scores by capture")] if len(table) else [],
        missing=not_computed(table, "uar", "UAR"),
    )


def _panel(name: str, capture: str, rows: pd.DataFrame) -> Panel:
    """Return the confusion matrix of one capture, rows normalised, with its counts."""
    labels = list(dict.fromkeys([*strings(rows, "label"), *strings(rows, "predicted")]))
    at = {label: i for i, label in enumerate(labels)}
    counts = np.zeros((len(labels), len(labels)))
    for true, given, count in zip(
        strings(rows, "label"), strings(rows, "predicted"), values(rows, "count"), strict=True
    ):
        counts[at[true], at[given]] = count
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.where(totals > 0, counts / np.maximum(totals, 1), np.nan)
    written = np.asarray([f"{int(count)}" for count in counts.flat]).reshape(counts.shape)
    figure = heatmap_figure(
        shares,
        x_names=[short(label) for label in labels],
        y_names=[short(label) for label in labels],
        x_label="answer",
        y_label="true class",
        value_label="share of the true class",
        written=written,
    )
    recalls = ", ".join(
        f"{label} {number(float(share))}"
        for label, share in zip(labels, shares.diagonal(), strict=True)
    )
    return Panel(name, capture, figure, f"Confusion matrix. Recall by class: {recalls}.")


def short(label: str) -> str:
    """Return a label that fits beside a cell."""
    return label if len(label) <= 12 else label[:11] + "…"


def _finding(rows: pd.DataFrame, capture: str, study: Study) -> str:
    rows = having(rows, "uar")
    if rows.empty:
        return ""
    chance = "" if study.chance is None else f"; chance is {number(study.chance)}"
    return (
        f"{capture} reaches UAR {estimate(rows, 'uar')} and WAR {estimate(rows, 'war')} "
        f"({count_text(rows)}{chance})."
    )
