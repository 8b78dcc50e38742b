"""Kernels for products B A of two thin matrices, which are never formed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Product:
    """The matrix s B A; a single matrix is its product with the identity."""

    b: NDArray[np.float64]
    """[outputs, rank]."""
    a: NDArray[np.float64]
    """[rank, inputs]."""
    scaling: float = 1.0
    """The factor s."""

    def singular_values(self) -> NDArray[np.float64]:
        """Return the singular values, largest first, [min(outputs, rank, inputs)].

        Notes
        -----
        With B = Q R and A' = P S those of s R S', which has no side longer than the rank.
        O((outputs + inputs) rank²).
        """
        return np.linalg.svd(self._core(), compute_uv=False)

    def norm(self) -> float:
        """Return the Frobenius norm."""
        return float(np.linalg.norm(self._core()))

    def minus(self, other: Product) -> Product:
        """Return the difference s B A - t C D, a product of the sum of both ranks."""
        b = np.concatenate([self.scaling * self.b, -other.scaling * other.b], axis=1)
        return Product(b, np.concatenate([self.a, other.a]))

    def dot(self, other: Product) -> float:
        """Return the sum over the products of all entries, s t tr(B'C D A')."""
        inner = np.sum((self.b.T @ other.b) * (self.a @ other.a.T))
        return self.scaling * other.scaling * float(inner)

    def added_to(self, base: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return W + s B A, [outputs, inputs]."""
        return base + self.scaling * (self.b @ self.a)

    def _core(self) -> NDArray[np.float64]:
        outer, inner = (np.linalg.qr(part, mode="r") for part in (self.b, self.a.T))
        return self.scaling * (outer @ inner.T)


def left_vectors(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the left singular vectors of [outputs, inputs] as columns, [outputs, min of both]."""
    return np.linalg.svd(matrix, full_matrices=False)[0]


def count_intruders(
    before: NDArray[np.float64], after: NDArray[np.float64], *, first: int, similar: float
) -> int:
    """Return how many leading singular vectors resemble none of those before.

    Parameters
    ----------
    before, after
        Left singular vectors of W and of W + s B A as columns, [outputs, vectors].
    first
        How many of `after` are looked at.
    similar
        An intruder has an absolute cosine below this with every vector of `before`.

    References
    ----------
    Shuttleworth et al., LoRA vs full fine-tuning: an illusion of equivalence, arXiv 2410.21228.
    """
    cosines = np.abs(after[:, :first].T @ before)
    return int((cosines.max(axis=1) < similar).sum())
