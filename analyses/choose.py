"""Which analyses run: those named or all, those of a variant, and what each of them plans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from .errors import AnalysisInputError, MemoryBudgetError, MissingSitesError, suggest
from .fold import Fold
from .memory import check_fits
from .own import as_analysis
from .paper.paper import Paper
from .plan import Analysis, Plan
from .selection import Selection
from .similarity.cka import CKA

type Name = str | Analysis | Fold[Any, Any]
"""Name of the catalogue, an analysis with other options, or a fold of a user."""


def choose(names: Sequence[Name] | None, catalogue: Mapping[str, Analysis]) -> list[Analysis]:
    """Return the analyses that names and folds stand for, each once; None: the whole catalogue.

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
            hint = suggest(name, catalogue)
            msg = f"no analysis {name!r}.{hint} There are: {', '.join(catalogue)}."
            raise AnalysisInputError(msg)
    return list(chosen.values())


def choose_variant(
    names: Sequence[Name] | None,
    catalogue: Mapping[str, Analysis],
    variant: str,
    faults: Sequence[str],
) -> list[Analysis]:
    """Return the analyses of a variant: those named, for `paper` with its own before them."""
    if variant == "corrected" and not faults:
        return choose(names, catalogue)
    if variant == "corrected":
        msg = f"faults ({', '.join(faults)}) are those of the variant `paper`: ask for it."
        raise AnalysisInputError(msg)
    if variant != "paper":
        msg = f"no variant {variant!r}. There are: corrected, paper."
        raise AnalysisInputError(msg)
    named = [] if names is None else choose(names, catalogue)
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


def make_plans(
    chosen: Sequence[Analysis], selection: Selection, *, by_default: bool
) -> tuple[dict[str, Plan], dict[str, str]]:
    """Return the plans by name, and why analyses that nobody asked for by name are left out.

    Parameters
    ----------
    chosen
        What `choose_variant` gave.
    selection
        What they are about.
    by_default
        Whether nobody named them: what the store or the memory cannot serve is left out then.

    Raises
    ------
    MissingSitesError
        One that was asked for by name misses its sites, or the store serves none.
    MemoryBudgetError
        One that was asked for by name does not fit into the memory, or none does.
    """
    plans: dict[str, Plan] = {}
    skipped: dict[str, str] = {}
    short: MemoryBudgetError | None = None
    for analysis in chosen:
        if by_default and not getattr(analysis, "by_default", True):
            skipped[analysis.name] = "it takes its time and runs where it is asked for by name."
            continue
        try:
            plan = analysis.plan(selection)
            check_fits(plan.folds, selection.source.sizes, selection.memory_bytes)
            plans[analysis.name] = plan
        except (MissingSitesError, MemoryBudgetError) as error:
            if not by_default or getattr(analysis, "exact", False):  # exact is asked for, too
                raise
            skipped[analysis.name] = str(error)
            short = error if isinstance(error, MemoryBudgetError) else short
    if not plans and short is not None:
        raise short
    if not plans:
        msg = f"the store serves no analysis. {' '.join(skipped.values())}"
        raise MissingSitesError(msg)
    return plans, skipped
