"""Row columns from a table: what stands at a position, or from when to when (alignments)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .add_rows import RowColumnReport, open_for_labels, write_column
from .errors import SampleError
from .new_rows import RecordedRows, check_column

if TYPE_CHECKING:
    import pandas as pd

SAMPLE, POSITION, START, END = "sample", "position", "start_s", "end_s"
_TOLERANCE = 1e-6
"""Seconds: times that were written with few digits may overlap by their rounding."""
_FAR = 2**31
"""Positions are int32; no recording lasts as many seconds."""
_NO_NUMBER = {"nan", "inf", "infinity"}


@dataclass(frozen=True, slots=True)
class TableReport:
    """What a table added to a store."""

    columns: tuple[RowColumnReport, ...]
    """One for each row column."""
    entries: int
    """Lines of the table."""
    outside: int
    """Intervals that hold the middle of no recorded frame."""
    ignored: int
    """Lines of samples that the store does not hold."""


@dataclass(frozen=True, slots=True)
class _Table:
    """A table that was read: lines sorted by sample, then position or start."""

    file: str
    lines: NDArray[np.int64]
    """Number of each line in the file, for messages."""
    samples: NDArray[np.object_]
    first: NDArray[np.float64]
    """Position, or start in seconds."""
    end: NDArray[np.float64] | None
    """End in seconds; None where positions are given."""
    values: Mapping[str, NDArray[Any]]
    """By column: float64, or texts as objects."""

    def runs(self) -> Iterator[tuple[str, slice]]:
        """Return the lines of every sample."""
        breaks = np.flatnonzero(self.samples[1:] != self.samples[:-1]) + 1
        for start, stop in zip([0, *breaks], [*breaks, self.samples.size], strict=True):
            yield self.samples[start], slice(int(start), int(stop))


def add_row_table(
    path: str | Path,
    file: str | Path,
    *,
    columns: Sequence[str] | None = None,
    stream: str | None = None,
    frame_s: float = 0.02,
    ignore_unknown: bool = False,
) -> TableReport:
    """Add row columns to an open store from a CSV, TSV or Parquet file.

    Parameters
    ----------
    path
        The store's folder.
    file
        A table with the columns `sample` and either `position`, or `start_s` and `end_s` (the
        intervals of an alignment, in seconds); every other column is a row column. An empty cell
        means that there is no value. A column is numbers where all its cells are, else names.
    columns
        Which of them to add; None: all.
    stream
        The row space; None where the store has one only.
    frame_s
        Seconds of a frame: frame k reaches from k to k + 1 times that, and has the value of the
        interval that holds its middle.
    ignore_unknown
        Leave out lines of samples that the store does not hold, instead of refusing them.

    Returns
    -------
    TableReport
        What was added.

    Raises
    ------
    SampleError
        A table that does not fit (unknown samples, positions without a row, overlapping intervals,
        numbers that are none); says which line. Nothing was changed.
    ConfigMismatchError, SealedStoreError, LockedStoreError
        As `add_row_column`. All columns are checked before the first one is written.
    """
    if not 0 < frame_s < float("inf"):
        msg = f"a frame of {frame_s} seconds: give a positive number."
        raise SampleError(msg)
    table = _read(Path(file), columns)
    store = open_for_labels(path)
    rows = RecordedRows.of(store, stream)
    unknown = sorted(set(table.samples.tolist()) - set(rows.positions))
    if unknown and not ignore_unknown:
        msg = (
            f"{table.file} has {len(unknown)} samples that {store.path} does not hold, such as "
            f"{unknown[0]!r}; the store has {next(iter(rows.positions), 'none')!r}. Name them as "
            "the store does, or ignore unknown samples (--ignore-unknown)."
        )
        raise SampleError(msg)
    ignored = int(np.isin(table.samples, unknown).sum())
    _check_order(table)
    placed, outside = _placed(table, rows, frame_s)
    checked = [
        check_column(store, name, _filled(placed, values), rows)
        for name, values in table.values.items()
    ]
    reports = tuple(write_column(store, column) for column in checked)
    return TableReport(reports, table.samples.size, outside, ignored)


def _placed(
    table: _Table, rows: RecordedRows, frame_s: float
) -> tuple[dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]], int]:
    """Return, by sample, positions and the line whose value stands there; and lines without any."""
    placed, outside = {}, 0
    for sample, run in table.runs():
        if sample not in rows.positions:
            continue
        lines = np.arange(run.start, run.stop)
        first_n = table.first[run]
        if table.end is None:
            placed[sample] = first_n.astype(np.int64), lines
            continue
        own = rows.positions[sample]
        # the first frame whose middle is not before a time; neighbours share the rounding
        bounds = (np.ceil(t / frame_s - 0.5 - _TOLERANCE) for t in (first_n, table.end[run]))
        low, high = (np.searchsorted(own, bound) for bound in bounds)
        counts = np.maximum(high - low, 0)
        outside += int((counts == 0).sum())
        at = np.arange(counts.sum()) + np.repeat(low - (np.cumsum(counts) - counts), counts)
        placed[sample] = own[at], np.repeat(lines, counts)
    return placed, outside


def _filled(
    placed: Mapping[str, tuple[NDArray[np.int64], NDArray[np.int64]]], values: NDArray[Any]
) -> dict[str, tuple[NDArray[np.int64], NDArray[Any]]]:
    """Return positions and values of one column; NaN stands for an empty cell of numbers."""
    filled = {}
    for sample, (positions, lines) in placed.items():
        own = values[lines]
        kept = own != "" if own.dtype == object else ~np.isnan(own)
        if kept.any():
            filled[sample] = positions[kept], own[kept]
    return filled


def _check_order(table: _Table) -> None:
    """Refuse two lines of a sample that speak of the same place."""
    if table.end is None:
        clash = table.first[1:] == table.first[:-1]
    else:
        clash = table.first[1:] < table.end[:-1] - _TOLERANCE
    clash &= table.samples[1:] == table.samples[:-1]
    for at in np.flatnonzero(clash)[:1]:
        lines = sorted((int(table.lines[at]), int(table.lines[at + 1])))
        what = "have the same position" if table.end is None else "overlap"
        msg = (
            f"{table.file}: lines {lines[0]} and {lines[1]} (sample {table.samples[at]!r}) {what}; "
            "a row has one value."
        )
        raise SampleError(msg)


def _read(file: Path, columns: Sequence[str] | None) -> _Table:
    frame = _open(file)
    timed = START in frame.columns or END in frame.columns
    needed = (SAMPLE, START, END) if timed else (SAMPLE, POSITION)
    lacking = [name for name in needed if name not in frame.columns]
    if lacking or (timed and POSITION in frame.columns):
        msg = (
            f"{file.name} has the columns {', '.join(map(str, frame.columns))}; needed are "
            f"{SAMPLE} and either {POSITION}, or {START} and {END}, and one for each row column."
        )
        raise SampleError(msg)
    present = [str(name) for name in frame.columns if name not in needed]
    chosen = present if columns is None else list(columns)
    unknown = [name for name in chosen if name not in present]
    if unknown or not chosen or not len(frame):
        what = f"no column {unknown[0]!r}" if unknown else "nothing to add"
        msg = f"{file.name} holds {what}. Present: {', '.join(present) or 'none'}."
        raise SampleError(msg)
    first = _finite(frame, START if timed else POSITION, file)
    end = _finite(frame, END, file) if timed else None
    bad = (end <= first) if end is not None else (first != np.floor(first))
    bad |= (first < 0) | ((first if end is None else end) >= _FAR)
    if bad.any():
        at = int(np.flatnonzero(bad)[0])
        said = f"{START} {first[at]} and {END} {end[at]}" if end is not None else f"{first[at]}"
        rule = "an interval that is longer than 0" if end is not None else "a whole number from 0"
        msg = f"line {at + 2} of {file.name}: {said}; expected {rule}."
        raise SampleError(msg)
    samples = np.array([str(sample) for sample in frame[SAMPLE]], dtype=object)
    order = np.lexsort((first, np.unique(samples, return_inverse=True)[1]))
    values = {name: _values(frame, name, file)[order] for name in chosen}
    end = None if end is None else end[order]
    return _Table(file.name, order + 2, samples[order], first[order], end, values)


def _open(file: Path) -> pd.DataFrame:
    import pandas as pd

    separator = {".csv": ",", ".tsv": "\t", ".parquet": ""}.get(file.suffix)
    if separator is None:
        msg = f"{file.name} is no table that can be read: name a .csv, .tsv or .parquet file."
        raise SampleError(msg)
    try:
        if not separator:
            return pd.read_parquet(file)
        with warnings.catch_warnings():  # a line with more cells than the first is no table
            warnings.simplefilter("error", pd.errors.ParserWarning)
            return pd.read_csv(
                file, sep=separator, dtype=str, keep_default_na=False, index_col=False
            )
    except (
        ValueError,
        pd.errors.ParserWarning,
    ) as error:  # what pandas and pyarrow say of bytes that are no table
        msg = f"{file.name} cannot be read as a table: {error}"
        raise SampleError(msg) from error


def _finite(frame: pd.DataFrame, name: str, file: Path) -> NDArray[np.float64]:
    numbers = _numbers(np.asarray(frame[name], dtype=object))
    bad = ~np.isfinite(numbers)
    if bad.any():
        at = int(np.flatnonzero(bad)[0])
        msg = (
            f"line {at + 2} of {file.name}: {name} is {frame[name].iloc[at]!r}; "
            "a finite number is needed."
        )
        raise SampleError(msg)
    return numbers


def _values(frame: pd.DataFrame, name: str, file: Path) -> NDArray[Any]:
    """Return numbers with NaN for empty cells, or texts, the empty one for none."""
    import pandas as pd

    cells = np.asarray(frame[name])
    if cells.dtype.kind in "biuf":
        return cells.astype(np.float64)
    blank = np.asarray(pd.isna(cells))
    texts = np.array(
        ["" if none else str(cell).strip() for none, cell in zip(blank, cells, strict=True)],
        dtype=object,
    )
    numbers = _numbers(texts)
    finite, empty = np.isfinite(numbers), texts == ""
    broken = np.array([text.lower().lstrip("+-") in _NO_NUMBER for text in texts])
    if broken.any() and finite.any() and (finite | empty | broken).all():
        at = int(np.flatnonzero(broken)[0])
        msg = (
            f"line {at + 2} of {file.name}: {name} is {texts[at]!r}; "
            "leave cells without a number empty."
        )
        raise SampleError(msg)
    if (finite | empty).all() and finite.any():
        return np.where(finite, numbers, np.nan)
    return texts


def _numbers(cells: NDArray[np.object_]) -> NDArray[np.float64]:
    """Return cells as numbers, NaN for one that is none."""
    import pandas as pd

    return np.asarray(pd.to_numeric(pd.Series(cells), errors="coerce"), dtype=np.float64)
