"""The report on contributions: how much each layer adds to the stream, and in which direction."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .curves import caption, capture_curves, curve_panel
from .frames import (
    having,
    in_order,
    leading_mask,
    not_computed,
    number,
    strings,
    take,
    values,
    where,
)
from .section import FigureGroup, Section
from .tables import view

if TYPE_CHECKING:
    import pandas as pd

    from .study import Study

COMPONENTS = ("attention", "mlp", "layer", "lora")
RATIOS = {
    "attention": "‖attention‖ / ‖layer input‖",
    "mlp": "‖mlp‖ / ‖mlp input‖",
    "layer": "‖layer‖ / ‖layer input‖",
    "lora": "‖LoRA‖ / ‖frozen module‖",
}


def contribution_section(table: pd.DataFrame, study: Study) -> Section:
    """Return norm ratios and cosines by layer, a panel per component."""
    rows = leading_mask(table)
    others = take(table, np.isin(strings(table, "mask"), ["pad", "all"]))
    others = others.loc[others.index.difference(rows.index, sort=False)]
    estimator = "mean over the frames of each sample, then over samples"
    groups = [
        _group(rows, study, "ratio_mean", "Size of what is added", estimator),
        _group(rows, study, "cosine_mean", "Direction of what is added", estimator),
    ]
    found = _findings(rows, study)
    title = "Contributions by capture, layer and component"
    tables = [view(rows, key="contribution", title=title)] if len(rows) else []
    if len(others):
        title = "The same of padding, and of all frames"
        tables.append(view(others, key="contribution", title=title))
    return Section(
        key="contribution",
        title="Contribution of layers",
        question="How much does each layer, and its LoRA, add to what it receives?",
        findings=list(found.values()),
        headline=[found[name] for name in ("layer", "lora") if name in found],
        figures=[group for group in groups if group is not None],
        tables=tables,
        missing=not_computed(rows, "ratio_mean", "ratio"),
    )


def _group(
    rows: pd.DataFrame, study: Study, y: str, title: str, estimator: str
) -> FigureGroup | None:
    panels = []
    for component in in_order(strings(rows, "component"), COMPONENTS):
        lines = capture_curves(where(rows, "component", component), study, y=y)
        if not lines:
            continue
        ratio = y.startswith("ratio")
        label = RATIOS.get(component, "ratio") if ratio else f"cosine, {component}"
        limits = (0.0, None) if ratio else (None, None)
        name = f"contribution-{y.removesuffix('_mean')}-{len(panels)}"
        panels.append(curve_panel(name, component, lines, y_label=label, y_limits=limits))
    if not panels:
        return None
    return FigureGroup(
        title, panels, caption(having(rows, y), estimator=estimator, value=y, unit="frames")
    )


def _findings(rows: pd.DataFrame, study: Study) -> dict[str, str]:
    sentences = {}
    for component in in_order(strings(rows, "component"), COMPONENTS):
        part = where(rows, "component", component)
        means = []
        for capture in study.captures:
            found = values(where(part, "capture", capture), "ratio_mean")
            found = found[np.isfinite(found)]
            if found.size:
                means.append(f"{number(float(found.mean()))} in {capture}")
        if means:
            ratio = RATIOS.get(component, component)
            sentences[component] = f"{ratio}, mean over layers: {', '.join(means)}."
    return sentences
