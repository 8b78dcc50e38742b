"""Does a sample fit what was declared? Every check runs before the first byte is queued."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .definition import CaptureDefinition
from .errors import SampleError
from .layout import Output, Site, check_name, numpy_dtype
from .segment import NewSample

_RESERVED_COLUMNS = {"capture", "id", "label", "exposed", "segment"}

type ColumnValue = str | int | float | bool


def check_values(
    subject: str, sites: Mapping[str, Site], values: Mapping[str, np.ndarray], *, n_samples: int
) -> dict[str, np.ndarray]:
    """Return the arrays of consecutive samples in their storage type.

    Row sites come out as `[layer, row, feature]`, the rows of one sample after those of the other,
    pooled sites as `[layer, sample, feature]`. `subject` names the sample or the batch in errors.
    """
    missing, unknown = sorted(sites.keys() - values), sorted(values.keys() - sites)
    if missing or unknown:
        parts = [f"missing: {', '.join(missing)}"] * bool(missing)
        parts += [f"not declared: {', '.join(unknown)}"] * bool(unknown)
        msg = f"{subject}: its sites are not those of the capture; {'; '.join(parts)}"
        raise SampleError(msg)
    return {n: _check_array(subject, sites[n], value, n_samples) for n, value in values.items()}


def count_rows(
    subject: str, sites: Iterable[Site], arrays: Mapping[str, np.ndarray]
) -> dict[str, int]:
    """Return the rows per stream; all sites of a stream must agree."""
    rows: dict[str, int] = {}
    for site in sites:
        if site.kind != "row":
            continue
        count = arrays[site.name].shape[1]
        if rows.setdefault(site.stream, count) != count:
            msg = (
                f"{subject}: site {site.name!r} has {count} rows, another site of "
                f"stream {site.stream!r} has {rows[site.stream]}: they must be the same"
            )
            raise SampleError(msg)
    return rows


def check_row_counts(
    subject: str,
    definition: CaptureDefinition,
    samples: Sequence[NewSample],
    arrays: Mapping[str, np.ndarray],
) -> None:
    """Refuse samples whose rows are not those of the arrays, or that no segment can hold."""
    for stream, count in count_rows(subject, definition.sites, arrays).items():
        said = sum(sample.n_rows.get(stream, 0) for sample in samples)
        if said != count:
            msg = (
                f"{subject}: the arrays have {count} rows in stream {stream!r}, the samples' "
                f"n_rows add up to {said}"
            )
            raise SampleError(msg)
    for sample in samples:
        unknown = sorted(set(sample.n_rows) - set(definition.streams))
        if unknown or any(n < 0 for n in sample.n_rows.values()):
            msg = (
                f"sample {sample.id!r}: n_rows {dict(sample.n_rows)} must be counts of the streams "
                f"{', '.join(definition.streams) or '(none: no site has rows)'}"
            )
            raise SampleError(msg)
        for stream, count in sample.n_rows.items():
            if count > definition.shape.rows:
                msg = (
                    f"sample {sample.id!r} has {count} rows in stream {stream!r}, a segment has "
                    f"room for {definition.shape.rows}: pass a larger segment_rows"
                )
                raise SampleError(msg)


def check_new_ids(
    definition: CaptureDefinition, samples: Sequence[NewSample], seen: Container[str]
) -> None:
    """Refuse samples that are there already, or twice among themselves."""
    among: set[str] = set()
    for sample in samples:
        if sample.id in seen or sample.id in among:
            msg = (
                f"sample {sample.id!r} is in capture {definition.name!r} already: ids are unique; "
                "skip those in writer.committed"
            )
            raise SampleError(msg)
        among.add(sample.id)


def check_sample(definition: CaptureDefinition, sample: NewSample) -> NewSample:
    """Return a sample with its outputs and positions as arrays of the declared shapes."""
    check_columns(definition, sample.columns, sample.groups)
    declared = {output.name: output for output in definition.outputs}
    return replace(
        sample,
        exposed=bool(sample.exposed),
        outputs=check_outputs(sample.id, declared, sample.outputs),
        positions=check_positions(sample.id, sample.n_rows, sample.positions),
    )


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


def _check_array(subject: str, site: Site, value: np.ndarray, n_samples: int) -> np.ndarray:
    array = np.asarray(value)
    pooled = site.kind == "sample"
    if pooled and n_samples == 1 and array.ndim == 1 + (site.layers is not None):
        array = array[..., None, :]
    if site.layers is None and site.width == 1 and not pooled and array.ndim == 1:
        array = array[:, None]  # one number a row: a row column
    if site.layers is None and array.ndim == 2:
        array = array[None]
    fits = (
        array.ndim == 3
        and array.shape[0] == len(site.layer_labels)
        and array.shape[-1] == site.width
        and (not pooled or array.shape[1] == n_samples)
    )
    if not fits:
        axes = "[layer, row, feature]"
        if pooled:
            axes = "[layer, feature]" if n_samples == 1 else f"[layer, {n_samples}, feature]"
        msg = (
            f"{subject}: site {site.name!r} has shape {np.shape(value)}; expected {axes} with "
            f"{len(site.layer_labels)} layers and {site.width} features"
        )
        raise SampleError(msg)
    native = numpy_dtype(site.dtype)
    if array.dtype == native:
        return array
    if array.dtype.kind not in "fiu" and dtype_is_unknown(array.dtype):
        msg = f"{subject}: site {site.name!r} has data type {array.dtype}, not a number"
        raise SampleError(msg)
    return array.astype(native)


def dtype_is_unknown(dtype: np.dtype) -> bool:
    """Whether a type is none of the storage types (bfloat16 has numpy's kind `V`)."""
    return dtype != numpy_dtype("bfloat16")
