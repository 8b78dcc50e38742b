"""The row spaces that a model has, with the paths of their layers in that very model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from .errors import ModelError

if TYPE_CHECKING:
    from .families import Family, Stream


def find_streams(model: nn.Module, family: Family) -> tuple[Stream, ...]:
    """Return the streams of `family` that `model` has, the main one first.

    The backbone may be the model itself or lie below a head (``bert``, ``model``, ...), as
    transformers' ``base_model_prefix`` says.

    Raises
    ------
    ModelError
        The model has no layers where its family keeps them.
    """
    prefix = str(getattr(model, "base_model_prefix", ""))
    root = prefix if prefix and isinstance(getattr(model, prefix, None), nn.Module) else ""
    found: dict[str, Stream] = {}
    for table in family.streams:
        stream = table.below(root)
        if stream.name not in found and _layers_at(model, stream.layers):
            found[stream.name] = stream
    if family.streams and not found:
        places = " or ".join(repr(table.below(root).layers) for table in family.streams)
        msg = (
            f"{type(model).__name__} has no layers at {places}, where the family {family.name} "
            "keeps them. Pass a transformers model of that family, with its weights."
        )
        raise ModelError(msg)
    return tuple(found.values())


def stream_layers(model: nn.Module, stream: Stream) -> list[nn.Module]:
    """Return the layers of one stream of `find_streams`, in order."""
    return _layers_at(model, stream.layers)


def layer_modules(model: nn.Module, family: Family) -> list[nn.Module]:
    """Return the layers of the main stream, in order; ModelError where there are none."""
    streams = find_streams(model, family)
    return stream_layers(model, streams[0]) if streams else []


def _layers_at(model: nn.Module, path: str) -> list[nn.Module]:
    try:
        return list(model.get_submodule(path).children())
    except AttributeError:
        return []
