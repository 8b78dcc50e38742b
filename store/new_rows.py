"""A new row column: which rows a store has, and whether the values fit them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import SampleError
from .layout import check_name
from .reader import Store
from .row_columns import CONFIG_KEY, PREFIX

MAX_NAMES = 4096
"""More names of classes than this are no classes: free text does not belong into attributes."""
MAX_NAME_LENGTH = 128

type RowValues = ArrayLike | tuple[ArrayLike, ArrayLike]
"""A value for every row of a sample, or positions and the values there."""


@dataclass(frozen=True, slots=True)
class RecordedRows:
    """The rows of a stream: which positions of which samples any capture holds."""

    stream: str
    positions: Mapping[str, NDArray[np.int64]]
    """By sample id, ascending."""

    @classmethod
    def of(cls, store: Store, stream: str | None) -> RecordedRows:
        """Return the rows of a stream; None stands for the only one of the store."""
        captures = [store.capture(name) for name in store.captures]
        known = list(dict.fromkeys(s for c in captures for s in c.definition.streams))
        if stream is None and len(known) == 1:
            stream = known[0]
        if stream is None or stream not in known:
            asked = "no stream was named" if stream is None else f"no stream {stream!r}"
            msg = f"{asked}: name one that {store.path} holds. Present: {', '.join(known)}."
            raise SampleError(msg if known else f"{store.path} holds no rows that one could label.")
        found: dict[str, NDArray[np.int64]] = {}
        for capture in captures:
            if stream not in capture.definition.streams or not len(capture):
                continue
            ends = np.cumsum(capture.row_counts(stream))[:-1]
            parts = np.split(capture.read_positions(stream), ends)
            for sample, part in zip(capture.samples["id"], parts, strict=True):
                if sample not in found or not np.array_equal(found[sample], part):
                    found[sample] = np.union1d(found.get(sample, part), part)
        return cls(stream, found)

    def of_sample(self, sample: str) -> NDArray[np.int64]:
        """Return the positions of a sample; refuses one that is not there."""
        if sample not in self.positions:
            msg = (
                f"no sample {sample!r} in the store: it holds {len(self.positions)} samples, such "
                f"as {', '.join(map(repr, list(self.positions)[:2])) or 'none'}."
            )
            raise SampleError(msg)
        return self.positions[sample]


@dataclass(frozen=True, slots=True)
class NewColumn:
    """A row column that fits the store."""

    name: str
    rows: RecordedRows
    names: tuple[str, ...]
    numbers: Mapping[str, NDArray[np.float64]]
    """By sample id: a number for each of its rows; -1 or NaN where it has none."""
    classes: bool
    """Whether its numbers are those of classes: whole, and -1 for none."""

    @property
    def config(self) -> dict[str, Any]:
        """What determines the capture: the values by their digest."""
        sha256 = hashlib.sha256()
        for sample, numbers in self.numbers.items():
            sha256.update(f"{len(sample.encode())} {sample} {numbers.size} ".encode())
            sha256.update(self.rows.positions[sample].astype("<i8").tobytes())
            sha256.update(numbers.astype("<f8").tobytes())
        said = {"name": self.name, "stream": self.rows.stream, "values": sha256.hexdigest()}
        return {CONFIG_KEY: said | {"names": list(self.names)}}

    @property
    def labelled(self) -> int:
        """Rows that have a value."""
        none = 0.0 if self.classes else -np.inf
        return sum(int((numbers >= none).sum()) for numbers in self.numbers.values())


def check_column(
    store: Store,
    name: str,
    values: Mapping[str, RowValues],
    rows: RecordedRows,
    names: Sequence[str] | None = None,
) -> NewColumn:
    """Return the column as it will be written; raises `SampleError` where it does not fit."""
    check_name("row column", name)
    check_name("capture", f"{PREFIX}{name}")
    for capture in store.captures:
        if name in store.capture(capture).sites:
            msg = f"capture {capture!r} has a site {name!r}: choose another name of a row column."
            raise SampleError(msg)
    placed = {sample: _place(sample, rows, given) for sample, given in values.items()}
    texts = {given.dtype.kind == "O" for _, given in placed.values()}
    if len(texts) > 1:
        msg = f"row column {name!r}: some samples have texts and others numbers; give one of both."
        raise SampleError(msg)
    known = _check_names(name, placed, names, texts={True} == texts)
    numbers, classes = _number(name, placed, rows, known, texts={True} == texts)
    order = [sample for sample in rows.positions if sample in numbers]  # as recorded
    in_order = {sample: numbers[sample] for sample in order}
    column = NewColumn(name, rows, known, in_order, classes)
    if not column.labelled:
        msg = f"row column {name!r} has a value for no row of stream {rows.stream!r}."
        raise SampleError(msg)
    return column


def _place(
    sample: str, rows: RecordedRows, given: RowValues
) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Return the places among the sample's rows that have a value, and the values."""
    own = rows.of_sample(sample)
    if not isinstance(given, tuple):
        values = _as_values(sample, given)
        if values.shape != own.shape:
            msg = (
                f"sample {sample!r} has {own.size} rows in stream {rows.stream!r}, but its values "
                f"have shape {values.shape}: give one for each, or positions with them."
            )
            raise SampleError(msg)
        return np.arange(own.size), values
    positions, values = np.asarray(given[0]), _as_values(sample, given[1])
    if positions.ndim != 1 or values.shape != positions.shape:
        msg = f"sample {sample!r}: {positions.shape} positions and {values.shape} values"
        raise SampleError(msg)
    if positions.size and positions.dtype.kind not in "iu":
        msg = f"sample {sample!r}: positions must be whole numbers, not {positions.dtype}"
        raise SampleError(msg)
    places = np.searchsorted(own, positions)
    absent = ~np.isin(positions, own)
    if absent.any():
        msg = (
            f"sample {sample!r} has no row at position {positions[absent][0]} of stream "
            f"{rows.stream!r}: it has {own.size} rows, positions {own[:1]} to {own[-1:]}."
        )
        raise SampleError(msg)
    again = np.flatnonzero(np.bincount(places, minlength=1) > 1)
    if again.size:
        msg = f"sample {sample!r} has two values at position {own[again[0]]}."
        raise SampleError(msg)
    return places.astype(np.int64), values


