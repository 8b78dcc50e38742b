"""What can go wrong in an analysis, grouped by what the person who sees it would do.

- `AnalysisError` — root of this room.
  - `AnalysisInputError` — the request does not fit the store: ask otherwise, or record more.
    - `MissingSitesError` — an analysis whose sites were not captured: record them.
  - `MemoryBudgetError` — not even one block fits: raise `memory`, or ask for fewer arrays.
  - `DeviceError` — no such device here: install what it needs, or compute on the CPU.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from ..store.errors import LorascopeError


class AnalysisError(LorascopeError):
    """An expected error of an analysis."""


class AnalysisInputError(AnalysisError, ValueError):
    """The request does not fit what the store holds."""


class MissingSitesError(AnalysisInputError):
    """The store lacks what an analysis reads."""


class MemoryBudgetError(AnalysisError, MemoryError):
    """The smallest possible block and its accumulators exceed the memory that was allowed."""


class DeviceError(AnalysisError, RuntimeError):
    """A device that was asked for is not there."""


def suggest(asked: str, present: Iterable[str], *, likeness: float = 0.6) -> str:
    """Return the question whether the most similar name was meant.

    Empty where none is as like the one that was asked for as `likeness` (0 to 1) says.
    """
    close = difflib.get_close_matches(asked, list(present), n=1, cutoff=likeness)
    return f" Did you mean {close[0]!r}?" if close else ""
