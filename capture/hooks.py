"""Hooks on the modules that are recorded, and on no others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from .errors import ModelError

if TYPE_CHECKING:
    from .families import Tap
    from .sites import RecordedSite


class Receiver(Protocol):
    """What hears of every tensor that passes a tap."""

    def receive(
        self, index: int, position: int, tensor: torch.Tensor, given: torch.Tensor | None
    ) -> None:
        """Take a tensor.

        Parameters
        ----------
        index, position
            The site, and the layer within it.
        tensor
            What passes.
        given
            For the gradient of a weight, what its module was given; else None.
        """


def install_hooks(
    model: nn.Module, recorded: Sequence[RecordedSite], receiver: Receiver
) -> list[RemovableHandle]:
    """Install one hook a module, side and item, for every tap of `recorded`.

    Returns
    -------
    list
        Handles; remove them all to leave the model as it was.
    """
    uses: dict[Tap, list[tuple[int, int]]] = defaultdict(list)
    weights: dict[Tap, list[tuple[int, int]]] = defaultdict(list)
    for index, site in enumerate(recorded):
        for position, tap in enumerate(site.taps):
            (weights if site.kind == "weight" else uses)[tap].append((index, position))
    return [
        *(_hook(model, tap, places, receiver) for tap, places in uses.items()),
        *(_hook_weight(model, tap, places, receiver) for tap, places in weights.items()),
    ]


def _hook(
    model: nn.Module, tap: Tap, places: list[tuple[int, int]], receiver: Receiver
) -> RemovableHandle:
    module = model.get_submodule(tap.path)

    where = f"the {tap.side} of {tap.path}"

    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensor = pick_tensor(args or kwargs.get("hidden_states"), 0, where)
        for index, position in places:
            receiver.receive(index, position, tensor, None)

    def after(_module: nn.Module, _args: object, output: object) -> None:
        tensor = pick_tensor(output, tap.item, where)
        for index, position in places:
            receiver.receive(index, position, tensor, None)

    if tap.side == "input":
        return module.register_forward_pre_hook(before, with_kwargs=True)
    return module.register_forward_hook(after)


def _hook_weight(
    model: nn.Module, tap: Tap, places: list[tuple[int, int]], receiver: Receiver
) -> RemovableHandle:
    def after(_module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        given = pick_tensor(args, 0, f"the input of {tap.path}")
        tensor = pick_tensor(output, 0, f"the output of {tap.path}")
        for index, position in places:
            receiver.receive(index, position, tensor, given)

    return model.get_submodule(tap.path).register_forward_hook(after)


def pick_tensor(value: object, item: int, where: str) -> torch.Tensor:
    """Return the tensor that a module gave: itself, or one of a tuple or a model's output.

    An encoder layer returns a tensor in transformers 5 and a tuple before; taking ``[0]`` of a
    tensor would silently be its first sample.

    Raises
    ------
    ModelError
        `value` is anything else, or holds no tensor there.
    """
    if isinstance(value, torch.Tensor) and item == 0:
        return value
    parts = tuple(value.values()) if isinstance(value, Mapping) else value
    found = parts[item] if isinstance(parts, tuple) and len(parts) > item else None
    if isinstance(found, torch.Tensor):
        return found
    if item:
        msg = (
            f"{where} holds no attention weights: the attention in use does not compute them. "
            'Load the model with attn_implementation="eager".'
        )
    else:
        kind = type(value).__name__
        msg = f"{where} is a {kind}, not a tensor or a tuple that begins with one."
    raise ModelError(msg)
