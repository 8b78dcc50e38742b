"""The report on probes: what a linear reader finds at each layer, against chance and control."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from .curves import (
    PATH,
    along_the_model,
    caption,
    capture_curves,
    curve_panel,
    place,
    site_families,
)
from .frames import (
    estimate,
    first,
    having,
    in_sequence,
    not_computed,
    number,
    over_all_folds,
    prefer,
    several,
    single_folds,
    strings,
    take,
    values,
    where,
)
from .plots import Series
from .section import FigureGroup, Section
from .tables import view

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .section import Panel, TableView
    from .study import Study


def probe_section(
    table: pd.DataFrame, study: Study, more: Mapping[str, pd.DataFrame] | None = None
) -> Section:
    """Return UAR along the model, a panel per capture and one that lays them over each other.

    Drawn is the logistic probe; the other probes, and the tables of `more` (`probe_weights`, `mdl`,
    `row_probe` and its classes), stand below as tables.
    """
    pooled = prefer(over_all_folds(table), "probe", "logistic")
    drawn = prefer(table, "probe", "logistic")
    path, ticks = along_the_model(pooled)
    others = take(pooled, ~np.isin(site_families(pooled), PATH))
    estimator = f"{several(path, 'probe') or 'linear'} probe, split: {several(path, 'split')}"
    text, text_others = (
        caption(rows, estimator=estimator, value="uar", mask="valid") for rows in (path, others)
    )
    text += " Control: the same probe on labels that were permuted."
    groups = [
        FigureGroup("Linear probes along the model", _panels(path, ticks, study), text),
        FigureGroup("Linear probes on other sites", _other_panels(others, study), text_others),
    ]
    best = _best_places(path, study)
    found = {capture: _finding(where(path, "capture", capture), best[capture]) for capture in best}
    folds = single_folds(drawn)
    findings = [sentence + _fold_spread(folds, best[name]) for name, sentence in found.items()]
    findings += _other_findings(others, study) + _other_probes(over_all_folds(table), best)
    note = (
        f"Split: {several(path, 'split') or 'not stated'}. The best of {len(ticks[0])} positions "
        "is a little optimistic, since it was chosen on the samples that it is scored on."
    )
    return Section(
        key="probe",
        title="Probes",
        question="From which layer on can the label be read out, for speakers not heard before?",
        findings=[f"{sentence}." for sentence in findings] + [note] * bool(findings),
        headline=[f"{found[capture]}." for capture in study.focus if capture in found],
        figures=[group for group in groups if group.panels],
        tables=_tables(table, drawn, more or {}),
        missing=not_computed(over_all_folds(table), "uar", "UAR"),
    )


_COMPARED = (
    *("capture", "site", "layer", "probe", "n", "uar", "uar_low", "uar_high", "war"),
    *("control_uar", "selectivity", "p_holm", "penalty", "reason"),
)
"""Columns of the table of the probes that are not drawn."""
_MORE = {
    "probe_weights": "Weights of the layers in one probe of all of them",
    "mdl": "Codelength of the labels, in bits",
    "row_probe": "Probes of single rows",
    "row_probe_classes": "Classes of single rows, where their probes read best",
}


def _tables(
    table: pd.DataFrame, drawn: pd.DataFrame, more: Mapping[str, pd.DataFrame]
) -> list[TableView]:
    """Return the scores of the probe that is drawn, those of the others, and further tables."""
    shown = [view(drawn, key="probe", title="Probe scores")] if len(table) else []
    other = over_all_folds(take(table, strings(table, "probe") != several(drawn, "probe")))
    if len(other):
        title = "The other probes, over all folds"
        shown.append(view(other, key="probe", title=title, columns=list(_COMPARED)))
    parts = {key: more[key] for key in _MORE if key in more and len(more[key])}
    if "row_probe_classes" in parts and "row_probe" in parts:
        parts["row_probe_classes"] = _best_rows(parts["row_probe_classes"], parts["row_probe"])
    return shown + [view(part, key=key, title=_MORE[key]) for key, part in parts.items()]


def _best_rows(classes: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """Return the classes at the one place of every capture and row column with the highest UAR."""
    known = scores[scores["uar"].notna()]
    best = known.loc[known.groupby(["capture", "rows"])["uar"].idxmax()]
    return classes.merge(best[["capture", "site", "layer", "rows", "probe"]])


def _other_probes(pooled: pd.DataFrame, best: Mapping[str, pd.DataFrame]) -> list[str]:
    """Return what the other probes read where the one that is drawn reads best."""
    sentences = []
    for capture, found in best.items():
        rows = where(pooled, "capture", capture)
        for name in ("site", "layer"):
            rows = take(rows, strings(rows, name) == str(strings(found, name)[0]))
        names = [str(n) for n in strings(rows, "probe") if n != strings(found, "probe")[0]]
        texts = [f"{n} {estimate(where(rows, 'probe', n), 'uar')}" for n in names]
        if texts:
            sentences.append(f"{capture}, other probes at {place(found)}: UAR {', '.join(texts)}")
    return sentences


def _best_places(path: pd.DataFrame, study: Study) -> dict[str, pd.DataFrame]:
    """Return the row with the highest UAR of every capture that has one."""
    known = {capture: having(where(path, "capture", capture), "uar") for capture in study.captures}
    return {
        capture: rows.iloc[[int(np.argmax(values(rows, "uar")))]]
        for capture, rows in known.items()
        if len(rows)
    }


def _panels(path: pd.DataFrame, ticks: tuple[list[float], list[str]], study: Study) -> list[Panel]:
    lines = capture_curves(path, study, y="uar", x="position")
    if not lines:
        return []
    ends = [v for line in lines for v in (line.x[0], line.x[-1])]
    chance = []
    if study.chance is not None:
        chance = [Series("chance", [min(ends), max(ends)], [study.chance] * 2, style=None)]
    limits = (0.0, 1.02)
    panels = []
    for i, line in enumerate(lines):
        rows = in_sequence(where(path, "capture", line.label), "position")
        control = Series(
            "control",
            values(rows, "position").tolist(),
            values(rows, "control_uar").tolist(),
            style=line.style,
            dotted=True,
        )
        drawn = [line, *([control] if np.isfinite(control.y).any() else []), *chance]
        panels.append(
            curve_panel(
                f"probe-{i}", line.label, drawn, y_label="UAR", y_limits=limits, ticks=ticks
            )
        )
    if len(lines) > 1:
        bare = [Series(line.label, line.x, line.y, style=line.style) for line in lines]
        title = "All captures, without their intervals"
        panels.append(
            curve_panel(
                "probe-all", title, [*bare, *chance], y_label="UAR", y_limits=limits, ticks=ticks
            )
        )
    return panels


def _other_panels(others: pd.DataFrame, study: Study) -> list[Panel]:
    """Return a panel for each site off the path, with all captures that have it."""
    panels = []
    for i, site in enumerate(dict.fromkeys(strings(others, "site"))):
        lines = capture_curves(where(others, "site", site), study, y="uar")
        if lines:
            title = str(site)
            limits = (0.0, 1.02)
            panels.append(
                curve_panel(f"probe-site-{i}", title, lines, y_label="UAR", y_limits=limits)
            )
    return panels


def _other_findings(others: pd.DataFrame, study: Study) -> list[str]:
    """Return the best layer of every site off the path, for the capture of interest."""
    sentences = []
    for site in dict.fromkeys(strings(others, "site")):
        rows = having(where(where(others, "capture", study.adapted), "site", site), "uar")
        if len(rows):
            best = rows.iloc[[int(np.argmax(values(rows, "uar")))]]
            layer = first(best, "layer")
            at = f" at layer {int(layer)}" if np.isfinite(layer) else ""
            sentences.append(f"{study.adapted}, {site}: best{at}, UAR {estimate(best, 'uar')}")
    return sentences


def _finding(rows: pd.DataFrame, best: pd.DataFrame) -> str:
    """Return the best position of one capture in words, without a full stop."""
    capture = str(strings(best, "capture")[0])
    parts = [f"{capture} is read best at {place(best)}: UAR {estimate(best, 'uar')}"]
    control = first(best, "control_uar")
    if np.isfinite(control):
        parts.append(f"{number(control)} with permuted labels")
    embed = first(take(rows, np.strings.startswith(strings(rows, "site"), "embed")), "uar")
    if np.isfinite(embed) and place(best) != "embed":
        parts.append(f"{number(embed)} before the first layer")
    return ", ".join(parts)


def _fold_spread(folds: pd.DataFrame, best: pd.DataFrame) -> str:
    """Return how far apart the single folds lie, or nothing if there are fewer than two."""
    for name in ("capture", "site", "layer", "probe", "split"):
        folds = where(folds, name, str(strings(best, name)[0]))
    uar = values(having(folds, "uar"), "uar")
    if uar.size < 2:
        return ""
    return f", single folds {number(float(uar.min()))} to {number(float(uar.max()))}"
