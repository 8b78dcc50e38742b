"""Running a model in the middle of its training so that the training does not notice."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Put `model` into eval mode with frozen parameters, and everything back at the end.

    What comes back, bit for bit: the random states of Python, NumPy, torch and every CUDA device,
    the mode of every module, and of every parameter whether it requires a gradient and the gradient
    that it has.
    """
    states = _random_states()
    modes = [(module, module.training) for module in model.modules()]
    flags = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    try:
        model.eval()
        for parameter, *_ in flags:
            parameter.requires_grad = False
        yield
    finally:
        for module, training in modes:
            module.training = training  # train() would set every module below it as well
        for parameter, requires_grad, gradient in flags:
            parameter.requires_grad = requires_grad
            parameter.grad = gradient
        _set_random_states(*states)


type _States = tuple[object, dict[str, object], torch.Tensor, list[torch.Tensor]]


def _random_states() -> _States:
    # a process that has not used CUDA has no state there to keep, and asking would start it
    used = torch.cuda.is_available() and torch.cuda.is_initialized()
    cuda = torch.cuda.get_rng_state_all() if used else []
    return random.getstate(), dict(np.random.get_state(legacy=False)), torch.get_rng_state(), cuda  # noqa: NPY002


def _set_random_states(
    python: object, numpy: dict[str, object], cpu: torch.Tensor, cuda: list[torch.Tensor]
) -> None:
    random.setstate(python)  # pyright: ignore[reportArgumentType]  # what getstate gave
    np.random.set_state(numpy)  # noqa: NPY002  # the state that other code draws from
    torch.set_rng_state(cpu)
    if cuda:
        torch.cuda.set_rng_state_all(cuda)
