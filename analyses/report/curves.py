"""Curves over layers, one per capture, and the captions that say how they came about."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .frames import (
    count_text,
    exposure_text,
    first,
    in_sequence,
    number,
    several,
    strings,
    take,
    values,
    where,
)
from .plots import Series, line_figure
from .section import Panel

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from .study import Study

PATH = ("embed", "resid_post", "encoder_out")
"""The sites on the path through the model, in its order."""


def capture_curves(
    rows: pd.DataFrame, study: Study, *, y: str, x: str = "layer", capture: str = "capture"
) -> list[Series]:
    """Return one line per capture that has any value, with its interval if there is one.

    Parameters
    ----------
    rows
        Rows of one quantity: at most one per capture and position.
    study
        Gives the order of the captures and their colours.
    y, x
        Columns of the values and of the positions; `<y>_low` and `<y>_high` are the interval.
    capture
        Column that names the capture.
    """
    lines = []
    for name in study.captures:
        part = in_sequence(where(rows, capture, name), x)
        if np.isfinite(values(part, y)).any():
            lines.append(
                Series(
                    name,
                    values(part, x).tolist(),
                    values(part, y).tolist(),
                    values(part, f"{y}_low").tolist(),
                    values(part, f"{y}_high").tolist(),
                    study.style(name),
                )
            )
    return lines


def curve_panel(
    name: str,
    title: str,
    lines: Sequence[Series],
    *,
    y_label: str,
    x_label: str = "layer",
    y_limits: tuple[float | None, float | None] = (None, None),
    ticks: tuple[Sequence[float], Sequence[str]] | None = None,
) -> Panel:
    """Return a line figure with a description that names the range of every line."""
    figure = line_figure(lines, x_label=x_label, y_label=y_label, y_limits=y_limits, ticks=ticks)
    ranges = "; ".join(
        f"{line.label}: {number(np.nanmin(line.y))} to {number(np.nanmax(line.y))}"
        for line in lines
        if line.label and np.isfinite(line.y).any()
    )
    return Panel(name, title, figure, f"{y_label} by {x_label}. {ranges}.")


def caption(
    rows: pd.DataFrame, *, estimator: str, value: str, unit: str = "samples", mask: str = ""
) -> str:
    """Return how the values of a figure came about: N, which samples, estimator, mask, interval.

    Parameters
    ----------
    rows
        The rows that the figure shows.
    estimator
        How one value is computed.
    value
        The column that is drawn; its interval columns say whether there is an interval.
    unit
        What `n` counts.
    mask
        Which frames were used, where the table has no column that says so.
    """
    exposed = exposure_text(rows)
    mask = mask or several(rows, "mask")
    has_interval = np.isfinite(values(rows, f"{value}_low")).any()
    level = rows.attrs.get("interval")
    parts = [
        f"{count_text(rows)} {unit}" + (f" ({exposed})" if exposed else ""),
        f"estimator: {estimator}",
        *([f"mask: {mask} frames"] if mask else []),
        f"interval: {level or 'method not stated'}" if has_interval else "interval: none computed",
    ]
    return "; ".join(parts) + "."


def along_the_model(
    rows: pd.DataFrame,
) -> tuple[pd.DataFrame, tuple[list[float], list[str]]]:
    """Return the rows on the path through the model, with their `position` and the ticks for it.

    The path is `embed` (one before the first layer), `resid_post` by layer, `encoder_out` (one
    after the last). Rows of other sites are left out; a table without sites is all `resid_post`.
    """
    site = site_families(rows)
    rows, site = take(rows, np.isin(site, PATH)), site[np.isin(site, PATH)]
    layer = values(rows, "layer")
    inner = layer[(site == "resid_post") & np.isfinite(layer)]
    last = float(inner.max()) if inner.size else -1.0
    position = np.where(site == "embed", -1.0, np.where(site == "encoder_out", last + 1, layer))
    names = {-1.0: "emb", last + 1: "out"}
    ticks = sorted({float(p) for p in position if np.isfinite(p)})
    return rows.assign(position=position), (ticks, [names.get(p, str(int(p))) for p in ticks])


def site_families(rows: pd.DataFrame) -> NDArray[np.str_]:
    """Return the first part of every site name: ``lora_a`` for ``lora_a.v_proj``."""
    names = [str(name).split(".")[0] or "resid_post" for name in strings(rows, "site")]
    return np.asarray(names, dtype=np.str_)


def place(rows: pd.DataFrame) -> str:
    """Return where on the path through the model the first row is, in words."""
    site = str(strings(rows, "site")[0]).split(".")[0] or "resid_post"
    layer = first(rows, "layer")
    return f"layer {int(layer)}" if np.isfinite(layer) and site == "resid_post" else site
