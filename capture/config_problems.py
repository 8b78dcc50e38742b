"""pydantic's errors in the words of the person who wrote the file."""

import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from .config_types import describe, suggest
from .config_yaml import Document, Path, Problem

_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping of keys",
    "model_type": "a mapping of keys",
    "model_attributes_type": "a mapping of keys",
}
_BOUNDS = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}


def known_keys(model: type[BaseModel]) -> list[str]:
    """Keys of a section as the file spells them."""
    return [info.alias or name for name, info in model.model_fields.items()]


def field_type(model: type[BaseModel], key: str) -> object:
    """Return the declared type of a section's key, or None where the section has no such key."""
    for name, info in model.model_fields.items():
        if (info.alias or name) == key:
            return info.annotation
    return None


def section_of(declared: object) -> tuple[type[BaseModel] | None, bool]:
    """Find the section inside a declared type.

    Returns
    -------
    model : type or None
        The section's class.
    named : bool
        True where the type maps free names to that section (``captures``, ``sites``), or lists
        such sections (``interventions``).
    """
    origin = typing.get_origin(declared)
    if origin is Annotated:
        return section_of(typing.get_args(declared)[0])
    if origin is dict:
        return section_of(typing.get_args(declared)[1])[0], True
    if origin is tuple:
        model = section_of(typing.get_args(declared)[0])[0]
        return model, model is not None
    if origin in (typing.Union, types.UnionType):
        found = (section_of(option) for option in typing.get_args(declared))
        return next((pair for pair in found if pair[0] is not None), (None, False))
    if isinstance(declared, type) and issubclass(declared, BaseModel):
        return declared, False
    return None, False


def section_at(root: type[BaseModel], path: Path) -> type[BaseModel] | None:
    """Find the section class that holds the keys at `path`."""
    model: type[BaseModel] | None = root
    named = False
    for key in path:
        if model is None:
            return None
        if named:
            named = False
            continue
        model, named = section_of(field_type(model, str(key)))
    return None if named else model


def dotted(path: Path) -> str:
    """Spell a path as ``captures.lora.train``, indices as ``[2]``."""
    text = ""
    for key in path:
        text += f"[{key}]" if isinstance(key, int) else f"{'.' if text else ''}{key}"
    return text


def to_problem(error: ErrorDetails, root: type[BaseModel], document: Document) -> Problem:
    """Translate one pydantic error.

    Parameters
    ----------
    error
        One entry of ``ValidationError.errors()``.
    root
        The model that was validated.
    document
        The text it came from, for the spelling of scalars.
    """
    at_key = error["loc"][-1:] == ("[key]",)
    # pydantic adds the tag of a union's branch and "[key]" to the location; no file has these.
    path: Path = tuple(key for key in error["loc"] if key not in ("[key]", "list"))
    kind = error["type"]
    if kind == "extra_forbidden":
        return _unknown_key(path, root)
    if kind == "missing":
        return Problem(path, f"missing key {dotted(path)!r}", at_key=True)
    context: Mapping[str, Any] = error.get("ctx", {})
    named = dotted(path[:-1] if at_key else path)
    prefix = f"{named}: " if named else ""
    return Problem(path, prefix + _words(kind, context, error, document), at_key=at_key)


def _words(kind: str, context: Mapping[str, Any], error: ErrorDetails, document: Document) -> str:
    value = error["input"]
    message = error["msg"]
    if kind == "value_error":
        message = str(context["error"])
    elif kind == "string_type":
        message = f"expected text, got {describe(value)}"
        if isinstance(value, bool | int | float):
            written = document.texts.get(tuple(error["loc"]), str(value))
            message += f'; write it in quotes: "{written}"'
    elif kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        message = f"must be {words} {context[name]:g}, got {value}"
    elif kind == "finite_number":
        message = f"must be finite, got {value}"
    elif kind in _EXPECTED:
        message = f"expected {_EXPECTED[kind]}, got {describe(value)}"
    return message


def _unknown_key(path: Path, root: type[BaseModel]) -> Problem:
    key = str(path[-1])
    section = section_at(root, path[:-1])
    known = known_keys(section) if section else []
    where = f" in {dotted(path[:-1])}" if len(path) > 1 else ""
    hint = suggest(key, known) or f" (known: {', '.join(known)})"
    return Problem(path, f"unknown key {key!r}{where}{hint}", at_key=True)
