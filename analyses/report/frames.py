"""Reading result tables: the rows a figure needs, numbers as text, what is missing and why."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

MINUS = "\N{MINUS SIGN}"
SMALLEST_GROUP = 10
"""Groups with fewer samples are not shown one by one: single people could be recognised."""
MOST_REASONS = 6
"""More reasons than this are counted, not listed."""
LONGEST_TEXT = 120
"""A string from a store is cut here: a label is a word, not a document."""


def plain(text: object) -> str:
    """Return a string from a store as harmless text: one line, no control or bidi characters.

    What is taken out is replaced by its visible code point, so that nothing is hidden. A number
    without a fraction is written without one.
    """
    if isinstance(text, float) and text.is_integer():
        return str(int(text))
    shown = "".join(
        f"\\u{ord(c):04x}" if unicodedata.category(c) in {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"} else c
        for c in str(text)
    )
    return shown if len(shown) <= LONGEST_TEXT else shown[: LONGEST_TEXT - 1] + "…"


def plain_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return a copy whose strings are `plain`, without a column of sample ids."""
    kept = table.drop(columns=[c for c in ("sample", "id") if c in table.columns])
    kept = kept.rename(columns={c: plain(c) for c in kept.columns}).reset_index(drop=True)
    for name in kept.columns:
        if not pd.api.types.is_numeric_dtype(kept[name]):
            kept[name] = kept[name].map(lambda v: "" if _is_missing(v) else plain(v))
    return kept


def values(table: pd.DataFrame, name: str) -> NDArray[np.float64]:
    """Return a column as float64, NaN where it is empty; all NaN if there is no such column."""
    if name not in table.columns:
        return np.full(len(table), np.nan)
    column = pd.Series(pd.to_numeric(table[name], errors="coerce"))
    return column.to_numpy(dtype=np.float64, na_value=np.nan)


def strings(table: pd.DataFrame, name: str) -> NDArray[np.str_]:
    """Return a column as strings; all empty if there is no such column."""
    if name not in table.columns:
        return np.full(len(table), "", dtype=np.str_)
    return np.asarray(["" if _is_missing(v) else str(v) for v in table[name]], dtype=np.str_)


def take(table: pd.DataFrame, mask: NDArray[np.bool_]) -> pd.DataFrame:
    """Return the rows where the mask, [rows], is true."""
    return table.iloc[np.flatnonzero(mask)]


def where(table: pd.DataFrame, name: str, value: str) -> pd.DataFrame:
    """Return the rows that have this string in the column."""
    return take(table, strings(table, name) == value)


