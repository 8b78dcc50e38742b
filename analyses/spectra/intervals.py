"""How far the numbers of a spectrum depend on which speakers were recorded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..statistics.resampling import MIN_GROUPS, jackknife_spread
from .scatter import Scatter, join_scatters
from .spectrum import describe_spectrum, singular_values

MEASURES = (
    *("sv90_interpolated", "top10_energy", "erank", "erank_energy"),
    *("stable_rank", "participation_ratio"),
)
"""Numbers of a spectrum with an interval of their own."""
_PLAIN = MEASURES.index("top10_energy")
"""The one that is a share; the others count directions and vary by a factor."""
_WIDEST = 100.0
"""Logarithm of a factor beyond any count of directions."""


def spread_measures(
    parts: Sequence[Scatter], rank: int, device: str = "cpu"
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Return half the width of the intervals of `MEASURES`, centred and uncentred, [measures] each.

    Parameters
    ----------
    parts
        The scatter of each block of speakers.
    rank
        Singular values that there can be.
    device
        Where the scatters are.

    Returns
    -------
    tuple or None
        Of the logarithm, but for the share; None below 3 blocks with rows.

    Notes
    -----
    The spectrum without each block in turn, from the scatters of all others, so nothing is taken
    away from a sum. About 18 features³ operations a block.
    """
    filled = [part for part in parts if part.n]
    if len(filled) < MIN_GROUPS:
        return None
    width = filled[0].mean_d.shape[0]

    def left_out() -> Iterator[NDArray[np.float64]]:
        for gone in filled:
            rest = (part for part in filled if part is not gone)
            yield _measure(join_scatters(rest, width, device), rank)

    value = _measure(join_scatters(filled, width, device), rank)
    centred, uncentred = jackknife_spread(value, left_out(), len(filled))
    return centred, uncentred


def _measure(state: Scatter, rank: int) -> NDArray[np.float64]:
    """Return the measures, centred and uncentred, [2, measures]: logarithms, but for the share."""
    spectra = (
        singular_values(state.scatter_dd, min(rank, state.n - 1)),
        singular_values(state.uncentred(), min(rank, state.n)),
    )
    found = [describe_spectrum(sigma) for sigma in spectra]
    values = np.array([[one[name] for name in MEASURES] for one in found])
    logarithms = np.log(values)
    logarithms[:, _PLAIN] = values[:, _PLAIN]
    return logarithms


def bound_measures(
    values: Mapping[str, float], spread: NDArray[np.float64] | None, count: int
) -> dict[str, float]:
    """Return the ends `x_low` and `x_high` of the interval of every measure of one spectrum.

    Parameters
    ----------
    values
        What `describe_spectrum` gave.
    spread
        Half the widths from `spread_measures`; None: no intervals.
    count
        Singular values that there can be.

    Notes
    -----
    Ends stay within what the measure can be: 1 … count, or 0 … 1. `sv90` is the interpolated
    crossing rounded up, so its ends are those of the crossing rounded up: the jackknife of a whole
    number that jumps is 0 or too wide.
    """
    names = ("sv90", *MEASURES)
    if spread is None:
        return {f"{name}_{end}": float("nan") for name in names for end in ("low", "high")}
    found: dict[str, float] = {}
    for i, name in enumerate(MEASURES):
        value, by = values[name], float(spread[i])
        if i == _PLAIN:
            low, high = max(value - by, 0.0), min(value + by, 1.0)
        else:
            least = 0.0 if name == "sv90_interpolated" else 1.0
            factor = np.exp(min(by, _WIDEST))
            low, high = max(value / factor, least), min(value * factor, float(count))
        found |= {f"{name}_low": float(low), f"{name}_high": float(high)}
    ends = (found[f"sv90_interpolated_{end}"] for end in ("low", "high"))
    low, high = (float(np.ceil(end - 1e-9)) for end in ends)  # a crossing at k exactly is k
    return {"sv90_low": low, "sv90_high": high, **found}
