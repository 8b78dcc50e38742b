"""The report on spectra: in how many directions the outputs and gradients vary."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .curves import caption, capture_curves, curve_panel
from .frames import having, in_sequence, not_computed, number, prefer, strings, take, values, where
from .plots import Series
from .section import FigureGroup, Section
from .tables import view

if TYPE_CHECKING:
    import pandas as pd

    from .section import Panel
    from .study import Study

ORDER = ("lora_a", "lora_b", "grad.lora_a", "grad.lora_b", "resid_post", "grad.resid_post")
"""Sites with figures, in this order; a site `lora_a.v_proj` counts as `lora_a`."""
YES = ("True", "true", "yes", "1")


def svd_section(table: pd.DataFrame, spectrum: pd.DataFrame, study: Study) -> Section:
    """Return SV90 by layer and the cumulative energy, a panel per site."""
    # The uncentred rows measure the mean vector before anything else, so the centred ones lead.
    rows, curves = prefer(table, "centred", *YES), prefer(spectrum, "centred", *YES)
    sites = _sites(rows)
    groups = [_sv90_group(rows, sites, study), _energy_group(curves, rows, sites, study)]
    findings = _findings(rows, sites, study)
    title = "Spectral measures by capture, site and layer"
    return Section(
        key="svd",
        title="Spectra (SVD)",
        question="In how many directions do activations and gradients vary?",
        findings=findings,
        headline=findings[:2],
        figures=[group for group in groups if group is not None],
        tables=[view(rows, key="svd", title=title)] if len(rows) else [],
        missing=not_computed(table, "sv90", "SV90"),
    )


def _sites(rows: pd.DataFrame) -> list[str]:
    present = [s for s in dict.fromkeys(strings(rows, "site")) if _family(s) in ORDER]
    return sorted(present, key=lambda site: ORDER.index(_family(site)))


def _family(site: str) -> str:
    """Return the site without its module: ``grad.lora_a.v_proj`` is ``grad.lora_a``."""
    parts = site.split(".")
    return ".".join(parts[:2] if parts[0] == "grad" else parts[:1])


def _caption(rows: pd.DataFrame, value: str) -> str:
    centred = "centred" if np.isin(strings(rows, "centred"), YES).all() else "uncentred"
    return caption(rows, estimator=f"singular values of {centred} rows", value=value, unit="rows")


def _measure(rows: pd.DataFrame) -> str:
    """Return the continuous SV90 where it is known: the integer one jumps."""
    known = np.isfinite(values(rows, "sv90_interpolated")).any()
    return "sv90_interpolated" if known else "sv90"


def _sv90_group(rows: pd.DataFrame, sites: list[str], study: Study) -> FigureGroup | None:
    measure = _measure(rows)
    panels = []
    for i, site in enumerate(sites):
        lines = capture_curves(where(rows, "site", site), study, y=measure)
        if lines:
            name = f"svd-sv90-{i}"
            panels.append(curve_panel(name, site, lines, y_label="SV90", y_limits=(0, None)))
    if not panels:
        return None
    text = _caption(take(rows, np.isin(strings(rows, "site"), sites)), measure)
    text += " SV90 is the number of directions that hold 90 % of the energy."
    return FigureGroup("Directions that hold 90 % of the energy", panels, text)


def _energy_group(
    curves: pd.DataFrame, rows: pd.DataFrame, sites: list[str], study: Study
) -> FigureGroup | None:
    panels: list[Panel] = []
    for i, site in enumerate(sites):
        part = where(curves, "site", site)
        lines = [
            line
            for capture in study.captures
            if (line := _energy_line(where(part, "capture", capture), capture, study))
        ]
        if lines:
            ninety = Series("90 %", [1, max(line.x[-1] for line in lines)], [0.9, 0.9], style=None)
            panels.append(
                curve_panel(
                    f"svd-energy-{i}",
                    site,
                    [*lines, ninety],
                    x_label="number of directions",
                    y_label="cumulative energy",
                    y_limits=(0, 1.02),
                )
            )
    if not panels:
        return None
    text = _caption(take(rows, np.isin(strings(rows, "site"), sites)), "energy")
    text += " Lines are means over the layers; bands reach from the lowest to the highest layer."
    return FigureGroup("Cumulative energy", panels, text)


def _energy_line(rows: pd.DataFrame, capture: str, study: Study) -> Series | None:
    """Return cumulative energy against the number of directions, mean and range over layers."""
    rows = having(rows, "energy")
    layers = strings(rows, "layer")
    by_layer = [
        np.cumsum(values(in_sequence(take(rows, layers == layer), "index"), "energy"))
        for layer in dict.fromkeys(layers)
    ]
    by_layer = [energy for energy in by_layer if energy[-1] > 0]  # 0 where nothing varies
    if not by_layer:
        return None
    longest = max(map(len, by_layer))  # beyond its last direction a layer has all its energy
    energy = np.stack([np.pad(one, (0, longest - len(one)), mode="edge") for one in by_layer])
    mean, low, high = energy.mean(axis=0), energy.min(axis=0), energy.max(axis=0)
    x = list(range(1, longest + 1))
    return Series(capture, x, mean.tolist(), low.tolist(), high.tolist(), study.style(capture))


def _findings(rows: pd.DataFrame, sites: list[str], study: Study) -> list[str]:
    sentences = []
    for site in sites:
        if _family(site) not in ORDER[:4]:
            continue
        part = where(rows, "site", site)
        means = []
        for capture in study.captures:
            found = values(where(part, "capture", capture), "sv90")
            found = found[np.isfinite(found)]
            if found.size:
                means.append(f"{number(float(found.mean()), digits=1)} in {capture}")
        if means:
            sentences.append(
                f"{site}: 90 % of the energy lies in this many directions (mean over layers): "
                f"{', '.join(means)}."
            )
    return sentences
