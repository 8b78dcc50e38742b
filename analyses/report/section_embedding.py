"""The report on pictures of pooled features, each with the numbers that say what it is worth."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .curves import caption
from .frames import estimate, first, having, not_computed, number, strings, take, values, where
from .plots import Cloud, scatter_figure
from .section import FigureGroup, Panel, Section
from .tables import view

if TYPE_CHECKING:
    import pandas as pd

    from .study import Study

MOST_PANELS = 16
"""Pictures on the page; more are in the table alone."""
MOST_POINTS = 300
"""Points of one picture on the page."""
MOST_LABELS = 12
"""Labels with a colour and marker of their own; the others share one."""
APART = (
    "Panels cannot be compared by eye: places, axes and distances between groups mean nothing from "
    "one panel to the next, and little within one. Compare the numbers, which come from the "
    "features themselves."
)


def embedding_section(table: pd.DataFrame, quality: pd.DataFrame, study: Study) -> Section:
    """Return the first picture of each array with its numbers, and a table of all of them."""
    panels = _panels(having(table, "x"), quality, study)
    numbers = quality if len(quality) else table
    found = {
        capture: sentence
        for capture in study.captures
        if (sentence := _finding(where(quality, "capture", capture), capture))
    }
    return Section(
        key="embedding",
        title="Neighbourhoods of samples",
        question="Do samples lie among samples of their label, or of their speaker?",
        findings=list(found.values()),
        headline=[found[study.adapted]] if study.adapted in found else [],
        figures=[_group(panels, table, quality)] if panels else [],
        tables=[view(quality, key="embedding_quality", title="By capture, site, layer and start")]
        if len(quality)
        else [],
        missing=[
            *not_computed(numbers, "knn_purity_label", "purity by label"),
            *not_computed(numbers, "knn_purity_speaker", "purity by speaker"),
        ],
    )


def _group(panels: list[Panel], table: pd.DataFrame, quality: pd.DataFrame) -> FigureGroup:
    method = {"tsne": "t-SNE", "umap": "UMAP"}.get(str(strings(table, "method")[0]), "")
    k = first(table, "k")
    how = f"{method or 'picture'} of pooled features, first start"
    how += f"; purity: share of the {number(k, digits=0)} nearest neighbours" if k > 0 else ""
    text = caption(quality if len(quality) else table, estimator=how, value="knn_purity_label")
    most = f" At most {MOST_POINTS} samples are drawn in a panel."
    return FigureGroup("Pictures, coloured by label", panels, f"{text} {APART}{most}")


def _panels(rows: pd.DataFrame, quality: pd.DataFrame, study: Study) -> list[Panel]:
    """Return a panel for each array; those of the compared captures go first where too many."""
    labels = [str(label) for label in np.unique(strings(rows, "label"))]
    captures = (*study.focus, *(c for c in study.captures if c not in study.focus))
    panels = []
    for capture in captures:
        of_capture = where(rows, "capture", capture)
        for site in dict.fromkeys(strings(of_capture, "site")):
            of_site = where(of_capture, "site", str(site))
            for layer in dict.fromkeys(_layers(of_site).tolist()):
                points = take(of_site, _layers(of_site) == layer)
                points = take(points, values(points, "seed") == first(points, "seed"))
                panels.append(_panel(len(panels), points, _quality_of(points, quality), labels))
                if len(panels) == MOST_PANELS:
                    return panels
    return panels


def _layers(rows: pd.DataFrame) -> np.ndarray:
    return np.nan_to_num(values(rows, "layer"), nan=-1.0)


def _quality_of(points: pd.DataFrame, quality: pd.DataFrame) -> pd.DataFrame:
    for name in ("capture", "site"):
        quality = where(quality, name, str(strings(points, name)[0]))
    quality = take(quality, _layers(quality) == _layers(points)[0])
    return take(quality, values(quality, "seed") == first(points, "seed"))


def _panel(index: int, points: pd.DataFrame, quality: pd.DataFrame, labels: list[str]) -> Panel:
    kept = np.unique(np.linspace(0, len(points) - 1, min(len(points), MOST_POINTS)).astype(int))
    shown = points.iloc[kept]
    x, y, label = values(shown, "x"), values(shown, "y"), strings(shown, "label")
    clouds = []
    for i, name in enumerate(labels[:MOST_LABELS]):
        here = label == name
        if name and here.any():
            clouds.append(Cloud(name, x[here], y[here], i))
    rest = np.isin(label, [*labels[MOST_LABELS:], ""])
    if rest.any():
        clouds.append(Cloud("other" if len(labels) > MOST_LABELS else "", x[rest], y[rest], None))
    numbers = _numbers(quality)
    layer = first(points, "layer")
    title = f"{strings(points, 'capture')[0]}, {strings(points, 'site')[0]}"
    title += f" layer {int(layer)}" if np.isfinite(layer) else ""
    figure = scatter_figure(clouds, below="\n".join(numbers))
    text = f"{len(shown)} of {len(points)} samples as points, by label. {'; '.join(numbers)}."
    return Panel(f"embedding-{index}", title, figure, text)


def _numbers(quality: pd.DataFrame) -> list[str]:
    """Return purity with its chance, and recall, a line each."""
    lines = []
    for what in ("label", "speaker"):
        name = f"knn_purity_{what}"
        if np.isfinite(first(quality, name)):
            chance = number(first(quality, f"{name}_chance"))
            lines.append(f"same {what}: {estimate(quality, name)}, chance {chance}")
    recall = first(quality, "knn_recall")
    if np.isfinite(recall):
        lines.append(f"neighbours kept in the picture: {number(recall)}")
    return lines or ["no numbers"]


def _finding(rows: pd.DataFrame, capture: str) -> str:
    """Return the array of a capture whose neighbourhoods are the purest by label."""
    rows = having(rows, "knn_purity_label")
    if rows.empty:
        return ""
    best = take(rows, np.arange(len(rows)) == int(values(rows, "knn_purity_label").argmax()))
    layer = first(best, "layer")
    place = f" layer {int(layer)}" if np.isfinite(layer) else ""
    speaker = ""
    if np.isfinite(first(best, "knn_purity_speaker")):
        chance = number(first(best, "knn_purity_speaker_chance"))
        speaker = f", and the speaker {estimate(best, 'knn_purity_speaker')} (chance {chance})"
    return (
        f"{capture}: neighbours share the label most at {strings(best, 'site')[0]}{place}, "
        f"{estimate(best, 'knn_purity_label')} of them (chance "
        f"{number(first(best, 'knn_purity_label_chance'))}){speaker}."
    )
