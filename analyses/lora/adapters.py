"""A and B of the adapters that a capture holds, and the factor of their product."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..selection import Selection
from ..source import View
from .factors import Product

_NAME = re.compile(r"adapter\.(?:(\d{1,9})\.)?(.+)\.lora_a")


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """One adapted module."""

    layer: int
    """Layer number, -1 outside of every layer."""
    module: str

    @property
    def stem(self) -> str:
        """What the names of its parameters share: ``0.v_proj``."""
        return self.module if self.layer < 0 else f"{self.layer}.{self.module}"


@dataclass(frozen=True, slots=True)
class Adapter:
    """A and B of one module of one capture."""

    view: View
    place: Place
    a: NDArray[np.float64]
    b: NDArray[np.float64]
    scaling: float | None
    """None where the capture does not tell."""
    reason: str
    """Why the matrices cannot be used; empty otherwise."""

    @classmethod
    def load(cls, view: View, place: Place, selection: Selection) -> Adapter:
        """Return the matrices in float64."""
        parameters = selection.source.capture(view.name).parameters
        stem = f"adapter.{place.stem}"
        a, b = (np.asarray(parameters[f"{stem}.lora_{x}"], dtype=np.float64) for x in "ab")
        reason = ""
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
            reason = f"shapes {a.shape} and {b.shape} are not those of A and B"
        elif not (np.isfinite(a).all() and np.isfinite(b).all()):
            reason = "NaN or infinite weights"
        return cls(view, place, a, b, find_scaling(view.attrs.get("adapter"), a.shape[0]), reason)

    def product(self, matrix: str) -> Product:
        """Return A, B or s B A."""
        one = np.eye(self.a.shape[0])
        if matrix == "A":
            return Product(one, self.a)
        return Product(self.b, one if matrix == "B" else self.a, self.factor(matrix))

    def factor(self, matrix: str) -> float:
        """Return s for BA where it is known, else 1."""
        return self.scaling if matrix == "BA" and self.scaling is not None else 1.0

    @property
    def why_zero(self) -> str:
        """Which matrix makes the product 0, where it is."""
        return "A = 0" if self.b.any() else "B = 0"

    @property
    def head(self) -> dict[str, object]:
        """What each of its rows begins with."""
        trained = self.view.trained("adapter")
        return {
            "capture": self.view.name,
            "module": self.place.module,
            "layer": self.place.layer,
            "n": self.a.shape[0],
            "exposed": "only" if trained else "none",
        }


def find_scaling(adapter: object, rank: int) -> float | None:
    """Return the factor s of an adapter of some rank, as a stranger's attributes say it.

    Notes
    -----
    The one that the adapter was run with, for modules of the rank that it belongs to; for a module
    of another rank alpha / rank, or alpha / √rank for rank-stabilised LoRA. None where it is not
    known, or where alpha differs by module.
    """
    if not isinstance(adapter, Mapping) or adapter.get("alpha_pattern"):
        return None
    scaling, alpha, r = (_positive(adapter.get(key)) for key in ("scaling", "alpha", "r"))
    if scaling is not None and (r is None or r == rank):
        return scaling
    if alpha is None:
        return None
    return alpha / (np.sqrt(rank) if adapter.get("rslora") else rank)


def _positive(value: object) -> float | None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return float(value) if 0 < value < np.inf else None


def find_places(view: View, selection: Selection) -> list[Place]:
    """Return the modules whose A and B a capture holds."""
    names = set(selection.source.capture(view.name).parameters)
    found = []
    for name in names:
        match = _NAME.fullmatch(name)
        if match and f"{name.removesuffix('a')}b" in names:
            place = Place(-1 if match[1] is None else int(match[1]), match[2])
            found += [place] * selection.wants_layer(place.layer)
    return sorted(found)
