"""Row columns: what single rows are (phones, words, times), beside what a model made of them.

Nobody records them with a model, so they are added to a store that is there. Each is a capture of
its own, `rows.<name>`, with one row site of width 1: it is committed, verified, repaired, copied
and sealed as any other capture is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .definition import CaptureDefinition

PREFIX = "rows."
"""Before the name of a row column in the name of its capture."""
CONFIG_KEY = "row_column"
"""In the configuration of a capture: what row column it holds."""
NAMES_KEY = "row_names"
"""In the attributes of a capture: the names of the classes of its own row sites of width 1."""


@dataclass(frozen=True, slots=True)
class RowColumn:
    """One row column of a store."""

    name: str
    """Also the name of the site that holds it."""
    stream: str
    """The row space whose rows it is of."""
    names: tuple[str, ...]
    """Names of the classes 0, 1, 2, …; empty for numbers."""
    capture: str
    """The capture that holds it."""


def row_column_of(definition: CaptureDefinition) -> RowColumn | None:
    """Return the row column that a capture holds; None for a capture of anything else."""
    said = definition.config.get(CONFIG_KEY)
    if not isinstance(said, Mapping) or len(definition.sites) != 1 or definition.outputs:
        return None
    site, name, names = definition.sites[0], said.get("name"), said.get("names")
    shaped = site.kind == "row" and site.layers is None and site.width == 1
    named = site.name == name and definition.name == f"{PREFIX}{name}"
    if not (shaped and named and said.get("stream") == site.stream):
        return None
    return RowColumn(site.name, site.stream, _texts(names), definition.name)


def class_names(definition: CaptureDefinition, site: str) -> tuple[str, ...]:
    """Return the names of the classes 0, 1, 2, … in a row site of width 1; empty where unknown."""
    column = row_column_of(definition)
    if column is not None:
        return column.names if column.name == site else ()
    names = definition.attrs.get(NAMES_KEY)
    return _texts(names.get(site)) if isinstance(names, Mapping) else ()


def look_up_rows(
    wanted: tuple[NDArray[np.int64], NDArray[np.int64]],
    held: tuple[NDArray[np.int64], NDArray[np.int64]],
    values: NDArray[Any],
) -> NDArray[Any]:
    """Return the values of rows that are known by sample and position.

    Parameters
    ----------
    wanted
        Sample and position of every row that is asked for, [rows] each.
    held
        Sample and position of every row that has a value, [held rows] each.
    values
        Their values, float, [held rows].

    Returns
    -------
    numpy.ndarray
        [rows], NaN for a row that has none.
    """
    wanted_n, held_n = _row_keys(*wanted), _row_keys(*held)
    if held_n.size and (np.diff(held_n) < 0).any():
        order = np.argsort(held_n, kind="stable")
        held_n, values = held_n[order], values[order]
    found = np.full(wanted_n.size, np.nan, dtype=values.dtype)
    place_n = np.searchsorted(held_n, wanted_n)
    there = place_n < held_n.size
    there[there] = held_n[place_n[there]] == wanted_n[there]
    found[there] = values[place_n[there]]
    return found


def _row_keys(sample_n: NDArray[np.int64], position_n: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return one number a row; positions are int32 in a store."""
    return (sample_n.astype(np.int64) << 32) + position_n


def _texts(names: object) -> tuple[str, ...]:
    """Return names as they stand in JSON that anybody may have made; none where they are not."""
    if isinstance(names, Sequence) and all(type(name) is str for name in names):
        return tuple(names)
    return ()
