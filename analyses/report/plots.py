"""Drawing: the few kinds of figure that the report is made of, in one house style.

All figures are made through matplotlib's object interface (no pyplot, no global figure list) and
inside `house_style`. Every colour of a line or a text is one of the fixed values below, so that
the page can replace it when the reader prefers a dark page; colour never is the only sign: lines
also differ by marker and dash, heatmaps carry their values as far as these fit.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

INK = "#1b2430"
MUTED = "#5c6673"
RULE = "#dde2e8"
SERIES = ("#0f62ac", "#c0430e", "#0b7a5c", "#87409f", "#8a6100", "#b0266a")
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", (0, (6, 2)), (0, (2.5, 1.5)), (0, (7, 2, 1.5, 2)), (0, (1, 1)), (0, (4, 1, 1, 1)))
MAX_WRITTEN_CELLS = 12
"""Up to this many rows a heatmap carries its values; beyond, they would not be legible."""

MARKERS_PER_LINE = 12
"""About as many markers does a line carry; more would run into each other."""


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a line figure."""

    label: str
    """What the legend says; empty for a line without an entry."""
    x: Sequence[float]
    """Positions."""
    y: Sequence[float]
    """Values; NaN leaves a gap."""
    low: Sequence[float] | None = None
    """Lower ends of the intervals, or None."""
    high: Sequence[float] | None = None
    """Upper ends of the intervals, or None."""
    style: int | None = 0
    """Which colour, marker and dash; None draws a muted line without markers (a reference)."""
    dotted: bool = False
    """Whether to draw a thin dotted line, with small crosses, in the series' own colour."""


@dataclass(frozen=True, slots=True)
class Cloud:
    """The points of one group in a scatter figure."""

    label: str
    """What the legend says; empty for points without an entry."""
    x: NDArray[np.float64]
    """Places across, [points]."""
    y: NDArray[np.float64]
    """Places upwards, [points]."""
    style: int | None
    """Which colour and marker; None draws muted points."""


@contextmanager
def house_style() -> Iterator[None]:
    """Draw and save figures in the report's style; strings are text, never mathematics."""
    import matplotlib as mpl

    settings: dict[Any, Any] = {  # the keys are a closed set of literals to the type checker
        "axes.edgecolor": MUTED,
        "axes.labelcolor": INK,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlesize": 10,
        "font.family": ["DejaVu Sans"],
        "font.size": 10,
        "grid.color": RULE,
        "grid.linewidth": 0.8,
        "legend.fontsize": 9.5,
        "legend.frameon": False,
        "lines.linewidth": 1.7,
        "lines.markersize": 5,
        "savefig.dpi": 160,
        "svg.fonttype": "none",  # text stays text: it can be searched and follows the page's font
        "svg.hashsalt": "lorascope",  # equal input gives equal files
        "text.color": INK,
        "text.parse_math": False,  # a label such as "$\\x$" is not a formula
        "xtick.color": MUTED,
        "xtick.labelcolor": INK,
        "xtick.labelsize": 9,
        "ytick.color": MUTED,
        "ytick.labelcolor": INK,
        "ytick.labelsize": 9,
    }
    with mpl.rc_context(settings):
        yield


def line_figure(
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    ticks: tuple[Sequence[float], Sequence[str]] | None = None,
    y_limits: tuple[float | None, float | None] = (None, None),
    log_y: bool = False,
) -> Figure:
    """Return lines with their intervals as bands and a legend below.

    Parameters
    ----------
    series
        The lines, in the order of the legend.
    x_label, y_label
        Names of the axes.
    ticks
        Positions and names on the x axis; without it, whole numbers.
    y_limits
        Lower and upper end of the y axis; None lets the data decide.
    log_y
        Whether the y axis is logarithmic.
    """
    figure, axes = _blank(4.8, 3.5)
    for line in series:
        _draw_line(axes, line)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(visible=True, axis="y")
    if log_y:
        axes.set_yscale("log")
    low, high = y_limits
    axes.set_ylim(bottom=low, top=high)
    _name_ticks(axes, ticks)
    named = [line for line in series if line.label]
    if named:
        figure.legend(loc="outside lower center", ncols=2 if len(named) > 1 else 1)
    return figure


