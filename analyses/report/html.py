"""The page: sections, figures and the style sheet put into one file that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import pandas as pd

from . import overview
from .frames import plain, plain_table
from .plots import house_style
from .section import Section, TableView
from .section_alignment import alignment_section
from .section_cka import cka_section
from .section_contribution import contribution_section
from .section_embedding import embedding_section
from .section_erasure import erasure_section
from .section_gradients import gradients_section
from .section_lens import lens_section
from .section_outputs import outputs_section
from .section_paper import paper_section
from .section_probe import probe_section
from .section_svd import svd_section
from .section_weights import weights_section
from .study import Study, mapping, read_study
from .svg import save_panel


@dataclass(frozen=True, slots=True)
class Page:
    """What the template fills in."""

    title: str
    """Name of the store."""
    lead: str
    """One sentence that says what was compared."""
    sections: list[Section]
    """One per analysis, in reading order."""
    headlines: list[Section]
    """The sections that have an answer for the top of the page."""
    certainty: list[str]
    """What to know before believing the numbers."""
    conditions: TableView
    """One row per capture."""
    facts: list[tuple[str, str]]
    """What the captures have in common."""
    command: str
    """The command that made the page; may be empty."""
    provenance: list[tuple[str, str]]
    """Store, digest, seeds, versions."""


def render_report(
    tables: Mapping[str, pd.DataFrame], summary: Mapping[str, object], out_path: Path
) -> Path:
    """Write ``report.html`` and ``figures/*.svg|png`` and return the path of the page.

    The page is one file without scripts that makes no request. Every string is treated as data:
    nothing in a store can become markup, and control characters become visible.

    Parameters
    ----------
    tables
        Result tables by name, as `lorascope.analyses.to_tables` returns them; missing ones, missing
        columns and values that could not be computed are said on the page.
    summary
        What `summary.json` holds. Read are `command`, `captures` (what each is), `skipped` (why an
        analysis is absent) and, for the provenance block, `store`, `seed`, `versions` and the like.
        All of it may be missing.
    out_path
        Folder to write into; made if it does not exist.

    Returns
    -------
    pathlib.Path
        ``out_path / "report.html"``.

    Notes
    -----
    Time is that of matplotlib, about a quarter of a second per panel; the number of panels grows
    with captures and sites, not with layers.
    """
    clean = {plain(name): plain_table(table) for name, table in tables.items()}
    study = read_study(clean, summary)
    figures_path = out_path / "figures"
    figures_path.mkdir(parents=True, exist_ok=True)
    with house_style():
        sections = make_sections(clean, study, overview.skipped(summary))
        drawings = {
            panel.name: save_panel(panel, figures_path)
            for section in sections
            for group in section.figures
            for panel in group.panels
        }
    page = _make_page(clean, summary, study, sections)
    path = out_path / "report.html"
    path.write_text(_fill(page, drawings), encoding="utf-8")
    return path


def make_sections(
    tables: Mapping[str, pd.DataFrame], study: Study, reasons: Mapping[str, str]
) -> list[Section]:
    """Return one section per analysis, those without a table saying why."""
    table = defaultdict(pd.DataFrame, tables)
    sections = [
        outputs_section(table["outputs"], table["confusion"], study),
        probe_section(table["probe"], study, table),
        cka_section(table["cka"], study),
        alignment_section(table["alignment"], study),
        svd_section(table["svd"], table["spectrum"], table["angles"], study),
        lens_section(table["lens"], table["tuned_lens"], study),
        contribution_section(table["contribution"], study),
        erasure_section(table["erasure"], study),
        weights_section(table["weights"], table["subspaces"], study),
        gradients_section(table["gradients"], study),
        embedding_section(table["embedding"], table["embedding_quality"], study),
    ]
    if "paper" in tables:  # a variant that few ask for: its absence needs no word
        asked = [section for section in sections if section.key in tables]
        sections = [paper_section(table["paper"], study), *asked]
    for section in sections:
        if section.key not in tables or tables[section.key].empty:
            reason = reasons.get(section.key, "this analysis was not part of the run.")
            section.missing.append(f"Nothing here: {reason}")
    return sections


def _make_page(
    tables: Mapping[str, pd.DataFrame],
    summary: Mapping[str, object],
    study: Study,
    sections: list[Section],
) -> Page:
    described = {plain(name): value for name, value in mapping(summary, "captures").items()}
    name = mapping(summary, "store").get("name")
    return Page(
        title=plain(name) if name else "Report",
        lead=overview.lead(described, study),
        sections=sections,
        headlines=[section for section in sections if section.headline],
        certainty=overview.certainty(tables, sections),
        conditions=overview.conditions(tables, described, study),
        facts=overview.facts(described, study),
        command=overview.plain_sentence(summary.get("command", "")),
        provenance=overview.provenance(summary),
    )


def _fill(page: Page, drawings: Mapping[str, str]) -> str:
    """Return the page as text; only our own style sheet and drawings are not escaped."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    style = files(__package__).joinpath("style.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    template = files(__package__).joinpath("template.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    return environment.from_string(template).render(
        page=page,
        policy=policy,
        style=Markup(style),
        drawings={name: Markup(text) for name, text in drawings.items()},
    )