def _as_values(sample: str, given: ArrayLike) -> NDArray[Any]:
    """Return float64 numbers, or texts as objects."""
    values = np.asarray(given)
    if values.dtype.kind in "biuf":
        return values.astype(np.float64)
    texts = values.astype(object)
    if values.dtype.kind not in "UO" or not all(type(text) is str for text in texts.flat):
        msg = f"sample {sample!r}: values must be all numbers or all texts, not {values.dtype}"
        raise SampleError(msg)
    return texts


def _check_names(
    name: str,
    placed: Mapping[str, tuple[NDArray[np.int64], NDArray[Any]]],
    names: Sequence[str] | None,
    *,
    texts: bool,
) -> tuple[str, ...]:
    """Return the names of the classes; empty for numbers without names."""
    found = {t for _, given in placed.values() for t in given.tolist() if t} if texts else set()
    known = tuple(sorted(found) if names is None else names)
    unknown = sorted(found - set(known))
    if unknown or len(set(known)) != len(known):
        what = f"{unknown[0]!r} is not among its names" if unknown else "a name is there twice"
        msg = f"row column {name!r}: {what}."
        raise SampleError(msg)
    if len(known) > MAX_NAMES or any(len(text) > MAX_NAME_LENGTH for text in known):
        msg = (
            f"row column {name!r}: {len(known)} names of classes, the longest of "
            f"{max(map(len, known))} characters; {MAX_NAMES} of {MAX_NAME_LENGTH} are allowed."
        )
        raise SampleError(msg)
    return known


def _number(
    name: str,
    placed: Mapping[str, tuple[NDArray[np.int64], NDArray[Any]]],
    rows: RecordedRows,
    names: tuple[str, ...],
    *,
    texts: bool,
) -> tuple[dict[str, NDArray[np.float64]], bool]:
    """Return a number for every row of the samples that have values, and if they are classes."""
    number = {text: float(n) for n, text in enumerate(names)} | {"": -1.0}
    given = {
        sample: np.array([number[t] for t in values], np.float64) if texts else values
        for sample, (_, values) in placed.items()
    }
    for sample, values in given.items():
        if not np.isfinite(values).all():
            msg = (
                f"row column {name!r}: sample {sample!r} has the value "
                f"{values[~np.isfinite(values)][0]}; leave rows without a value out."
            )
            raise SampleError(msg)
    classes = all(bool(((v == np.floor(v)) & (v >= -1)).all()) for v in given.values())
    if names and not (classes and all((v < len(names)).all() for v in given.values())):
        msg = f"row column {name!r}: its numbers must be those of its {len(names)} names, or -1."
        raise SampleError(msg)
    numbers = {}
    for sample, values in given.items():
        if values.size:
            filled = np.full(rows.positions[sample].size, -1.0 if classes else np.nan)
            filled[placed[sample][0]] = values
            numbers[sample] = filled
    return numbers, classes
