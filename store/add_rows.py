"""Adding a row column to a store: everything is checked before the first byte is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .create import create_store
from .errors import ConfigMismatchError, SealedStoreError
from .layout import SampleRows, Site
from .new_rows import NewColumn, RecordedRows, RowValues, check_column
from .reader import Store, open_store
from .row_columns import PREFIX
from .segment import NewSample


@dataclass(frozen=True, slots=True)
class RowColumnReport:
    """What was added."""

    name: str
    """Name of the row column."""
    capture: str
    """The capture that holds it."""
    stream: str
    """The row space."""
    names: tuple[str, ...]
    """Names of the classes 0, 1, 2, …; empty for numbers."""
    samples: int
    """Samples that have a value."""
    rows: int
    """Their rows."""
    labelled: int
    """Rows that have a value."""
    changed: bool
    """False where the store held the same column already."""


def add_row_column(
    path: str | Path,
    name: str,
    values: Mapping[str, RowValues],
    *,
    stream: str | None = None,
    names: Sequence[str] | None = None,
) -> RowColumnReport:
    """Add a row column (phones, words, times) to an open store.

    ::

        add_row_column("study.zarr", "phone", {"utt-1": ["", "HH", "HH", "AY"]})

    Parameters
    ----------
    path
        The store's folder.
    name
        Name of the column; no capture may have a site of this name.
    values
        By sample id: a value for every row of the sample in the order of positions, or a pair of
        positions and the values there. Texts are names of classes, the empty text means none.
        Numbers are kept as they are; where all are whole and none is below -1, they are class
        numbers and -1 means none. Rows and samples that are left out have no value.
    stream
        The row space; None where the store has one only.
    names
        Names of the classes 0, 1, 2, …; None takes those of the texts, in alphabetical order.

    Returns
    -------
    RowColumnReport
        What was added. The same values once more change nothing.

    Raises
    ------
    SampleError
        Values that do not fit the rows of the store; nothing was changed.
    ConfigMismatchError
        If the store has a row column of this name with other values.
    SealedStoreError
        If the store is sealed: copy it, add the column to the copy, seal that.
    LockedStoreError
        If another process writes to the store.

    Notes
    -----
    The rows of all captures are looked at: a row that only one of several captures holds can have a
    value. Memory: 16 bytes a row of the stream, and the values.
    """
    store = open_for_labels(path)
    rows = RecordedRows.of(store, stream)
    return write_column(store, check_column(store, name, values, rows, names))


def open_for_labels(path: str | Path) -> Store:
    """Open a store that is going to be changed; refuses a sealed one with what to do instead."""
    store = open_store(path)
    if store.state == "sealed":
        msg = (
            f"{path} is sealed and never changes. Copy it (`lorascope cp {path} COPY`: a copy is "
            "open), add the row column to the copy and seal that."
        )
        raise SealedStoreError(msg)
    return store


def write_column(store: Store, column: NewColumn) -> RowColumnReport:
    """Write a checked column; what an interrupted call left is completed."""
    capture, stream = f"{PREFIX}{column.name}", column.rows.stream
    there, config = store.every_capture.get(capture), column.config
    if there is not None and there.config != config:
        msg = (
            f"{store.path} has a row column {column.name!r} with other values already: choose "
            "another name, or copy the store without it (`lorascope cp --captures`)."
        )
        raise ConfigMismatchError(msg)
    changed = there is None or not there.complete
    if changed:
        _write(store.path, column, config)
    return RowColumnReport(
        name=column.name,
        capture=capture,
        stream=stream,
        names=column.names,
        samples=len(column.numbers),
        rows=sum(numbers.size for numbers in column.numbers.values()),
        labelled=column.labelled,
        changed=changed,
    )


def _write(root: Path, column: NewColumn, config: Mapping[str, Any]) -> None:
    stream, numbers = column.rows.stream, column.numbers
    narrow = all(
        np.array_equal(n, n.astype(np.float32).astype(np.float64), equal_nan=True)
        for n in numbers.values()
    )
    site = Site(column.name, None, 1, "float32" if narrow else "float64", stream=stream)
    plan = [SampleRows(sample, {stream: n.size}) for sample, n in numbers.items()]
    with create_store(
        root, capture=f"{PREFIX}{column.name}", sites=[site], config=config, plan=plan
    ) as writer:
        for segment in writer.segments:
            if segment.committed:
                continue
            samples = [
                NewSample(
                    id=sample,
                    n_rows={stream: numbers[sample].size},
                    positions={stream: column.rows.positions[sample]},
                )
                for sample in segment.samples
            ]
            together = np.concatenate([numbers[sample] for sample in segment.samples])
            writer.append_batch(samples, {column.name: together[:, None]})
