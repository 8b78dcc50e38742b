"""What a training leaves behind besides its weights: curves, and its state at chosen steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

GRADIENT = "grad."
"""Before the stored name of a weight: the gradient of the loss with respect to it."""
CURVES = ("training.loss", "training.learning_rate", "training.gradient_norm")
"""Stored names of the curves."""


@dataclass(frozen=True, slots=True)
class StepState:
    """The weights before one update, and the gradient that this update followed."""

    weights: Mapping[str, np.ndarray]
    """Head, final norm and adapter by stored name, in the precision of the model, as float32."""
    gradients: Mapping[str, np.ndarray]
    """Gradient of every trained weight by stored name, float32, before clipping."""
    examples: tuple[int, ...]
    """The batch whose mean loss the gradients are of."""


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One training, seen from its steps; entry k belongs to the update that follows step k."""

    states: Mapping[int, StepState]
    """State at each step that was asked for and that an update follows."""
    loss: np.ndarray
    """Mean loss of the batch of each update, before the update, float32 [step]."""
    learning_rate: np.ndarray
    """Learning rate of each update, float64 [step]."""
    gradient_norm: np.ndarray
    """Norm of the gradient of all trained weights before clipping, float32 [step]."""
    clipped_at: float
    """Largest norm that the optimizer sees: a longer gradient is scaled down to it."""

    def curves(self) -> dict[str, np.ndarray]:
        """Return the curves as parameters of a capture."""
        curves = (self.loss, self.learning_rate, self.gradient_norm)
        return dict(zip(CURVES, curves, strict=True))


@dataclass(slots=True)
class TrajectoryRecorder:
    """Watches a training, without touching it."""

    weights: Mapping[str, torch.Tensor]
    """All weights that are stored, by name: views."""
    trained: Mapping[str, torch.Tensor]
    """Those that the optimizer changes."""
    at: frozenset[int]
    """Steps whose state is kept."""
    dtype: torch.dtype
    """Precision in which the model will run with these weights."""
    _before: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)
    _states: dict[int, StepState] = field(default_factory=dict)
    _losses: list[torch.Tensor] = field(default_factory=list)
    _norms: list[torch.Tensor] = field(default_factory=list)
    _rates: list[float] = field(default_factory=list)

    def before_update(self, step: int) -> None:
        """Keep the weights of `step`, where they were asked for."""
        if step in self.at:
            self._before[step] = {
                name: _copy(weight.detach().to(self.dtype)) for name, weight in self.weights.items()
            }

    @torch.no_grad()
    def after_backward(
        self, step: int, *, loss: torch.Tensor, rate: float, examples: Sequence[int]
    ) -> None:
        """Keep loss and learning rate of the update that follows `step`, and its gradients."""
        gradients = {
            name: torch.zeros_like(weight) if weight.grad is None else weight.grad
            for name, weight in self.trained.items()
        }
        self._losses.append(loss.detach().float())
        self._norms.append(torch.nn.utils.get_total_norm(gradients.values()).float())
        self._rates.append(rate)
        if step in self.at:
            kept = {name: _copy(gradient) for name, gradient in gradients.items()}
            self._states[step] = StepState(self._before.pop(step), kept, tuple(examples))

    def finish(self, *, clipped_at: float) -> Trajectory:
        """Return what was seen."""
        return Trajectory(
            states=self._states,
            loss=_curve(self._losses),
            learning_rate=np.array(self._rates, dtype=np.float64),
            gradient_norm=_curve(self._norms),
            clipped_at=clipped_at,
        )


def _copy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.to("cpu", torch.float32, copy=True).numpy()


def _curve(values: Sequence[torch.Tensor]) -> np.ndarray:
    """Return scalars as one array; they stay on the device until here, so that it never waits."""
    return torch.stack([value.reshape(()) for value in values]).cpu().numpy()
