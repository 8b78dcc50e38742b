"""Features standardised on the samples that a probe is trained on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Scaling:
    """Mean and deviation of training samples, 1 for a feature without any."""

    mean_d: NDArray[np.float64]
    deviation_d: NDArray[np.float64]

    @classmethod
    def of(cls, x_nd: NDArray[np.float64]) -> Scaling:
        """Return those of samples [samples, features]."""
        mean_d, deviation_d = x_nd.mean(axis=0), x_nd.std(axis=0)
        deviation_d[deviation_d <= 1e-12 * np.abs(mean_d)] = 1.0  # constant up to rounding
        deviation_d[deviation_d == 0] = 1.0
        return cls(mean_d, deviation_d)

    def apply(self, x_nd: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return standardised samples."""
        return (x_nd - self.mean_d) / self.deviation_d
