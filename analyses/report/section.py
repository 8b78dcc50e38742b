"""What a section of the report consists of, whatever analysis it is about."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class Panel:
    """One drawing, saved as `figures/<name>.svg` and `.png` and set into the page."""

    name: str
    """File name without ending: letters, digits, dots and dashes."""
    title: str
    """What is drawn, in a few words."""
    figure: Figure
    """The drawing."""
    description: str
    """What the drawing shows, in words, for those who do not see it."""


@dataclass(frozen=True, slots=True)
class FigureGroup:
    """Panels that are read together, under one caption."""

    title: str
    """What the panels answer together."""
    panels: list[Panel]
    """At least one panel."""
    caption: str
    """How the numbers came about: N, estimator, mask, interval."""


@dataclass(frozen=True, slots=True)
class TableView:
    """A result table as the page shows it: formatted cells, constant columns said once."""

    title: str
    """What the rows are."""
    columns: list[str]
    """Headings of the columns that vary."""
    numeric: list[bool]
    """Which columns hold numbers (set flush right)."""
    rows: list[list[str]]
    """Formatted cells, row by row."""
    constants: str
    """The columns that have one value in all rows, as `name = value` pairs; may be empty."""
    note: str
    """What is not shown and where it is; may be empty."""


@dataclass(frozen=True, slots=True)
class Section:
    """One analysis in the report."""

    key: str
    """Anchor in the page, and the name of the table it comes from."""
    title: str
    """Heading."""
    question: str
    """The question that the section answers."""
    findings: list[str] = field(default_factory=list)
    """The answers, one sentence each."""
    headline: list[str] = field(default_factory=list)
    """The one or two answers that also stand at the top of the page."""
    figures: list[FigureGroup] = field(default_factory=list)
    """The figures, in reading order."""
    tables: list[TableView] = field(default_factory=list)
    """The numbers behind the figures."""
    missing: list[str] = field(default_factory=list)
    """What was not computed, each with its reason."""
