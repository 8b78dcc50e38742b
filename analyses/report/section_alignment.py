"""The report on LoRA A against LoRA B, beside what a B of random orientation would show."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from .curves import caption, capture_curves, curve_panel
from .frames import having, leading_mask, not_computed, number, strings, values, where
from .plots import Series
from .section import FigureGroup, Panel, Section
from .tables import view

if TYPE_CHECKING:
    from .study import Study

SIDES = {
    "forward": "outputs of A against outputs of B",
    "backward": "gradients at the output of B against those at the output of A",
}


def alignment_section(table: pd.DataFrame, study: Study) -> Section:
    """Return the curves of both directions with their null, and how many layers leave it."""
    rows = leading_mask(having(table, "value"), ("capture", "module", "direction"))
    found = _findings(rows, study)
    return Section(
        key="alignment",
        title="LoRA A against LoRA B, and what any B would show",
        question="Do A and B agree more, or less, than the shape of their spectra makes them?",
        findings=list(found.values()),
        headline=[found[study.adapted]] if study.adapted in found else [],
        figures=[] if rows.empty else [_group(rows, study)],
        tables=[view(table, key="alignment", title="By capture, module, layer and direction")]
        if len(table)
        else [],
        missing=not_computed(table, "value", "similarity"),
    )


def _group(rows: pd.DataFrame, study: Study) -> FigureGroup:
    panels: list[Panel] = []
    for direction, sides in SIDES.items():
        part = where(rows, "direction", direction)
        for module in dict.fromkeys(strings(part, "module")):
            of_module = where(part, "module", module)
            lines = _lines(of_module, study)
            title = f"{module}, {direction}: {sides}"
            name = f"alignment-{len(panels)}"
            panels.append(curve_panel(name, title, lines, y_label="CKA", y_limits=(0.0, 1.02)))
    text = caption(rows, estimator="biased CKA, exact", value="value", unit="rows")
    return FigureGroup(
        "Observed, and a B of random orientation (dotted, with the range of 95 % of its draws)",
        panels,
        f"{text} Only the distance to the dotted line of the same colour says something about "
        "training: its height follows from the spectra.",
    )


def _lines(rows: pd.DataFrame, study: Study) -> list[Series]:
    null = rows.rename(columns={"null_mean": "null"})  # its ends are called like an interval's
    dotted = [
        Series("", line.x, line.y, line.low, line.high, line.style, dotted=True)
        for line in capture_curves(null, study, y="null")
    ]
    return [*capture_curves(rows, study, y="value"), *dotted]


def _findings(rows: pd.DataFrame, study: Study) -> dict[str, str]:
    sentences = {}
    for capture in study.captures:
        parts = []
        for direction in SIDES:
            part = where(where(rows, "capture", capture), "direction", direction)
            if part.empty:
                continue
            observed, null = values(part, "value"), values(part, "null_mean")
            above = int(np.sum(observed > values(part, "null_high")))
            below = int(np.sum(observed < values(part, "null_low")))
            parts.append(
                f"{direction} {number(float(observed.mean()))} where random orientations give "
                f"{number(float(null.mean()))} ({above} of {len(part)} layers above their range, "
                f"{below} below)"
            )
        if parts:
            sentences[capture] = f"{capture}: {'; '.join(parts)}."
    return sentences
