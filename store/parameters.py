"""Parameters of a capture: head, norms, adapter weights; written at once, durable at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .creation import chunk_entry, make_array, parameter_chunk
from .definition import CaptureDefinition
from .errors import ConfigMismatchError, MissingSiteError, SampleError
from .guard import BrokenRule
from .layout import check_name, dtype_name, numpy_dtype
from .record import Record
from .record_rules import check_parameter
from .records import RecordLog
from .segments import find_entry, read_checked


class Parameters(Mapping[str, np.ndarray]):
    """The committed parameters of a capture; values are read and checked on access."""

    def __init__(self, root: Path, definition: CaptureDefinition, log: RecordLog) -> None:
        self._root = root
        self._definition = definition
        self._sets: list[Record] = [
            r for r in log.records if r.kind == "parameters" and r.capture == definition.name
        ]

    @property
    def described(self) -> dict[str, dict[str, Any]]:
        """Shape and data type of every parameter."""
        described: dict[str, dict[str, Any]] = {}
        for record in self._sets:
            described |= record.attrs["arrays"]
        return described

    @property
    def attrs(self) -> dict[str, Any]:
        """Facts that were given with the parameters."""
        facts: dict[str, Any] = {}
        for record in self._sets:
            facts |= record.attrs["attrs"]
        return facts

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.described))

    def __len__(self) -> int:
        return len(self.described)

    def __getitem__(self, name: str) -> np.ndarray:
        described = self.described
        if name not in described:
            msg = (
                f"capture {self._definition.name!r} holds no parameter {name!r}. "
                f"Present: {', '.join(sorted(described)) or 'none'}."
            )
            raise MissingSiteError(msg)
        shape, dtype = described[name]["shape"], described[name]["dtype"]
        spec = self._definition.parameter_spec(name, shape, dtype)
        path = spec.chunk_path(*(0 for _ in shape))
        record = next(r for r in self._sets if name in r.attrs["arrays"])
        content = read_checked(self._root, find_entry(record, path))
        return np.frombuffer(content, numpy_dtype(dtype)).reshape(shape)


class ParameterWriter:
    """Adds sets of parameters to a capture."""

    def __init__(self, root: Path, definition: CaptureDefinition, log: RecordLog) -> None:
        self._root = root
        self._definition = definition
        self._log = log

    @property
    def committed(self) -> Parameters:
        """What is durable."""
        return Parameters(self._root, self._definition, self._log)

    def write(self, values: Mapping[str, np.ndarray], attrs: Mapping[str, Any]) -> None:
        """Make new parameters durable; equal ones are left alone, others refused."""
        present = self.committed
        new = {}
        for name, value in values.items():
            check_name("parameter", name)
            array = np.asarray(value)
            if name not in present:
                _check_parameter(name, array)
                new[name] = array
            elif not _same(present[name], array):
                msg = (
                    f"capture {self._definition.name!r} holds parameter {name!r} with other values "
                    "already: use another capture name or another store"
                )
                raise ConfigMismatchError(msg)
        if new:
            self._commit(new, attrs)

    def _commit(self, values: Mapping[str, np.ndarray], attrs: Mapping[str, Any]) -> None:
        files, described = [], {}
        for name, array in sorted(values.items()):
            dtype = dtype_name(array.dtype)
            spec = self._definition.parameter_spec(name, array.shape, dtype)
            chunk = parameter_chunk(array, dtype)
            make_array(self._root, spec, None, chunk)
            files.append(chunk_entry(spec.chunk_path(*(0 for _ in array.shape)), chunk))
            described[name] = {"shape": list(array.shape), "dtype": dtype}
        self._log.commit(
            "parameters",
            self._definition.name,
            files=files,
            attrs={"arrays": described, "attrs": dict(attrs)},
        )


def _check_parameter(name: str, array: np.ndarray) -> None:
    try:
        check_parameter(name, list(array.shape), dtype_name(array.dtype))
    except BrokenRule as error:
        msg = f"a parameter cannot be stored: {error}"
        raise SampleError(msg) from error


def _same(stored: np.ndarray, asked: np.ndarray) -> bool:
    return (
        stored.shape == asked.shape
        and stored.dtype == asked.dtype
        and stored.tobytes() == np.ascontiguousarray(asked).tobytes()
    )
