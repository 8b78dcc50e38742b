"""Which captures have the same rows of a site: only those can be compared row by row."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import combinations_with_replacement, product

import numpy as np
from numpy.typing import NDArray

from ..fold import ArrayKey
from ..selection import Selection
from ..source import Source, View

type Refused = tuple[ArrayKey, ArrayKey, str]
"""A pair of arrays whose rows do not match, with the reason."""

_CHECK_SAMPLES = 512
"""Samples whose row positions are compared at a time."""


@dataclass(frozen=True, slots=True)
class RowGroup:
    """Arrays of one site with the same rows."""

    arrays: tuple[ArrayKey, ...]
    """All layers of the site in all captures of the group."""
    samples: NDArray[np.int64]
    """Places on the sample axis that all these captures have, with rows, ascending."""
    counts: NDArray[np.int64]
    """Rows of each sample."""


@dataclass(slots=True)
class _Group:
    """Captures whose rows of one site match."""

    views: list[View]
    samples: NDArray[np.int64]
    """Places on the sample axis that all of them have."""


def match_rows(selection: Selection) -> tuple[tuple[RowGroup, ...], tuple[Refused, ...]]:
    """Return the groups of each site in their order, and the pairs that cannot be compared.

    Rows match when every common sample has as many rows, at the same positions, in both captures.
    """
    views = [*selection.captures, *selection.others]
    sites = dict.fromkeys(key.site for view in views for key in selection.row_keys(view))
    matcher = _Matcher(selection.source)
    found: list[RowGroup] = []
    refused: list[Refused] = []
    for site in sites:
        groups: list[_Group] = []
        for view in (v for v in views if site in v.sites):
            refused += _place(view, groups, site, selection, matcher)
        for group in groups:
            arrays = tuple(k for v in group.views for k in _keys(selection, v, site))
            counts = group.views[0].rows[group.views[0].sites[site].stream][group.samples]
            one = RowGroup(arrays, group.samples[counts > 0], counts[counts > 0])
            if one.samples.size >= 4:
                found.append(one)
            else:
                reason = f"{one.samples.size} common samples with rows; HSIC needs at least 4"
                pairs = combinations_with_replacement(arrays, 2)
                refused += [(a, b, reason) for a, b in pairs]
    return tuple(found), tuple(refused)


def _keys(selection: Selection, view: View, site: str) -> list[ArrayKey]:
    return [key for key in selection.row_keys(view) if key.site == site]


def _place(
    view: View, groups: list[_Group], site: str, selection: Selection, matcher: _Matcher
) -> list[Refused]:
    """Put a capture into the first group that it matches, or a new one; return the other pairs."""
    found = [np.intersect1d(group.samples, view.samples) for group in groups]
    reasons = [
        matcher.explain(g.views[0], view, site, s) for g, s in zip(groups, found, strict=True)
    ]
    home = reasons.index("") if "" in reasons else len(groups)
    refused: list[Refused] = []
    for number, (group, reason) in enumerate(zip(groups, reasons, strict=True)):
        why = reason or f"compared with {groups[home].views[0].name!r}, whose rows do not match"
        others = [] if number == home else group.views
        for other in others:
            pairs = product(_keys(selection, other, site), _keys(selection, view, site))
            refused += [(a, b, why) for a, b in pairs]
    if home == len(groups):
        groups.append(_Group([view], view.samples))
    else:
        groups[home].views.append(view)
        groups[home].samples = found[home]
    return refused


@dataclass(frozen=True, slots=True)
class _Matcher:
    """Says why the rows of two captures do not match; each pair of streams is looked at once."""

    source: Source
    _known: dict[tuple[str, ...], str] = field(default_factory=dict)

    def explain(self, a: View, b: View, site: str, samples: NDArray[np.int64]) -> str:
        """Return the reason, empty where the rows match."""
        key = (a.name, b.name, a.sites[site].stream, b.sites[site].stream)
        if key not in self._known:
            self._known[key] = self._compare(a, b, site, samples)
        return self._known[key]

    def _compare(self, a: View, b: View, site: str, samples: NDArray[np.int64]) -> str:
        if samples.size < 4:
            return f"{samples.size} common samples; HSIC needs at least 4"
        streams = a.sites[site].stream, b.sites[site].stream
        counts_a, counts_b = a.rows[streams[0]][samples], b.rows[streams[1]][samples]
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
            positions_a = self.source.read_positions(a.name, streams[0], some)
            positions_b = self.source.read_positions(b.name, streams[1], some)
            if not np.array_equal(positions_a, positions_b):
                return "rows do not match: the same samples have rows at other positions"
        return ""
