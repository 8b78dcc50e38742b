"""Does a sample fit what was declared? Every check runs before the first byte is queued."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .definition import CaptureDefinition
from .errors import SampleError
from .layout import Output, Site, check_name, numpy_dtype

_RESERVED_COLUMNS = {"capture", "id", "label", "exposed", "segment"}

type ColumnValue = str | int | float | bool


def check_values(
    sample: str, sites: Mapping[str, Site], values: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return the arrays as `[layer, row, feature]` or `[layer, feature]` in their storage type."""
    missing, unknown = sorted(sites.keys() - values), sorted(values.keys() - sites)
    if missing or unknown:
        parts = [f"missing: {', '.join(missing)}"] * bool(missing)
        parts += [f"not declared: {', '.join(unknown)}"] * bool(unknown)
        msg = f"sample {sample!r}: its sites are not those of the capture; {'; '.join(parts)}"
        raise SampleError(msg)
    return {name: _check_array(sample, sites[name], value) for name, value in values.items()}


def count_rows(
    sample: str, definition: CaptureDefinition, arrays: Mapping[str, np.ndarray]
) -> dict[str, int]:
    """Return the rows per stream; the sites of a stream agree, and a segment can hold them."""
    rows: dict[str, int] = {}
    for site in definition.sites:
        if site.kind != "row":
            continue
        count = arrays[site.name].shape[1]
        if rows.setdefault(site.stream, count) != count:
            msg = (
                f"sample {sample!r}: site {site.name!r} has {count} rows, another site of "
                f"stream {site.stream!r} has {rows[site.stream]}: they must be the same"
            )
            raise SampleError(msg)
        if count > definition.shape.rows:
            msg = (
                f"sample {sample!r} has {count} rows in stream {site.stream!r}, a segment has room "
                f"for {definition.shape.rows}: pass a larger segment_rows"
            )
            raise SampleError(msg)
    return rows


def check_outputs(
    sample: str, declared: Mapping[str, Output], outputs: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Return the outputs as arrays of the declared shapes."""
    checked = {}
    for name, value in outputs.items():
        if name not in declared:
            msg = f"sample {sample!r}: output {name!r} was not declared"
            raise SampleError(msg)
        array = np.asarray(value)
        if array.shape != declared[name].shape:
            msg = (
                f"sample {sample!r}: output {name!r} has shape {array.shape}, "
                f"declared was {declared[name].shape}"
            )
            raise SampleError(msg)
        checked[name] = array
    return checked


def check_columns(
    definition: CaptureDefinition, columns: Mapping[str, ColumnValue], groups: Mapping[str, str]
) -> None:
    """Refuse column names that are taken, doubled or not allowed in a path."""
    fixed = _RESERVED_COLUMNS | definition.fixed_columns().keys()
    for name in [*columns, *groups]:
        check_name("column", name)
        if name in fixed or (name in columns and name in groups):
            msg = f"column name {name!r} is taken: choose another"
            raise SampleError(msg)


def check_positions(
    sample: str, n_rows: Mapping[str, int], positions: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return one position per row and stream; 0, 1, 2, … where none were given."""
    checked = {}
    for stream, count in n_rows.items():
        array = np.asarray(positions.get(stream, np.arange(count)))
        if array.shape != (count,):
            msg = f"sample {sample!r}: positions of stream {stream!r} must be {count} numbers"
            raise SampleError(msg)
        checked[stream] = array
    return checked


def _check_array(sample: str, site: Site, value: np.ndarray) -> np.ndarray:
    array = np.asarray(value)
    lead = 3 if site.kind == "row" else 2
    if site.layers is None and array.ndim == lead - 1:
        array = array[None]
    fits = (
        array.ndim == lead
        and array.shape[0] == len(site.layer_labels)
        and array.shape[-1] == site.width
    )
    if not fits:
        axes = "[layer, row, feature]" if site.kind == "row" else "[layer, feature]"
        msg = (
            f"sample {sample!r}: site {site.name!r} has shape {array.shape}; expected {axes} with "
            f"{len(site.layer_labels)} layers and {site.width} features"
        )
        raise SampleError(msg)
    native = numpy_dtype(site.dtype)
    if array.dtype == native:
        return array
    if array.dtype.kind not in "fiu" and dtype_is_unknown(array.dtype):
        msg = f"sample {sample!r}: site {site.name!r} has data type {array.dtype}, not a number"
        raise SampleError(msg)
    return array.astype(native)


def dtype_is_unknown(dtype: np.dtype) -> bool:
    """Whether a type is none of the storage types (bfloat16 has numpy's kind `V`)."""
    return dtype != numpy_dtype("bfloat16")
