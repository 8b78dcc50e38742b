"""The report on CKA: layers against layers, captures against captures, LoRA A against LoRA B."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from .curves import caption, capture_curves, curve_panel
from .frames import (
    estimate,
    first,
    having,
    not_computed,
    number,
    prefer,
    several,
    strings,
    take,
    values,
    where,
)
from .plots import Series, heatmap_figure
from .section import FigureGroup, Panel, Section
from .tables import view

if TYPE_CHECKING:
    from .study import Study

STREAM = "resid_post"
PASSES = {"": "forward", "grad.": "backward"}
ESTIMATORS = ("between_groups", "debiased")
"""What is shown: the first that has a value. Only the first is right for utterances of speakers."""
COLUMNS = [
    *("capture_a", "site_a", "layer_a", "capture_b", "site_b", "layer_b"),
    *("value", "value_low", "value_high", "p_value", "p_permutation", "null_ceiling", "n"),
    *("granularity", "kernel", "estimator", "mask", "exposed", "reason"),
]


def cka_section(table: pd.DataFrame, study: Study) -> Section:
    """Return heatmaps within and between captures and the A-against-B curves."""
    rows = prefer(table, "granularity", "pooled")
    rows = prefer(rows, "kernel", "linear")
    known = set(strings(having(rows, "value"), "estimator"))
    rows = prefer(rows, "estimator", *(name for name in ESTIMATORS if name in known))
    stream = where(where(rows, "site_a", STREAM), "site_b", STREAM)
    between = _with_reference(stream, study)
    diagonal = _equal_layers(between)
    pairs = _lora_pairs(rows)
    groups = [
        _maps_within(stream, study),
        _maps_between(between, study),
        _curves(diagonal, pairs, study),
    ]
    between_found, lora_found = _between_findings(diagonal, study), _lora_findings(pairs, study)
    return Section(
        key="cka",
        title="Similarity of representations (CKA)",
        question="Which layers carry the same geometry, within a condition and between conditions?",
        findings=[*between_found.values(), *lora_found.values()],
        headline=[f[study.adapted] for f in (between_found, lora_found) if study.adapted in f],
        figures=[group for group in groups if group is not None],
        tables=[
            view(part, key="cka", title=title, columns=COLUMNS)
            for title, part in (
                (f"Equal layers, {study.reference} against the others", diagonal),
                ("Outputs of LoRA A against outputs of LoRA B", pairs),
                (f"All pairs of layers ({STREAM}), within and between captures", stream),
            )
            if len(part)
        ],
        missing=not_computed(table, "value", "CKA"),
    )


def _caption(rows: pd.DataFrame) -> str:
    estimator = f"{several(rows, 'estimator')} CKA, {several(rows, 'kernel')} kernel"
    granularity = several(rows, "granularity")
    text = caption(rows, estimator=f"{estimator}, {granularity} features", value="value")
    return f"{text} 1 is the same geometry up to rotation and scale, 0 is unrelated."


def _with_reference(stream: pd.DataFrame, study: Study) -> pd.DataFrame:
    """Return the pairs of the reference with another capture, the reference always as side a."""
    a, b = strings(stream, "capture_a"), strings(stream, "capture_b")
    straight = take(stream, (a == study.reference) & (b != study.reference))
    turned = take(stream, (b == study.reference) & (a != study.reference))
    swap = {f"{n}_{s}": f"{n}_{o}" for n in ("capture", "site", "layer") for s, o in ("ab", "ba")}
    return pd.concat([straight, turned.rename(columns=swap)], ignore_index=True)


def _matrix(rows: pd.DataFrame, *, symmetric: bool) -> tuple[np.ndarray, list[str]]:
    """Return values ``[layer_a, layer_b]`` and the names of the layers."""
    a, b = values(rows, "layer_a"), values(rows, "layer_b")
    layers = np.unique(np.concatenate([a, b]))
    layers = layers[np.isfinite(layers)]
    matrix = np.full((layers.size, layers.size), np.nan)
    known = np.isfinite(a) & np.isfinite(b)
    y, x = np.searchsorted(layers, a[known]), np.searchsorted(layers, b[known])
    matrix[y, x] = values(rows, "value")[known]
    if symmetric:
        matrix = np.where(np.isnan(matrix), matrix.T, matrix)
    return matrix, [str(int(layer)) for layer in layers]


def _maps_within(stream: pd.DataFrame, study: Study) -> FigureGroup | None:
    panels, used = [], []
    for i, capture in enumerate(study.captures):
        rows = where(where(stream, "capture_a", capture), "capture_b", capture)
        if rows.empty:
            continue
        matrix, names = _matrix(rows, symmetric=True)
        panels.append(_map_panel(f"cka-within-{i}", capture, matrix, names, (capture, capture)))
        used.append(rows)
    if not panels:
        return None
    return FigureGroup(f"Layers within each capture ({STREAM})", panels, _caption(pd.concat(used)))


def _maps_between(between: pd.DataFrame, study: Study) -> FigureGroup | None:
    panels = []
    for i, capture in enumerate(study.others):
        rows = where(between, "capture_b", capture)
        if rows.empty:
            continue
        matrix, names = _matrix(rows, symmetric=False)
        title = f"{study.reference} against {capture}"
        sides = (study.reference, capture)
        panels.append(_map_panel(f"cka-between-{i}", title, matrix, names, sides))
    if not panels:
        return None
    title = f"Layers of {study.reference} against layers of the other captures ({STREAM})"
    return FigureGroup(title, panels, _caption(between))


def _map_panel(
    name: str, title: str, matrix: np.ndarray, names: list[str], sides: tuple[str, str]
) -> Panel:
    figure = heatmap_figure(
        matrix,
        x_names=names,
        y_names=names,
        x_label=f"layer of {sides[1]}",
        y_label=f"layer of {sides[0]}",
        value_label="CKA",
    )
    off = matrix[~np.eye(len(names), dtype=bool)]
    finite = off[np.isfinite(off)]
    text = f"Heatmap of CKA over {len(names)} by {len(names)} layers."
    if finite.size:
        text += f" Between different layers from {number(finite.min())} to {number(finite.max())}."
    return Panel(name, title, figure, text)


def _equal_layers(rows: pd.DataFrame) -> pd.DataFrame:
    return take(rows, values(rows, "layer_a") == values(rows, "layer_b"))


def _lora_pairs(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that compare A with B of one module, layer and capture, `direction` added."""
    rows = _equal_layers(rows)
    rows = take(rows, strings(rows, "capture_a") == strings(rows, "capture_b"))
    site_a, site_b = strings(rows, "site_a"), strings(rows, "site_b")
    kept = []
    for prefix, direction in PASSES.items():
        begin, end = f"{prefix}lora_a.", f"{prefix}lora_b."
        partner = np.asarray([end + name.removeprefix(begin) for name in site_a], dtype=np.str_)
        found = take(rows, np.strings.startswith(site_a, begin) & (site_b == partner))
        kept.append(found.assign(direction=direction))
    return pd.concat(kept, ignore_index=True)


