"""Value types of the configuration: each says in plain words what it expected and what it got."""

import difflib
import re
from collections.abc import Iterable, Sized
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    PlainSerializer,
    Strict,
    Tag,
)

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?b?)", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_FRAMES = re.compile(r"valid|all|none|every:([1-9]\d*)")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


def suggest(word: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` when a known word is close to `word`, else nothing."""
    lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), lower, n=1, cutoff=0.6)
    return f"; did you mean {lower[close[0]]!r}?" if close else ""


def describe(value: object) -> str:
    """Name a value as a user would: ``the number 3``, ``a list``, ``nothing (null)``."""
    if value is None:
        words = "nothing (null)"
    elif isinstance(value, bool):
        words = "true" if value else "false"
    elif isinstance(value, int | float):
        words = f"the number {value}"
    elif isinstance(value, str):
        words = f"the text {value!r}" if len(value) <= 60 else f"the text {value[:57]!r}..."
    else:
        words = "a mapping of keys" if isinstance(value, dict) else "a list"
    return words


def parse_size(value: object) -> int:
    """Bytes of a size such as ``256MiB``, ``1.5 GB`` or a plain number of bytes.

    Parameters
    ----------
    value
        Text with a unit (k, M, G, T; with ``i`` powers of 1024, without it powers of 1000), or a
        whole number of bytes.

    Returns
    -------
    int
        Bytes, at least 1.

    Raises
    ------
    ValueError
        `value` is not a size.
    """
    size = 0
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    elif isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())):
        unit = match[2].lower()
        power = _POWERS[unit[:1].removesuffix("b")]
        size = int(float(match[1]) * (1024 if "i" in unit else 1000) ** power)
    if size < 1:
        msg = f"expected a size such as 256MiB or 1GB, got {describe(value)}"
        raise ValueError(msg)
    return size


def check_choice(
    value: str, offered: tuple[str, ...], *, what: str, later: tuple[str, ...] = ()
) -> str:
    """Return `value` if it is among `offered`; else raise what `choice` promises.

    Raises
    ------
    ValueError
        `value` is not offered: not in this version, or unknown (with a suggestion).
    """
    if value in offered:
        return value
    known = ", ".join(offered)
    if value in later:
        msg = f"{what} {value!r} is not in this version, which offers {known}"
    else:
        hint = suggest(value, (*offered, *later))
        msg = f"unknown {what} {value!r}{hint} (known: {known})"
    raise ValueError(msg)


def choice(*offered: str, what: str, later: tuple[str, ...] = ()) -> AfterValidator:
    """Build the validator of a text that must be one of a few words.

    Parameters
    ----------
    offered
        The words this version knows how to serve.
    what
        What the word names, for the message.
    later
        Words of the design that this version does not serve: refused as such, not as unknown.
    """

    def check(value: str) -> str:
        return check_choice(value, offered, what=what, later=later)

    return AfterValidator(check)


def as_tuple(value: object) -> object:
    """Freeze a list, so that a frozen section holds nothing that can change."""
    return tuple(value) if isinstance(value, list) else value


def _check_unique(value: tuple[Any, ...]) -> tuple[Any, ...]:
    for i, item in enumerate(value):
        if item in value[:i]:
            msg = f"{item!r} is listed twice"
            raise ValueError(msg)
    return value


def at_least(count: int) -> AfterValidator:
    """Build the validator of a list or mapping that needs some entries.

    pydantic's own counts only entries that are valid, and so reports a wrong one twice.
    """

    def check[T: Sized](value: T) -> T:
        if len(value) < count:
            entries = "entry" if count == 1 else "entries"
            msg = f"needs at least {count} {entries}, got {len(value)}"
            raise ValueError(msg)
        return value

    return AfterValidator(check)


def _check_filled(value: str) -> str:
    if not value.strip():
        msg = "expected text, got an empty one"
        raise ValueError(msg)
    return value


def _check_name(value: str) -> str:
    if not _NAME.fullmatch(value):
        msg = (
            f"{value!r} is not a usable name: at most 100 of the characters A-Z a-z 0-9 _ . -, "
            "the first a letter, digit or _"
        )
        raise ValueError(msg)
    return value


def _check_frames(value: str) -> str:
    if not _FRAMES.fullmatch(value):
        msg = f"expected valid, all, none or every:K (K >= 1), got {describe(value)}"
        raise ValueError(msg)
    return value


def _auto_to_none(value: object) -> object:
    return None if value == "auto" else value


def _check_layers(value: object) -> object:
    if isinstance(value, str) and value != "all":
        msg = f"expected all or a list of layer numbers such as [0, 3], got {describe(value)}"
        raise ValueError(msg)
    return as_tuple(value)


def _none_as(word: str) -> PlainSerializer:
    return PlainSerializer(lambda value: word if value is None else value)


Text = Annotated[str, Strict(), AfterValidator(_check_filled)]
Name = Annotated[Text, AfterValidator(_check_name)]
Texts = Annotated[
    tuple[Text, ...], Strict(), BeforeValidator(as_tuple), AfterValidator(_check_unique)
]
Count = Annotated[int, Strict(), Field(ge=1)]
Index = Annotated[int, Strict(), Field(ge=0)]
Number = Annotated[float, Strict(), Field(allow_inf_nan=False)]
Positive = Annotated[Number, Field(gt=0)]
Size = Annotated[int, BeforeValidator(parse_size)]
AutoCount = Annotated[Count | None, BeforeValidator(_auto_to_none), _none_as("auto")]
Frames = Annotated[Text, AfterValidator(_check_frames)]
LayerNumbers = Annotated[tuple[Index, ...], Strict(), at_least(1), AfterValidator(_check_unique)]
Layers = Annotated[
    Annotated[Literal["all"], Tag("all")] | Annotated[LayerNumbers, Tag("list")],
    Discriminator(lambda value: "all" if value == "all" else "list"),
    BeforeValidator(_check_layers),
]
"""``all``, or layer numbers in the model's own order."""
