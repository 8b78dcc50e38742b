"""From the list `interventions` of a configuration to single changes, each of one capture.

An entry can stand for many changes: one a layer, one a depth, one a capture. They are expanded and
checked against models without weights, so that a mistake is told before anything is trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .adapters import Adapter, layer_adapters
from .config_interventions import ADAPTER_KINDS, InterventionConfig
from .errors import ConfigError
from .intervention import Intervention, choose_layers, list_layers, spell_layers
from .sites import RecordedSite, SiteRequest, resolve_sites
from .streams import layer_modules

if TYPE_CHECKING:
    from torch import nn

    from .config_models import CaptureConfig, CaptureSpec
    from .families import SpeechFamily

COVERING_FRAMES = ("valid", "all")
"""Rows that a patch can take: those of all frames that hold audio, or of all frames."""
LONGEST_NAME = 100
"""Characters of `<capture>.<intervention>`, as of any capture of a configuration."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A capture that interventions may change or read from."""

    spec: CaptureSpec
    """Its adapter and training."""
    model: nn.Module
    """Its model, adapter attached; the weights are not read (the meta device will do)."""
    family: SpeechFamily
    """Its table."""
    recorded: tuple[RecordedSite, ...]
    """What is recorded of it."""

    @property
    def adapter_acts(self) -> bool:
        """Whether its adapter adds anything: PEFT's own initial state does not (B = 0)."""
        adapter = self.spec.adapter
        if adapter is None:
            return False
        return self.spec.train is not None or adapter.path is not None or adapter.init == "normal"


def expand_interventions(
    config: CaptureConfig, subjects: Mapping[str, Subject]
) -> dict[str, tuple[Intervention, ...]]:
    """Return the single interventions of every capture.

    Parameters
    ----------
    config
        The whole configuration.
    subjects
        Every capture by name.

    Raises
    ------
    ConfigError
        An intervention that a model or what is recorded cannot serve, or two of one name; says
        which entry, why, and what would do.
    """
    expanded: dict[str, list[Intervention]] = {name: [] for name in subjects}
    for i, entry in enumerate(config.interventions):
        try:
            for name in _changed(entry, subjects):
                expanded[name] += _expand(entry, subjects[name], subjects)
        except ConfigError as error:
            msg = f"interventions[{i}].{entry.kind}: {error}"
            raise ConfigError(msg) from error
    _check_names(expanded)
    return {name: tuple(changes) for name, changes in expanded.items()}


def _changed(entry: InterventionConfig, subjects: Mapping[str, Subject]) -> list[str]:
    """Return the captures that an entry changes: those it names, else all that make sense."""
    if entry.captures is not None:
        return list(entry.captures)
    if entry.kind in ADAPTER_KINDS:
        chosen = [name for name, subject in subjects.items() if subject.adapter_acts]
        need = "a capture whose adapter is trained, or has init: normal"
    elif entry.patch is not None:
        site = entry.patch.site
        chosen = [n for n, s in subjects.items() if n != entry.patch.from_ and _has_site(s, site)]
        need = f"a capture other than {entry.patch.from_!r} that has the site {site}"
    else:
        return list(subjects)
    if not chosen:
        msg = f"it would change nothing: it needs {need}. Captures: {', '.join(subjects)}."
        raise ConfigError(msg)
    return chosen


def _has_site(subject: Subject, site: str) -> bool:
    try:
        _resolve(subject, site, None)
    except ConfigError:
        return False
    return True


def _resolve(subject: Subject, site: str, layers: tuple[int, ...] | None) -> list[RecordedSite]:
    request = SiteRequest(layers=layers, frames="all", pool=())
    return list(resolve_sites(subject.model, subject.family, {site: request}, {}))


def _expand(
    entry: InterventionConfig, subject: Subject, subjects: Mapping[str, Subject]
) -> list[Intervention]:
    if entry.patch is not None:
        changes = _patches(entry, subject, subjects)
    elif entry.kind in ADAPTER_KINDS:
        changes = _adapter_changes(entry, subject)
    else:
        changes = _erasures(entry, subject)
    if entry.name is None:
        return changes
    if len(changes) == 1:
        return [replace(changes[0], name=entry.name)]
    return [replace(change, name=f"{entry.name}-{change.layer}") for change in changes]


def _erasures(entry: InterventionConfig, subject: Subject) -> list[Intervention]:
    there = tuple(range(len(layer_modules(subject.model, subject.family))))
    if entry.erase is not None:
        how = entry.erase.how
        return [
            Intervention(f"erase{spell_layers(layers)}-{how}", "erase", layers, how=how)
            for layers in choose_layers(entry.erase.layer, there)
        ]
    assert entry.erase_cumulative is not None
    end, how = entry.erase_cumulative.from_, entry.erase_cumulative.how
    bottom = end == "bottom"
    return [
        Intervention(
            f"erase-{'to' if bottom else 'from'}{layer}-{how}",
            "erase_cumulative",
            there[: layer + 1] if bottom else there[layer:],
            how=how,
            end=end,
        )
        for layer in (there if bottom else reversed(there))
    ]


