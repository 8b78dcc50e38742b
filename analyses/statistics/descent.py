"""L-BFGS on many smooth convex problems of one shape in step; those that have converged drop out.

Every iteration evaluates all problems that still move together, so that their products with a
design matrix that they share are one product.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

MEMORY = 8
"""Pairs of steps and gradient changes that are kept."""


class Objective(Protocol):
    """Loss and gradient of many problems, one row for each that still moves."""

    def evaluate(self, u: NDArray[np.float64], /) -> tuple[NDArray, NDArray]:
        """Return the loss [problems] and its gradient [problems, parameters]."""
        ...

    def restrict(self, moving: NDArray[np.bool_], /) -> None:
        """Forget the problems that have converged."""
        ...


def minimise(
    objective: Objective, shape: tuple[int, int], *, tolerance: float, max_iterations: int
) -> tuple[NDArray[np.float64], int] | None:
    """Return the minimum of every problem, from 0.

    Parameters
    ----------
    objective
        The problems; best in coordinates in which their curvature is at most about 1.
    shape
        Problems and parameters.
    tolerance
        Largest entry of the gradient at the end.
    max_iterations
        After so many there is no answer.

    Returns
    -------
    tuple or None
        The minima [problems, parameters] and the iterations of the slowest; None where a problem
        had not converged.

    Notes
    -----
    L-BFGS with 8 pairs and halved steps (Nocedal and Wright, Numerical Optimization, 7.2).
    O(problems · parameters · 16) memory.
    """
    found = np.zeros(shape)
    sets, u = np.arange(shape[0]), found.copy()
    loss, gradient = objective.evaluate(u)
    history: list[tuple[NDArray, NDArray, NDArray]] = []
    for iteration in range(max_iterations):
        moving = np.abs(gradient).max(axis=1) > tolerance
        if not moving.all():
            found[sets[~moving]] = u[~moving]
            sets, u, loss, gradient = sets[moving], u[moving], loss[moving], gradient[moving]
            history = [(a[moving], b[moving], c[moving]) for a, b, c in history]
            objective.restrict(moving)
        if not sets.size:
            return found, iteration
        direction = _direction(gradient, history)
        step, new_loss, new_gradient = _search(objective, u, loss, gradient, direction)
        gradient_change = new_gradient - gradient
        curvature = dot(step, gradient_change)
        history.append((step, gradient_change, np.where(curvature > 0, curvature, np.inf)))
        del history[:-MEMORY]
        u, loss, gradient = u + step, new_loss, new_gradient
    return None


def dot(a_sp: NDArray, b_sp: NDArray) -> NDArray[np.float64]:
    """Return the product of the parameters of each problem, [problems]."""
    return np.einsum("sp,sp->s", a_sp, b_sp)


def _direction(gradient: NDArray, history: list[tuple[NDArray, NDArray, NDArray]]) -> NDArray:
    """Return the L-BFGS direction by the two-loop recursion; sets without curvature skip a pair."""
    q = gradient.copy()
    alphas = []
    for step, gradient_change, curvature in reversed(history):
        alpha = dot(step, q) / curvature
        q -= alpha[:, None] * gradient_change
        alphas.append(alpha)
    if history:  # the curvature along the last step scales the rest
        _, gradient_change, curvature = history[-1]
        square = dot(gradient_change, gradient_change)
        moved = np.isfinite(curvature) & (square > 0)
        q *= np.where(moved, curvature / np.where(moved, square, 1.0), 1.0)[:, None]
    for (step, gradient_change, curvature), alpha in zip(history, reversed(alphas), strict=True):
        beta = dot(gradient_change, q) / curvature
        q += (alpha - beta)[:, None] * step
    return -q


def _search(
    objective: Objective, u: NDArray, loss: NDArray, gradient: NDArray, direction: NDArray
) -> tuple[NDArray, NDArray, NDArray]:
    """Return step, loss and gradient after halving the step of each set until its loss falls."""
    slope = dot(gradient, direction)
    length = np.ones(u.shape[0])
    slack = 1e-12 * np.abs(loss)  # rounding of the loss itself, near the optimum
    while True:
        step = direction * length[:, None]
        new_loss, new_gradient = objective.evaluate(u + step)
        failed = new_loss > loss + 1e-4 * length * slope + slack
        if not failed.any() or length[failed].max() < 1e-10:
            return step, new_loss, new_gradient
        length[failed] /= 2
