"""Model families: one table each, from our site names to module paths (see ``base.py``)."""

from __future__ import annotations

from ..errors import ModelError
from .base import Attention as Attention
from .base import Family as Family
from .base import Head as Head
from .base import SpeechFamily as SpeechFamily
from .base import Stream as Stream
from .base import Tap as Tap
from .base import join_inputs as join_inputs
from .bert import BERT
from .gpt2 import GPT2
from .llama import LLAMA
from .vit import VIT
from .wav2vec2 import WAV2VEC2
from .whisper import WHISPER

FAMILIES: dict[str, Family] = {
    family.name: family for family in (WHISPER, WAV2VEC2, BERT, GPT2, LLAMA, VIT)
}
"""Every family that has a table, by name."""
SPEECH_FAMILIES: dict[str, SpeechFamily] = {
    name: family for name, family in FAMILIES.items() if isinstance(family, SpeechFamily)
}
"""Those that ``capture-run`` can load and train."""

NO_TABLE = Family("other", (), ())
"""Any other model: its modules can be recorded by path, and its adapters."""


def find_family(model_type: str) -> Family:
    """Return the table for a transformers `model_type`; `NO_TABLE` where there is none."""
    for family in FAMILIES.values():
        if model_type in family.model_types:
            return family
    return NO_TABLE


def find_speech_family(model_type: str, *, base: str) -> SpeechFamily:
    """Return the family of a model that ``capture-run`` is to load.

    Parameters
    ----------
    model_type
        `config.model_type` of a transformers model.
    base
        How to name the model in the error.

    Raises
    ------
    ModelError
        The family is none of speech; the message lists those that are.
    """
    family = find_family(model_type)
    if isinstance(family, SpeechFamily):
        return family
    types = sorted(name for known in SPEECH_FAMILIES.values() for name in known.model_types)
    msg = (
        f"{base} is a {model_type!r} model, and capture-run loads and trains models of speech: "
        f"{', '.join(types)}. Any other model can be recorded from your own loop, with Recorder."
    )
    raise ModelError(msg)
