"""How long the arrays of a capture are for a plain Zarr reader, as segments are committed.

With a plan, arrays have their final length from the start. Without one their length follows the
commit records, and may lag behind them after a crash.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from .creation import make_array
from .definition import CaptureDefinition
from .files import write_durable
from .layout import STAGING, ArraySpec


def make_columns(
    root: Path,
    definition: CaptureDefinition,
    columns: Mapping[str, str],
    segments: Collection[int],
    last: Mapping[str, int],
) -> None:
    """Make the arrays of sample columns that came up since the capture was made.

    Parameters
    ----------
    root
        The store's root.
    definition
        The capture.
    columns
        Sample columns beyond the fixed ones, with their data types.
    segments
        Numbers of the segments that are durable.
    last
        Slots that the newest of them uses.
    """
    for name, dtype in columns.items():
        spec = definition.column_spec(name, dtype)
        if not (root / spec.path).exists():
            make_array(root, spec, _size(definition, spec, segments, last))


def publish_shapes(
    root: Path,
    definition: CaptureDefinition,
    columns: Mapping[str, str],
    segments: Collection[int],
    last: Mapping[str, int],
) -> None:
    """Tell plain Zarr readers of the length: it grew, or an interrupted seal had cut it.

    The parameters are those of `make_columns`.
    """
    for spec in definition.segmented_arrays(columns):
        content = spec.metadata(_size(definition, spec, segments, last))
        target = root / spec.path / "zarr.json"
        if target.read_bytes() != content:
            write_durable(target, content, staging=root / STAGING)


def _size(
    definition: CaptureDefinition,
    spec: ArraySpec,
    segments: Collection[int],
    last: Mapping[str, int],
) -> int:
    if definition.plan is not None:
        return definition.planned_size(spec)
    if not segments:
        return 0
    return definition.cut_size(spec, max(segments) + 1, last)