def _curves(diagonal: pd.DataFrame, pairs: pd.DataFrame, study: Study) -> FigureGroup | None:
    """Return what changes over the layers: against the reference, and LoRA A against LoRA B."""
    against = f"{study.reference} against the others"
    lines = capture_curves(diagonal, study, y="value", x="layer_a", capture="capture_b")
    panels = [_curve_panel("cka-diagonal", f"{STREAM}, {against}", lines)] if lines else []
    for direction in PASSES.values():
        rows = where(pairs, "direction", direction)
        for i, site in enumerate(dict.fromkeys(strings(rows, "site_a"))):
            part = where(rows, "site_a", site)
            lines = capture_curves(part, study, y="value", x="layer_a", capture="capture_a")
            title = f"{site} against {strings(part, 'site_b')[0]} ({direction})"
            if lines:
                panels.append(_curve_panel(f"cka-lora-{direction}-{i}", title, lines))
    if not panels:
        return None
    used = having(pd.concat([diagonal, pairs]), "value")
    title = "Equal layers: against the reference, and LoRA A against LoRA B"
    return FigureGroup(title, panels, _caption(used))


def _curve_panel(name: str, title: str, lines: list[Series]) -> Panel:
    lowest = min(float(np.nanmin([line.y, line.low or line.y])) for line in lines)
    limits = (min(0.0, lowest), 1.02)  # the whole scale; a debiased value can be below 0
    return curve_panel(name, title, lines, y_label="CKA", y_limits=limits)


def _between_findings(diagonal: pd.DataFrame, study: Study) -> dict[str, str]:
    sentences = {}
    for capture in study.others:
        rows = having(where(diagonal, "capture_b", capture), "value")
        if rows.empty:
            continue
        found = values(rows, "value")
        least = rows.iloc[[int(np.argmin(found))]]
        sentences[capture] = (
            f"{capture} against {study.reference}, equal layers of the residual stream: median CKA "
            f"{number(float(np.median(found)))}, lowest at layer {int(first(least, 'layer_a'))} "
            f"with {estimate(least, 'value')}."
        )
    return sentences


def _lora_findings(pairs: pd.DataFrame, study: Study) -> dict[str, str]:
    sentences = {}
    for capture in study.captures:
        rows = having(where(pairs, "capture_a", capture), "value")
        parts = []
        for direction in PASSES.values():
            found = values(where(rows, "direction", direction), "value")
            if found.size:
                parts.append(f"{number(float(found.mean()))} {direction}")
        if parts:
            sentences[capture] = (
                f"{capture}, LoRA A against LoRA B, mean CKA over layers: {', '.join(parts)}."
            )
    return sentences
