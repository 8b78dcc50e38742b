"""``interventions``: changes made to the model while it runs, as a configuration writes them."""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Strict,
    Tag,
    model_serializer,
    model_validator,
)

from .config_section import Section
from .config_sites import check_site
from .config_types import (
    LayerNumbers,
    Name,
    Number,
    Text,
    Texts,
    as_tuple,
    at_least,
    choice,
    describe,
)

KINDS = ("erase", "erase_cumulative", "lora_off", "ablate", "scale_lora", "patch")
"""What an intervention can be; each entry of the list has exactly one of them."""

ADAPTER_KINDS = ("lora_off", "ablate", "scale_lora")
"""Interventions that only a capture with an adapter can have."""


def _check_layer(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return (value,)
    if isinstance(value, list | tuple) or value in ("all", "together"):
        return as_tuple(value)
    msg = (
        "expected a layer number, a list such as [0, 3] (these at once), all (each layer by "
        f"itself) or together (all layers at once), got {describe(value)}"
    )
    raise ValueError(msg)


LayerChoice = Annotated[
    Annotated[Literal["all", "together"], Tag("word")] | Annotated[LayerNumbers, Tag("list")],
    Discriminator(lambda value: "word" if isinstance(value, str) else "list"),
    BeforeValidator(_check_layer),
]
"""Layers at once (a number or a list), ``all`` (one intervention a layer), or ``together``."""

_EraseHow = Annotated[str, Strict(), choice("zero", "mean", "resample", what="erasure")]
_AblateHow = Annotated[str, Strict(), choice("zero", "random", "resample", what="ablation")]
_Site = Annotated[str, Strict(), AfterValidator(check_site)]


class EraseConfig(Section):
    """``erase``: what a layer adds to the residual stream is replaced."""

    layer: LayerChoice
    """Which layers."""
    how: _EraseHow = "zero"
    """By nothing, by its mean over reference frames, or by that of another sample."""


class EraseCumulativeConfig(Section):
    """``erase_cumulative``: ever more layers are erased, one intervention a depth."""

    from_: Annotated[str, Strict(), choice("bottom", "top", what="end")] = Field(alias="from")
    """Which end of the model is erased first."""
    how: _EraseHow = "zero"
    """As in ``erase``."""


class LoraOffConfig(Section):
    """``lora_off``: the adapter adds nothing."""

    layer: LayerChoice = "together"
    """Which layers."""


class AblateConfig(Section):
    """``ablate``: one of the adapter's matrices is replaced."""

    matrix: Annotated[str, Strict(), choice("A", "B", what="matrix")]
    """Which one."""
    how: _AblateHow = "zero"
    """By zeros, by a random one of the same Frobenius norm, or by that of another layer."""
    layer: LayerChoice = "together"
    """Which layers."""


class ScaleLoraConfig(Section):
    """``scale_lora``: what the adapter adds is multiplied."""

    by: Number
    """Factor."""
    layer: LayerChoice = "together"
    """Which layers."""


class PatchConfig(Section):
    """``patch``: the tensor at a site is replaced by what another capture recorded there."""

    site: _Site
    """Which site; recorded with ``frames: valid`` or ``all``."""
    layer: LayerChoice | None = None
    """Which layers; None for a site without layers."""
    from_: Text = Field(alias="from")
    """The capture whose rows are put in."""


class InterventionConfig(Section):
    """``interventions[i]``: one kind of change, on some captures."""

    name: Name | None = None
    """Name; where there are several, followed by ``-<layer>``; None: made from what it does."""
    captures: Annotated[Texts, at_least(1)] | None = None
    """Captures that are changed; None: all for which it makes sense."""
    erase: EraseConfig | None = None
    erase_cumulative: EraseCumulativeConfig | None = None
    lora_off: LoraOffConfig | None = None
    ablate: AblateConfig | None = None
    scale_lora: ScaleLoraConfig | None = None
    patch: PatchConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _exactly_one(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        given = [kind for kind in KINDS if value.get(kind) is not None]
        # `lora_off:` with nothing behind it has its default, all layers at once
        if "lora_off" in value and value["lora_off"] is None:
            value, given = {**value, "lora_off": {}}, [*given, "lora_off"]
        unknown = set(value) - {*KINDS, "name", "captures"}
        if len(given) > 1:
            msg = f"one change an entry, got {' and '.join(given)}; make two entries"
            raise ValueError(msg)
        if not given and not unknown:
            msg = f"says not what is changed; give one of {', '.join(KINDS)}"
            raise ValueError(msg)
        return value

    @model_serializer(mode="wrap")
    def _only_given(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in dump(self).items() if value is not None}

    @property
    def kind(self) -> str:
        """Which of `KINDS` it is."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)


def _check_list(value: object) -> object:
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        msg = f"expected a list of interventions, got {describe(value)}"
        raise ValueError(msg)  # noqa: TRY004  (pydantic reports ValueError only)
    return tuple(value)


Interventions = Annotated[tuple[InterventionConfig, ...], BeforeValidator(_check_list)]
