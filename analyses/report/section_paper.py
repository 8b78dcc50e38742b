"""The report on the published code: what each of its faults changes, in curves and in a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ..paper.faults import BY_NAME
from .curves import caption, capture_curves, curve_panel
from .frames import having, in_order, not_computed, number, strings, take, values, where
from .plots import Series
from .section import FigureGroup, Panel, Section
from .tables import view

if TYPE_CHECKING:
    from .study import Study

GROUPS = {
    "contribution": "What layers add: corrected, and as published (dotted)",
    "svd": "Directions of LoRA: corrected, and as published (dotted)",
    "cka": "LoRA A with LoRA B: corrected, and as published (dotted)",
    "lens": "The lens: corrected, and as published (dotted)",
    "erasure": "Erased layers: corrected, and as published (dotted)",
}
"""Analyses that are drawn, in reading order."""
LABELS = {
    "ratio_attention": "‖attention‖ / ‖layer input‖",
    "ratio_mlp": "‖mlp‖ / ‖its input‖",
    "ratio_layer": "‖layer‖ / ‖layer input‖",
    "cosine_attention": "cosine, attention",
    "cosine_mlp": "cosine, mlp",
    "cosine_layer": "cosine, layer",
    "sv90": "SV90",
    "top10_energy": "energy of 10 directions",
    "cka_forward": "CKA, outputs",
    "cka_backward": "CKA, gradients",
    "lens_kl": "KL in nats",
    "lens_overlap": "same answer as the model",
    "erasure_score": "score of the erased layer",
    "erasure_score_cumulative": "score of the erased layers",
}
"""What the axis of a quantity says."""
_DRAWN = 4
"""Most faults that the summary names."""


def paper_section(table: pd.DataFrame, study: Study) -> Section:
    """Return the published quantities beside the corrected ones, and the effect of each fault."""
    effects = summarise_effects(table)
    groups = [_group(where(table, "part", part), part, study) for part in GROUPS]
    findings = [*_findings(table), *_describe(effects)]
    title = "Effect of each fault alone: means over captures and layers"
    return Section(
        key="paper",
        title="What the published code changes",
        question="What does each fault of the published code (arXiv 2509.08454) do to the numbers?",
        findings=findings,
        headline=findings[:1],
        figures=[group for group in groups if group is not None],
        tables=[view(effects, key="paper", title=title)] if len(effects) else [],
        missing=not_computed(table, "value", "published quantity"),
    )


def summarise_effects(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each fault and quantity: means of corrected and changed values.

    Over the captures, sites and layers that have both.
    """
    known = having(having(table, "value"), "corrected")
    known = take(known, strings(known, "fault") != "none")
    rows = []
    for quantity in dict.fromkeys(strings(known, "quantity")):
        part = where(known, "quantity", str(quantity))
        for fault in dict.fromkeys(strings(part, "fault")):
            one = where(part, "fault", str(fault))
            changed, right = values(one, "value"), values(one, "corrected")
            rows.append(
                {
                    "quantity": str(quantity),
                    "fault": "as published" if fault == "all" else str(fault),
                    "corrected": float(right.mean()),
                    "with the fault": float(changed.mean()),
                    "mean change": float((changed - right).mean()),
                    "largest change": float((changed - right)[np.argmax(abs(changed - right))]),
                    "values": len(one),
                    "what the code does": BY_NAME[str(fault)].published
                    if str(fault) in BY_NAME
                    else "",
                }
            )
    return pd.DataFrame(rows)


def _group(rows: pd.DataFrame, part: str, study: Study) -> FigureGroup | None:
    panels = []
    rows = take(rows, np.isfinite(values(rows, "layer")))
    right, published = where(rows, "fault", "none"), where(rows, "fault", "all")
    for quantity in in_order(strings(rows, "quantity"), tuple(LABELS)):
        sites = dict.fromkeys(strings(where(right, "quantity", quantity), "site"))
        for site in sites if part == "svd" else [""]:
            pair = [where(one, "quantity", quantity) for one in (right, published)]
            pair = [where(one, "site", str(site)) for one in pair] if site else pair
            panel = _panel(pair, quantity, str(site), len(panels), study)
            panels += [panel] if panel is not None else []
    if not panels:
        return None
    drawn = having(right if len(having(right, "value")) else published, "value")
    unit = {"contribution": "frames", "svd": "rows"}.get(part, "samples")
    estimator = "corrected as in the other sections; as published with every fault of the quantity"
    mask = "valid" if part in ("contribution", "svd") else ""
    return FigureGroup(
        GROUPS[part],
        panels,
        caption(drawn, estimator=estimator, value="value", unit=unit, mask=mask),
    )


def _panel(
    pair: list[pd.DataFrame], quantity: str, site: str, index: int, study: Study
) -> Panel | None:
    lines = capture_curves(pair[0], study, y="value")
    named = {line.label for line in lines}
    for line in capture_curves(pair[1], study, y="value"):
        label = "" if line.label in named else f"{line.label}, as published"
        lines.append(Series(label, line.x, line.y, style=line.style, dotted=True))
    if not lines:
        return None
    label = LABELS.get(quantity, quantity)
    title = f"{label}, {site}" if site else label
    name = f"paper-{quantity.replace('_', '-')}-{index}"
    return curve_panel(name, title, lines, y_label=label)


def _findings(table: pd.DataFrame) -> list[str]:
    """Return what pairing the samples at random leaves of CKA as published."""
    rows = where(where(table, "part", "cka"), "fault", "all")
    sentences = []
    for quantity in ("cka_forward", "cka_backward"):
        part = having(where(rows, "quantity", quantity), "value")
        if len(part):
            value, null = values(part, "value").mean(), values(part, "permuted").mean()
            right = where(where(table, "quantity", quantity), "fault", "none")
            right = values(having(right, "value"), "value")
            corrected = f"; corrected {number(right.mean())}" if right.size else ""
            sentences.append(
                f"{LABELS[quantity]}, as published: {number(value)}, and {number(null)} of samples "
                f"that are paired at random{corrected}."
            )
    return sentences


def _describe(effects: pd.DataFrame) -> list[str]:
    """Return the faults with the largest relative effect, in words."""
    if effects.empty:
        return []
    single = take(effects, strings(effects, "fault") != "as published")
    right, change = values(single, "corrected"), values(single, "mean change")
    size = np.abs(change) / np.maximum(np.abs(right), 1e-12)
    sentences = []
    for i in np.argsort(-size, kind="stable")[:_DRAWN]:
        row = single.iloc[int(i)]
        text = f"{row['what the code does']} " if row["what the code does"] else ""
        sentences.append(
            f"{row['fault']}: {text}Mean {row['quantity']} is {number(row['with the fault'])} "
            f"instead of {number(row['corrected'])}."
        )
    return sentences
