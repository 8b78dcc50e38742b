"""Options of analyses as text: `cka.permutations=1000` is `CKA(permutations=1000)`."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from .errors import AnalysisInputError, suggest
from .plan import Analysis

_OWN = ("name", "description", "by_default")
"""Fields that say what an analysis is, not how it runs."""
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", type(None): "none"}

_WORDS: dict[Any, dict[str, Any]] = {
    bool: {"true": True, "false": False},
    type(None): {"none": None},
}


def list_options(analysis: Analysis) -> dict[str, Any]:
    """Return the options of an analysis with the types of their values, by name."""
    if not dataclasses.is_dataclass(analysis):
        return {}
    hints = get_type_hints(type(analysis))
    names = [field.name for field in dataclasses.fields(analysis)]
    return {name: hints[name] for name in names if name not in _OWN}


def apply_options(
    chosen: Sequence[Analysis],
    catalogue: Mapping[str, Analysis],
    texts: Sequence[str],
    *,
    by_default: bool = False,
) -> list[Analysis]:
    """Return the analyses with options changed.

    Parameters
    ----------
    chosen
        Analyses that were chosen.
    catalogue
        All analyses, by name.
    texts
        Each `analysis.option=value`; several values with commas, `none` where an option may be.
    by_default
        Whether nobody named them: those that run only by name do not run.

    Raises
    ------
    AnalysisInputError
        No such analysis or option (says which ones there are), one of an analysis that does not
        run, one that is given twice, or a value of another type.
    """
    changes: dict[str, dict[str, Any]] = {}
    running = {a.name: a for a in chosen if not by_default or getattr(a, "by_default", True)}
    for text in texts:
        place, equals, value = text.partition("=")
        name, dot, option = place.strip().partition(".")
        if not (equals and dot and name and option):
            msg = f"option {text!r} is not NAME.OPTION=VALUE, such as cka.permutations=1000."
            raise AnalysisInputError(msg)
        if name not in catalogue:
            raise AnalysisInputError(_absent(f"analysis {name!r}", name, catalogue))
        if name not in running:
            msg = f"option {text!r} is of {name}, which was not asked for: {', '.join(running)}."
            raise AnalysisInputError(msg)
        known = list_options(catalogue[name])
        if option not in known:
            raise AnalysisInputError(_absent(f"option {option!r} of {name}", option, known))
        if option in changes.setdefault(name, {}):
            msg = f"option {name}.{option} is given twice."
            raise AnalysisInputError(msg)
        changes[name][option] = _parse(f"{name}.{option}", known[option], value.strip())
    changed = {n: dataclasses.replace(running[n], **part) for n, part in changes.items()}  # type: ignore[type-var]
    return [changed.get(analysis.name, analysis) for analysis in chosen]


def changed_options(
    chosen: Sequence[Analysis], catalogue: Mapping[str, Analysis]
) -> dict[str, dict[str, Any]]:
    """Return the options that differ from those of the catalogue, by analysis."""
    found: dict[str, dict[str, Any]] = {}
    for analysis in chosen:
        default = catalogue.get(analysis.name)
        if type(analysis) is not type(default):
            continue
        values = {name: getattr(analysis, name) for name in list_options(analysis)}
        differ = {name: x for name, x in values.items() if x != getattr(default, name)}
        if differ:
            found[analysis.name] = differ
    return found


def describe_type(kind: Any) -> str:  # noqa: ANN401 - an annotation
    """Return what a value of this type looks like: `a whole number or none`."""
    kind = getattr(kind, "__value__", kind)
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " or ".join(map(str, parts))
    if origin is tuple:
        each = describe_type(parts[0]).removeprefix("a ")
        return f"{each}s, separated by commas"
    if origin in (Union, types.UnionType):
        return " or ".join(describe_type(part) for part in parts)
    return _KINDS.get(kind, "a word")


def _parse(place: str, kind: Any, text: str) -> Any:  # noqa: ANN401 - what the annotation says
    """Return the value that a text stands for, or raise AnalysisInputError."""
    try:
        return _read(kind, text)
    except ValueError:
        msg = f"{place}={text} is not {describe_type(kind)}."
        raise AnalysisInputError(msg) from None


def _read(kind: Any, text: str) -> Any:  # noqa: ANN401
    """Return a text as a value of a type; ValueError where it is none."""
    kind = getattr(kind, "__value__", kind)
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _read_first(sorted(parts, key=lambda part: part is str), text)
    if origin is tuple:
        return tuple(_read(parts[0], part.strip()) for part in text.split(","))
    if origin is Literal or kind in (bool, type(None)):
        words = {str(part): part for part in parts} if parts else _WORDS[kind]
        if text.lower() not in words:
            raise ValueError(text)
        return words[text.lower()]
    if not text or (kind is float and not math.isfinite(float(text))):
        raise ValueError(text)
    return kind(text)


def _read_first(kinds: Sequence[Any], text: str) -> Any:  # noqa: ANN401
    """Return a text as the first of several types that takes it."""
    for kind in kinds[:-1]:
        try:
            return _read(kind, text)
        except ValueError:
            continue
    return _read(kinds[-1], text)


def _absent(what: str, asked: str, present: Mapping[str, Any]) -> str:
    return f"no {what}.{suggest(asked, present)} There are: {', '.join(present) or 'none'}."
