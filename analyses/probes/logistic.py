"""Multinomial logistic regression with an L2 penalty, solved for many label sets at once, exactly.

One design matrix, many labellings (the real one and its control shuffles): every iteration is two
matrix products over all labellings together. A bound on the curvature that needs no probabilities
(Böhning 1992) serves as preconditioner, so that about 20 iterations reach the optimum.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import linalg
from scipy.special import log_softmax

from ..errors import AnalysisError
from ..statistics.descent import MEMORY, dot, minimise

_MAX_ITERATIONS = 5000
_TOLERANCE = 1e-7
"""Largest entry of the preconditioned gradient at the end: probabilities right to about 1e-6."""


@dataclass(frozen=True, slots=True)
class Logistic:
    """Fitted weights of every label set."""

    weight_dsk: NDArray[np.float64]
    """[features, label sets, classes]."""
    intercept_sk: NDArray[np.float64]
    """[label sets, classes]."""
    iterations: int
    """L-BFGS iterations until the slowest label set had converged."""

    def predict(self, x_nd: NDArray) -> NDArray[np.float64]:
        """Return log-probabilities, [samples, label sets, classes]."""
        n_features, n_sets, n_classes = self.weight_dsk.shape
        logits = x_nd @ self.weight_dsk.reshape(n_features, -1)
        return log_softmax(logits.reshape(-1, n_sets, n_classes) + self.intercept_sk, axis=2)


def fit_logistic(
    x_nd: NDArray[np.float64], class_ns: NDArray[np.int64], penalty: float
) -> Logistic:
    """Return the minimum of Σ cross-entropy + ½ · penalty · ‖weights‖² for every label set.

    Parameters
    ----------
    x_nd
        Features with column means of 0, [samples, features].
    class_ns
        Class numbers 0 … K-1, every class present, [samples, label sets].
    penalty
        Weight of the squared weights, 1/C of scikit-learn; the intercept has none.

    Notes
    -----
    In u = L'w with LL' = ½X'X + penalty · I, the bound on the curvature is the identity, and the
    penalty's gradient is u - ½Z'(Zu) with Z = XL⁻ᵀ: each iteration costs two products with Z.
    O(samples · features) memory, O(samples · features²) time once and O(samples · features · sets ·
    classes) an iteration. With more features than samples the problem is solved in the span of the
    samples.
    """
    basis_dr = None
    if x_nd.shape[1] > x_nd.shape[0]:
        basis_dr, r_rn = np.linalg.qr(x_nd.T)
        x_nd = r_rn.T
    n, width = x_nd.shape
    bound_dd = 0.5 * (x_nd.T @ x_nd)
    bound_dd[np.diag_indices(width)] += penalty
    root_dd = linalg.cholesky(bound_dd, lower=True, check_finite=False)
    z_nd = np.empty((n, width + 1))
    z_nd[:, :-1] = linalg.solve_triangular(root_dd, x_nd.T, lower=True, check_finite=False).T
    z_nd[:, -1] = np.sqrt(2 / n)  # the intercept, scaled so that its curvature bound is 1 as well
    u_dsk, iterations = _minimise(z_nd, class_ns)
    flat = u_dsk.reshape(width + 1, -1)
    weight = linalg.solve_triangular(root_dd.T, flat[:-1], lower=False, check_finite=False)
    weight = weight if basis_dr is None else basis_dr @ weight
    return Logistic(weight.reshape(-1, *u_dsk.shape[1:]), u_dsk[-1] * np.sqrt(2 / n), iterations)


def count_bytes(n: int, width: int, columns: int) -> int:
    """Return the memory that a fit takes beyond its features, in bytes.

    Parameters
    ----------
    n, width
        Samples and features.
    columns
        Label sets times classes.
    """
    rank = min(n, width)
    steps = 2 * MEMORY + 6  # the pairs that are kept, the point, its gradient and a trial step
    return 8 * (2 * rank * (n + rank) + columns * (6 * n + steps * (rank + 1)))


class _Objective:
    """Loss and gradient in preconditioned coordinates, one row for each label set still moving."""

    def __init__(self, z_nd: NDArray[np.float64], class_ns: NDArray[np.int64]) -> None:
        self._z_nd = z_nd
        self.n_classes = int(class_ns.max()) + 1
        self._target_nsk = (class_ns[:, :, None] == np.arange(self.n_classes)).astype(np.float64)

    def restrict(self, sets: NDArray[np.bool_]) -> None:
        """Forget the label sets that have converged."""
        self._target_nsk = np.ascontiguousarray(self._target_nsk[:, sets])

    def evaluate(self, u: NDArray[np.float64]) -> tuple[NDArray, NDArray]:
        """Return the loss [label sets] and its gradient [label sets, features · classes]."""
        width, n_sets = self._z_nd.shape[1], u.shape[0]
        u_dsk = np.ascontiguousarray(u.reshape(n_sets, width, -1).transpose(1, 0, 2))
        logits_nsk = (self._z_nd @ u_dsk.reshape(width, -1)).reshape(self._target_nsk.shape)
        shifted = logits_nsk - logits_nsk.max(axis=2, keepdims=True)
        p_nsk = np.exp(shifted)
        total_ns1 = p_nsk.sum(axis=2, keepdims=True)
        p_nsk /= total_ns1
        entropy_s = np.log(total_ns1).sum(axis=(0, 2)) - _sum_sets(shifted, self._target_nsk)
        penalty_s = 0.5 * dot(u, u) - 0.25 * _sum_sets(logits_nsk, logits_nsk)
        p_nsk -= self._target_nsk
        p_nsk -= 0.5 * logits_nsk
        gradient_dsk = (self._z_nd.T @ p_nsk.reshape(p_nsk.shape[0], -1)).reshape(u_dsk.shape)
        return entropy_s + penalty_s, gradient_dsk.transpose(1, 0, 2).reshape(u.shape) + u


def _sum_sets(a_nsk: NDArray, b_nsk: NDArray) -> NDArray[np.float64]:
    return (a_nsk * b_nsk).sum(axis=0).sum(axis=1)


def _minimise(z_nd: NDArray, class_ns: NDArray[np.int64]) -> tuple[NDArray[np.float64], int]:
    """Return the optimum of every label set, [features, label sets, classes], and iterations."""
    objective = _Objective(z_nd, class_ns)
    n_sets, width = class_ns.shape[1], z_nd.shape[1]
    found = minimise(
        objective,
        (n_sets, width * objective.n_classes),
        tolerance=_TOLERANCE,
        max_iterations=_MAX_ITERATIONS,
    )
    if found is None:
        msg = (
            f"the logistic probe did not converge in {_MAX_ITERATIONS} iterations: "
            "its penalty is too small for classes that can be separated. Use a smaller C."
        )
        raise AnalysisError(msg)
    u_dsk = found[0].reshape(n_sets, width, -1).transpose(1, 0, 2)
    return np.ascontiguousarray(u_dsk), found[1]
