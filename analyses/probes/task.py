"""What is predicted in one capture, who is left out, and the control labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..errors import AnalysisInputError
from ..plan import unexposed_samples
from ..source import Source, View
from ..statistics.draws import seeded


@dataclass(frozen=True, slots=True)
class Task:
    """What is predicted in one capture, the same for all of its arrays."""

    samples: NDArray[np.int64]
    """Places on the sample axis: labelled, and not exposed where training shaped the features."""
    class_ns: NDArray[np.int64]
    """Class numbers, [samples, label sets]: the labels, then their control shuffles."""
    classes: tuple[str, ...]
    speaker_n: NDArray[np.int64]
    """Numbers of the groups that are left out in turn: speakers, or sessions."""
    speakers: tuple[str, ...]
    reason: str
    """Why nothing can be predicted; empty otherwise."""
    group: str = "speaker"
    """What is left out."""


@dataclass(frozen=True, slots=True)
class Grouping:
    """One group column along the sample axis."""

    name: str
    """`speaker`, `session`; empty where the capture has no groups."""
    group_n: NDArray[np.object_]
    """Group of each sample of the axis, "" where unknown or absent."""


def find_grouping(source: Source, view: View, by: str | None) -> Grouping:
    """Return the groups that are left out: those of the column `by`, or the capture's own."""
    if by is None or by == view.group_name:
        return Grouping(view.group_name, view.group_n)
    group_n = np.full(view.index_n.size, "", dtype=object)
    capture = source.capture(view.name)
    if by in capture.groups:
        column = capture.samples[by].astype(str).to_numpy(dtype=object)
        group_n[view.samples] = column[view.index_n[view.samples]]
    return Grouping(by, group_n)


def check_grouping(source: Source, views: Sequence[View], by: str | None) -> None:
    """Raise AnalysisInputError where no capture has the group column `by`; says which there are."""
    if by is None:
        return
    present = dict.fromkeys(name for view in views for name in source.capture(view.name).groups)
    if by not in present:
        msg = (
            f"probe should leave one {by!r} out, and no capture has that group. "
            f"Present: {', '.join(present) or 'none'}. Choose one of them, or record it: "
            f'`append(..., groups={{"{by}": ...}})`.'
        )
        raise AnalysisInputError(msg)


def make_task(
    view: View,
    ids: NDArray[np.object_],
    *,
    shuffles: int,
    seed: int,
    grouping: Grouping | None = None,
) -> Task:
    """Return what is predicted in one capture.

    Parameters
    ----------
    view
        The capture.
    ids
        Sample ids along the axis; control shuffles depend on them, not on the order of the samples.
    shuffles, seed
        How many control label sets, and their seed.
    grouping
        Who is left out; None: the capture's own groups. Labels are shuffled within both.
    """
    grouping = grouping or Grouping(view.group_name, view.group_n)
    samples = unexposed_samples(view, through="adapter")
    kept = samples[(view.label_n[samples] != "") & (grouping.group_n[samples] != "")]
    present = set(view.label_n[kept].tolist())
    known = [name for name in view.attrs.get("labels", ()) if name in present]
    classes = (*known, *sorted(present - set(known)))
    true_n = np.asarray([classes.index(label) for label in view.label_n[kept]], dtype=np.int64)
    speakers, speaker_n = np.unique(grouping.group_n[kept].astype(str), return_inverse=True)
    reason = ""
    if kept.size == 0 and samples.size < view.samples.size:
        reason = "every labelled sample was in the training part of this capture"
    elif len(classes) < 2:
        reason = f"{len(classes)} class among {kept.size} samples; at least 2 are needed"
    elif speakers.size < 2:
        reason = f"{speakers.size} {grouping.name or 'group'}; leaving one out needs at least 2"
    within_n = pd.factorize(_join(grouping.group_n[kept], view.group_n[kept]), sort=True)[0]
    sets = [true_n]
    for shuffle in range(0 if reason else shuffles):
        sets.append(_shuffle_within(true_n, within_n, ids[kept], f"{seed}/{shuffle}"))
    return Task(
        kept,
        np.stack(sets, axis=1),
        classes,
        speaker_n,
        tuple(speakers.tolist()),
        reason,
        grouping.name or "group",
    )


def _join(left: NDArray[np.object_], right: NDArray[np.object_]) -> NDArray[np.object_]:
    pairs = [f"{len(a)} {a} {b}" for a, b in zip(left.astype(str), right.astype(str), strict=True)]
    same = (left == right).all()
    return np.asarray(left.astype(str) if same else pairs, dtype=object)


def _shuffle_within(
    true_n: NDArray[np.int64], group_n: NDArray[np.int64], ids: NDArray, seed: str
) -> NDArray[np.int64]:
    """Return the labels permuted among the samples of each group."""
    shuffled = true_n.copy()
    rng = seeded(seed)
    for group in range(int(group_n.max()) + 1):
        members = np.flatnonzero(group_n == group)
        members = members[np.argsort(ids[members])]
        shuffled[members] = true_n[members][rng.permutation(members.size)]
    return shuffled