def having(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return the rows that have a finite number in the column."""
    return take(table, np.isfinite(values(table, name)))


def in_sequence(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return the rows in ascending order of a numeric column."""
    return table.iloc[np.argsort(values(table, name), kind="stable")]


def over_all_folds(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that are pooled over folds (`fold` is `all` or empty)."""
    return take(table, np.isin(strings(table, "fold"), ["all", ""]))


def single_folds(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows about one fold each, groups that are too small left out."""
    fold = strings(table, "fold")
    return take(table, ~np.isin(fold, ["all", ""]) & (values(table, "n") >= SMALLEST_GROUP))


def prefer(table: pd.DataFrame, name: str, *wanted: str) -> pd.DataFrame:
    """Return the rows with the first wanted value that occurs, else those with the first value.

    A table without the column comes back unchanged.
    """
    present = list(dict.fromkeys(strings(table, name)))
    for value in (*wanted, *present[:1]):
        if value in present:
            return where(table, name, value)
    return table


def leading_mask(table: pd.DataFrame, by: Sequence[str] = ("capture", "site")) -> pd.DataFrame:
    """Return one mask's rows of each place: those of `valid` where there are any."""
    mask = strings(table, "mask")
    places = list(zip(*(strings(table, name) for name in by), strict=True))
    with_audio = {place for place, name in zip(places, mask, strict=True) if name == "valid"}
    other = np.asarray([place not in with_audio for place in places], dtype=bool)
    return take(table, (mask == "valid") | other)


def number(value: float, *, digits: int = 2) -> str:
    """Return a number for a sentence or a cell; the sign is a real minus, NaN is an em dash."""
    if not np.isfinite(value):
        return "—"
    small = value != 0 and abs(value) < 0.5 * 10.0**-digits
    text = f"{value:.1e}" if small or abs(value) >= 1e6 else f"{value:.{digits}f}"
    return text.replace("-", MINUS) if text.startswith("-") else text


def first(rows: pd.DataFrame, name: str) -> float:
    """Return the number in the first row; NaN without one."""
    found = values(rows, name)
    return float(found[0]) if found.size else float("nan")


def estimate(rows: pd.DataFrame, name: str, *, digits: int = 2) -> str:
    """Return the value in the first row with its interval, if any: ``0.71 [0.63, 0.78]``."""
    value, low, high = (first(rows, key) for key in (name, f"{name}_low", f"{name}_high"))
    text = number(value, digits=digits)
    if np.isfinite(low) and np.isfinite(high):
        text += f" [{number(low, digits=digits)}, {number(high, digits=digits)}]"
    return text


def several(table: pd.DataFrame, name: str) -> str:
    """Return the distinct values of a column, joined: ``valid`` or ``valid, all``."""
    found = [str(v) for v in dict.fromkeys(strings(table, name)) if v]
    return ", ".join(found[:6]) + (" …" if len(found) > 6 else "")


def count_text(table: pd.DataFrame) -> str:
    """Return N as the table states it: ``N = 48`` or ``N = 24 to 48``."""
    n = values(table, "n")
    n = n[np.isfinite(n)]
    if n.size == 0:
        return "N not stated"
    low, high = int(n.min()), int(n.max())
    return f"N = {low:,}" if low == high else f"N = {low:,} to {high:,}"


def exposure_text(table: pd.DataFrame) -> str:
    """Return which samples were used, in words, from the `exposed` column."""
    words: dict[str, str] = {
        "none": "no sample that shaped the features",
        "all": "all samples, also those that shaped the features",
        "only": "only samples that shaped the features",
    }
    found = [str(v) for v in dict.fromkeys(strings(table, "exposed")) if v]
    return "; elsewhere ".join(words.get(v, v) for v in found)


def not_computed(table: pd.DataFrame, name: str, what: str) -> list[str]:
    """Return one line per reason for which `name` is missing, with where that happened.

    Parameters
    ----------
    table
        A result table with a column `reason`.
    name
        Column whose empty cells are counted.
    what
        What the reader knows the column as.
    """
    empty = take(table, np.isnan(values(table, name)))
    # Layers of one site fail for one reason: it is said once for all of them.
    reasons = np.asarray([re.sub(r" layer \d+", "", r) for r in strings(empty, "reason")], np.str_)
    counts = {reason: int((reasons == reason).sum()) for reason in dict.fromkeys(reasons)}
    lines = []
    for reason, count in list(counts.items())[:MOST_REASONS]:
        rows = take(empty, reasons == reason)
        places = [several(rows, column) for column in ("capture", "site", "component")]
        place = "; ".join(p for p in places if p)
        rows_text = "1 row" if count == 1 else f"{count:,} rows"
        text = f"{what}, {rows_text}{f' ({place})' if place else ''}"
        lines.append(f"{text}: {reason or 'no reason given'}")
    rest = list(counts.values())[MOST_REASONS:]
    if rest:
        lines.append(
            f"{what}, {sum(rest):,} more rows for {len(rest)} other reasons: see the table."
        )
    return lines


def in_order(present: Iterable[str], order: Sequence[str]) -> list[str]:
    """Return the distinct names in the order of `order`, unknown ones last."""
    distinct = list(dict.fromkeys(str(name) for name in present))
    return sorted(distinct, key=lambda v: order.index(v) if v in order else len(order))


def _is_missing(value: object) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value))
