"""What commands print: text without escapes, tables, sizes, JSON lines."""

import json
import math
import re
import shlex
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath

import click

_NUMBER = re.compile(r"-|-?\d[\d.]*( [KMGT]?i?B)?")
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def clean(text: object, *, lines: bool = True) -> str:
    """Make text that came from a file fit for a terminal.

    Control characters (escape sequences begin with one) and invisible formatting characters
    (which can reverse what is read) are replaced by ``?``.

    Parameters
    ----------
    text
        Anything; its `str` is used.
    lines
        Keep line breaks.
    """
    kept = "\n\t" if lines else ""
    return "".join(
        char if char in kept or unicodedata.category(char) not in _UNSAFE else "?"
        for char in str(text)
    )


_UNSAFE = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}


def command_line(name: str, arguments: Sequence[str]) -> str:
    """Spell a command as a shell would read it."""
    return shlex.join([name, *arguments])


def public_words(name: str, arguments: Sequence[str]) -> list[str]:
    """Return the words of a command without the folders of this machine.

    What is written into a store or a report is shared; where it lay on somebody's disk is not.
    """
    return [name, *map(_without_folder, arguments)]


def _without_folder(word: str) -> str:
    option, equals, value = word.partition("=")
    if equals and PurePath(value).is_absolute():
        return f"{option}={PurePath(value).name}"
    return PurePath(word).name if PurePath(word).is_absolute() else word


def format_bytes(size: float) -> str:
    """Spell a number of bytes: ``640 B``, ``1.5 MiB``."""
    unit = 0
    while size >= 1024 and unit < len(_UNITS) - 1:
        size /= 1024
        unit += 1
    return f"{size:.0f} {_UNITS[unit]}" if unit == 0 else f"{size:.1f} {_UNITS[unit]}"


def format_duration(seconds: float) -> str:
    """Spell a time: ``45 s``, ``12 min``, ``3 h 5 min``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def count(number: int, noun: str) -> str:
    """Spell a number of things: ``1 capture``, ``3 captures``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def format_number(value: object, digits: int = 3) -> str:
    """Spell a number, ``-`` where there is none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def print_json(line: Mapping[str, object]) -> None:
    """Print one JSON line on stdout; NaN, which JSON lacks, becomes null."""
    click.echo(json.dumps(_plain(line), ensure_ascii=True))


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def print_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a plain table on stdout; columns of numbers are set to the right."""
    cells = [[clean(cell, lines=False) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    right = [all(_is_number(row[i]) for row in cells) and bool(cells) for i in range(len(header))]
    for row in ([*header], *cells):
        spelled = [
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ]
        click.echo("  ".join(spelled).rstrip())


def _is_number(text: str) -> bool:
    return _NUMBER.fullmatch(text) is not None
