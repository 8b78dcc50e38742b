"""The conditions of a run: their order, whose head each one uses, and what identifies each one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .config_models import ADAPTER_SITES
from .errors import ConfigError
from .factored import find_products, stored_part
from .families import SpeechFamily
from .sites import RecordedSite, SiteRequest, resolve_sites

if TYPE_CHECKING:
    from torch import nn

    from ..store import Product
    from .config_models import CaptureConfig, CaptureSpec, SiteOptions
    from .families import Family
    from .split import Split


@dataclass(frozen=True, slots=True)
class Condition:
    """One capture of a run."""

    name: str
    """Name of the capture."""
    spec: CaptureSpec
    """Its adapter and training."""
    head_from: str | None
    """The capture whose trained head it uses; its own name where it trains or brings one; None:
    untrained."""

    @property
    def trained(self) -> tuple[str, ...]:
        """What was trained in or for this capture."""
        adapter = self.spec.adapter
        parts = {
            "head": self.head_from is not None,
            "adapter": adapter is not None
            and (self.spec.train is not None or adapter.path is not None),
        }
        return tuple(part for part, trained in parts.items() if trained)


def order_conditions(config: CaptureConfig) -> list[Condition]:
    """Return the conditions in the order in which they must run: the giver of the head first.

    A capture with training trains its own head, from the same seeded initial head; a loaded adapter
    may bring one. All others use the head of `head.from`, so that they differ in nothing but their
    adapter.
    """
    giver = config.head.from_
    names = sorted(config.captures, key=lambda name: name != giver)
    return [
        Condition(
            name,
            config.captures[name],
            name if _has_own_head(config.captures[name]) else giver,
        )
        for name in names
    ]


def _has_own_head(spec: CaptureSpec) -> bool:
    return spec.train is not None or (spec.adapter is not None and spec.adapter.head)


def wanted_sites(
    config: CaptureConfig, condition: Condition
) -> tuple[dict[str, SiteRequest], dict[str, SiteRequest]]:
    """Return the requested activations and gradients of one condition.

    Sites of an adapter are left out where the condition has none.
    """
    record = config.record

    def choose(names: Mapping[str, SiteOptions], *, gradient: bool) -> dict[str, SiteRequest]:
        return {
            name: _request(record.options(name, gradient=gradient))
            for name in names
            if condition.spec.adapter is not None or name.split(".")[0] not in ADAPTER_SITES
        }

    sites = choose(record.sites, gradient=False)
    if record.lora_b == "factored":
        sites = stored_part(sites)
    return sites, choose(record.gradients, gradient=True)


def _request(options: SiteOptions) -> SiteRequest:
    return SiteRequest(
        layers=None if options.layers in (None, "all") else options.layers,
        frames=options.frames or "valid",
        pool=options.pool or (),
        dtype=options.dtype or "bfloat16",
        width=options.width,
        keys=options.keys,
    )


def condition_sites(
    model: nn.Module, family: Family, config: CaptureConfig, condition: Condition
) -> tuple[RecordedSite, ...]:
    """Resolve the sites of one condition in its model.

    Raises
    ------
    ConfigError
        A site or layer that the model does not have; names the capture.
    """
    _check_frames(family, config)
    try:
        return resolve_sites(model, family, *wanted_sites(config, condition))
    except ConfigError as error:
        msg = f"captures.{condition.name}: {error}"
        raise ConfigError(msg) from error


def _check_frames(family: Family, config: CaptureConfig) -> None:
    """Refuse the frames of a window where there is none."""
    if not isinstance(family, SpeechFamily) or family.padded:
        return
    record = config.record
    frames = [record.options(name).frames for name in record.sites]
    frames += [record.options(name, gradient=True).frames for name in record.gradients]
    if "all" in frames:
        msg = (
            f"record.frames: all keeps the frames that pad a window, and {family.name} has no "
            "window. Record with frames: valid, which are all there are."
        )
        raise ConfigError(msg)


def condition_products(
    model: nn.Module,
    family: Family,
    config: CaptureConfig,
    recorded: Sequence[RecordedSite],
) -> list[Product]:
    """Return the B outputs of one condition that are stored as factors; none without an adapter.

    Raises
    ------
    ConfigError
        The rows of A that they follow from are not recorded.
    """
    if config.record.lora_b != "factored":
        return []
    record = config.record
    names = [n for n in record.sites if n.split(".")[0] == "lora_b"]
    wanted = [n for n in names if record.options(n).frames != "none"]
    return find_products(model, family, wanted, recorded)


def fingerprint(
    config: CaptureConfig,
    condition: Condition,
    split: Split,
    *,
    model: Mapping[str, Any],
    data: Mapping[str, Any],
    device: str,
) -> dict[str, Any]:
    """Return everything that determines the values of one capture (JSON), and nothing else.

    A resumed run must have the same; the store names the field that differs. Where files lie, how
    large the buffer is, and which other captures there are, does not belong here.
    """
    resolved = config.resolved()
    giver = condition.head_from
    head = None if giver is None else {"from": giver}
    if head is not None and giver != condition.name:
        spec = resolved["captures"][giver]
        head |= {key: _identity_of(spec[key]) for key in ("adapter", "train")}
    return {
        "seed": config.seed,
        "device": device.partition(":")[0],
        "model": _identity_of({key: model[key] for key in _MODEL if key in model}),
        "data": dict(data),
        "split": {"by": split.by, "test": list(split.test)} if condition.trained else None,
        "adapter": _identity_of(resolved["captures"][condition.name]["adapter"]),
        "train": _identity_of(resolved["captures"][condition.name]["train"]),
        "head": head,
        "batch_size": config.run.batch_size,
        "record": resolved["record"],
    }


_MODEL = ("family", "dtype", "attention", "window_seconds", "sha256")
_LATER_DEFAULTS = {"schedule": "linear", "warmup_ratio": 0.0, "rslora": False, "attention": "sdpa"}
"""Options that came after the first stores: with their defaults all is what it was."""


def _identity_of(section: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if section is None:
        return None
    later = _LATER_DEFAULTS.items()
    return {
        key: value
        for key, value in section.items()
        # where files lie, and what an adapter says of its base, change no value
        if key not in ("path", "base") and (key, value) not in later
    }
