"""The translator of a tuned lens for a head on pooled features: logistic regression with an offset.

A translator m → m + W m + b before a linear head H changes its logits by H W m + H b: of W only the
matrix H W of as many rows as there are classes is seen, so that is what is fitted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from ..probes.scaling import Scaling
from ..statistics.descent import MEMORY, minimise
from ..statistics.divergence import kl_divergence

PENALTIES = (float("inf"), 10.0, 1.0, 0.1, 0.01, 0.001, 1e-4, 1e-5)
"""What is tried, strongest first; infinite is the lens itself."""
_FIRST = 6
"""Weaker ones than so many are tried where the weakest of these is best: they take long to fit."""
INNER_FOLDS = 5
"""Parts into which the training groups are put to choose the penalty; fewer where there are."""
_MAX_ITERATIONS = 5000
_TOLERANCE = 1e-8
"""Largest entry of the preconditioned gradient at the end."""
_CHOICE_TOLERANCE = 1e-6
"""The same where fits are compared: a looser one stops weak penalties early, near the lens."""
_RANK_TOLERANCE = 1e-12
"""Part of the largest eigenvalue below which a direction holds rounding alone."""


@dataclass(frozen=True, slots=True)
class Design:
    """Standardised features and a constant, in the eigenbasis of their training products."""

    basis_nr: NDArray[np.float64]
    """Training samples; their products are diagonal."""
    held_mr: NDArray[np.float64]
    """Samples that were left out, on the scale of the training samples."""
    value_r: NDArray[np.float64]
    """Eigenvalues of the products."""

    @classmethod
    def of(cls, train_nd: NDArray, held_md: NDArray) -> Design:
        """Return the design of training features, and of those that were left out.

        Notes
        -----
        With an L2 penalty the optimum lies in the span of the training samples, whatever part of
        them is fitted. O(samples · features · min(samples, features)) time.
        """
        scaling = Scaling.of(train_nd.astype(np.float64))
        train_nd, held_md = _augment(scaling, train_nd), _augment(scaling, held_md)
        wide = train_nd.shape[1] > train_nd.shape[0]
        value_r, turn = np.linalg.eigh(train_nd @ train_nd.T if wide else train_nd.T @ train_nd)
        kept = value_r > _RANK_TOLERANCE * value_r[-1]
        value_r, turn = value_r[kept], turn[:, kept]
        if not wide:
            return cls(train_nd @ turn, held_md @ turn, value_r)
        root_r = np.sqrt(value_r)
        return cls(turn * root_r, (held_md @ train_nd.T) @ (turn / root_r), value_r)


def _augment(scaling: Scaling, x_nd: NDArray) -> NDArray[np.float64]:
    """Return standardised features and a column of ones, [samples, features + 1]."""
    return np.column_stack([scaling.apply(x_nd.astype(np.float64)), np.ones(len(x_nd))])


class _Objective:
    """Mean divergence and penalty of many fits of one design, preconditioned."""

    def __init__(
        self,
        design: Design,
        offset_nk: NDArray[np.float64],
        target_nk: NDArray[np.float64],
        weight_ns: NDArray[np.float64],
        penalty_s: NDArray[np.float64],
    ) -> None:
        self._basis_nr, self._offset_nk, self._target_nk = design.basis_nr, offset_nk, target_nk
        self._weight_ns, self._penalty_s = weight_ns / weight_ns.sum(axis=0), penalty_s
        # a bound on the curvature that needs no probabilities (Böhning 1992); 0/1 weights only
        # lower it
        bound_rs = 0.5 * design.value_r[:, None] * self._weight_ns.max(axis=0) + penalty_s
        self.scale_rs = 1 / np.sqrt(bound_rs)
        self._scale_rs = self.scale_rs

    def restrict(self, moving_s: NDArray[np.bool_]) -> None:
        """Forget the fits that have converged."""
        self._weight_ns = np.ascontiguousarray(self._weight_ns[:, moving_s])
        self._scale_rs = np.ascontiguousarray(self._scale_rs[:, moving_s])
        self._penalty_s = self._penalty_s[moving_s]

    def evaluate(self, u_sp: NDArray[np.float64]) -> tuple[NDArray, NDArray]:
        """Return the loss [fits] and its gradient [fits, directions · classes]."""
        rank, n_classes = self._basis_nr.shape[1], self._offset_nk.shape[1]
        theta_rsk = (
            u_sp.reshape(-1, rank, n_classes).transpose(1, 0, 2) * self._scale_rs[:, :, None]
        )
        z_nsk = (self._basis_nr @ theta_rsk.reshape(rank, -1)).reshape(-1, *theta_rsk.shape[1:])
        z_nsk += self._offset_nk[:, None]
        z_nsk -= z_nsk.max(axis=2, keepdims=True)
        p_nsk = np.exp(z_nsk)
        total_ns = p_nsk.sum(axis=2)
        entropy_ns = np.log(total_ns) - np.einsum("nsk,nk->ns", z_nsk, self._target_nk)
        squares_s = np.einsum("rsk,rsk->s", theta_rsk, theta_rsk)
        loss_s = (self._weight_ns * entropy_ns).sum(axis=0) + 0.5 * self._penalty_s * squares_s
        p_nsk *= (self._weight_ns / total_ns)[:, :, None]
        p_nsk -= self._weight_ns[:, :, None] * self._target_nk[:, None]
        slope_rsk = (self._basis_nr.T @ p_nsk.reshape(len(p_nsk), -1)).reshape(theta_rsk.shape)
        slope_rsk += self._penalty_s[:, None] * theta_rsk
        slope_rsk *= self._scale_rs[:, :, None]
        return loss_s, slope_rsk.transpose(1, 0, 2).reshape(u_sp.shape)


def fit_translators(
    design: Design,
    offset_nk: NDArray[np.float64],
    log_final_nk: NDArray[np.float64],
    weight_ns: NDArray[np.float64],
    penalty_s: NDArray[np.float64],
    *,
    tolerance: float = _TOLERANCE,
) -> NDArray[np.float64] | None:
    """Return the minimum of mean KL(final ‖ softmax(offset + design · θ)) + ½ λ ‖θ‖² of every fit.

    Parameters
    ----------
    design
        Training features.
    offset_nk
        Logits of the head without a translator, [samples, classes].
    log_final_nk
        Log-probabilities of the model, [samples, classes].
    weight_ns
        0 or 1: which samples each fit is trained on, [samples, fits].
    penalty_s
        λ of each fit, finite and above 0; it holds for the constant as well, so that a strong one
        gives the lens itself.
    tolerance
        Largest entry of the preconditioned gradient.

    Returns
    -------
    numpy.ndarray or None
        θ in the basis of the design, [directions, fits, classes]; None where a fit did not
        converge.

    Notes
    -----
    Convex. From θ = 0, the lens itself. O(samples · directions · fits · classes) an iteration.
    """
    objective = _Objective(design, offset_nk, np.exp(log_final_nk), weight_ns, penalty_s)
    rank, n_classes = design.value_r.size, offset_nk.shape[1]
    shape = penalty_s.size, rank * n_classes
    found = minimise(objective, shape, tolerance=tolerance, max_iterations=_MAX_ITERATIONS)
    if found is None:
        return None
    u_rsk = found[0].reshape(-1, rank, n_classes).transpose(1, 0, 2)
    return u_rsk * objective.scale_rs[:, :, None]


def choose_penalty(
    design: Design,
    offset_nk: NDArray[np.float64],
    log_final_nk: NDArray[np.float64],
    group_n: NDArray[np.int64],
) -> float:
    """Return the penalty with the least divergence on groups that were left out of the training.

    The inner fits of the first six penalties are one minimisation, those of the weaker ones, where
    they are needed, another. Features keep the scale of the whole training part. NaN where a fit
    did not converge.
    """
    fold_n = fold_groups(group_n)
    bare_n = kl_divergence(log_final_nk, log_softmax(offset_nk, axis=1))
    total_p = np.asarray([bare_n.sum()])
    for stop in (_FIRST, len(PENALTIES)):
        if np.argmin(total_p) < total_p.size - 1:
            break
        finite = np.asarray(PENALTIES[total_p.size : stop])
        of_these_p = _compare_penalties(design, offset_nk, log_final_nk, fold_n, finite)
        total_p = np.concatenate([total_p, of_these_p])
    return float("nan") if np.isnan(total_p).any() else PENALTIES[int(np.argmin(total_p))]


def _compare_penalties(
    design: Design,
    offset_nk: NDArray[np.float64],
    log_final_nk: NDArray[np.float64],
    fold_n: NDArray[np.int64],
    penalty_p: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the divergence summed over all inner folds for each penalty; NaN without an answer."""
    folds, total_p = np.arange(fold_n.max() + 1), np.zeros(penalty_p.size)
    fold_s, penalty_s = np.repeat(folds, penalty_p.size), np.tile(penalty_p, folds.size)
    weight_ns = (fold_n[:, None] != fold_s).astype(np.float64)
    theta_rsk = fit_translators(
        design, offset_nk, log_final_nk, weight_ns, penalty_s, tolerance=_CHOICE_TOLERANCE
    )
    if theta_rsk is None:
        return np.full(penalty_p.size, np.nan)
    for fold in folds:
        left = fold_n == fold
        own_rpk = theta_rsk[:, fold_s == fold]
        z_npk = np.tensordot(design.basis_nr[left], own_rpk, axes=1) + offset_nk[left][:, None]
        for i in range(penalty_p.size):
            said_nk = log_softmax(z_npk[:, i], axis=1)
            total_p[i] += kl_divergence(log_final_nk[left], said_nk).sum()
    return total_p


