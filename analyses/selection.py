"""What was asked of what is there: captures, sites and layers after the filters of one call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .errors import AnalysisInputError, suggest
from .fold import ArrayKey
from .pooled import DEFAULT_POOL
from .source import AGAINST, Source, View

_SITE_ORDER = ("embed", "resid_pre", "attn_out", "mlp_out", "resid_post", "encoder_out")


@dataclass(frozen=True, slots=True)
class Selection:
    """The arrays that one call of `analyze` is about."""

    source: Source
    sites: tuple[str, ...] | None
    """Names or first parts of names (`lora_a` for `lora_a.v_proj`); None: all."""
    layers: tuple[int, ...] | None
    """Layer numbers; None: all. Sites without layers always stay."""
    seed: int
    memory_bytes: int
    workers: int
    device: str = "cpu"
    """Where products of arrays are computed: `cpu` or `cuda`."""

    @property
    def captures(self) -> list[View]:
        """Captures of the store itself, those of interventions aside."""
        return [v for v in self._own if not v.base]

    @property
    def changed(self) -> list[View]:
        """Captures of interventions of the store itself."""
        return [v for v in self._own if v.base]

    @property
    def _own(self) -> list[View]:
        return [v for name, v in self.source.views.items() if not name.startswith(AGAINST)]

    @property
    def others(self) -> list[View]:
        """Captures of the other store."""
        views = self.source.views.items()
        return [v for name, v in views if name.startswith(AGAINST) and not v.base]

    def wants_site(self, site: str) -> bool:
        """Return whether a site passes the filter."""
        return self.sites is None or any(matches(site, wanted) for wanted in self.sites)

    def wants_layer(self, layer: int) -> bool:
        """Return whether a layer passes the filter."""
        return self.layers is None or layer < 0 or layer in self.layers

    def row_keys(self, view: View) -> list[ArrayKey]:
        """Return the row arrays of a capture that pass the filters."""
        return [
            ArrayKey(view.name, site, layer)
            for site in sorted(view.sites, key=site_order)
            if self.wants_site(site)
            for layer in layers_of(view, site)
            if self.wants_layer(layer)
        ]

    def pooled_keys(self, view: View, pool: str = DEFAULT_POOL) -> list[ArrayKey]:
        """Return the pooled arrays of a capture that pass the filters, recorded or derivable."""
        names = {name.removesuffix(f".{pool}") for name in view.pooled if name.endswith(f".{pool}")}
        if pool == DEFAULT_POOL:
            names |= set(view.sites)
        return [
            ArrayKey(view.name, site, layer, pool)
            for site in sorted(names, key=site_order)
            if self.wants_site(site)
            for layer in layers_of(view, site, pool)
            if self.wants_layer(layer)
        ]

    def check_key(self, key: ArrayKey) -> None:
        """Raise AnalysisInputError where the captures hold no such array; says which ones exist."""
        views = self.source.views
        if key.capture not in views:
            raise AnalysisInputError(_absent("capture", key.capture, views))
        view = views[key.capture]
        known, name = (
            (view.pooled, f"{key.site}.{key.pool}") if key.pool else (view.sites, key.site)
        )
        if name not in known:
            raise AnalysisInputError(_absent("site", name, known))
        layers = layers_of(view, key.site, key.pool)
        if key.layer not in layers:
            raise AnalysisInputError(_absent("layer", key.layer, map(str, layers)))

    def stored_key(self, key: ArrayKey) -> ArrayKey:
        """Return what is read for a pooled array: itself where it was recorded, else its rows."""
        view = self.source.views[key.capture]
        if f"{key.site}.{key.pool}" in view.pooled:
            return key
        return ArrayKey(key.capture, key.site, key.layer)


def matches(site: str, wanted: str) -> bool:
    """Return whether `wanted` is a site's name or a first part of it."""
    return site == wanted or site.startswith(f"{wanted}.")


def site_order(site: str) -> tuple[int, str]:
    """Return a sort key that follows the data through the model."""
    place = _SITE_ORDER.index(site) if site in _SITE_ORDER else len(_SITE_ORDER)
    return place, site


def layers_of(view: View, site: str, pool: str = "") -> tuple[int, ...]:
    """Return the layers of a site, -1 for one without; of its rows where the pool is missing."""
    info = view.pooled.get(f"{site}.{pool}") if pool else None
    info = info or view.sites[site]
    return (-1,) if info.layers is None else tuple(info.layers)


def select(
    source: Source,
    *,
    sites: Sequence[str] | None,
    layers: Sequence[int] | None,
    seed: int,
    memory_bytes: int,
    workers: int,
    device: str = "cpu",
) -> Selection:
    """Return a checked selection.

    Raises
    ------
    AnalysisInputError
        A site or layer that no capture holds (says which ones exist), or captures without samples.
    """
    views = source.views.values()
    if not source.ids.size:
        msg = (
            f"no sample is committed yet in {', '.join(source.views)}. "
            "Run the capture on; it resumes where it stopped."
        )
        raise AnalysisInputError(msg)
    present = {site for view in views for site in view.sites}
    present |= {name.rpartition(".")[0] for view in views for name in view.pooled}
    for wanted in sites or ():
        if not any(matches(site, wanted) for site in present):
            raise AnalysisInputError(_absent("site", wanted, present))
    numbers = {
        n for v in views for i in (*v.sites.values(), *v.pooled.values()) for n in i.layers or ()
    }
    for layer in layers or ():
        if layer not in numbers:
            raise AnalysisInputError(_absent("layer", layer, map(str, sorted(numbers))))
    return Selection(
        source,
        None if sites is None else tuple(sites),
        None if layers is None else tuple(layers),
        seed,
        memory_bytes,
        workers,
        device,
    )


def check_captures(asked: Sequence[str] | None, present: Sequence[str]) -> list[str]:
    """Return the captures to analyse: those asked for, else all."""
    if not present:
        msg = "the store holds no captures yet. Record one with `capture-run`."
        raise AnalysisInputError(msg)
    for name in asked or ():
        if name not in present:
            raise AnalysisInputError(_absent("capture", name, present))
    return list(dict.fromkeys(asked)) if asked else list(present)


def with_interventions(
    names: Sequence[str], bases: Mapping[str, str], present: Sequence[str]
) -> list[str]:
    """Return captures with what belongs to them: their interventions, and what those changed.

    Parameters
    ----------
    names
        Captures that were asked for.
    bases
        Every capture of an intervention, with the name of the capture that it changed.
    present
        All captures of the store.

    Returns
    -------
    list
        Unchanged captures first.
    """
    changed = [bases[name] for name in names if bases.get(name) in present]
    plain = [name for name in dict.fromkeys([*names, *changed]) if name not in bases]
    return plain + [name for name, base in bases.items() if base in names or name in names]


def _absent(kind: str, asked: object, present: Iterable[str]) -> str:
    names = list(present) if kind == "layer" else sorted(present)
    hint = suggest(str(asked), names)
    return f"no {kind} {asked!r} in the store.{hint} Present: {', '.join(names) or 'none'}."