def heatmap_figure(
    values_yx: NDArray[np.float64],
    *,
    x_names: Sequence[str],
    y_names: Sequence[str],
    x_label: str,
    y_label: str,
    value_label: str,
    written: NDArray[np.str_] | None = None,
) -> Figure:
    """Return square cells on the fixed scale 0 to 1, with the values in them where they fit.

    Values outside 0..1 (a debiased estimate can leave it) get the colour of the nearer end and
    keep their own number. Cells without a value stay blank and are marked with a cross.

    Parameters
    ----------
    values_yx
        Shape ``(len(y_names), len(x_names))``; NaN where there is no value.
    x_names, y_names
        Names of the columns and rows.
    x_label, y_label, value_label
        Names of the axes and of the colour scale.
    written
        What to write into the cells instead of the values with two decimals; of their shape.
    """
    n_rows, n_columns = values_yx.shape
    figure, axes = _blank(4.8, 4.3)
    image = axes.imshow(
        np.clip(values_yx, 0.0, 1.0),
        cmap="cividis",
        vmin=0.0,
        vmax=1.0,
        interpolation="none",
        aspect="equal",
    )
    if max(n_rows, n_columns) <= MAX_WRITTEN_CELLS:
        _write_cells(axes, values_yx, written)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    shown = _thinned(n_columns)
    slant = max((len(x_names[i]) for i in shown), default=0) > 4
    axes.set_xticks(shown, [x_names[i] for i in shown], rotation=35 if slant else 0)
    if slant:
        for label in axes.get_xticklabels():
            label.set_horizontalalignment("right")
            label.set_rotation_mode("anchor")
    axes.set_yticks(_thinned(n_rows), [y_names[i] for i in _thinned(n_rows)])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    bar = figure.colorbar(image, ax=axes, shrink=0.85, label=value_label)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue] a spine, typed as a table of spines
    return figure


def scatter_figure(clouds: Sequence[Cloud], *, below: str) -> Figure:
    """Return groups of points in a plane without units, with a text and a legend below.

    Groups differ by colour and marker: the marker shifts when the colours have all been used.
    """
    figure, axes = _blank(4.8, 4.8)
    for cloud in clouds:
        index = cloud.style or 0
        marker = MARKERS[(index + index // len(SERIES)) % len(MARKERS)]
        axes.plot(
            cloud.x,
            cloud.y,
            color=MUTED if cloud.style is None else SERIES[index % len(SERIES)],
            label=cloud.label or "_",
            linestyle="none",
            marker="." if cloud.style is None else marker,
            markersize=4,
            markeredgewidth=0,
            alpha=0.75,
        )
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_xlabel(below, fontsize=9.5)
    if any(cloud.label for cloud in clouds):
        figure.legend(loc="outside lower center", ncols=4)
    return figure


def _blank(width: float, height: float) -> tuple[Figure, Axes]:
    """Return an empty figure (inches) whose background the page can take out."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_gid("paper")
    axes = figure.subplots()
    axes.patch.set_visible(False)
    return figure, axes


def _draw_line(axes: Axes, line: Series) -> None:
    reference = line.style is None
    index = 0 if line.style is None else line.style
    colour = MUTED if reference else SERIES[index % len(SERIES)]
    if line.low is not None and line.high is not None:
        band = np.isfinite(line.low) & np.isfinite(line.high)
        if band.any():
            axes.fill_between(
                line.x, line.low, line.high, where=band, color=colour, alpha=0.17, linewidth=0
            )
    plain = reference or line.dotted
    axes.plot(
        line.x,
        line.y,
        color=colour,
        label=line.label or "_",
        linestyle=(0, (1.2, 1.8)) if plain else DASHES[index % len(DASHES)],
        linewidth=1.3 if plain else 1.7,
        marker=None if reference else "x" if line.dotted else MARKERS[index % len(MARKERS)],
        markevery=max(1, round(len(line.x) / MARKERS_PER_LINE)),
        markersize=4 if line.dotted else 5,
    )


def _name_ticks(axes: Axes, ticks: tuple[Sequence[float], Sequence[str]] | None) -> None:
    from matplotlib.ticker import MaxNLocator

    if ticks is None:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        return
    positions, names = ticks
    shown = _thinned(len(positions))
    axes.set_xticks([positions[i] for i in shown], [names[i] for i in shown])


def _thinned(n: int) -> list[int]:
    """Return the indices of at most about a dozen evenly spaced ticks out of `n`."""
    step = max(1, -(-n // MAX_WRITTEN_CELLS))
    return list(range(0, n, step))


def _write_cells(
    axes: Axes, values_yx: NDArray[np.float64], written: NDArray[np.str_] | None
) -> None:
    size = 9.5 if max(values_yx.shape) <= 6 else 7
    for (row, column), value in np.ndenumerate(values_yx):
        if np.isnan(value):
            text, colour = "\N{MULTIPLICATION SIGN}", MUTED
        else:
            text = f"{value:.2f}" if written is None else str(written[row, column])
            colour = "#ffffff" if value < 0.55 else "#000000"  # on cividis, both reach 4.5:1
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=size)
