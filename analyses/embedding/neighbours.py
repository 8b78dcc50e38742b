"""Who lies next to whom: the numbers beside a picture, most of them in the original space."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import pdist, squareform

from ..statistics.resampling import jackknife_spread

PURITIES = ("knn_purity_label", "knn_purity_label_across", "knn_purity_speaker")
"""Shares of nearest neighbours: of the same label, of the same label among the samples of other
speakers, of the same speaker."""


@dataclass(frozen=True, slots=True)
class Marks:
    """What is known of every sample; "" where it is not."""

    label_n: NDArray[np.object_]
    speaker_n: NDArray[np.object_]


def order_neighbours(x_nd: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the other samples of each sample, nearest first, [samples, samples - 1].

    Equal distances stay in the order of the samples.
    """
    distance_nn = measure_distances(x_nd)
    np.fill_diagonal(distance_nn, -1.0)
    return np.argsort(distance_nn, axis=1, kind="stable")[:, 1:]


def measure_distances(x_nd: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the Euclidean distances of all pairs of rows, [samples, samples], by differences."""
    return squareform(pdist(x_nd))


def measure_purity(
    order_nm: NDArray[np.int64], marks: Marks, k: int, kept_n: NDArray[np.bool_] | None = None
) -> NDArray[np.float64]:
    """Return the three purities of every sample, [samples, 3].

    Parameters
    ----------
    order_nm
        Neighbours, nearest first.
    marks
        Labels and speakers.
    k
        How many neighbours count; fewer where there are no more.
    kept_n
        Which samples there are; None: all.

    Returns
    -------
    numpy.ndarray
        In the order of `PURITIES`; NaN where a sample has no mark or no neighbour with one.
    """
    label, speaker = _codes(marks.label_n), _codes(marks.speaker_n)
    same_label = label[order_nm] == label[:, None]
    same_speaker = speaker[order_nm] == speaker[:, None]
    there = np.ones_like(same_label) if kept_n is None else kept_n[order_nm]
    labelled, spoken = there & (label[order_nm] >= 0), there & (speaker[order_nm] >= 0)
    out = np.stack(
        [
            _share(same_label, labelled, k),
            _share(same_label, labelled & spoken & ~same_speaker, k),
            _share(same_speaker, spoken, k),
        ],
        axis=1,
    )
    out[label < 0, :2] = np.nan
    out[speaker < 0, 1:] = np.nan
    if kept_n is not None:
        out[~kept_n] = np.nan
    return out


def chance_purity(marks: Marks) -> NDArray[np.float64]:
    """Return what the mean purities are if neighbours are drawn blindly, [3]."""
    label, speaker = _codes(marks.label_n), _codes(marks.speaker_n)
    both = (label >= 0) & (speaker >= 0)
    means = [_mean_chance(label), np.nan, _mean_chance(speaker)]
    if both.any():
        label, speaker = label[both], speaker[both]
        counts = np.zeros((speaker.max() + 1, label.max() + 1))
        np.add.at(counts, (speaker, label), 1)
        same = counts.sum(axis=0)[label] - counts[speaker, label]
        others = label.size - counts.sum(axis=1)[speaker]
        means[1] = _nan_mean(np.where(others > 0, same / np.maximum(others, 1), np.nan))
    return np.asarray(means)


def summarise_purity(
    order_nm: NDArray[np.int64], marks: Marks, k: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the purities of every sample, their means, and half the width of 95 % intervals.

    Returns
    -------
    tuple
        [samples, 3], [3], [3] by leaving out one speaker at a time, as sample and as neighbour;
        NaN below three speakers.
    """
    speaker = _codes(marks.speaker_n)
    groups = np.unique(speaker[speaker >= 0])
    largest = int(np.bincount(speaker[speaker >= 0]).max()) if groups.size else 0
    unknown = int((_codes(marks.label_n) < 0).sum() + (speaker < 0).sum())
    # no measure looks further: its k, and those that it may not look at
    near_nm = order_nm[:, : k + 2 * largest + unknown]
    purity = measure_purity(near_nm, marks, k)
    value = np.asarray([_nan_mean(part) for part in purity.T])

    def left_out() -> Iterator[NDArray[np.float64]]:
        for group in groups:
            part = measure_purity(near_nm, marks, k, speaker != group)
            yield np.asarray([_nan_mean(column) for column in part.T])

    return purity, value, jackknife_spread(value, left_out(), groups.size)


def measure_silhouette(distance_nn: NDArray[np.float64], mark_n: NDArray[np.object_]) -> float:
    """Return the mean silhouette (-1 … 1) of samples grouped by a mark (Rousseeuw 1987).

    Samples without a mark are left out; NaN below two groups, or where every sample is its own.
    """
    from sklearn.metrics import silhouette_score

    known = mark_n != ""
    group = _codes(mark_n[known])
    if not 2 <= np.unique(group).size < group.size:
        return float("nan")
    return float(silhouette_score(distance_nn[np.ix_(known, known)], group, metric="precomputed"))


def measure_recall(order_nm: NDArray[np.int64], drawn_nm: NDArray[np.int64], k: int) -> float:
    """Return which share of the k nearest neighbours are so in the picture too (0 … 1)."""
    n = len(order_nm)
    near, drawn = np.zeros((2, n, n), dtype=bool)
    np.put_along_axis(near, order_nm[:, :k], True, axis=1)  # noqa: FBT003 - the value that is put
    np.put_along_axis(drawn, drawn_nm[:, :k], True, axis=1)  # noqa: FBT003
    return float((near & drawn).sum() / (n * k))


def _codes(mark_n: NDArray[np.object_]) -> NDArray[np.int64]:
    """Return numbers 0 … for equal marks, -1 for none."""
    names = np.unique(mark_n[mark_n != ""].astype(str))
    codes = np.searchsorted(names, mark_n.astype(str)) if names.size else np.zeros(mark_n.size)
    return np.where(mark_n != "", codes, -1).astype(np.int64)


def _share(hit_nm: NDArray, allowed_nm: NDArray, k: int) -> NDArray[np.float64]:
    """Return the share of hits among the first k allowed neighbours of each sample, [samples]."""
    used = allowed_nm & (np.cumsum(allowed_nm, axis=1) <= k)
    count = used.sum(axis=1)
    hits = (used & hit_nm).sum(axis=1)
    return np.where(count > 0, hits / np.maximum(count, 1), np.nan)


def _mean_chance(code_n: NDArray[np.int64]) -> float:
    code_n = code_n[code_n >= 0]
    if code_n.size < 2:
        return float("nan")
    return float((np.bincount(code_n)[code_n] - 1).mean() / (code_n.size - 1))


def _nan_mean(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
