"""Table `angles`: how much of their leading directions captures share, site by site."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..plan import Table, comparable, describe_exposure, most_exposed
from ..source import View
from ..statistics.subspaces import overlap, principal_angles, random_overlap
from .scatter_fold import Spectra
from .spectrum import describe_spectrum

COUNTS = (1, 4, 16)
"""Directions that are compared, where both arrays have so many (`span`: `top1`, …)."""
_MOVED = {4: 4 * 2.0**-24, 8: 32 * 2.0**-53}
"""How far a scatter counts as off, in parts of its largest eigenvalue, by the bytes of a value of
its products. Those of float32, 4 to 1,280 features, cut anywhere and up to 1,000 standard
deviations from 0, turned spans by at most 1.1 unit roundoffs; solving for directions adds some of
float64."""


@dataclass(frozen=True, slots=True)
class Leading:
    """The leading directions of one array."""

    view: View
    site: str
    layer: int
    mask: str
    width: int
    """Features."""
    itemsize: int
    """Bytes of one value of the products behind the spectra."""
    spectra: Spectra


def compare_directions(arrays: Mapping[tuple[str, str, int], Leading]) -> Table | None:
    """Return overlaps and angles between captures; None where nothing can be compared.

    Parameters
    ----------
    arrays
        By capture, site and layer; captures in the order of the store.

    Notes
    -----
    Directions of centred rows: eigenvectors of the scatter, the largest eigenvalue first.
    O(features · directions²) a pair.
    """
    views = list({one.view.name: one.view for one in arrays.values()}.values())
    places = list(dict.fromkeys((one.site, one.layer) for one in arrays.values()))
    rows = [
        row
        for left, right in combinations(views, 2)
        if comparable(left, right)
        for place in places
        if (left.name, *place) in arrays and (right.name, *place) in arrays
        for row in _compare(arrays[left.name, *place], arrays[right.name, *place])
    ]
    if not rows:
        return None
    attrs = {
        "directions": "eigenvectors of the centred scatter, the largest first",
        "overlap": "squared cosines of the spans over the dimension of the smaller one",
        "overlap_random": "the mean of random spans: the larger dimension over the features",
        "span": "top1, top4, top16; sv90: as many as hold 90 % of the energy, each its own number",
        "angles": "principal angles in degrees",
        "angle_rounding": "an angle up to this one may be rounding, in degrees",
    }
    return Table(pd.DataFrame(rows), attrs)


def _compare(a: Leading, b: Leading) -> Iterator[dict[str, object]]:
    """Give one row for each span that both have, or one that says why there is none."""
    row: dict[str, object] = {
        "capture_a": a.view.name,
        "capture_b": b.view.name,
        "site": a.site,
        "layer": a.layer,
        "mask": ", ".join(dict.fromkeys((a.mask, b.mask))),
        "n": min(a.spectra.n, b.spectra.n),
        "exposed": most_exposed(*(describe_exposure(x.view, x.view.samples) for x in (a, b))),
    }
    u, v = a.spectra.directions_dk, b.spectra.directions_dk
    if a.width != b.width or u is None or v is None:
        faults = [f"{x.view.name}: {_fault(x)}" for x in (a, b) if x.spectra.directions_dk is None]
        why = "; ".join(faults) or f"{a.width} and {b.width} features"
        yield {**row, "span": "", "directions_a": 0, "directions_b": 0, "reason": why}
        return
    most = min(u.shape[1], v.shape[1])
    spans = {f"top{k}": (k, k) for k in COUNTS if k <= most}
    i, j = (int(describe_spectrum(x.spectra.centred)["sv90"]) for x in (a, b))
    if i <= u.shape[1] and j <= v.shape[1]:
        spans["sv90"] = i, j
    for name, (i, j) in spans.items():
        angle = principal_angles(u[:, :i], v[:, :j])
        yield {
            **row,
            "span": name,
            "directions_a": i,
            "directions_b": j,
            "overlap": overlap(u[:, :i], v[:, :j]),
            "overlap_random": random_overlap(a.width, i, j),
            "angle_smallest": float(angle[0]),
            "angle_largest": float(angle[-1]),
            "angle_rounding": min(_turn(a, i) + _turn(b, j), 90.0),
            "reason": "",
        }


def _turn(array: Leading, count: int) -> float:
    return rounding_angle(array.spectra.centred, count, array.itemsize)


def rounding_angle(sigma_d: NDArray[np.float64], count: int, itemsize: int) -> float:
    """Return how far the rounding of a scatter may turn the span of its leading directions.

    Parameters
    ----------
    sigma_d
        Singular values, the largest first.
    count
        Directions that make the span, at least 1.
    itemsize
        Bytes of one value of the products that the scatter was summed from, 4 or 8.

    Returns
    -------
    float
        In degrees, 0 to 90: 90 where the next direction is as large as the last of the span.

    Notes
    -----
    A scatter that is off by E turns the span of its first k eigenvectors by at most
    asin(‖E‖/(λₖ - λₖ₊₁)) [1]_; ‖E‖ is taken as 4 unit roundoffs of λ₁ in
    float32, and 32 in float64, where the solver's own count.

    References
    ----------
    .. [1] Davis & Kahan, SIAM J. Numer. Anal. 7 (1970) 1.
    """
    square_d = np.square(sigma_d)
    following = square_d[count] if count < square_d.size else 0.0
    moved, gap = _MOVED[itemsize] * float(square_d[0]), float(square_d[count - 1] - following)
    return float(np.degrees(np.arcsin(moved / gap))) if moved < gap else 90.0


def _fault(array: Leading) -> str:
    return array.spectra.reason or "constant features"
