"""The Gaussian (RBF) kernel: its bandwidth, said and not guessed, and its Gram matrices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..backend import to_device
from .hsic import HsicSums, Moments, Reader

RULES = ("offdiagonal", "kornblith")
"""Whose median is the bandwidth: distances of different samples, or all with the zero diagonal."""
ANCHORS = 1000
"""Samples whose distances the median is taken of, at most; all of them where there are fewer."""


@dataclass(frozen=True, slots=True)
class Gaussian:
    """exp(-|x - y|² / (2 σ²)) - 1 for every array; HSIC does not see the constant.

    Without it the values of wide kernels would differ from 1 in their last digits only.
    """

    sigmas_l: NDArray[np.float64]
    """Bandwidth of every array, above 0, in units of its features as `sum_pairs` scales them."""

    def apply(
        self, gram_lmn: NDArray, rows_lm: NDArray, columns_ln: NDArray, device: str = "cpu"
    ) -> None:
        """Turn inner products into values of the kernel, in place.

        Parameters
        ----------
        gram_lmn
            Inner products [arrays, rows, columns].
        rows_lm, columns_ln
            Squared norms of the rows and of the columns.
        device
            Where the three are.
        """
        gram_lmn *= 2
        gram_lmn -= rows_lm[:, :, None]
        gram_lmn -= columns_ln[:, None, :]
        np.minimum(gram_lmn, 0, out=gram_lmn)  # rounding makes some distances negative
        gram_lmn *= to_device(0.5 / np.square(self.sigmas_l), device)[:, None, None]
        np.expm1(gram_lmn, out=gram_lmn)

    def of(self, a: int) -> Gaussian:
        """Return the kernel of one array."""
        return Gaussian(self.sigmas_l[[a]])

    def shifts(self, norms_ln: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return s_i with which the kernel plus s_i + s_j has rows of a mean near 0.

        They are those of data whose inner products are 0: what is common to all arrays of many
        features, and would cancel.
        """
        own_ln = np.exp(-0.5 * norms_ln / np.square(self.sigmas_l)[:, None])
        mean_l = own_ln.mean(axis=1, keepdims=True)
        return 0.5 * (1 + np.square(mean_l)) - own_ln * mean_l


def recentre(sums: HsicSums, diagonal_ln: NDArray[np.float64] | float = 0.0) -> HsicSums:
    """Return the sums of the centred Gram matrix HKH from those of K.

    Parameters
    ----------
    sums
        Of a kernel that is not centred. Its products do not change: centring adds c_i + c_j to the
        matrix and takes them from the shifts. Its sums of rows are overwritten.
    diagonal_ln
        The kernel's diagonal, [arrays, samples].
    """
    n = sums.group_n.size
    row_ln = sums.row_lng.sum(axis=2)
    centre_ln = row_ln.sum(axis=1, keepdims=True) / (2 * n**2) - row_ln / n
    starts = np.flatnonzero(np.diff(sums.group_n, prepend=-1))
    size_g = np.diff(np.append(starts, n))
    centre_lg = np.add.reduceat(centre_ln, starts, axis=1)
    row_lng = sums.row_lng
    for g, size in enumerate(size_g.tolist()):
        row_lng[:, :, g] += size * centre_ln
        row_lng[:, :, g] += centre_lg[:, [g]]
    return replace(
        sums,
        row_lng=row_lng,
        norms_ln=diagonal_ln + 2 * centre_ln,
        shift_ln=sums.shift_ln - centre_ln,
    )


def median_distances(
    read: Reader, moments: Moments, anchors: NDArray[np.int64], *, rule: str = RULES[0]
) -> NDArray[np.float64]:
    """Return the median distance of samples of every array, in the units of `Gaussian`, [arrays].

    Parameters
    ----------
    read
        Source of the features.
    moments
        What `find_moments` gave for the same source.
    anchors
        Samples whose distances are looked at.
    rule
        `offdiagonal`: pairs of different samples; `kornblith`: all pairs with the zero diagonal, as
        in the notebook of Kornblith et al. (2019).

    Returns
    -------
    numpy.ndarray
        The root of the median of squared distances; 1 for arrays that have no similarity.

    Notes
    -----
    O(anchors²) memory beside the features of the anchors of one array, in float64.
    """
    medians_l = np.ones(len(moments.means))
    for a, fault in enumerate(moments.faults):
        if fault:
            continue
        x_nd = moments.centre(a, read(a, anchors))
        gram_nn = x_nd @ x_nd.T
        norms_n = np.diagonal(gram_nn).copy()
        squares_nn = norms_n[:, None] + norms_n - 2 * gram_nn
        np.fill_diagonal(squares_nn, 0.0)
        upper = squares_nn[np.triu_indices(anchors.size, 1)]
        found = upper if rule == RULES[0] else squares_nn
        medians_l[a] = np.sqrt(max(float(np.median(found)), 0.0))
    return medians_l


def describe_kernel(factor: float, rule: str) -> str:
    """Return what the column `kernel` says: `rbf(0.5 median)`."""
    return f"rbf({factor:g} median{' with diagonal' * (rule == RULES[1])})"


def choose_anchors(names: Sequence[str], order_n: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the samples whose distances give the bandwidth, ascending.

    Parameters
    ----------
    names
        Ids of the samples.
    order_n
        An order of the samples that depends on their ids alone.
    """
    return np.sort(order_n[:ANCHORS]) if len(names) > ANCHORS else np.arange(len(names))