def fold_groups(group_n: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return which of at most 5 parts of about equal size the group of each sample is in."""
    names, sizes = np.unique(group_n, return_counts=True)
    held = np.zeros(min(INNER_FOLDS, names.size), dtype=np.int64)
    part_g = np.zeros(names.size, dtype=np.int64)
    for g in np.argsort(-sizes, kind="stable"):
        part_g[g] = int(np.argmin(held))
        held[part_g[g]] += sizes[g]
    return part_g[np.searchsorted(names, group_n)]


def translate_left_out(
    x_nd: NDArray,
    offset_nk: NDArray[np.float64],
    log_final_nk: NDArray[np.float64],
    group_n: NDArray[np.int64],
    scored_n: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what the tuned lens says of samples whose group it was not fitted on.

    Parameters
    ----------
    x_nd
        Pooled, normed features of a layer, [samples, features].
    offset_nk
        Logits of the lens, [samples, classes].
    log_final_nk
        Log-probabilities of the model, [samples, classes].
    group_n
        Group number 0 … G-1 of every sample; at least 3 groups.
    scored_n
        Which samples are asked about; groups without any are only fitted on. None: all.

    Returns
    -------
    tuple
        Log-probabilities [samples, classes], NaN where nothing was asked, and the penalty of each
        group that was left out [groups]; both NaN where a fit did not converge.
    """
    groups = np.unique(group_n if scored_n is None else group_n[scored_n])
    said_nk, penalty_g = np.full(offset_nk.shape, np.nan), np.full(groups.size, np.nan)
    for i, group in enumerate(groups):
        held = group_n == group
        design = Design.of(x_nd[~held], x_nd[held])
        of_train = offset_nk[~held], log_final_nk[~held]
        penalty_g[i] = choose_penalty(design, *of_train, group_n[~held])
        z_nk = offset_nk[held]
        if np.isfinite(penalty_g[i]):
            every = np.ones((int((~held).sum()), 1))
            theta_rsk = fit_translators(design, *of_train, every, penalty_g[i : i + 1])
            theta_rk = np.nan if theta_rsk is None else theta_rsk[:, 0]
            z_nk = z_nk + design.held_mr @ theta_rk
        if not np.isnan(penalty_g[i]):
            said_nk[held] = log_softmax(z_nk, axis=1)
    return said_nk, penalty_g


def count_bytes(n: int, width: int, n_classes: int) -> int:
    """Return the memory of `translate_left_out`: features, basis, products and all inner fits."""
    rank, columns = min(n, width + 1), INNER_FOLDS * (_FIRST - 1) * n_classes
    steps = 2 * MEMORY + 8  # the pairs that are kept, the point, its gradient and trial steps
    return 8 * (n * (3 * width + 2 * rank) + 3 * rank**2 + columns * (5 * n + steps * rank))
