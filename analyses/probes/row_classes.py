"""What probes of single rows say of each class: how often it is found, and what it is taken for."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .row_labels import RowLabels
from .scoring import Row


def class_rows(place: Row, labels: RowLabels, count_gskk: NDArray[np.int64]) -> list[Row]:
    """Return a row of the table `row_probe_classes` for each class.

    Parameters
    ----------
    place
        What stands in all of them: capture, site, layer, row column, probe.
    labels
        The classes, by number and name.
    count_gskk
        How often each class was taken for each: [groups, label sets, true, predicted].

    Notes
    -----
    Recall and precision are of all left-out groups together; NaN where nothing was to be found, or
    nothing was taken for the class. `taken_for` is the class that its missed rows went to most
    often, the one of the lower number of several; `taken_share` is its part of all its rows.
    """
    total_skk = count_gskk.sum(axis=0)
    real_kk = total_skk[0]
    hits_sk = np.diagonal(total_skk, axis1=1, axis2=2)
    true_k, taken_k = real_kk.sum(axis=1), real_kk.sum(axis=0)
    recall_sk = _share(hits_sk, total_skk.sum(axis=2))
    precision_k = _share(hits_sk[0], taken_k)
    missed_kk = real_kk - np.diag(np.diagonal(real_kk))
    worst_k = missed_kk.argmax(axis=1)
    missed_k = missed_kk.max(axis=1)
    share_k = _share(missed_k, true_k)
    rows: list[Row] = []
    for k, (number, name) in enumerate(zip(labels.classes, labels.names, strict=True)):
        control = recall_sk[1:, k].mean() if len(recall_sk) > 1 else np.nan
        row: Row = {"class": number, "class_name": name, "recall": float(recall_sk[0, k])}
        row |= {"precision": float(precision_k[k]), "control_recall": float(control)}
        row |= {"taken_for": labels.names[worst_k[k]] if missed_k[k] else ""}
        row |= {"taken_share": float(share_k[k]), "n": int(true_k[k]), "exposed": "none"}
        rows.append(place | row | {"reason": "" if true_k[k] else "no row of it was tested"})
    return rows


def _share(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return `part / whole`, NaN for none of none."""
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)
