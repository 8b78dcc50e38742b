"""Sums of every group, from which ridge and LDA without any one group follow by subtraction."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import get_blas_funcs, get_lapack_funcs

from .scaling import Scaling

CONSTANT = 1e-13
"""A variance that is so small a part of all groups' variance is what subtraction leaves of 0."""


@dataclass(slots=True)
class Training:
    """What ridge and LDA need of the samples of all groups but one."""

    n: int
    """Samples."""
    count_sk: NDArray[np.float64]
    """Samples of each class, [label sets, classes]."""
    mean_d: NDArray[np.float64]
    deviation_d: NDArray[np.float64]
    """Standard deviation of each feature, 1 where it is constant."""
    cross_dsk: NDArray[np.float64]
    """Σ(x - mean) of each class, [features, label sets, classes]."""
    square: NDArray[np.float64]
    """Centred scatter [features, features]; or the products of standardised rows, [n, n]."""
    rows_nd: NDArray[np.float64] | None = None
    """Standardised rows where `square` holds their products."""
    target_nk: NDArray[np.float64] | None = None
    """Centred one-hot labels of all sets, [samples, label sets · classes]; beside `rows_nd`."""

    def solve(self, penalty: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return (scatter + penalty · variances)⁻¹ cross, and its product with the cross sums.

        Both in the coordinates of the features as they are: the standardisation of ridge,
        (D S D + λI)⁻¹ D with D = 1/deviation, is (S + λ D⁻²)⁻¹.

        Returns
        -------
        tuple
            [features, label sets, classes] and [label sets, classes, classes].
        """
        n_sets, n_classes = self.count_sk.shape
        factor = self.square.copy()
        if self.rows_nd is None:
            factor[np.diag_indices_from(factor)] += penalty * np.square(self.deviation_d)
            flat = _solve(factor, self.cross_dsk.reshape(self.mean_d.size, -1))
            weight_dsk = flat.reshape(self.cross_dsk.shape)
            return weight_dsk, np.einsum("dsk,dsl->skl", self.cross_dsk, weight_dsk)
        assert self.target_nk is not None
        factor[np.diag_indices_from(factor)] += penalty
        alpha_nk = _solve(factor, self.target_nk)
        weight_dk = (self.rows_nd.T @ alpha_nk) / self.deviation_d[:, None]
        fitted = (self.target_nk - penalty * alpha_nk).reshape(-1, n_sets, n_classes)
        target = self.target_nk.reshape(fitted.shape)
        return weight_dk.reshape(-1, n_sets, n_classes), np.einsum("nsk,nsl->skl", target, fitted)

    def moments_within(self) -> tuple[float, float]:
        """Return trace and squared norm of the standardised within-class covariance, real labels.

        S = (D scatter D - MM')/n with the class means M = D cross / √count of the first label set.
        """
        scale_k = np.sqrt(np.maximum(self.count_sk[0], 1.0))
        centre_dk = self.cross_dsk[:, 0] / self.deviation_d[:, None] / scale_k
        between_kk = centre_dk.T @ centre_dk
        if self.rows_nd is None:
            inverse_d = 1 / np.square(self.deviation_d)
            trace = float(np.diagonal(self.square) @ inverse_d)
            norm = float(inverse_d @ np.square(self.square) @ inverse_d)
            turned = centre_dk / self.deviation_d[:, None]
            mixed = float((turned * (self.square @ turned)).sum())
        else:
            assert self.target_nk is not None
            trace = float(np.trace(self.square))
            norm = float(np.square(self.square).sum())
            target = self.target_nk[:, : scale_k.size] / scale_k
            mixed = float(np.square(self.square @ target).sum())
        total = trace - float(np.trace(between_kk))
        square = norm - 2 * mixed + float(np.square(between_kk).sum())
        return total / self.n, square / self.n**2


@dataclass(slots=True)
class GroupSums:
    """Sums over the samples of each group, about a common point."""

    shift_d: NDArray[np.float64]
    """The common point, near the mean of all: subtraction then costs no precision."""
    count_gsk: NDArray[np.float64]
    """[groups, label sets, classes]."""
    sum_gdsk: NDArray[np.float64]
    """Sum of each class, [groups, features, label sets, classes]."""
    scatter_gdd: NDArray[np.float64]
    """Σ(x - shift)(x - shift)', [groups, features, features]."""
    _totals: tuple[NDArray, ...] = field(default=(), repr=False)

    @classmethod
    def of(cls, x_nd: NDArray[np.float64], group_n: NDArray, class_ns: NDArray) -> GroupSums:
        """Return the sums of samples [samples, features] in groups 0 … G-1, all label sets."""
        n_groups, width = int(group_n.max()) + 1, x_nd.shape[1]
        n_sets, n_classes = class_ns.shape[1], int(class_ns.max()) + 1
        shift_d = x_nd.mean(axis=0)
        sums = cls(
            shift_d,
            np.zeros((n_groups, n_sets, n_classes)),
            np.zeros((n_groups, width, n_sets, n_classes)),
            np.empty((n_groups, width, width)),
        )
        for group in range(n_groups):
            members = group_n == group
            part_nd = x_nd[members] - shift_d
            one_hot = (class_ns[members][:, :, None] == np.arange(n_classes)).astype(np.float64)
            sums.count_gsk[group] = one_hot.sum(axis=0)
            flat = part_nd.T @ one_hot.reshape(len(part_nd), -1)
            sums.sum_gdsk[group] = flat.reshape(width, n_sets, n_classes)
            np.matmul(part_nd.T, part_nd, out=sums.scatter_gdd[group])
        return sums

    def without(self, group: int) -> Training:
        """Return the training sums of all groups but one.

        Notes
        -----
        O(features²) time and memory: nothing is added up again.
        """
        if not self._totals:
            self._totals = tuple(
                part.sum(axis=0) for part in (self.count_gsk, self.sum_gdsk, self.scatter_gdd)
            )
        count_sk = self._totals[0] - self.count_gsk[group]
        sum_dsk = self._totals[1] - self.sum_gdsk[group]
        scatter_dd = self._totals[2] - self.scatter_gdd[group]
        n = int(count_sk[0].sum())
        offset_d = sum_dsk[:, 0].sum(axis=1) / n
        _subtract_square(scatter_dd, offset_d, float(n))
        variance_d = np.diagonal(scatter_dd) / n
        constant = variance_d <= CONSTANT * np.diagonal(self._totals[2]) / n
        deviation_d = np.sqrt(np.where(constant, 1.0, variance_d))
        cross_dsk = sum_dsk - offset_d[:, None, None] * count_sk
        return Training(n, count_sk, self.shift_d + offset_d, deviation_d, cross_dsk, scatter_dd)


def gather_rows(x_nd: NDArray[np.float64], class_ns: NDArray[np.int64], n_classes: int) -> Training:
    """Return the training sums of fewer samples than features, by the products of their rows."""
    n = x_nd.shape[0]
    scaling = Scaling.of(x_nd)
    mean_d, deviation_d, rows_nd = scaling.mean_d, scaling.deviation_d, scaling.apply(x_nd)
    target_nsk = (class_ns[:, :, None] == np.arange(n_classes)).astype(np.float64)
    count_sk = target_nsk.sum(axis=0)
    target_nk = (target_nsk - count_sk / n).reshape(n, -1)
    cross_dsk = ((rows_nd.T @ target_nk) * deviation_d[:, None]).reshape(-1, *count_sk.shape)
    square = rows_nd @ rows_nd.T
    return Training(n, count_sk, mean_d, deviation_d, cross_dsk, square, rows_nd, target_nk)


def _subtract_square(square_dd: NDArray[np.float64], x_d: NDArray, weight: float) -> None:
    """Take weight · xx' from a symmetric matrix, in place."""
    (ger,) = get_blas_funcs(("ger",), (square_dd,))
    ger(-weight, x_d, x_d, a=square_dd.T, overwrite_a=1)


def _solve(square: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return square⁻¹ right by Cholesky; `square` is symmetric, definite, and overwritten.

    Raises
    ------
    numpy.linalg.LinAlgError
        It is not definite: a penalty far below the rounding of the scatter.
    """
    potrf, potrs = get_lapack_funcs(("potrf", "potrs"), (square,))
    factor, failed = potrf(square.T, lower=1, overwrite_a=1, clean=0)
    if failed:
        msg = "the penalised scatter is not positive definite"
        raise np.linalg.LinAlgError(msg)
    solution, _ = potrs(factor, right, lower=1)
    return np.ascontiguousarray(solution)
