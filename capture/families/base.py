"""What the recorder has to know about a model family: a table from our site names to module paths.

A family is data: one `Stream` for every row space that its models have, and for the families that
``capture-run`` can load and train by itself, what a `SpeechFamily` adds. Adding one is one new file
beside this one and one line in ``families/__init__.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import nn

type Measure = Callable[[Any], int]
"""A number of a model, from its transformers configuration."""


@dataclass(frozen=True, slots=True)
class Tap:
    """One place in a module tree where a tensor passes."""

    path: str
    """Path of the module: in a table below a layer or below the backbone (empty: the layer or the
    backbone itself), in a model below that model."""
    side: Literal["input", "output"] = "output"
    """Whether the tensor goes into the module or comes out of it."""
    item: int = 0
    """Which one, where the module gives a tuple."""


@dataclass(frozen=True, slots=True)
class Attention:
    """Attention weights of a layer, [sample, head, query, key]."""

    tap: Tap
    """Where to read them, below a layer."""
    heads: Measure
    """Number of heads."""
    keys: Measure
    """The most keys that a query can see."""


@dataclass(frozen=True, slots=True)
class Stream:
    """One row space of a model: the layers that share their rows, and the sites on them."""

    name: str
    """Name of the row space in the store."""
    layers: str
    """Path of the list of layers."""
    layer_sites: Mapping[str, Tap]
    """Sites that exist once a layer, taps below a layer."""
    model_sites: Mapping[str, Tap]
    """Sites that exist once, taps below the backbone."""
    width: Measure
    """Features of the residual stream."""
    final_norm: Callable[[Any], str | None]
    """Path of the norm after the last layer, from the configuration; None where there is none."""
    attention: Mapping[str, Attention] = field(default_factory=dict)
    """Attention sites; they exist once a layer."""
    prefix: str = ""
    """What the names of its sites begin with (``decoder.``)."""
    pooled_frames: Literal["all", "valid"] = "all"
    """Frames that the head of classes averages: all of the window, or those that hold audio."""
    foreign: Mapping[str, str] = field(default_factory=dict)
    """Module below a layer, to the stream whose rows it sees: a decoder attends to those of its
    encoder, so that keys and values of it are rows of the encoder."""

    def below(self, root: str) -> Stream:
        """Return the stream with its paths below `root` instead of below the backbone."""

        def join(path: str) -> str:
            return ".".join(filter(None, (root, path)))

        norm = self.final_norm

        def final_norm(config: Any) -> str | None:  # noqa: ANN401  a transformers configuration
            path = norm(config)
            return None if path is None else join(path)

        return replace(
            self,
            layers=join(self.layers),
            model_sites={n: replace(t, path=join(t.path)) for n, t in self.model_sites.items()},
            final_norm=final_norm,
        )


@dataclass(frozen=True, slots=True)
class Family:
    """The table of one model family."""

    name: str
    """Our name of the family, as in a capture's attributes."""
    model_types: tuple[str, ...]
    """`model_type` of the transformers configurations that have this structure."""
    streams: tuple[Stream, ...]
    """Row spaces, the main one first. A model has those whose layers it has, so that a table can
    hold a decoder that only some models have, and two layouts of one stream."""
    valid_rows: Callable[[Any, int], int] | None = None
    """Valid rows of the main stream from (configuration, valid items of the model's input); None:
    a row for every item."""
    uncalled: Callable[[Any], tuple[str, ...]] = lambda _config: ()
    """Linear modules of a layer, from the configuration, whose weights the model reads without
    calling them: an adapter on one would never run."""


@dataclass(frozen=True, slots=True)
class Head:
    """How the classification head sits in the model."""

    modules: Mapping[str, str]
    """Stored name (``head.projector``) to module path."""
    apply: Callable[[nn.Module, Any], Any]
    """Logits [batch, class_] from features [batch, feature] that are pooled over frames."""
    pool: Callable[[nn.Module, Any, Mapping[str, Any]], Any]
    """Pooled features [batch, feature] from (model, the encoder's output [batch, frame, feature],
    inputs of the model)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeechFamily(Family):
    """A family that ``capture-run`` can load, train and capture: speech in, a class out."""

    encoder: str
    """Path of the encoder, from inputs to features; its weights identify the model (sha256)."""
    head: Head
    """The classification head."""
    sampling_rate: int
    """Audio sampling rate that the model was made for, Hz."""
    window_frames: Callable[[float], int | None]
    """Frames of a window of so many seconds; None where no window can be so long."""
    window_rule: str
    """Which windows there are, for the error."""
    valid_frames: Callable[[int, int], int]
    """Number of frames that hold audio, from (audio samples, frames of the window)."""
    inputs: Callable[[Any, Sequence[Any]], dict[str, Any]]
    """Inputs of the model by name, from (feature extractor, waveforms), one row a waveform."""
    padded: bool
    """Whether short audio is padded to the window; else only to the longest of its batch, and
    there are no frames but those that hold audio."""
    equal_lengths: bool = False
    """Whether padding changes values, so that only audio of one length may share a batch."""
    model_class: Callable[[], type[Any]]
    """The transformers class with a classification head (called late: importing it is heavy)."""
    shorten: Callable[[Any, Any, float], None]
    """Cuts (model or None, extractor or None, configuration) to a window of so many seconds."""
    demo: Callable[[], tuple[Any, Any]]
    """Configuration and feature extractor of the embedded ``demo:`` model."""
    fit: Callable[[SpeechFamily, Any, Any], SpeechFamily] = lambda family, _config, _extractor: (
        family
    )
    """The table of one model, from (this, configuration, feature extractor), where the models of a
    family differ in more than sizes."""

    @property
    def stream(self) -> str:
        """The row space that is captured."""
        return self.streams[0].name

    def window_samples(self, seconds: float) -> int:
        """Return the audio samples of a window."""
        return round(seconds * self.sampling_rate)


def join_inputs(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the inputs of several batches as those of one, padded with zeros to the longest."""
    import torch

    joined = {}
    for name in parts[0]:
        longest = max(part[name].shape[-1] for part in parts)
        grown = [
            torch.nn.functional.pad(part[name], (0, longest - part[name].shape[-1]))
            for part in parts
        ]
        joined[name] = torch.cat(grown)
    return joined
