"""Model families: one table each, from our site names to module paths (see ``base.py``)."""

from __future__ import annotations

from ..errors import ModelError
from .base import Family as Family
from .base import Head as Head
from .base import Tap as Tap
from .whisper import WHISPER

FAMILIES: dict[str, Family] = {WHISPER.name: WHISPER}
"""Every family that can be captured, by name."""


def find_family(model_type: str, *, base: str = "this model") -> Family:
    """Return the family table for a transformers `model_type`.

    Parameters
    ----------
    model_type
        `config.model_type` of a transformers model.
    base
        How to name the model in the error.

    Raises
    ------
    ModelError
        The family has no table; the message lists those that have.
    """
    for family in FAMILIES.values():
        if family.model_type == model_type:
            return family
    msg = (
        f"{base} is a {model_type!r} model, and no table of sites exists for that family. "
        f"Families that can be captured: {', '.join(FAMILIES)}."
    )
    raise ModelError(msg)