def _adapter_changes(entry: InterventionConfig, subject: Subject) -> list[Intervention]:
    modules = layer_adapters(subject.model, subject.family)
    there = tuple(dict.fromkeys(layer for layer, _ in modules))
    section = entry.lora_off or entry.scale_lora or entry.ablate
    assert section is not None
    found: list[Intervention] = []
    for layers in choose_layers(section.layer, there):
        where = "" if section.layer == "together" else spell_layers(layers)
        if entry.ablate is not None:
            matrix, how = entry.ablate.matrix, entry.ablate.how
            if how == "resample":
                _check_others(modules, matrix, layers)
            name = f"ablate_{matrix.lower()}{where}-{how}"
            found.append(Intervention(name, "ablate", layers, how=how, matrix=matrix))
        elif entry.scale_lora is not None:
            by = entry.scale_lora.by
            factor = f"{by:g}".replace("+", "")
            found.append(Intervention(f"scale_lora{where}-x{factor}", "scale_lora", layers, by=by))
        else:
            found.append(Intervention(f"lora_off{where}", "lora_off", layers))
    return found


def _check_others(
    modules: Mapping[tuple[int, str], Adapter], matrix: str, layers: Sequence[int]
) -> None:
    """Refuse to take a matrix from another layer where there is none of its shape."""
    for layer, short in modules:
        if layer in layers and len(same_shape(modules, matrix, (layer, short))) < 2:
            msg = (
                f"how: resample takes {matrix} of {short} from another layer, and no other layer "
                f"has one of the shape of layer {layer}. Use zero or random."
            )
            raise ConfigError(msg)


def same_shape(
    modules: Mapping[tuple[int, str], Adapter], matrix: str, key: tuple[int, str]
) -> list[int]:
    """Return the layers, its own included, with a matrix of this module name and shape."""

    def shape(adapter: Adapter) -> tuple[int, ...]:
        return tuple((adapter.lora_a if matrix == "A" else adapter.lora_b).weight.shape)

    return [
        layer
        for (layer, short), module in modules.items()
        if short == key[1] and shape(module) == shape(modules[key])
    ]


def _patches(
    entry: InterventionConfig, subject: Subject, subjects: Mapping[str, Subject]
) -> list[Intervention]:
    assert entry.patch is not None
    patch = entry.patch
    recorded = _recorded_rows(patch.site, patch.from_, subjects[patch.from_])
    (target,) = _resolve(subject, recorded.name, None)
    if target.width != recorded.width:
        msg = (
            f"{recorded.name} has {target.width} features in the model that is changed and "
            f"{recorded.width} in capture {patch.from_!r}, so its rows do not fit."
        )
        raise ConfigError(msg)
    make = Intervention("", "patch", None, site=recorded.name, source=patch.from_)
    if recorded.layers is None:
        if patch.layer is not None:
            msg = f"{recorded.name} has no layers: leave out `layer`."
            raise ConfigError(msg)
        return [replace(make, name=f"patch-{recorded.name}-{patch.from_}")]
    if patch.layer is None:
        msg = f"{recorded.name} has layers: say which (recorded: {list_layers(recorded.layers)})."
        raise ConfigError(msg)
    there = tuple(layer for layer in recorded.layers if layer in (target.layers or ()))
    return [
        replace(
            make,
            name=f"patch-{recorded.name}{spell_layers(layers)}-{patch.from_}",
            layers=layers,
        )
        for layers in choose_layers(patch.layer, there)
    ]


def _recorded_rows(site: str, source: str, subject: Subject) -> RecordedSite:
    """Return the recorded site that a patch reads, whose rows cover every frame with audio."""
    named = [s for s in subject.recorded if s.name == site or s.name.startswith(f"{site}.")]
    if not named:
        there = ", ".join(s.name for s in subject.recorded if s.frames in COVERING_FRAMES)
        msg = (
            f"capture {source!r} does not record {site}. Recorded with all their rows: "
            f"{there or 'none'}. Add it to record.sites."
        )
        raise ConfigError(msg)
    if len(named) > 1:
        msg = f"{site} is several sites: name one of {', '.join(s.name for s in named)}."
        raise ConfigError(msg)
    if named[0].frames not in COVERING_FRAMES:
        msg = (
            f"capture {source!r} records {named[0].name} with frames: {named[0].frames}, and a "
            "patch needs the row of every frame that holds audio. Record with frames: valid or all."
        )
        raise ConfigError(msg)
    return named[0]


def _check_names(expanded: Mapping[str, Sequence[Intervention]]) -> None:
    """Refuse names that two captures of the store would share, or that are too long."""
    taken = {name.casefold() for name in expanded}
    for capture, changes in expanded.items():
        for change in changes:
            full = f"{capture}.{change.name}"
            if full.casefold() in taken:
                msg = (
                    f"interventions: two captures would be named {full!r}. "
                    "Give one of them another `name`."
                )
                raise ConfigError(msg)
            if len(full) > LONGEST_NAME:
                msg = (
                    f"interventions: the name {full!r} has more than {LONGEST_NAME} characters. "
                    "Give it a shorter `name`."
                )
                raise ConfigError(msg)
            taken.add(full.casefold())
