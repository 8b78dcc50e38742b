"""The report on spectra: in how many directions the outputs and gradients vary."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .curves import caption, capture_curves, curve_panel
from .frames import (
    first,
    having,
    in_sequence,
    leading_mask,
    not_computed,
    number,
    prefer,
    strings,
    take,
    values,
    where,
)
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


COLUMNS = (
    *("capture", "site", "layer", "mask", "n", "sv90", "sv90_interpolated"),
    *("sv90_interpolated_low", "sv90_interpolated_high", "erank", "erank_low", "erank_high"),
    *("stable_rank", "participation_ratio", "top10_energy", "above_shuffled", "exposed", "reason"),
)
"""What the page shows of the table."""
SPAN = "top4"
"""Directions of two captures that are compared on the page; the table has others."""


def svd_section(
    table: pd.DataFrame, spectrum: pd.DataFrame, angles: pd.DataFrame, study: Study
) -> Section:
    """Return SV90 by layer, cumulative energy and shared directions, a panel per site."""
    # Padding is no speech, and the uncentred rows measure the mean vector before anything else.
    rows, curves = (prefer(leading_mask(one), "centred", *YES) for one in (table, spectrum))
    sites = _sites(rows)
    shared = having(where(angles, "span", SPAN), "overlap")
    groups = [
        _sv90_group(rows, sites, study),
        _energy_group(curves, rows, sites, study),
        _shared_group(shared, study),
    ]
    findings = _findings(rows, sites, study)
    title = "Spectral measures by capture, site and layer"
    tables = [view(rows, key="svd", title=title, columns=[*COLUMNS])] if len(rows) else []
    if len(pairs := _of_adapted(shared, study)):
        title = f"The first 4 directions of {study.adapted} and of other captures"
        tables.append(view(pairs, key="angles", title=title))
    return Section(
        key="svd",
        title="Spectra (SVD)",
        question="In how many directions do activations and gradients vary?",
        findings=[*findings, *_shared_findings(shared, study)],
        headline=findings[:2],
        figures=[group for group in groups if group is not None],
        tables=tables,
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


def _of_adapted(shared: pd.DataFrame, study: Study) -> pd.DataFrame:
    """Return the pairs that the adapted capture is part of."""
    names = [strings(shared, name) == study.adapted for name in ("capture_a", "capture_b")]
    return take(shared, names[0] | names[1])


def _with_reference(shared: pd.DataFrame, study: Study) -> pd.DataFrame:
    """Return the pairs with the reference, the other capture of each in the column `capture`."""
    a, b = strings(shared, "capture_a"), strings(shared, "capture_b")
    found = take(shared, (a == study.reference) | (b == study.reference))
    a, b = strings(found, "capture_a"), strings(found, "capture_b")
    return found.assign(capture=np.where(a == study.reference, b, a))


def _shared_group(shared: pd.DataFrame, study: Study) -> FigureGroup | None:
    rows = having(_with_reference(shared, study), "layer")
    panels: list[Panel] = []
    layers = {site: values(where(rows, "site", site), "layer") for site in _sites(rows)}
    drawn = [site for site, found in layers.items() if np.unique(found).size > 1]
    for i, site in enumerate(drawn):
        part = where(rows, "site", site)
        lines = capture_curves(part, study, y="overlap")
        ends = [float(layers[site].min()), float(layers[site].max())]
        chance = Series("unrelated", ends, [first(part, "overlap_random")] * 2, style=None)
        name, label = f"svd-shared-{i}", "overlap"
        panels.append(curve_panel(name, site, [*lines, chance], y_label=label, y_limits=(0, 1.02)))
    if not panels:
        return None
    shown = take(rows, np.isin(strings(rows, "site"), drawn))
    estimator = "squared cosines of the spans of the first 4 principal directions"
    text = caption(shown, estimator=estimator, value="overlap", unit="rows")
    text += (
        f" 1: the same span as in {study.reference}; unrelated: random spans of as many directions."
    )
    return FigureGroup(f"Directions shared with {study.reference}", panels, text)


def _shared_findings(shared: pd.DataFrame, study: Study) -> list[str]:
    """Return what the adapted capture has of the reference's directions, site by site."""
    sentences = []
    rows = where(_with_reference(shared, study), "capture", study.adapted)
    for site in _sites(rows):
        part = where(rows, "site", site)
        mean, chance = (float(values(part, x).mean()) for x in ("overlap", "overlap_random"))
        sentences.append(
            f"{site}: {study.adapted} shares {number(mean)} of its first 4 directions with "
            f"{study.reference} (mean over layers; random spans: {number(chance)})."
        )
    return sentences


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
