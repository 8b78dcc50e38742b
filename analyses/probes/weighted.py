"""A probe of all layers together: weights of layers that sum to one, then a linear classifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize
from scipy.special import log_softmax, softmax

from ..errors import AnalysisError
from .left_out import Predicted
from .scaling import Scaling
from .task import Task

_MAX_ITERATIONS = 500
_TOLERANCE = 1e-5
"""Largest entry of the gradient for each sample at the end."""


@dataclass(frozen=True, slots=True)
class Weighted:
    """One fitted probe."""

    weight_l: NDArray[np.float64]
    """Weights of the layers; they sum to 1."""
    weight_dk: NDArray[np.float64]
    intercept_k: NDArray[np.float64]
    iterations: int

    def predict(self, stack_lnd: NDArray) -> NDArray[np.float64]:
        """Return probabilities, [samples, classes]."""
        mixed_nd = np.tensordot(self.weight_l.astype(stack_lnd.dtype), stack_lnd, axes=1)
        return softmax(mixed_nd @ self.weight_dk + self.intercept_k, axis=1)


def fit_weighted(
    stack_lnd: NDArray, class_n: NDArray[np.int64], penalty: float, layer_penalty: float = 1.0
) -> Weighted:
    """Return the probe Σ softmax(w)_l x_l W + b with the least Σ cross-entropy + ½ λ‖W‖² + ½ μ‖w‖².

    Parameters
    ----------
    stack_lnd
        Features of every layer, [layers, samples, features], on one scale.
    class_n
        Class numbers 0 … K-1, every class present.
    penalty
        λ, weight of the squared weights W; the intercept b has none.
    layer_penalty
        μ, weight of the squared w. Without it the optimum is one layer with all of the weight,
        which w nears for ever; the larger it is, the closer to the plain mean.

    Raises
    ------
    AnalysisError
        No optimum in 500 iterations.

    Notes
    -----
    From w = 0, the plain mean of the layers, as in SUPERB (Yang et al. 2021), by L-BFGS. The
    problem is not convex: the optimum is that of the basin of the plain mean. An evaluation is two
    passes over the features of all layers.
    """
    n_layers, n, width = stack_lnd.shape
    n_classes = int(class_n.max()) + 1
    target_nk = (class_n[:, None] == np.arange(n_classes)).astype(np.float64)
    flat_lf = stack_lnd.reshape(n_layers, -1)

    def evaluate(point: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        share_l = softmax(point[:n_layers])
        weight_dk = point[n_layers:-n_classes].reshape(width, n_classes)
        mixed_nd = (share_l.astype(flat_lf.dtype) @ flat_lf).reshape(n, width)
        log_p_nk = log_softmax(mixed_nd @ weight_dk + point[-n_classes:], axis=1)
        squares = penalty * np.square(weight_dk).sum()
        squares += layer_penalty * np.square(point[:n_layers]).sum()
        loss = -(target_nk * log_p_nk).sum() + 0.5 * squares
        residual_nk = np.exp(log_p_nk) - target_nk
        pull_nd = (residual_nk @ weight_dk.T).astype(flat_lf.dtype)
        slope_l = (flat_lf @ pull_nd.ravel()).astype(np.float64)
        parts = [
            share_l * (slope_l - share_l @ slope_l) + layer_penalty * point[:n_layers],
            (mixed_nd.T @ residual_nk + penalty * weight_dk).ravel(),
            residual_nk.sum(axis=0),
        ]
        return float(loss) / n, np.concatenate(parts) / n

    start = np.zeros(n_layers + (width + 1) * n_classes)
    options = {"maxiter": _MAX_ITERATIONS, "gtol": _TOLERANCE, "ftol": 1e-10}
    found = optimize.minimize(evaluate, start, jac=True, method="L-BFGS-B", options=options)
    if found.nit >= _MAX_ITERATIONS:
        msg = (
            f"the layer-weighted probe did not converge in {_MAX_ITERATIONS} iterations: "
            "its penalty is too small. Use a smaller C."
        )
        raise AnalysisError(msg)
    weight_dk = found.x[n_layers:-n_classes].reshape(width, n_classes)
    return Weighted(softmax(found.x[:n_layers]), weight_dk, found.x[-n_classes:], int(found.nit))


def predict_weighted(
    layers: Sequence[NDArray],
    task: Task,
    penalty: float,
    *,
    normalise: bool,
    layer_penalty: float = 1.0,
) -> tuple[Predicted, NDArray[np.float64]]:
    """Return probabilities for groups that were left out, and the weights of every fold.

    Parameters
    ----------
    layers
        Pooled features of each layer, [samples, features].
    task
        Labels and groups of the samples; only the real labels are used.
    penalty
        Of the classifier.
    layer_penalty
        Of the weights of the layers.
    normalise
        Whether each layer is standardised with its training part; else all layers are divided by
        one number, and the weights follow the size of the activations as well.

    Returns
    -------
    tuple
        The predictions, and [folds, layers].
    """
    class_n, n_groups = task.class_ns[:, 0], len(task.speakers)
    out = np.zeros((class_n.size, 1, len(task.classes)))
    weight_gl = np.full((n_groups, len(layers)), np.nan)
    for group in range(n_groups):
        test = task.speaker_n == group
        present = np.unique(class_n[~test])
        if present.size == 1:
            out[test, :, present[0]] = 1.0
            continue
        stack_lnd = _stack(layers, ~test, normalise=normalise)
        compact_n = np.searchsorted(present, class_n[~test])
        model = fit_weighted(stack_lnd[:, ~test], compact_n, penalty, layer_penalty)
        out[np.ix_(np.flatnonzero(test), [0], present)] = model.predict(stack_lnd[:, test])[:, None]
        weight_gl[group] = model.weight_l
    return Predicted(out, np.full(n_groups, penalty), probabilities=True), weight_gl


def _stack(layers: Sequence[NDArray], train: NDArray[np.bool_], *, normalise: bool) -> NDArray:
    """Return [layers, samples, features] on the scale of the training samples, as stored."""
    stack_lnd = np.empty((len(layers), *layers[0].shape), dtype=layers[0].dtype)
    for i, x_nd in enumerate(layers):
        scaling = Scaling.of(x_nd[train].astype(np.float64))
        deviation = scaling.deviation_d if normalise else 1.0
        stack_lnd[i] = (x_nd - scaling.mean_d) / deviation
    if not normalise:
        stack_lnd /= max(float(np.sqrt(np.square(stack_lnd[:, train]).mean())), 1e-300)
    return stack_lnd


def count_bytes(n_layers: int, n: int, width: int, itemsize: int, columns: int) -> int:
    """Return the memory of `predict_weighted`: the layers three times, one in float64, L-BFGS.

    Parameters
    ----------
    n_layers, n, width, itemsize
        Layers, samples, features, bytes of a value.
    columns
        Classes.
    """
    return 3 * n_layers * n * width * itemsize + 8 * (4 * n * width + 30 * width * columns)
