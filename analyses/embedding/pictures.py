"""All pictures of one array, and its numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .layout import Start, draw_layouts, principal_components
from .neighbours import (
    PURITIES,
    Marks,
    chance_purity,
    measure_distances,
    measure_recall,
    measure_silhouette,
    order_neighbours,
    summarise_purity,
)


@dataclass(frozen=True, slots=True)
class Style:
    """How pictures are made and judged."""

    method: str
    k: int
    """Nearest neighbours."""
    perplexity: float
    components: int
    """Principal components at most."""


def find_fault(x_nd: NDArray[np.float64]) -> str:
    """Return why features cannot be drawn; empty when they can."""
    if not np.isfinite(x_nd).all():
        return "NaN or infinite features"
    spread = np.ptp(x_nd, axis=0).max()
    return "constant features" if spread <= 1e-12 * np.abs(x_nd).max() else ""


def draw_pictures(
    x_nd: NDArray[np.float64],
    ids: NDArray[np.object_],
    marks: Marks,
    starts: list[Start],
    style: Style,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the points of all pictures, and one row of numbers for each.

    Parameters
    ----------
    x_nd
        Features, [samples, features].
    ids, marks
        Ids, labels and speakers of the same samples.
    starts, style
        How many pictures, and how they are made.
    """
    from sklearn.manifold import trustworthiness

    x_nd = x_nd - x_nd.mean(axis=0)
    x_nd /= np.abs(x_nd).max()
    order_nm = order_neighbours(x_nd)
    purity_n3, common = _measure(x_nd, order_nm, marks, style.k)
    pictures = draw_layouts(
        principal_components(x_nd, style.components),
        ids,
        starts,
        method=style.method,
        perplexity=min(style.perplexity, (len(x_nd) - 1) / 3),
    )
    points, rows = [], []
    for start, y_nd in zip(starts, pictures, strict=True):
        recall = measure_recall(order_nm, order_neighbours(y_nd), style.k)
        rows.append(common | {"seed": start.seed, "init": start.init, "knn_recall": recall})
        rows[-1]["trustworthiness"] = float(trustworthiness(x_nd, y_nd, n_neighbors=style.k))
        columns: dict[str, object] = {"sample": ids, "x": y_nd[:, 0], "y": y_nd[:, 1]}
        columns |= {"seed": start.seed, "label": marks.label_n, "speaker": marks.speaker_n}
        columns |= {PURITIES[0]: purity_n3[:, 0], PURITIES[2]: purity_n3[:, 2]}
        points.append(pd.DataFrame(columns | {"reason": common["reason"]}))
    return pd.concat(points, ignore_index=True), pd.DataFrame(rows)


def _measure(
    x_nd: NDArray[np.float64], order_nm: NDArray[np.int64], marks: Marks, k: int
) -> tuple[NDArray[np.float64], dict[str, object]]:
    """Return the purities of every sample, and the numbers that all pictures share."""
    purity_n3, value, half = summarise_purity(order_nm, marks, k)
    chance = chance_purity(marks)
    numbers: dict[str, object] = {"knn_recall_chance": k / (len(x_nd) - 1)}
    for i, name in enumerate(PURITIES):
        numbers |= {name: value[i], f"{name}_chance": chance[i]}
        numbers |= {f"{name}_low": value[i] - half[i], f"{name}_high": value[i] + half[i]}
    distance_nn = measure_distances(x_nd)
    numbers["silhouette_label"] = measure_silhouette(distance_nn, marks.label_n)
    numbers["silhouette_speaker"] = measure_silhouette(distance_nn, marks.speaker_n)
    return purity_n3, numbers | {"reason": _explain_gaps(marks)}


def _explain_gaps(marks: Marks) -> str:
    """Return why numbers by label or by speaker are missing; empty when none is."""
    notes = []
    labels, speakers = set(marks.label_n) - {""}, set(marks.speaker_n) - {""}
    if not labels:
        notes.append("no labels")
    if not speakers:
        notes.append("no speakers")
    elif len(speakers) < 2:
        notes.append("1 speaker: no samples of others")
    if len(labels) == 1:
        notes.append("1 label: no silhouette by label")
    return "; ".join(notes)
