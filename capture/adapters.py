"""The LoRA modules of a model: where they sit, which of them run, and how they are called.

A module is named by its layer and the shortest unambiguous path below it (``v_proj``), with the
prefix of its stream (``decoder.v_proj``); outside of every layer by its whole path. Where several
adapters of one module are active, each is named after it: ``v_proj.emotion``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from .errors import ModelError
from .naming import short_names
from .streams import find_streams, stream_layers

if TYPE_CHECKING:
    from .families import Family


@dataclass(frozen=True, slots=True)
class Adapter:
    """One active LoRA adapter of one module."""

    name: str
    """Name of the module, and of the adapter where several are active."""
    layer: int | None
    """Layer; None outside of every layer."""
    stream: str | None
    """Row space of what the module sees; None outside of every layer."""
    path: str
    """Path of the module below the model."""
    module: Any
    """PEFT's module."""
    key: str
    """Name under which PEFT keeps the adapter."""

    @property
    def lora_a(self) -> Any:  # noqa: ANN401  a linear module, of whatever kind
        """The matrix A, as a module."""
        return self.module.lora_A[self.key]

    @property
    def lora_b(self) -> Any:  # noqa: ANN401
        """The matrix B, as a module."""
        return self.module.lora_B[self.key]

    @property
    def scaling(self) -> float:
        """The factor s of base(x) + s B(A(x))."""
        return float(self.module.scaling[self.key])

    @property
    def base(self) -> Any:  # noqa: ANN401
        """The module that it is added to, as it was before."""
        return self.module.get_base_layer()

    @property
    def place(self) -> str:
        """Layer and name: ``0.v_proj``."""
        return self.name if self.layer is None else f"{self.layer}.{self.name}"

    @property
    def parameter(self) -> str:
        """What the stored names of its matrices begin with."""
        return f"adapter.{self.place}"


def find_adapters(model: nn.Module, family: Family) -> tuple[list[Adapter], list[str]]:
    """Return the adapters that can be recorded, in order, and why others cannot.

    Returns
    -------
    adapters
        By stream, layer and name; those outside of every layer come last.
    refused
        One sentence for each module whose adapter cannot be recorded.
    """
    from peft.tuners.lora import LoraLayer

    found: list[Adapter] = []
    refused: list[str] = []
    for name, place, path, module in _lora_modules(model, family, LoraLayer):
        reason = _why_not(module)
        if reason:
            refused.append(f"the adapter of {path} {reason}.")
            continue
        active = [key for key in module.active_adapters if key in module.lora_A]
        for key in active:
            own = name if len(active) == 1 else f"{name}.{key}"
            found.append(Adapter(own, place[1], place[0], path, module, key))
    return found, refused


def adapters_of(model: nn.Module, family: Family) -> list[Adapter]:
    """Return the adapters of `model`; ModelError, with the reason, if one cannot be recorded."""
    found, refused = find_adapters(model, family)
    if refused:
        msg = f"{refused[0]} What can be captured is one unmerged plain LoRA a module, or several."
        raise ModelError(msg)
    return found


def layer_adapters(model: nn.Module, family: Family) -> dict[tuple[int, str], Adapter]:
    """Return the adapters inside of layers by (layer, name)."""
    found = adapters_of(model, family)
    return {(a.layer, a.name): a for a in found if a.layer is not None}


def _lora_modules(
    model: nn.Module, family: Family, kind: type
) -> Iterator[tuple[str, tuple[str | None, int | None], str, Any]]:
    paths = {module: path for path, module in model.named_modules() if isinstance(module, kind)}
    for stream in find_streams(model, family):
        for index, layer in enumerate(stream_layers(model, stream)):
            short = short_names(layer)
            inside = [
                (stream.prefix + short[below], stream.foreign.get(below, stream.name), module)
                for below, module in layer.named_modules()
                if module in paths
            ]
            for name, rows, module in sorted(inside, key=lambda found: found[0]):
                yield name, (rows, index), paths.pop(module), module
    for module, path in paths.items():
        yield path, (None, None), path, module


def _why_not(module: Any) -> str:  # noqa: ANN401  PEFT's own types
    active = [key for key in module.active_adapters if key in (*module.lora_A, *_others(module))]
    if any(key in _others(module) for key in active):
        return "is that of an embedding, whose A and B are looked up, not run as modules"
    if any(not isinstance(module.lora_A[key], nn.Linear) for key in active):
        kind = type(module.lora_A[active[0]]).__name__
        return f"is made of {kind} modules, whose outputs are no rows of features"
    kinds = sorted({type(v).__name__ for k, v in module.lora_variant.items() if k in active})
    if kinds:
        return f"uses {', '.join(kinds)}, whose output is not base(x) + s B(A(x))"
    if module.merged:
        return "is merged into the base weight, so A and B are not run; unmerge it first"
    return ""


def _others(module: Any) -> tuple[str, ...]:  # noqa: ANN401
    return tuple(getattr(module, "lora_embedding_A", ()))
