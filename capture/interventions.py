"""Changes of a running model: each a context manager that leaves the model as it found it.

With h the input of a layer and f(h) its output, the layer's *update* is u = f(h) - h: what it adds
to the residual stream, whatever is inside. An erasure makes the output h + u' with another u'.
Changes of an adapter are changes of its weights or of its scaling s in base(x) + s B(A(x)); what
was there comes back bit for bit, also after an exception.

Shape suffixes: b batch, t frame, d feature, n rows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from .adapters import layer_adapters
from .errors import CaptureError
from .families import Tap
from .hooks import pick_tensor
from .streams import layer_modules

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from .families import Family

type Replace = Callable[[torch.Tensor], torch.Tensor]
"""The tensor that takes the place of another."""


@contextmanager
def watch_updates(
    model: nn.Module,
    family: Family,
    layers: Collection[int],
    take: Callable[[int, torch.Tensor], None],
) -> Iterator[None]:
    """Give the update of layers, float32 [b, t, d], to `take` as soon as it is computed."""

    def watch(layer: int) -> Callable[..., None]:
        def after(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:  # noqa: ANN401
            take(layer, _output(output).float() - _input(args, kwargs).float())

        return after

    with ExitStack() as stack:
        for layer, module in _chosen(model, family, layers):
            handle = module.register_forward_hook(watch(layer), with_kwargs=True)
            stack.callback(handle.remove)
        yield


@contextmanager
def replace_updates(
    model: nn.Module, family: Family, updates: Mapping[int, torch.Tensor | None]
) -> Iterator[None]:
    """Make the output of layers their input plus another update.

    Parameters
    ----------
    model, family
        The model and its table.
    updates
        Layer to its new update: None for none at all (the output is the input itself, bit for
        bit), else float32 [d], or [b, t, d] for the one batch that will run.

    Raises
    ------
    CaptureError
        While the model runs: an update that does not fit the layer's input.
    """

    def erase(update: torch.Tensor | None) -> Callable[..., Any]:
        def after(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:  # noqa: ANN401
            x = _input(args, kwargs)
            if update is None:
                return _like(output, x)
            if update.ndim > 1 and update.shape != x.shape:
                msg = (
                    f"an update of shape {tuple(update.shape)} cannot replace that of a layer "
                    f"whose input is {tuple(x.shape)}: resample needs samples of equal length."
                )
                raise CaptureError(msg)
            return _like(output, (x.float() + update.to(x.device)).to(x.dtype))

        return after

    with ExitStack() as stack:
        for layer, module in _chosen(model, family, updates):
            handle = module.register_forward_hook(erase(updates[layer]), with_kwargs=True)
            stack.callback(handle.remove)
        yield


@contextmanager
def scale_adapter(
    model: nn.Module, family: Family, layers: Collection[int], *, by: float
) -> Iterator[None]:
    """Multiply what the adapter adds in some layers; 0 turns it off, 1 changes nothing."""
    before: list[tuple[dict[str, float], str, float]] = []
    try:
        for (layer, _), adapter in layer_adapters(model, family).items():
            if layer in layers:
                scaling, key = adapter.module.scaling, adapter.key
                before.append((scaling, key, scaling[key]))
                scaling[key] = scaling[key] * by
        yield
    finally:
        for scaling, key, value in before:
            scaling[key] = value


@contextmanager
def replace_matrices(
    model: nn.Module,
    family: Family,
    matrix: str,
    values: Mapping[tuple[int, str], torch.Tensor],
) -> Iterator[None]:
    """Put other values into A or B of adapted modules.

    Parameters
    ----------
    model, family
        The model and its table.
    matrix
        ``A`` or ``B``.
    values
        (layer, short name of the module) to values of the shape of its matrix.
    """
    weights = adapter_matrices(model, family, matrix)
    before = {key: weights[key].detach().clone() for key in values}
    try:
        with torch.no_grad():
            for key, value in values.items():
                weights[key].copy_(value)
        yield
    finally:
        with torch.no_grad():
            for key, value in before.items():
                weights[key].copy_(value)


def adapter_matrices(
    model: nn.Module, family: Family, matrix: str
) -> dict[tuple[int, str], torch.Tensor]:
    """Return the weights A [r, d_in] or B [d_out, r] by (layer, short name), as they are."""
    found = layer_adapters(model, family)
    return {key: (a.lora_a if matrix == "A" else a.lora_b).weight for key, a in found.items()}


@contextmanager
def patch_taps(model: nn.Module, patches: Mapping[Tap, Replace]) -> Iterator[None]:
    """Replace the tensors at taps while the model runs."""
    with ExitStack() as stack:
        for tap, replacement in patches.items():
            handle = _replace_at(model.get_submodule(tap.path), tap, replacement)
            stack.callback(handle.remove)
        yield


def put_rows(rows_nd: torch.Tensor, positions: list[np.ndarray]) -> Replace:
    """Return what puts rows, sample after sample, at the positions of each sample of a batch.

    Frames without a row stay as the model computed them.
    """

    def replacement(x_btd: torch.Tensor) -> torch.Tensor:
        fits = len(positions) == x_btd.shape[0] and rows_nd.shape[-1] == x_btd.shape[-1]
        if not fits or max(int(p[-1]) for p in positions if len(p)) >= x_btd.shape[1]:
            msg = (
                f"rows of {len(positions)} samples with {rows_nd.shape[-1]} features do not fit "
                f"into a tensor of shape {tuple(x_btd.shape)}."
            )
            raise CaptureError(msg)
        out = x_btd.clone()
        values = rows_nd.to(out.device, out.dtype).split([len(p) for p in positions])
        for sample, (at, rows) in enumerate(zip(positions, values, strict=True)):
            out[sample, torch.from_numpy(at).to(out.device)] = rows
        return out

    return replacement


def _chosen(
    model: nn.Module, family: Family, layers: Collection[int]
) -> Iterator[tuple[int, nn.Module]]:
    modules = layer_modules(model, family)
    outside = [layer for layer in layers if not 0 <= layer < len(modules)]
    if outside:
        msg = f"there is no layer {outside[0]}: the model has layers 0 to {len(modules) - 1}."
        raise CaptureError(msg)
    yield from ((layer, modules[layer]) for layer in sorted(layers))


def _input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor:
    return pick_tensor(args or kwargs.get("hidden_states"), 0, "the input of a layer")


def _output(output: object) -> torch.Tensor:
    return pick_tensor(output, 0, "the output of a layer")


def _like(output: Any, tensor: torch.Tensor) -> Any:  # noqa: ANN401
    """Return a module's output with its first tensor replaced: a tensor, or a tuple with more."""
    return (tensor, *output[1:]) if isinstance(output, tuple) else tensor


def _replace_at(module: nn.Module, tap: Tap, replacement: Replace) -> RemovableHandle:
    def before(_module: nn.Module, args: Any, kwargs: Any) -> Any:  # noqa: ANN401
        x = replacement(_input(args, kwargs))
        return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": x})

    def after(_module: nn.Module, _args: Any, output: Any) -> Any:  # noqa: ANN401
        return _like(output, replacement(pick_tensor(output, 0, f"the output of {tap.path}")))

    if tap.side == "input":
        return module.register_forward_pre_hook(before, with_kwargs=True)
    return module.register_forward_hook(after)
