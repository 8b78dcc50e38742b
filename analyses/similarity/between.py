"""HSIC from samples of different groups only: what clustered data need.

Utterances of one speaker are alike whatever an array shows of the content, so pairs of them say
"similar" on both sides, and an estimate over all pairs finds speakers where it should find
similarity. Here every sample of a pair, a triple or a quadruple has a speaker of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .hsic import HsicSums

MIN_GROUPS = 5
"""Four groups make a quadruple, and one more can be left out."""


@dataclass(frozen=True)
class BetweenSums:
    """Sums over pairs, triples and quadruples of groups, from which any one group can be taken out.

    Notes
    -----
    With k and l the centred Gram matrices of two arrays, HSIC = E k(1,2) l(1,2) - 2 E k(1,2) l(1,3)
    + E k(1,2) l(3,4) for four independent samples [1]_. Each expectation is the mean over all
    samples of so many different groups, each combination of samples with the same weight.

    References
    ----------
    .. [1] Song et al., Feature selection via dependence maximization, JMLR 2012.
    """

    pairs_gll: NDArray[np.float64]
    """Sum of k[i, j] l[i, j] over i in the group and j in another one, [groups, arrays, arrays]."""
    rows_gll: NDArray[np.float64]
    """Sum over i in the group of r_k[i] r_l[i], r[i] being the sum of row i outside its group."""
    cross_gll: NDArray[np.float64]
    """Sum over all i of r_k[i] f_l[i, group], f being row i summed over another group."""
    towards_gll: NDArray[np.float64]
    """Sum over all i of f_k[i, group] f_l[i, group]."""
    within_gll: NDArray[np.float64]
    """Sum over i in the group, and over all other groups h, of f_k[i, h] f_l[i, h]."""
    blocks_lgg: NDArray[np.float64]
    """Sum of k over the samples of two different groups, [arrays, groups, groups]."""
    sizes_g: NDArray[np.float64]
    """Samples of each group."""

    @cached_property
    def _block_rows_lg(self) -> NDArray[np.float64]:
        return self.blocks_lgg.sum(axis=2)

    def hsic(self, without: int | None = None) -> NDArray[np.float64]:
        """Return HSIC of all pairs of arrays, [arrays, arrays], with all groups or all but one."""
        pairs_ll = self.pairs_gll.sum(axis=0)
        triples_ll = self.rows_gll.sum(axis=0) - self.towards_gll.sum(axis=0)
        blocks_lgg, block_rows_lg, sizes_g = self.blocks_lgg, self._block_rows_lg, self.sizes_g
        if without is not None:
            g = without
            pairs_ll = pairs_ll - 2 * self.pairs_gll[g]
            cross_ll = self.cross_gll[g] + self.cross_gll[g].T
            triples_ll = triples_ll - self.rows_gll[g] - cross_ll
            triples_ll = triples_ll + 2 * self.towards_gll[g] + self.within_gll[g]
            left = np.arange(sizes_g.size) != g
            block_rows_lg = (block_rows_lg - blocks_lgg[:, :, g])[:, left]
            blocks_lgg = blocks_lgg[:, left][:, :, left]
            sizes_g = sizes_g[left]
        total_l = block_rows_lg.sum(axis=1)
        flat = blocks_lgg.reshape(len(blocks_lgg), -1)
        quadruples_ll = (  # all two pairs of groups, less those that share one or two
            np.outer(total_l, total_l) - 4 * block_rows_lg @ block_rows_lg.T + 2 * flat @ flat.T
        )
        n_pairs, n_triples, n_quadruples = count_tuples(sizes_g)
        return pairs_ll / n_pairs - 2 * triples_ll / n_triples + quadruples_ll / n_quadruples


def count_tuples(sizes_g: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return how many ordered pairs, triples and quadruples of samples of different groups exist.

    Elementary symmetric functions of the group sizes, from their power sums.
    """
    p1, p2, p3, p4 = (float(np.sum(sizes_g**k)) for k in (1, 2, 3, 4))
    pairs = p1**2 - p2
    triples = p1**3 - 3 * p1 * p2 + 2 * p3
    quadruples = p1**4 - 6 * p1**2 * p2 + 8 * p1 * p3 + 3 * p2**2 - 6 * p4
    return pairs, triples, quadruples


def sum_between(sums: HsicSums) -> BetweenSums:
    """Return the sums over different groups that follow from the sums over all pairs.

    Notes
    -----
    Time: groups · samples · arrays². Memory: some 6 · groups · arrays² + 3 · arrays · samples
    numbers, and those of the samples of one group beside all groups.
    """
    row_lng, members = sums.row_lng, sums.members
    n_arrays, n, n_groups = row_lng.shape
    starts = [m.start for m in members]
    sizes_g = np.asarray([m.stop - m.start for m in members], dtype=np.float64)
    r_ln = sums.row_ln.copy()
    for g, m in enumerate(members):
        r_ln[:, m] -= row_lng[:, m, g]
    s_ln, shift_lg = sums.shift_ln, sums.shift_lg
    rest_lg = shift_lg.sum(axis=1, keepdims=True) - shift_lg
    all_shifts = s_ln @ s_ln.T
    pairs, rows, cross, towards, within = np.zeros((5, n_groups, n_arrays, n_arrays))
    blocks_lgg = np.empty((n_arrays, n_groups, n_groups))
    for g, m in enumerate(members):
        f_ln = np.array(row_lng[:, :, g], order="C")
        f_ln[:, m] = 0
        rows[g] = r_ln[:, m] @ r_ln[:, m].T
        cross[g] = r_ln @ f_ln.T
        towards[g] = f_ln @ f_ln.T
        from_m = row_lng[:, m].copy()
        from_m[:, :, g] = 0
        from_m = from_m.reshape(n_arrays, -1)
        within[g] = from_m @ from_m.T
        blocks_lgg[:, :, g] = np.add.reduceat(f_ln, starts, axis=1)
        # The products are those of u = k + s_i + s_j: s is taken out, i in the group, j outside
        size, s_in = sizes_g[g], s_ln[:, m]
        own_shifts = s_in @ s_in.T
        other_shifts = all_shifts - own_shifts
        u_in = r_ln[:, m] + (n - size) * s_in + rest_lg[:, [g]]
        mixed = s_in @ u_in.T + s_ln @ f_ln.T + size * other_shifts
        mixed += np.outer(rest_lg[:, g], shift_lg[:, g])
        shifts = (n - size) * own_shifts + size * other_shifts
        both = np.outer(shift_lg[:, g], rest_lg[:, g])
        pairs[g] = sums.products_gll[g] - sums.own_gll[g] - mixed - mixed.T
        pairs[g] += shifts + both + both.T
    return BetweenSums(pairs, rows, cross, towards, within, blocks_lgg, sizes_g)
