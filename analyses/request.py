"""Which analyses a call asks for: by name, with other options, of another variant."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from .errors import AnalysisInputError
from .fold import Fold
from .own import as_analysis
from .paper.paper import Paper
from .plan import Analysis
from .similarity.cka import CKA

type Catalogue = Mapping[str, Analysis]
"""Analyses by name."""
type Names = Sequence[str | Analysis | Fold[Any, Any]] | None
"""What a call names; None: the whole catalogue."""


def choose(catalogue: Catalogue, names: Names) -> list[Analysis]:
    """Return the analyses that names and folds stand for, each once.

    Raises
    ------
    AnalysisInputError
        An unknown name (says which ones there are), or two analyses of one name.
    """
    chosen: dict[str, Analysis] = {}
    for name in catalogue if names is None else [names] if isinstance(names, str) else names:
        if not isinstance(name, str):
            analysis = as_analysis(name)
            if analysis.name in chosen:
                msg = f"two analyses are called {analysis.name!r}: give one of them another `name`."
                raise AnalysisInputError(msg)
            chosen[analysis.name] = analysis
        elif name in catalogue:
            chosen[name] = catalogue[name]
        else:
            close = difflib.get_close_matches(name, catalogue, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            msg = f"no analysis {name!r}.{hint} There are: {', '.join(catalogue)}."
            raise AnalysisInputError(msg)
    return list(chosen.values())


def choose_variant(
    catalogue: Catalogue, names: Names, variant: str, faults: Sequence[str]
) -> list[Analysis]:
    """Return the analyses of a variant: those named, for `paper` with its own before them."""
    if variant == "corrected" and not faults:
        return choose(catalogue, names)
    if variant == "corrected":
        msg = f"faults ({', '.join(faults)}) are those of the variant `paper`: ask for it."
        raise AnalysisInputError(msg)
    if variant != "paper":
        msg = f"no variant {variant!r}. There are: corrected, paper."
        raise AnalysisInputError(msg)
    named = [] if names is None else choose(catalogue, names)
    return [Paper.of([one.name for one in named] or None, faults), *named]


def with_exact(chosen: Sequence[Analysis]) -> list[Analysis]:
    """Return the analyses, `cka` with exact values of frames.

    Raises
    ------
    AnalysisInputError
        `cka` is not among them.
    """
    if not any(isinstance(one, CKA) for one in chosen):
        names = ", ".join(one.name for one in chosen)
        msg = f"exact is of cka, which was not asked for: {names}. Add cka, or leave --exact out."
        raise AnalysisInputError(msg)
    return [replace(one, exact=True) if isinstance(one, CKA) else one for one in chosen]
