"""What can go wrong in an analysis, grouped by what the person who sees it would do.

- `AnalysisError` — root of this room.
  - `AnalysisInputError` — the request does not fit the store: ask otherwise, or record more.
    - `MissingSitesError` — an analysis whose sites were not captured: record them.
  - `MemoryBudgetError` — not even one block fits: raise `memory`, or ask for fewer arrays.
  - `DeviceError` — no such device here: install what it needs, or compute on the CPU.
"""

from __future__ import annotations

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
