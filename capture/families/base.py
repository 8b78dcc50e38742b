"""What the recorder has to know about a model family: a table from our site names to module paths.

A family is data (a frozen `Family`) plus two small functions. Adding one is one new file beside
this one and one line in ``families/__init__.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class Tap:
    """One place in a module tree where a tensor passes."""

    path: str
    """Path of the module: below a layer for the sites of a layer (empty: the layer itself), below
    the model otherwise."""
    side: Literal["input", "output"] = "output"
    """Whether the tensor goes into the module or comes out of it."""


@dataclass(frozen=True, slots=True)
class Head:
    """How the classification head sits in the model."""

    modules: Mapping[str, str]
    """Stored name (``head.projector``) to module path."""
    apply: Callable[[nn.Module, Any], Any]
    """Logits [batch, class_] from features [batch, feature] that are pooled over frames."""
    pool: Callable[[Any], Any]
    """Pooled features [batch, feature] from the encoder's output [batch, frame, feature]."""


@dataclass(frozen=True, slots=True)
class Family:
    """The table of one model family."""

    name: str
    """Our name of the family, as in a capture's attributes."""
    model_type: str
    """`model_type` of the transformers configuration."""
    stream: str
    """The row space that the sites of this table belong to."""
    encoder: str
    """Path of the encoder; its weights identify the model (sha256)."""
    layers: str
    """Path of the list of layers."""
    layer_sites: Mapping[str, Tap]
    """Sites that exist once a layer."""
    model_sites: Mapping[str, Tap]
    """Sites that exist once a model."""
    width: Callable[[Any], int]
    """Features of the residual stream, from the transformers configuration."""
    final_norm: str
    """Path of the encoder's final norm."""
    head: Head
    """The classification head."""
    sampling_rate: int
    """Audio sampling rate that the model was made for, Hz."""
    full_window_seconds: float
    """The longest audio that the model sees, seconds."""
    frames_per_second: int
    """Rows a second of audio, Hz."""
    valid_frames: Callable[[int, int], int]
    """Number of frames that hold audio, from (audio samples, frames of the window)."""
    model_class: Callable[[], type[Any]]
    """The transformers class with a classification head (called late: importing it is heavy)."""
    shorten: Callable[[Any, Any, float], None]
    """Cuts (model or None, extractor or None, configuration) to a window of so many seconds."""
    demo: Callable[[], tuple[Any, Any]]
    """Configuration and feature extractor of the embedded ``demo:`` model."""
