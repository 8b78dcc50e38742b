"""The seam of every analysis: what it folds, which pooled features it needs, how it concludes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .engine import Runner
from .fold import ArrayKey, Fold
from .pooled import PooledSource
from .selection import Selection, matches
from .source import View


@dataclass(frozen=True, slots=True)
class Table:
    """One table of results, with how it was made."""

    frame: pd.DataFrame
    attrs: dict[str, Any] = field(default_factory=dict)
    """Estimator choices, each a number or a short text."""


def join_tables(first: Table, second: Table) -> Table:
    """Return the rows of two analyses that fill one table; what both say of it, the first says."""
    frame = pd.concat([first.frame, second.frame], ignore_index=True)
    return Table(frame, {**second.attrs, **first.attrs})


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an analysis concludes from."""

    selection: Selection
    folds: Mapping[Fold[Any, Any], Any]
    """Result of every fold that was planned."""
    pooled: PooledSource
    runner: Runner


@dataclass(frozen=True, slots=True)
class Plan:
    """What one analysis will do."""

    conclude: Callable[[Outcome], dict[str, Table]]
    """Tables by name, from the results of the folds."""
    folds: tuple[Fold[Any, Any], ...] = ()
    pooled: tuple[ArrayKey, ...] = ()
    """Pooled arrays that it reads."""
    notes: tuple[str, ...] = ()
    """What the reader should know before the store is read: what it lacks for some of it."""


class Analysis(Protocol):
    """A frozen value that holds the options of one analysis."""

    @property
    def name(self) -> str:
        """What it is asked for by."""
        ...

    @property
    def description(self) -> str:
        """One line for `--help`."""
        ...

    def plan(self, selection: Selection) -> Plan:
        """Return what it will do, or raise `MissingSitesError` before anything is read."""
        ...


def describe_exposure(view: View, samples: NDArray[np.int64], *, through: str = "adapter") -> str:
    """Return whether samples of the training part are among those used: `none`, `all` or `only`.

    `none` also where no training shaped the features (``through="head"``: nor the head, which
    shapes whatever passes it, gradients too). `all` means used regardless, some of them exposed.
    """
    exposed = view.exposed_n[samples]
    shaped = view.trained("adapter") or (through == "head" and view.trained("head"))
    if not exposed.any() or not shaped:
        return "none"
    return "only" if exposed.all() else "all"


def mask_of(view: View, site: str) -> str:
    """Return which frames the rows of a site are, as recorded: `valid`, `all` or `every:K`.

    Configurations name sites by their first parts: `lora_a` for `lora_a.v_proj`.
    """
    record = view.attrs.get("record")
    record = record if isinstance(record, Mapping) else {}
    table = record.get("gradients" if site.startswith("grad.") else "sites")
    own = site.removeprefix("grad.")
    for name, options in table.items() if isinstance(table, Mapping) else ():
        if matches(own, str(name)) and isinstance(options, Mapping) and options.get("frames"):
            return str(options["frames"])
    return str(record.get("frames") or "valid")


def most_exposed(*words: str) -> str:
    """Return `exposed` of a comparison: that of its most exposed side."""
    return max(words, key=("none", "all", "only").index)


def comparable(left: View, right: View) -> bool:
    """Return whether two captures are compared: moments of a training with its end alone."""
    ends = [view.attrs.get("of", view.name) == view.name for view in (left, right)]
    return all(ends) or (any(ends) and left.attrs.get("of") == right.attrs.get("of"))


def unexposed_samples(view: View, *, through: str) -> NDArray[np.int64]:
    """Return the samples on which scores may be computed.

    Parameters
    ----------
    view
        The capture.
    through
        `head` for what passes the classifier, `adapter` for features: where that part was trained,
        the samples of its training part are left out.

    Notes
    -----
    Scores through the head leave them out when the adapter was trained, too.
    """
    samples = view.samples
    shaped = view.trained("adapter") or (through == "head" and view.trained("head"))
    return samples[~view.exposed_n[samples]] if shaped else samples
