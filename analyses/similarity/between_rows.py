"""HSIC from rows of different speakers only, from sums over the rows of each speaker.

Rows of one utterance are alike in every array, so an estimate over all pairs of rows finds
utterances where it should find similarity (decision 9 says the same of samples).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..backend import to_host
from .between import MIN_GROUPS, BetweenSums
from .row_sums import Layout, RowSums

_NUMBERS = 2**16
"""Numbers of a panel that are looked at at a time, about."""


def count_between_bytes(layout: Layout, groups: int) -> int:
    """Return the memory that `hsic_between` takes, in bytes."""
    if groups < MIN_GROUPS:
        return 0
    widest = max(layout.widths) * groups
    together = max(widest, groups**2) + min(_NUMBERS, max(widest, groups**2) * sum(layout.widths))
    arrays = len(layout.widths)
    return 8 * (6 * together + 12 * groups * (sum(layout.widths) + 2 * arrays**2))


def hsic_between(sums: RowSums, layout: Layout) -> NDArray[np.float64] | None:
    """Return HSIC from rows of different groups, [1 + groups, arrays, arrays], or None.

    Parameters
    ----------
    sums
        Sums over the rows of each group.
    layout
        Of all arrays with each other.

    Returns
    -------
    numpy.ndarray or None
        Of all groups, then without each in turn; None below 5 groups.

    Notes
    -----
    With the centred C̃_g = Σ x y' and s_g = Σ x of a group, the row sums of its Gram matrix over
    group h are x·s_h, and Σ over i in g of (x_i·s_h)(y_i·s_h) is s_h'C̃_g s_h: everything that
    `BetweenSums` needs. groups · (Σ features)² (groups + 4) / 2 multiplications.
    """
    n_groups, n = sums.rows_g.size, len(layout.widths)
    if n_groups < MIN_GROUPS:
        return None
    sizes_g = sums.rows_g.astype(np.float64)
    raw_gd = to_host(sums.sum_gd)
    with np.errstate(invalid="ignore"):
        mean_d = raw_gd.sum(axis=0) / sizes_g.sum()
        sum_gd = raw_gd - sizes_g[:, None] * mean_d
    parts = np.full((6, n_groups, n, n), np.nan)
    blocks_lgg = np.empty((n, n_groups, n_groups))
    with np.errstate(invalid="ignore", over="ignore"):  # infinite features end as a reason
        for a, panel in zip(layout.left, sums.panels, strict=True):
            edges = layout.starts[a:] - layout.starts[a]
            columns = _look(panel, raw_gd, sum_gd, mean_d, layout, a)
            parts[:, :, a, a:] = np.add.reduceat(columns, edges, axis=2)
            parts[:5, :, a:, a] = parts[:5, :, a, a:]
            parts[4, :, a:, a] = parts[5, :, a, a:]  # the only one that is not symmetric
            own_gd = sum_gd[:, layout.own(a)]
            blocks_lgg[a] = own_gd @ own_gd.T
            np.fill_diagonal(blocks_lgg[a], 0.0)
        pairs, rows, towards, within, cross = parts[:5]
        found = BetweenSums(pairs, rows, cross, towards, within, blocks_lgg, sizes_g)
        return np.stack([found.hsic(), *(found.hsic(g) for g in range(n_groups))])


def _look(
    panel_gdd: NDArray,
    raw_gd: NDArray[np.float64],
    sum_gd: NDArray[np.float64],
    mean_d: NDArray[np.float64],
    layout: Layout,
    a: int,
) -> NDArray[np.float64]:
    """Return the sums of `BetweenSums` of every column of the partners, [6, groups, columns].

    In order: pairs, rows, towards, within, cross, and cross with the sides exchanged.
    """
    n_groups, own_width, width = panel_gdd.shape
    own, start = layout.own(a), layout.partners(a).start
    found = np.empty((6, n_groups, width))
    step = max(1, _NUMBERS // (n_groups * max(own_width, n_groups)))
    x_gd = sum_gd[:, own]
    for at in (slice(i, min(i + step, width)) for i in range(0, width, step)):
        there = slice(start + at.start, start + at.stop)
        y_gd = sum_gd[:, there]
        c_gdd = to_host(panel_gdd[:, :, at]) - raw_gd[:, own, None] * mean_d[there]
        c_gdd = c_gdd - mean_d[own, None] * y_gd[:, None]
        found[0, :, at] = (c_gdd * (c_gdd.sum(axis=0) - c_gdd)).sum(axis=1)
        bent_ghd = x_gd @ c_gdd  # x's sum over h times what group g holds
        own_gd = np.diagonal(bent_ghd).T
        rows_gd = own_gd * y_gd
        found[1, :, at] = rows_gd
        found[2, :, at] = bent_ghd.sum(axis=0) * y_gd - rows_gd
        found[3, :, at] = (bent_ghd * y_gd).sum(axis=1) - rows_gd
        found[4, :, at] = rows_gd - own_gd.sum(axis=0) * y_gd
        found[5, :, at] = rows_gd - (bent_ghd * y_gd[:, None]).sum(axis=0)
    return found
