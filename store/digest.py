"""`content_digest`: what was recorded, whatever the segments, records, process or machine.

A leaf is the SHA-256 of a header (capture, element, layer, sample id, type and shape) followed by
the stored bytes of one sample at one site and layer, of one sample's outputs and table row, or of
one parameter. The digest is the SHA-256 of the sorted leaves, so the order of recording and the
cut into segments do not matter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .layout import canonical

if TYPE_CHECKING:
    from .capture import Capture

_DERIVED = ("segment", "start_row.", "n_rows.")


def content_digest(captures: Mapping[str, Capture]) -> str:
    """Return the digest of captures as a hexadecimal SHA-256."""
    leaves = sorted(leaf for capture in captures.values() for leaf in _capture_leaves(capture))
    return hashlib.sha256(b"".join(leaves)).hexdigest()


def _capture_leaves(capture: Capture) -> Iterator[bytes]:
    table = capture.sample_columns  # without a data frame, which takes as long as all the rest
    ids = list(map(str, table["id"]))
    yield from _row_leaves(capture, ids)
    yield from _pooled_leaves(capture, ids)
    for name in capture.outputs:
        values = capture.read_output(name)
        for sample, value in zip(ids, values, strict=True):
            yield _leaf([capture.name, "outputs", name, sample], value)
    for stream in capture.definition.streams:
        positions = capture.read_positions(stream)
        for sample, part in zip(ids, _split(positions, capture.row_counts(stream)), strict=True):
            yield _leaf([capture.name, "positions", stream, sample], part)
    columns = [name for name in sorted(table) if not name.startswith(_DERIVED)]
    for row in zip(*(table[name] for name in columns), strict=True):
        facts = {key: _plain(value) for key, value in zip(columns, row, strict=True)}
        yield hashlib.sha256(canonical([capture.name, "samples", facts])).digest()
    for name, value in capture.parameters.items():
        yield _leaf([capture.name, "parameters", name], value)


def _row_leaves(capture: Capture, ids: list[str]) -> Iterator[bytes]:
    for site in capture.stored_sites.values():
        counts = capture.row_counts(site.stream)
        for layer in site.layers or (None,):
            for window in _windows(capture):
                values = capture.read_stored(site.name, layer, window)
                parts = _split(values, counts[window])
                for sample, part in zip(ids[window], parts, strict=True):
                    yield _leaf([capture.name, "sites", site.name, layer, sample], part)


def _pooled_leaves(capture: Capture, ids: list[str]) -> Iterator[bytes]:
    for site in capture.pooled.values():
        for layer in site.layers or (None,):
            values = capture.read_pooled(site.name, layer)
            for sample, part in zip(ids, values, strict=True):
                yield _leaf([capture.name, "pooled", site.name, layer, sample], part)


def _windows(capture: Capture) -> Iterator[slice]:
    """Yield the sample numbers of one segment after the other, so that memory stays at a shard."""
    first = 0
    for record in capture.segments.records:
        yield slice(first, first + len(record.samples))
        first += len(record.samples)


def _split(values: np.ndarray, counts: np.ndarray) -> list[np.ndarray]:
    return np.split(values, np.cumsum(counts)[:-1]) if len(counts) else []


def _leaf(header: list[Any], values: np.ndarray) -> bytes:
    shape = [str(values.dtype), list(values.shape)]
    digest = hashlib.sha256(canonical([header, shape]))
    digest.update(np.ascontiguousarray(values).tobytes())
    return digest.digest()


def _plain(value: object) -> object:
    """Return a table value as JSON; a float by its exact bits."""
    if isinstance(value, (np.bool_, bool)):
        return bool(value)
    if isinstance(value, (np.integer, int)):
        return int(value)
    return float(value).hex() if isinstance(value, (np.floating, float)) else str(value)
