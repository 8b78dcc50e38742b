"""Which tensors are recorded: from the names a user writes to module paths and store sites.

A site that exists once a layer has one tap a layer; ``lora_a`` stands for ``lora_a.<module>`` of
every adapted module. ``grad.<site>`` is the gradient of the summed loss at the same place, and
``grad.lora_a_weight.<module>`` that with respect to A itself, sample by sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..store import Site
from .config_types import suggest
from .errors import ConfigError
from .families import Family, Tap
from .places import Kind, Place, Places, find_places, module_place

if TYPE_CHECKING:
    from torch import nn

POOLS = {
    "mean_valid": "mean over the frames that hold audio",
    "mean_all_normed": "final norm of each frame, then the mean over all frames of the window",
}
"""Pools that can be recorded, with their meaning."""

ADAPTER_SITES = ("lora_a", "lora_b", "base_out", "lora_a_weight", "lora_b_weight")
"""Sites that exist once an adapted module; those of weights as gradients only."""


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
    width: int | None = None
    """Features of ``module.<path>``, where the module itself does not tell."""
    keys: int | None = None
    """Keys of an attention site, where fewer are enough than the model could see."""


@dataclass(frozen=True, slots=True)
class RecordedSite:
    """One site as it is recorded."""

    name: str
    """Name in the store, ``grad.`` included."""
    source: str
    """Name of the activation that it is, or is the gradient of."""
    stream: str
    """Its row space."""
    kind: Kind
    """What its taps give."""
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
    keys: int = 0
    """Keys of an attention site; absent ones are zeros."""

    @property
    def gradient(self) -> bool:
        """Whether it is a gradient."""
        return self.name != self.source

    @property
    def has_rows(self) -> bool:
        """Whether rows of it are kept, and not only pools or one value a sample."""
        return self.frames != "none" and self.kind != "weight"


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
    places = find_places(model, family)
    recorded: list[RecordedSite] = []
    for prefix, requests in (("", sites), ("grad.", gradients)):
        for asked, request in requests.items():
            for source, place in _find(model, family, places, asked).items():
                if place.kind == "weight" and not prefix:
                    msg = f"{asked!r} is a weight, the same for all samples: name it in gradients."
                    raise ConfigError(msg)
                recorded.append(_record(prefix, source, place, request))
    _check_frames(recorded)
    return tuple(recorded)


def store_sites(recorded: Sequence[RecordedSite]) -> list[Site]:
    """Return what the store has to be told of `recorded`: the rows, then the pools (float32).

    Gradients of weights are one float32 vector a sample: the matrix, line by line.
    """
    rows = [
        Site(site.name, site.layers, site.width, dtype=site.dtype, stream=site.stream)
        for site in recorded
        if site.has_rows
    ]
    weights = [
        Site(site.name, site.layers, site.width, dtype="float32", kind="sample", stream=site.stream)
        for site in recorded
        if site.kind == "weight"
    ]
    pools = [
        Site(
            f"{site.name}.{pool}",
            site.layers,
            site.width,
            dtype="float32",
            kind="sample",
            stream=site.stream,
        )
        for site in recorded
        for pool in site.pools
    ]
    return rows + weights + pools


def _find(model: nn.Module, family: Family, places: Places, asked: str) -> dict[str, Place]:
    """Return the sites that one name stands for; ConfigError, with what there is, if none."""
    by_site = places.by_site
    if asked in by_site:
        return {asked: by_site[asked]}
    kind, _, rest = asked.partition(".")
    if kind == "module":
        place = module_place(model, family, rest)
        if place is not None:
            return {asked: place}
        paths = [path for path, _ in model.named_modules() if path]
        msg = f"the model has no module {rest!r}{_near(rest, paths)}"
        raise ConfigError(msg)
    below = {name: place for name, place in by_site.items() if name.startswith(f"{asked}.")}
    if below:
        return below
    raise ConfigError(_unknown(family, places, asked))


def _near(name: str, known: Sequence[str]) -> str:
    return suggest(name, known) or f". There: {', '.join(known[:20])}."


def _unknown(family: Family, places: Places, asked: str) -> str:
    by_site = places.by_site
    kind = asked.partition(".")[0]
    if kind in ADAPTER_SITES and not any(name.startswith(ADAPTER_SITES) for name in by_site):
        why = f" that can be recorded: {places.refused[0]}" if places.refused else "."
        return f"site {asked!r} needs an adapter, and this model has none{why}"
    if not by_site:
        return (
            f"unknown site {asked!r}: no table of sites exists for this model, so its modules are "
            "recorded by path, as module.<path>."
        )
    names = {name.partition(".")[0] for name in by_site} | set(ADAPTER_SITES) | set(by_site)
    hint = suggest(asked, names) or "."
    there = ", ".join(name for name in by_site if "_weight." not in name)
    return (
        f"unknown site {asked!r} in family {family.name}{hint} Sites of this model: {there}; any "
        "other module as module.<path>."
    )


def _record(prefix: str, source: str, place: Place, request: SiteRequest) -> RecordedSite:
    layers = None if set(place.taps) == {-1} else _chosen_layers(source, place, request)
    taps = place.taps.values() if layers is None else [place.taps[i] for i in layers]
    unknown = [pool for pool in request.pool if pool not in POOLS]
    if unknown:
        hint = suggest(unknown[0], POOLS) or "."
        msg = f"unknown pool {unknown[0]!r}{hint} Pools: {', '.join(POOLS)}."
        raise ConfigError(msg)
    place = _sized(source, place, request)
    assert place.width is not None
    pools = tuple(
        p for p in request.pool if p != "mean_all_normed" or (place.normed and not prefix)
    )
    return RecordedSite(
        name=prefix + source,
        source=source,
        stream=place.stream,
        kind=place.kind,
        layers=layers,
        taps=tuple(taps),
        width=place.width,
        dtype=request.dtype,
        frames=request.frames,
        pools=pools if place.kind == "features" else (),
        keys=place.keys,
    )


def _sized(source: str, place: Place, request: SiteRequest) -> Place:
    """Settle the width of a site from what is asked, where the model alone does not."""
    if place.kind == "heads" and place.width is not None:
        keys = place.keys if request.keys is None else min(request.keys, place.keys)
        return replace(place, keys=keys, width=place.width // place.keys * keys)
    if place.width is not None:
        return place
    if request.width is None:
        msg = (
            f"{source}: its module does not tell how many features it gives. Say it: "
            f"{{{source}: {{width: N}}}}, or SiteRequest(width=N)."
        )
        raise ConfigError(msg)
    return replace(place, width=request.width)


def _chosen_layers(source: str, place: Place, request: SiteRequest) -> tuple[int, ...]:
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
    for stream in {site.stream: None for site in recorded}:
        own = [site for site in recorded if site.stream == stream and site.has_rows]
        kinds = {site.frames: site.name for site in own}
        if len(kinds) > 1:
            found = " and ".join(f"{frames} ({name})" for frames, name in kinds.items())
            msg = (
                f"sites share the rows of their stream, but the frames asked for differ: {found}. "
                "Give them the same frames, or 'none' (pooled only) to some."
            )
            raise ConfigError(msg)
    empty = [s.name for s in recorded if not (s.has_rows or s.pools or s.kind == "weight")]
    if empty:
        msg = f"{empty[0]} would record nothing: frames is 'none' and no pool applies to it."
        raise ConfigError(msg)


def row_frames(recorded: Sequence[RecordedSite], stream: str) -> str:
    """Return the choice of frames that the row sites of a stream share; ``none`` without any."""
    own = (site.frames for site in recorded if site.stream == stream and site.has_rows)
    return next(own, "none")
