"""What follows from the rows of one LoRA site and the matrix B: the rows of its partner.

The output of B is that of A times B', and the gradient at A's output is that at B's times B. So
rows of the partner are never needed: `Turned` has all that their similarity depends on.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from ..fold import ArrayKey
from ..selection import matches
from ..source import Source
from .adapters import Place

DIRECTIONS = {"lora_a": "forward", "grad.lora_b": "backward"}
"""First part of the names of the sites whose partner follows, and the direction of that."""
_LEAST = 1e-12
"""Singular values of B below this part of the largest are rounding."""


@dataclass(frozen=True, slots=True)
class Projection:
    """The matrix that gives the rows of the partner: y = x P."""

    parameter: str
    """Name of B among the parameters of the capture."""
    matrix_dk: NDArray[np.float64] | None = field(compare=False)
    """P = B' forward, B backward, or any with the same P P'; None where the store has no B."""


def direction_of(site: str) -> str:
    """Return `forward` or `backward`; empty for a site without such a partner."""
    return next((name for first, name in DIRECTIONS.items() if matches(site, first)), "")


def module_of(site: str) -> str:
    """Return the module behind such a site: `v_proj` of `grad.lora_b.v_proj`."""
    return next(site.removeprefix(f"{first}.") for first in DIRECTIONS if matches(site, first))


def find_projection(source: Source, key: ArrayKey) -> Projection | None:
    """Return how the partner of an array follows; None for an array without one."""
    direction = direction_of(key.site)
    if not direction or key.pool:
        return None
    name = f"adapter.{Place(key.layer, module_of(key.site)).stem}.lora_b"
    parameters = source.capture(key.capture).parameters
    width = source.views[key.capture].info(key).width
    if name not in parameters:
        return Projection(name, None)
    b_ok = np.asarray(parameters[name], dtype=np.float64)
    p_dk = b_ok.T if direction == "forward" else b_ok
    if p_dk.ndim != 2 or len(p_dk) != width:
        return Projection(name, None)
    if p_dk.shape[1] > width:  # P P' is all that counts: width columns do
        p_dk = np.linalg.qr(p_dk.T, mode="r").T
    return Projection(name, p_dk)


@dataclass(frozen=True, slots=True)
class Turned:
    """Rows and projection, both seen along the principal axes of the rows."""

    energy_d: NDArray[np.float64]
    """Eigenvalues of the centred scatter S of the rows."""
    projection_dk: NDArray[np.float64]
    """The projection in the axes of the eigenvectors."""

    @classmethod
    def of(cls, scatter_dd: NDArray[np.float64], matrix_dk: NDArray[np.float64]) -> Turned:
        """Return both along the axes of a scatter; O(features³)."""
        energy_d, axes_dd = linalg.eigh(scatter_dd, check_finite=False)
        return cls(np.maximum(energy_d, 0.0), axes_dd.T @ matrix_dk)

    def cka(self) -> float:
        """Return the biased CKA of the rows X with X P.

        tr(P'S²P) / √(tr S² · tr (P'SP)²), exactly.
        """
        return float(_cka(self.energy_d, self.projection_dk))

    def draw(self, count: int, seed: int) -> NDArray[np.float64]:
        """Return the same for projections of random orientation, [count].

        Their singular values are those of P; the left singular vectors are uniform on all
        orientations (Haar). The right ones do not matter.
        """
        sigma_k = np.linalg.svd(self.projection_dk, compute_uv=False)
        sigma_k = sigma_k[sigma_k > _LEAST * sigma_k[0]]
        rng = np.random.default_rng(seed)
        drawn = np.empty(count)
        for i in range(count):
            normal_dk = rng.standard_normal((self.energy_d.size, sigma_k.size))
            drawn[i] = _cka(self.energy_d, np.linalg.qr(normal_dk)[0] * sigma_k)
        return drawn


def _cka(energy_d: NDArray[np.float64], projection_dk: NDArray[np.float64]) -> np.float64:
    weighted_dk = energy_d[:, None] * projection_dk
    own = np.linalg.norm(energy_d) * np.linalg.norm(projection_dk.T @ weighted_dk)
    return np.square(np.linalg.norm(weighted_dk)) / own
