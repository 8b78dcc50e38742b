"""Hooks on the modules that are recorded, and on no others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from .errors import ModelError

if TYPE_CHECKING:
    from .families import Family, Tap
    from .sites import RecordedSite

type Receiver = Callable[[int, int, torch.Tensor], None]
"""Takes (index of the site, index of the layer within it, the tensor)."""


class _Taken(Protocol):
    def __call__(self, tensor: torch.Tensor) -> None: ...


def install_hooks(
    model: nn.Module, family: Family, recorded: Sequence[RecordedSite], receive: Receiver
) -> list[RemovableHandle]:
    """Install one hook a module and side, for every tap of `recorded`.

    Where gradients are recorded, the graph starts at the input of the lowest layer that needs
    one: with frozen parameters, no gradient of any weight is computed and nothing is kept below.

    Returns
    -------
    list
        Handles; remove them all to leave the model as it was.
    """
    handles = []
    start = _graph_start(family, recorded)
    if start is not None:
        # registered first, so that it runs before the hooks that need a tensor with a graph
        handles.append(_hook(model, start, _start_graph, side="input"))
    for tap, uses in _group(recorded).items():
        handles.append(_hook(model, tap.path, _fan_out(uses, receive), side=tap.side))
    return handles


def _group(recorded: Sequence[RecordedSite]) -> Mapping[Tap, list[tuple[int, int]]]:
    uses: dict[Tap, list[tuple[int, int]]] = defaultdict(list)
    for index, site in enumerate(recorded):
        for position, tap in enumerate(site.taps):
            uses[tap].append((index, position))
    return uses


def _fan_out(uses: list[tuple[int, int]], receive: Receiver) -> _Taken:
    def take(tensor: torch.Tensor) -> None:
        for index, position in uses:
            receive(index, position, tensor)

    return take


def _graph_start(family: Family, recorded: Sequence[RecordedSite]) -> str | None:
    wanted = [site for site in recorded if site.gradient]
    if not wanted:
        return None
    # a site without layers (embed) may lie below every layer, so the graph then starts at the first
    lowest = min(0 if site.layers is None else site.layers[0] for site in wanted)
    return f"{family.layers}.{lowest}"


def _start_graph(tensor: torch.Tensor) -> None:
    if torch.is_grad_enabled() and not tensor.requires_grad:
        tensor.requires_grad_()


def _hook(model: nn.Module, path: str, take: _Taken, *, side: str) -> RemovableHandle:
    module = model.get_submodule(path)

    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        take(first_tensor(args or kwargs.get("hidden_states"), f"the input of {path}"))

    def after(_module: nn.Module, _args: object, output: object) -> None:
        take(first_tensor(output, f"the output of {path}"))

    if side == "input":
        return module.register_forward_pre_hook(before, with_kwargs=True)
    return module.register_forward_hook(after)


def first_tensor(value: object, where: str) -> torch.Tensor:
    """Return the tensor that a module gave: itself, or the first of a tuple.

    An encoder layer returns a tensor in transformers 5 and a tuple before; taking ``[0]`` of a
    tensor would silently be its first sample.

    Raises
    ------
    ModelError
        `value` is anything else.
    """
    found = value[0] if isinstance(value, tuple) and value else value
    if not isinstance(found, torch.Tensor):
        msg = f"{where} is a {type(value).__name__}, not a tensor or a tuple that begins with one."
        raise ModelError(msg)
    return found
