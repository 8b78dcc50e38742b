"""Which captures have the same rows of a site: only those can be compared row by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations_with_replacement, product

import numpy as np
from numpy.typing import NDArray

from ..fold import ArrayKey
from ..masks import Frames, frames_of
from ..selection import Selection
from ..source import Source, View

_CHECK_SAMPLES = 512
"""Samples whose row positions are compared at a time."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A pair of arrays whose rows do not match."""

    a: ArrayKey
    b: ArrayKey
    mask: str
    """Which rows of the first were to be compared."""
    reason: str


@dataclass(frozen=True, slots=True)
class RowGroup:
    """Arrays of one site with the same rows."""

    arrays: tuple[ArrayKey, ...]
    """All layers of the site in all captures of the group."""
    masks: tuple[str, ...]
    """Which rows of each array: `valid`, `all` or `every:K`."""
    samples: NDArray[np.int64]
    """Places on the sample axis that all these captures have, with rows, ascending."""
    counts: NDArray[np.int64]
    """Rows of each sample that are compared, from its first."""
    whole: bool
    """Whether padding is among the rows; those with audio alone are another group."""


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows of one site of a capture that are compared."""

    view: View
    mask: str
    stream: str
    counts_n: NDArray[np.int64]
    """How many of each sample of the axis, from its first."""


@dataclass(slots=True)
class _Group:
    """Captures whose rows of one site match."""

    members: list[_Rows]
    samples: NDArray[np.int64]
    """Places on the sample axis that all of them have."""


def match_rows(selection: Selection) -> tuple[tuple[RowGroup, ...], tuple[Refused, ...]]:
    """Return the groups of each site in their order, and the pairs that cannot be compared.

    Rows match when every common sample has as many rows, at the same positions, in both captures.
    Of a site with padding, the rows that hold audio are compared first (with those of captures that
    recorded no padding, too), then all rows.
    """
    views = [*selection.captures, *selection.others]
    sites = dict.fromkeys(key.site for view in views for key in selection.row_keys(view))
    matcher = _Matcher(selection.source)
    found: list[RowGroup] = []
    refused: list[Refused] = []
    for site in sites:
        frames = {v.name: frames_of(selection, v, site) for v in views if site in v.sites}
        rows = [_choose(v, site, frames[v.name], whole=False) for v in views if v.name in frames]
        padded = [v for v in views if v.name in frames and frames[v.name].padded]
        every = [_choose(v, site, frames[v.name], whole=True) for v in padded]
        for some, whole in ((rows, False), (every, True)):
            groups, pairs = _group(some, site, selection, matcher)
            found += [replace(group, whole=whole) for group in groups]
            refused += pairs
    return tuple(found), tuple(refused)


def _choose(view: View, site: str, frames: Frames, *, whole: bool) -> _Rows:
    """Return the rows of a capture: the `whole`, or those to look at first."""
    stream = view.sites[site].stream
    if whole or frames.valid_n is None:
        return _Rows(view, frames.mask, stream, view.rows[stream])
    return _Rows(view, frames.masks[0], stream, frames.valid_n)


def _group(
    rows: Sequence[_Rows], site: str, selection: Selection, matcher: _Matcher
) -> tuple[list[RowGroup], list[Refused]]:
    """Return the groups of one site, and the pairs that are in none."""
    groups: list[_Group] = []
    found: list[RowGroup] = []
    refused: list[Refused] = []
    for one in rows:
        refused += _place(one, groups, site, selection, matcher)
    for group in groups:
        owners = [(k, m.mask) for m in group.members for k in _keys(selection, m.view, site)]
        arrays, masks = (tuple(part) for part in zip(*owners, strict=True))
        counts = group.members[0].counts_n[group.samples]
        matched = RowGroup(
            arrays, masks, group.samples[counts > 0], counts[counts > 0], whole=False
        )
        if matched.samples.size >= 4:
            found.append(matched)
            continue
        reason = f"{matched.samples.size} common samples with rows; HSIC needs at least 4"
        pairs = combinations_with_replacement(owners, 2)
        refused += [Refused(a, b, mask, reason) for (a, mask), (b, _) in pairs]
    return found, refused


def _keys(selection: Selection, view: View, site: str) -> list[ArrayKey]:
    return [key for key in selection.row_keys(view) if key.site == site]


def _place(
    rows: _Rows, groups: list[_Group], site: str, selection: Selection, matcher: _Matcher
) -> list[Refused]:
    """Put a capture into the first group that it matches, or a new one; return the other pairs."""
    found = [np.intersect1d(group.samples, rows.view.samples) for group in groups]
    reasons = [matcher.explain(g.members[0], rows, s) for g, s in zip(groups, found, strict=True)]
    home = reasons.index("") if "" in reasons else len(groups)
    refused: list[Refused] = []
    for number, (group, reason) in enumerate(zip(groups, reasons, strict=True)):
        first = groups[home].members[0].view.name if home < len(groups) else ""
        why = reason or f"compared with {first!r}, whose rows do not match"
        for other in [] if number == home else group.members:
            pairs = product(_keys(selection, other.view, site), _keys(selection, rows.view, site))
            refused += [Refused(a, b, other.mask, why) for a, b in pairs]
    if home == len(groups):
        groups.append(_Group([rows], rows.view.samples))
    else:
        groups[home].members.append(rows)
        groups[home].samples = found[home]
    return refused


@dataclass(frozen=True, slots=True)
class _Matcher:
    """Says why the rows of two captures do not match; each pair of streams is looked at once."""

    source: Source
    _known: dict[tuple[str, ...], str] = field(default_factory=dict)

    def explain(self, a: _Rows, b: _Rows, samples: NDArray[np.int64]) -> str:
        """Return the reason, empty where the rows match."""
        key = (a.view.name, b.view.name, a.stream, b.stream, a.mask, b.mask)
        if key not in self._known:
            self._known[key] = self._compare(a, b, samples)
        return self._known[key]

    def _compare(self, a: _Rows, b: _Rows, samples: NDArray[np.int64]) -> str:
        if samples.size < 4:
            return f"{samples.size} common samples; HSIC needs at least 4"
        counts_a, counts_b = a.counts_n[samples], b.counts_n[samples]
        differ = np.flatnonzero(counts_a != counts_b)
        if differ.size:
            first = differ[0]
            return (
                f"rows do not match: sample {self.source.ids[samples[first]]!r} has "
                f"{counts_a[first]} and {counts_b[first]} "
                f"({differ.size} of {samples.size} samples differ)"
            )
        for start in range(0, samples.size, _CHECK_SAMPLES):
            some = samples[start : start + _CHECK_SAMPLES]
            if not np.array_equal(self._read_positions(a, some), self._read_positions(b, some)):
                return "rows do not match: the same samples have rows at other positions"
        return ""

    def _read_positions(self, rows: _Rows, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the positions of the rows that are compared, sample after sample."""
        position_r = self.source.read_positions(rows.view.name, rows.stream, samples)
        held_n, count_n = rows.view.rows[rows.stream][samples], rows.counts_n[samples]
        place_r = np.arange(position_r.size) - np.repeat(np.cumsum(held_n) - held_n, held_n)
        return position_r[place_r < np.repeat(count_n, held_n)]
