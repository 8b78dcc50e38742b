"""Which tensors are recorded: from the names a user writes to module paths and store sites.

A site that exists once a layer has one tap a layer; ``lora_a`` stands for ``lora_a.<module>`` of
every adapted module. ``grad.<site>`` is the gradient of the summed loss at the same place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..store import Site
from .config_types import suggest
from .errors import ConfigError
from .families import Family, Tap
from .lora import adapted_modules, adapter_name
from .naming import layer_modules

if TYPE_CHECKING:
    from torch import nn

POOLS = {
    "mean_valid": "mean over the frames that hold audio",
    "mean_all_normed": "final norm of each frame, then the mean over all frames of the window",
}
"""Pools that can be recorded, with their meaning."""

NORMED_SITES = ("embed", "resid_pre", "resid_post")
"""Sites whose pool ``mean_all_normed`` means something: the residual stream."""

ADAPTER_SITES = ("lora_a", "lora_b", "base_out")
"""Sites that exist once an adapted module."""


@dataclass(frozen=True, slots=True)
class SiteRequest:
    """What is asked of one site."""

    layers: tuple[int, ...] | None = None
    """Layers, in the model's numbering; None means all."""
    frames: str = "valid"
    """``valid``, ``all``, ``every:K`` or ``none`` (pooled only)."""
    pool: tuple[str, ...] = tuple(POOLS)
    """Pools to record; those that mean nothing for a site are left out there."""
    dtype: str = "bfloat16"
    """Storage dtype of the rows."""


@dataclass(frozen=True, slots=True)
class RecordedSite:
    """One site as it is recorded."""

    name: str
    """Name in the store, ``grad.`` included."""
    source: str
    """Name of the activation that it is, or is the gradient of."""
    layers: tuple[int, ...] | None
    """Recorded layers; None for a site without layers."""
    taps: tuple[Tap, ...]
    """Where to read it, one a layer, paths below the model."""
    width: int
    """Features."""
    dtype: str
    """Storage dtype of the rows."""
    frames: str
    """Which rows are kept."""
    pools: tuple[str, ...]
    """Pools recorded beside the rows."""

    @property
    def gradient(self) -> bool:
        """Whether it is a gradient."""
        return self.name != self.source


@dataclass(frozen=True, slots=True)
class _Place:
    """Where one activation can be read in one model."""

    taps: Mapping[int, Tap]
    """Layer to tap; the only key is -1 for a site without layers."""
    width: int


def resolve_sites(
    model: nn.Module,
    family: Family,
    sites: Mapping[str, SiteRequest],
    gradients: Mapping[str, SiteRequest],
) -> tuple[RecordedSite, ...]:
    """Find every requested site in `model`.

    Parameters
    ----------
    model
        The bare transformers model, adapters attached (its weights are not read: a model on the
        meta device will do).
    family
        Its table.
    sites, gradients
        Requests by name: a site of the family, ``lora_a`` (every adapted module) or
        ``lora_a.v_proj`` (one of them).

    Raises
    ------
    ConfigError
        A name, layer or choice of frames that cannot be served; the message lists what can.
    ModelError
        An adapter of a kind that cannot be recorded.
    """
    places = _find_places(model, family)
    recorded: list[RecordedSite] = []
    for prefix, requests in (("", sites), ("grad.", gradients)):
        for asked, request in requests.items():
            for source in _expand(asked, places, family):
                recorded.append(_record(prefix, source, places[source], request))
    _check_frames(recorded)
    return tuple(recorded)


def store_sites(recorded: Sequence[RecordedSite], stream: str) -> list[Site]:
    """Return what the store has to be told of `recorded`: the rows, then the pools (float32)."""
    rows = [
        Site(site.name, site.layers, site.width, dtype=site.dtype, stream=stream)
        for site in recorded
        if site.frames != "none"
    ]
    pools = [
        Site(
            f"{site.name}.{pool}",
            site.layers,
            site.width,
            dtype="float32",
            kind="sample",
            stream=stream,
        )
        for site in recorded
        for pool in site.pools
    ]
    return rows + pools


