"""Folds that users bring: run in the same pass as those of the catalogue."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from .errors import AnalysisInputError
from .fold import ArrayKey, Block, Fold
from .plan import Analysis, Outcome, Plan, Table
from .selection import Selection

_PARTS = ("needs", "empty", "add", "merge", "finish")


@dataclass(frozen=True, eq=False, slots=True)
class OwnFold:
    """A user's fold as the engine wants it: hashable, with the memory that it says or none."""

    fold: Any

    @property
    def needs(self) -> tuple[ArrayKey, ...]:
        """Arrays that it reads."""
        return tuple(self.fold.needs)

    @property
    def scratch_bytes(self) -> int:
        """What it says, else 0."""
        return int(getattr(self.fold, "scratch_bytes", 0))

    def state_bytes(self, workers: int) -> int:
        """Return what it says, else 0."""
        own = getattr(self.fold, "state_bytes", None)
        return int(own(workers)) if own is not None else 0

    def empty(self) -> Any:  # noqa: ANN401 - a user's state
        """Return its state of no samples."""
        return self.fold.empty()

    def add(self, state: Any, block: Block) -> Any:  # noqa: ANN401
        """Return its state with one more block."""
        return self.fold.add(state, block)

    def merge(self, left: Any, right: Any) -> Any:  # noqa: ANN401
        """Return its state of both."""
        return self.fold.merge(left, right)

    def finish(self, state: Any) -> Any:  # noqa: ANN401
        """Return its result."""
        return self.fold.finish(state)


@dataclass(frozen=True, slots=True)
class OwnAnalysis:
    """One fold of a user as an analysis; its result becomes one table."""

    fold: OwnFold
    name: str
    description: str = "a fold of your own"

    def plan(self, selection: Selection) -> Plan:
        """Return the fold; AnalysisInputError where an array that it needs is absent."""
        if not self.fold.needs:
            msg = f"fold {self.name!r} needs no array: say which ones in `needs`."
            raise AnalysisInputError(msg)
        for key in self.fold.needs:
            selection.check_key(key)
        return Plan(partial(_conclude, self), (self.fold,))


def as_analysis(given: Analysis | Fold[Any, Any]) -> Analysis:
    """Return an analysis as it is, and a fold as an analysis of its own.

    The table is called by the fold's `name`, else by its class in lower case.

    Raises
    ------
    AnalysisInputError
        It is neither; says what is missing.
    """
    if isinstance(given, type):
        msg = f"{given.__name__} is a class; give an instance of it: {given.__name__}(...)."
        raise AnalysisInputError(msg)
    if hasattr(given, "plan"):
        return given  # pyright: ignore[reportReturnType] - by its shape
    absent = [part for part in _PARTS if not hasattr(given, part)]
    if absent:
        msg = (
            f"{given!r} is neither the name of an analysis, nor an analysis (`plan`), nor a fold: "
            f"it has no {', '.join(absent)}."
        )
        raise AnalysisInputError(msg)
    name = getattr(given, "name", None) or type(given).__name__.lower()
    return OwnAnalysis(OwnFold(given), str(name))


def _conclude(analysis: OwnAnalysis, outcome: Outcome) -> dict[str, Table]:
    result = outcome.folds[analysis.fold]
    return {analysis.name: Table(to_frame(result))}


def to_frame(result: Any) -> pd.DataFrame:  # noqa: ANN401 - whatever a fold gives
    """Return a result as a table.

    A table stays as it is; a mapping gives its columns (one row if it has plain values only); an
    array gives a column `value`, after one column `index_<axis>` for each axis.
    """
    if isinstance(result, pd.DataFrame):
        return result.reset_index(drop=True)
    if isinstance(result, Mapping):
        plain = all(np.ndim(value) == 0 for value in result.values())
        return pd.DataFrame([dict(result)] if plain else dict(result))
    values = np.asarray(result)
    places = np.indices(values.shape).reshape(values.ndim, values.size)
    columns = {f"index_{axis}": place for axis, place in enumerate(places)}
    return pd.DataFrame({**columns, "value": values.reshape(-1)})
