"""The frame of the report: what was compared, how sure it is, and where it comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from .frames import estimate, first, having, number, over_all_folds, plain, values, where
from .study import mapping
from .tables import view

if TYPE_CHECKING:
    from .section import Section, TableView
    from .study import Study

VALUE = {
    "cka": "value",
    "svd": "sv90",
    "probe": "uar",
    "lens": "overlap",
    "outputs": "uar",
    "erasure": "delta_uar",
    "alignment": "value",
    "gradients": "norm_mean",
    "embedding": "x",
}
"""The column that says whether a row of a table holds a result."""


def conditions(
    tables: Mapping[str, pd.DataFrame], described: Mapping[str, object], study: Study
) -> TableView:
    """Return one row per capture: adapter, training, samples, and the two scores that sum it up."""
    outputs = tables.get("outputs", pd.DataFrame())
    rows = []
    for capture in study.captures:
        about = described.get(capture)
        about = about if isinstance(about, Mapping) else {}
        score = where(outputs, "capture", capture)
        rows.append(
            {
                "capture": capture,
                "adapter": describe_adapter(about.get("adapter")),
                "trained": join(about.get("trained")) or ("nothing" if about else ""),
                "head from": _head_from(about),
                "samples": about.get("samples"),
                "exposed to training": about.get("exposed"),
                "UAR": estimate(score, "uar") if len(score) else "",
                "WAR": estimate(score, "war") if len(score) else "",
                "scored": number(first(score, "n"), digits=0) if len(score) else "",
            }
        )
    frame = pd.DataFrame(rows, columns=list(rows[0]) if rows else ["capture"])
    return view(frame, key="", title="Captures: one row per condition")


def describe_adapter(adapter: object) -> str:
    """Return an adapter in words: ``LoRA r = 8, α = 16 on v_proj``; ``none`` without one."""
    if not isinstance(adapter, Mapping):
        return "none"
    start = " from random A and B" if adapter.get("init") == "normal" else ""
    size = ", ".join(
        f"{sign} = {plain(adapter[key])}"
        for key, sign in (("r", "r"), ("alpha", "\N{GREEK SMALL LETTER ALPHA}"))
        if key in adapter
    )
    kind = plain(adapter.get("type", "adapter"))
    kind = "LoRA" if kind == "lora" else kind
    return f"{kind} {size} on {join(adapter.get('target_modules'))}{start}"


def facts(described: Mapping[str, object], study: Study) -> list[tuple[str, str]]:
    """Return what the captures have in common, as terms and texts."""
    about = described.get(study.reference)
    about = about if isinstance(about, Mapping) else {}
    model, split = mapping(about, "model"), mapping(about, "split")
    shape = [
        f"{plain(model[key])} {word}"
        for key, word in (("n_layers", "layers"), ("width", "features"), ("frames", "frames"))
        if model.get(key)
    ]
    window = model.get("window_seconds")
    found = {
        "Model": plain(model.get("base", "")),
        "Shape": ", ".join(shape),
        "Window": f"{plain(window)} s" if window else "",
        "Precision of the model": plain(model.get("dtype", "")),
        "Corpus": plain(about.get("corpus") or ""),
        "Labels": join(about.get("labels")),
        "Split": f"by {plain(split['by'])}" if split.get("by") else "",
        "Held out": join(split.get("test")),
        **{f"Number of {plain(k)}s": plain(v) for k, v in mapping(about, "groups").items()},
    }
    return [(term, text) for term, text in found.items() if text]


def lead(described: Mapping[str, object], study: Study) -> str:
    """Return the sentence under the title."""
    about = described.get(study.reference)
    about = about if isinstance(about, Mapping) else {}
    base = plain(mapping(about, "model").get("base", "")) or "a model"
    n = about.get("samples")
    count = f" on {plain(n)} samples" if n else ""
    names = ", ".join(study.captures) or "no capture"
    noun = "condition" if len(study.captures) == 1 else "conditions"
    return f"{len(study.captures)} {noun} of {base}{count}: {names}."


def certainty(tables: Mapping[str, pd.DataFrame], sections: Sequence[Section]) -> list[str]:
    """Return what a reader needs to know before believing the numbers."""
    methods: dict[str, list[str]] = {}
    for section in sections:
        method = tables.get(section.key, pd.DataFrame()).attrs.get("interval")
        if method:
            methods.setdefault(plain(method), []).append(section.title)
    lines = [f"Intervals of {', '.join(names)}: {method}." for method, names in methods.items()]
    if not lines:
        lines.append("No interval is known for these numbers.")
    smallest = _smallest(tables)
    if smallest:
        n, key, titles = smallest, *_where(tables, sections, smallest)
        lines.append(f"The smallest number of samples behind a value is {n} ({titles or key}).")
    lines.append(
        "Scores that pass through a trained head or adapter use only samples that training did "
        "not see; where a table could not keep to that, its column exposed says so."
    )
    n_missing = sum(len(section.missing) for section in sections)
    if n_missing:
        lines.append(
            f"{n_missing} {'group' if n_missing == 1 else 'groups'} of values could not be "
            "computed; each section lists its own with the reason."
        )
    return lines


def provenance(summary: Mapping[str, object]) -> list[tuple[str, str]]:
    """Return where the page comes from: store, digest, seed, versions."""
    rows: list[tuple[str, str]] = []
    for key, value in summary.items():
        if key in {"captures", "interventions", "command", "tables", "values", "skipped"}:
            continue
        _flatten(plain(key), value, rows)
    return rows


def skipped(summary: Mapping[str, object]) -> dict[str, str]:
    """Return the analyses that the store could not serve, with the reason."""
    noted = mapping(summary, "skipped")
    return {plain(name): plain_sentence(reason) for name, reason in noted.items()}


def plain_sentence(text: object) -> str:
    """Return a longer text from a result as harmless text."""
    return " ".join(plain(word) for word in str(text)[:600].split())


def join(value: object) -> str:
    """Return a list as text, a single value as itself."""
    if value is None:
        return ""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(plain(v) for v in value[:12]) + (" …" if len(value) > 12 else "")
    return plain(value)


def _smallest(tables: Mapping[str, pd.DataFrame]) -> int | None:
    found = [int(n) for key in VALUE if (n := _least_n(tables, key)) is not None]
    return min(found, default=None)


def _least_n(tables: Mapping[str, pd.DataFrame], key: str) -> float | None:
    """Return the smallest N behind a value of a table, rows of single folds aside."""
    if key not in tables or key == "svd":  # the spectra count rows, not samples
        return None
    table = over_all_folds(tables[key])
    n = values(having(table, VALUE[key]), "n")
    n = n[np.isfinite(n)]
    return float(n.min()) if n.size else None


def _where(
    tables: Mapping[str, pd.DataFrame], sections: Sequence[Section], smallest: int
) -> tuple[str, str]:
    keys = [key for key in VALUE if _least_n(tables, key) == smallest]
    titles = [section.title for section in sections if section.key in keys]
    return ", ".join(keys), ", ".join(titles)


def _flatten(name: str, value: object, rows: list[tuple[str, str]]) -> None:
    """Add a nested value of the summary as flat rows."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _flatten(f"{name} {plain(key)}", inner, rows)
    elif value is not None and value != "":
        rows.append((name.replace("_", " "), join(value)))


def _head_from(about: Mapping[str, object]) -> str:
    """Name the capture whose head it is; a store of another tool says nothing of heads."""
    giver = mapping(about, "head").get("from", "")
    return "untrained" if giver is None else plain(giver)