def _find_places(model: nn.Module, family: Family) -> dict[str, _Place]:
    width = family.width(model.config)
    places = {name: _Place({-1: tap}, width) for name, tap in family.model_sites.items()}
    count = len(layer_modules(model, family))
    for name, tap in family.layer_sites.items():
        paths = [".".join(filter(None, (family.layers, str(i), tap.path))) for i in range(count)]
        places[name] = _Place({i: Tap(path, tap.side) for i, path in enumerate(paths)}, width)
    modules = {module: path for path, module in model.named_modules()}
    for (layer, short), module in adapted_modules(model, family).items():
        for kind, part, features in _adapter_parts(module):
            place = places.setdefault(f"{kind}.{short}", _Place({}, features))
            taps = {**place.taps, layer: Tap(f"{modules[module]}.{part}")}
            places[f"{kind}.{short}"] = _Place(taps, features)
    return places


def _adapter_parts(module: Any) -> Iterator[tuple[str, str, int]]:  # noqa: ANN401
    key = adapter_name(module)
    yield "lora_a", f"lora_A.{key}", module.lora_A[key].out_features
    yield "lora_b", f"lora_B.{key}", module.lora_B[key].out_features
    yield "base_out", "base_layer", module.base_layer.out_features


def _expand(asked: str, places: Mapping[str, _Place], family: Family) -> list[str]:
    if asked in places:
        return [asked]
    below = [name for name in places if name.startswith(f"{asked}.")]
    if below:
        return below
    kind = asked.partition(".")[0]
    if kind in ADAPTER_SITES and not any("." in name for name in places):
        msg = f"site {asked!r} needs an adapter, and this model has none."
        raise ConfigError(msg)
    kinds = {name.partition(".")[0] for name in places} | set(ADAPTER_SITES)
    hint = suggest(asked, kinds | set(places)) or "."
    there = ", ".join(places)
    msg = f"unknown site {asked!r} in family {family.name}{hint} Sites of this model: {there}."
    raise ConfigError(msg)


def _record(prefix: str, source: str, place: _Place, request: SiteRequest) -> RecordedSite:
    layers = None if set(place.taps) == {-1} else _chosen_layers(source, place, request)
    taps = place.taps.values() if layers is None else [place.taps[i] for i in layers]
    unknown = [pool for pool in request.pool if pool not in POOLS]
    if unknown:
        hint = suggest(unknown[0], POOLS) or "."
        msg = f"unknown pool {unknown[0]!r}{hint} Pools: {', '.join(POOLS)}."
        raise ConfigError(msg)
    normed = not prefix and source in NORMED_SITES
    return RecordedSite(
        name=prefix + source,
        source=source,
        layers=layers,
        taps=tuple(taps),
        width=place.width,
        dtype=request.dtype,
        frames=request.frames,
        pools=tuple(p for p in request.pool if p != "mean_all_normed" or normed),
    )


def _chosen_layers(source: str, place: _Place, request: SiteRequest) -> tuple[int, ...]:
    there = tuple(sorted(place.taps))
    if request.layers is None:
        return there
    outside = [layer for layer in request.layers if layer not in place.taps]
    if outside:
        msg = f"{source} has no layer {outside[0]}: it has {_spell(there)}."
        raise ConfigError(msg)
    return tuple(sorted(request.layers))


def _spell(layers: tuple[int, ...]) -> str:
    if len(layers) > 2 and layers == tuple(range(layers[0], layers[-1] + 1)):
        return f"layers {layers[0]} to {layers[-1]}"
    return "layers " + ", ".join(map(str, layers))


def _check_frames(recorded: list[RecordedSite]) -> None:
    """Every site of a stream shares its rows, so they can differ only by having none."""
    if not recorded:
        msg = "nothing to record: name at least one site."
        raise ConfigError(msg)
    kinds = {site.frames: site.name for site in recorded if site.frames != "none"}
    if len(kinds) > 1:
        found = " and ".join(f"{frames} ({name})" for frames, name in kinds.items())
        msg = (
            f"sites share the rows of their stream, but the frames asked for differ: {found}. "
            "Give them the same frames, or 'none' (pooled only) to some."
        )
        raise ConfigError(msg)
    empty = [site.name for site in recorded if site.frames == "none" and not site.pools]
    if empty:
        msg = f"{empty[0]} would record nothing: frames is 'none' and no pool applies to it."
        raise ConfigError(msg)


def row_frames(recorded: Sequence[RecordedSite]) -> str:
    """Return the choice of frames that all row sites share; ``none`` when there are none."""
    return next((site.frames for site in recorded if site.frames != "none"), "none")
