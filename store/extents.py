"""How long the arrays of a capture are for a plain Zarr reader, as segments are committed.

With a plan, arrays have their final length from the start. Without one their length follows the
commit records, and may lag behind them after a crash.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from .creation import make_array
from .definition import CaptureDefinition
from .errors import DamagedStoreError
from .files import write_durable
from .guard import BrokenRule, items, parse_json, whole
from .inside import read_inside
from .layout import STAGING, ArraySpec
from .record import Record


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


def refuse_lost_records(
    root: Path, captures: Iterable[CaptureDefinition], records: Sequence[Record]
) -> None:
    """Refuse to write where a plain reader is told of samples that no record has.

    Lengths without a plan follow the records, so these records are lost. Their files may be the
    only copy of what was committed, and a writer removes what no record names.

    Raises
    ------
    DamagedStoreError
        Naming the capture; a repair keeps the files.
    """
    for definition in captures:
        if definition.plan is not None:
            continue
        own = [r for r in records if r.kind == "segment" and r.capture == definition.name]
        newest = max(own, key=lambda record: record.segment or 0, default=None)
        segments = {record.segment for record in own if record.segment is not None}
        last = {} if newest is None else dict(newest.attrs.get("used", {}))
        spec = definition.column_spec("id", "string")
        size = _size(definition, spec, segments, last)
        told = _published(root, spec)
        if told > size:
            msg = (
                f"the arrays of capture {definition.name!r} of {root} hold {told} samples, its "
                f"commit records {size}: a record was lost. lorascope repair keeps the files that "
                "it named in __quarantine__/; then the same command goes on."
            )
            raise DamagedStoreError(msg)


def _published(root: Path, spec: ArraySpec) -> int:
    """Return the length that a plain reader sees; 0 where the metadata are not there or damaged."""
    try:
        shape = parse_json(read_inside(root, f"{spec.path}/zarr.json"))["shape"]
        return whole(items(shape, "shape")[0], "a length")
    except (DamagedStoreError, BrokenRule, KeyError, IndexError, TypeError):
        return 0  # the writer writes them again


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
