"""Every place of a model whose tensor can be recorded, by site name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from .adapters import Adapter, find_adapters
from .families import Tap
from .streams import find_streams, stream_layers

if TYPE_CHECKING:
    from .families import Family, Stream

OWN_STREAM = "rows"
"""Row space of the modules of a model that has no table."""

type Kind = Literal["features", "heads", "weight"]
"""What a tap gives: [b, t, feature]; [b, head, t, key]; or [b, t, feature] on both sides of a
matrix, from which the gradient of its weight follows."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where one site can be read in one model."""

    stream: str
    """Row space."""
    taps: Mapping[int, Tap]
    """Layer to tap; the only key is -1 for a site without layers."""
    width: int | None
    """Features; None where only a forward could tell."""
    kind: Kind = "features"
    """What its taps give."""
    normed: bool = False
    """Whether it is the residual stream, to which the final norm applies."""
    keys: int = 0
    """The most keys of an attention site."""


@dataclass(frozen=True, slots=True)
class Places:
    """The places of a model, and what is known of those that cannot be recorded."""

    by_site: Mapping[str, Place]
    """Site to place; a name without its last part stands for all that begin with it."""
    refused: list[str] = field(default_factory=list)
    """One sentence for each adapter that cannot be recorded."""


def find_places(model: nn.Module, family: Family) -> Places:
    """Find the sites of a family's table and of the model's adapters.

    ``module.<path>`` is found by `module_place`, because every module of a model has one.
    """
    places: dict[str, Place] = {}
    for stream in find_streams(model, family):
        places |= _stream_places(model, stream)
    adapters, refused = find_adapters(model, family)
    for adapter in adapters:
        stream = adapter.stream or _stream_of(model, family, adapter.path)
        _add_adapter(places, adapter, stream)
    return Places(places, refused)


def _stream_places(model: nn.Module, stream: Stream) -> dict[str, Place]:
    config: Any = model.config
    width, count = stream.width(config), len(stream_layers(model, stream))
    normed = stream.final_norm(config) is not None
    places: dict[str, Place] = {}
    for name, tap in stream.model_sites.items():
        stream_site = normed and name == "embed"
        place = Place(stream.name, {-1: tap}, width, normed=stream_site)
        places[_with_prefix(stream, name)] = place
    for name, tap in stream.layer_sites.items():
        taps = _layer_taps(stream, tap, count)
        stream_site = normed and name in ("resid_pre", "resid_post")
        place = Place(stream.name, taps, width, normed=stream_site)
        places[_with_prefix(stream, name)] = place
    for name, attention in stream.attention.items():
        taps, keys = _layer_taps(stream, attention.tap, count), attention.keys(config)
        heads = attention.heads(config)
        places[_with_prefix(stream, name)] = Place(
            stream.name, taps, heads * keys, kind="heads", keys=keys
        )
    return places


def _with_prefix(stream: Stream, name: str) -> str:
    # `decoder_out` says whose it is already
    return name if name.startswith("decoder_") else stream.prefix + name


def _layer_taps(stream: Stream, tap: Tap, count: int) -> dict[int, Tap]:
    def path(layer: int) -> str:
        return ".".join(filter(None, (stream.layers, str(layer), tap.path)))

    return {layer: Tap(path(layer), tap.side, tap.item) for layer in range(count)}


def _add_adapter(places: dict[str, Place], adapter: Adapter, stream: str) -> None:
    a, b, root = adapter.lora_a, adapter.lora_b, adapter.path
    width_a, width_b = int(a.out_features), int(b.out_features)
    of_a, of_b = f"{root}.lora_A.{adapter.key}", f"{root}.lora_B.{adapter.key}"
    layer = -1 if adapter.layer is None else adapter.layer
    for kind, path, width in (
        ("lora_a", of_a, width_a),
        ("lora_b", of_b, width_b),
        ("base_out", f"{root}.base_layer", width_b),
        ("lora_a_weight", of_a, width_a * int(a.in_features)),
        ("lora_b_weight", of_b, width_b * width_a),
    ):
        name = f"{kind}.{adapter.name}"
        before = places[name].taps if name in places else {}
        places[name] = Place(
            stream,
            {**before, layer: Tap(path)},
            width,
            kind="weight" if kind.endswith("_weight") else "features",
        )


def module_place(model: nn.Module, family: Family, path: str) -> Place | None:
    """Return the place of the output of any module, or None if the model has no such module.

    Where the module does not tell how many features it gives, the width is None.
    """
    try:
        module = model.get_submodule(path)
    except AttributeError:
        return None
    return Place(_stream_of(model, family, path), {-1: Tap(path)}, _output_width(module))


def _stream_of(model: nn.Module, family: Family, path: str) -> str:
    """Return the stream whose rows a module sees.

    That beside whose layers it lies (``encoder.conv2``); a head sees those of the last stream,
    which is the decoder where there is one.
    """
    streams = find_streams(model, family)
    for stream in streams:
        beside = stream.layers.rpartition(".")[0]
        if beside and path.startswith(f"{beside}."):
            below = path.removeprefix(f"{stream.layers}.").partition(".")[2]
            return stream.foreign.get(below, stream.name)
    return streams[-1].name if streams else OWN_STREAM


def _output_width(module: nn.Module) -> int | None:
    """Features that a module gives, as far as its own attributes tell."""
    base = getattr(module, "base_layer", module)  # an adapter's module gives what its base gives
    for name in ("out_features", "nf", "embedding_dim"):
        if isinstance(width := getattr(base, name, None), int):
            return width
    weight = getattr(base, "weight", None)
    is_norm = "norm" in type(base).__name__.lower()
    return int(weight.shape[-1]) if is_norm and weight is not None else None
