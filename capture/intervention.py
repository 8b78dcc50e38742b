"""One change of one model: what it is called, which layers it is about, how it describes itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import ConfigError


@dataclass(frozen=True, slots=True)
class Intervention:
    """One change of one model."""

    name: str
    """Its part of the capture's name, after the dot."""
    kind: str
    """A kind of `config_interventions.KINDS`."""
    layers: tuple[int, ...] | None = None
    """Layers that are changed at once; None for a patch at a site without layers."""
    how: str = ""
    """Of an erasure or ablation."""
    end: str = ""
    """Of a cumulative erasure: where it began, ``bottom`` or ``top``."""
    matrix: str = ""
    """Of an ablation: ``A`` or ``B``."""
    by: float | None = None
    """Of a scaling: the factor."""
    site: str = ""
    """Of a patch: the site, as it is recorded."""
    source: str = ""
    """Of a patch: the capture that the rows come from."""

    @property
    def layer(self) -> int | None:
        """The one layer that it is about; of a cumulative erasure the last that was added."""
        if self.layers is None:
            return None
        if self.kind == "erase_cumulative":
            return self.layers[-1] if self.end == "bottom" else self.layers[0]
        return self.layers[0] if len(self.layers) == 1 else None

    @property
    def passes(self) -> int:
        """Forward passes a batch: an erasure by resampling runs other samples first."""
        return 2 if self.how == "resample" and self.kind.startswith("erase") else 1

    def describe(self) -> dict[str, Any]:
        """Return it as a capture's attributes hold it (JSON), what does not apply left out."""
        facts = {
            "name": self.name,
            "kind": self.kind,
            "layer": self.layer,
            "layers": None if self.layers is None else list(self.layers),
            "how": self.how or None,
            "end": self.end or None,
            "matrix": self.matrix or None,
            "by": self.by,
            "site": self.site or None,
            "from": self.source or None,
        }
        return {key: value for key, value in facts.items() if value is not None}


def choose_layers(
    choice: str | tuple[int, ...], there: tuple[int, ...]
) -> Iterator[tuple[int, ...]]:
    """Yield the layers of each intervention that a choice stands for.

    Parameters
    ----------
    choice
        ``all``: each by itself; ``together``: all at once; or numbers: these at once.
    there
        What there is to choose from.

    Raises
    ------
    ConfigError
        A layer that is not there.
    """
    if choice == "all":
        yield from ((layer,) for layer in there)
        return
    chosen = there if choice == "together" else tuple(sorted(int(layer) for layer in choice))
    outside = [layer for layer in chosen if layer not in there]
    if outside:
        msg = f"there is no layer {outside[0]} to change: there are {list_layers(there)}."
        raise ConfigError(msg)
    yield chosen


def spell_layers(layers: Sequence[int]) -> str:
    """Return layers as a name can hold them: ``3``, ``2to5`` or ``1_4``."""
    if len(layers) > 1 and list(layers) == list(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]}to{layers[-1]}"
    return "_".join(map(str, layers))


def list_layers(layers: Sequence[int]) -> str:
    """Return layers as a sentence can hold them."""
    return ", ".join(map(str, layers)) or "none"
