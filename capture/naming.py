"""Names of modules: the shortest unambiguous name below a layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def short_names(layer: nn.Module) -> dict[str, str]:
    """Return the shortest unambiguous name of every module below `layer`, by its path.

    ``self_attn.v_proj`` becomes ``v_proj``; where two paths end alike, the one that is itself the
    ending of the other keeps its full path (``output.dense`` beside ``attention.output.dense``).
    What an adapter adds inside a module does not count.
    """
    paths = [path for path in _paths_outside_adapters(layer) if path]
    return {path: _shortest(path, paths) for path in paths}


def _paths_outside_adapters(layer: nn.Module) -> list[str]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted = {path for path, m in layer.named_modules() if isinstance(m, BaseTunerLayer)}
    return [
        path
        for path, _ in layer.named_modules()
        if not any(path.startswith(f"{above}.") for above in adapted)
    ]


def _shortest(path: str, paths: list[str]) -> str:
    parts = path.split(".")
    for count in range(1, len(parts)):
        ending = ".".join(parts[-count:])
        twins = [p for p in paths if p != path and (p == ending or p.endswith(f".{ending}"))]
        if not twins:
            return ending
    return path
