"""Divergences between class distributions given as logits, in float64 and without exp-then-log."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, logsumexp


def kl_divergence(
    log_p_nk: NDArray[np.float64], log_q_nk: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return KL(p‖q) = Σ p (log p - log q) of every sample in nats, [samples]."""
    return (np.exp(log_p_nk) * (log_p_nk - log_q_nk)).sum(axis=1)


def js_divergence(
    log_p_nk: NDArray[np.float64], log_q_nk: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the Jensen-Shannon divergence of every sample in nats (0 … log 2), [samples]."""
    log_m_nk = logsumexp(np.stack([log_p_nk, log_q_nk]), axis=0) - np.log(2)
    return (kl_divergence(log_p_nk, log_m_nk) + kl_divergence(log_q_nk, log_m_nk)) / 2


def to_log_probabilities(logits_nk: NDArray) -> NDArray[np.float64]:
    """Return log-softmax over classes in float64, [samples, classes]."""
    return log_softmax(np.asarray(logits_nk, dtype=np.float64), axis=1)


def chance_overlap(class_n: NDArray[np.int64], other_n: NDArray[np.int64], n_classes: int) -> float:
    """Return how often two series of predicted classes would agree if they were independent."""
    share_k = np.bincount(class_n, minlength=n_classes) / class_n.size
    other_k = np.bincount(other_n, minlength=n_classes) / other_n.size
    return float(share_k @ other_k)
