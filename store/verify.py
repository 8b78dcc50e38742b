"""`verify_store`: is what was committed still there, byte for byte? Never modifies anything."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from .blocks import checked_blocks
from .capture import Capture
from .creation import file_entry
from .definition import CaptureDefinition
from .errors import DamagedStoreError
from .files import read_file
from .layout import ArraySpec, group_metadata
from .reader import Store, open_store
from .records import Record
from .shards import FileEntry

type Level = Literal["quick", "default"]
type DamageKind = Literal["missing", "size", "checksum", "metadata", "records"]


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that is not as it was committed."""

    kind: DamageKind
    """Class of damage."""
    path: str
    """File below the store's root."""
    message: str
    """What differs, in a sentence."""
    capture: str = ""
    """The capture it belongs to."""
    site: str = ""
    """The site (or output, column, parameter) it belongs to."""
    layer: int | None = None
    """The layer, where the file belongs to one."""
    samples: tuple[str, ...] = ()
    """Ids of the samples whose values are in the file."""


@dataclass(slots=True)
class VerifyReport:
    """What `verify_store` saw."""

    level: Level
    """How much was checked."""
    files: int = 0
    """Files checked."""
    bytes: int = 0
    """Bytes read and compared (sizes only count as nothing)."""
    samples: int = 0
    """Committed samples over all captures."""
    damages: list[Damage] = field(default_factory=list)
    """All that is wrong; empty for a sound store."""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.damages


def verify_store(
    path: str | Path,
    level: Level = "default",
    *,
    progress: Callable[[int, int], None] | None = None,
) -> VerifyReport:
    """Compare a store with its commit records.

    Parameters
    ----------
    path
        The store's folder.
    level
        `quick`: records, metadata, presence and sizes; `default`: also every checksum.
    progress
        Called with bytes done and bytes in all.

    Returns
    -------
    VerifyReport
        Damages name file, site, layer and samples.

    Raises
    ------
    InvalidStoreError
        If there is no store.

    Notes
    -----
    Reads every byte once at level `default`; memory stays at some MiB.
    """
    report = VerifyReport(level)
    try:
        store = open_store(path)
    except DamagedStoreError as error:
        report.damages.append(Damage("records", "__commits__", str(error)))
        return report
    entries = [(record, entry) for record in store.log.records for entry in record.files]
    total = sum(entry.size for _, entry in entries)
    done = 0
    for record, entry in entries:
        damage = _check_file(store, record, entry, level)
        if damage is not None:
            report.damages.append(damage)
        report.files += 1
        done += entry.size
        report.bytes += entry.size if level == "default" else 0
        if progress is not None:
            progress(done, total)
    for name in store.captures:
        capture = store.capture(name)
        report.samples += len(capture)
        for damage in _check_metadata(store.path, capture):
            report.damages.append(damage)
    return report


def _check_file(store: Store, record: Record, entry: FileEntry, level: Level) -> Damage | None:
    path = store.path / entry.path
    try:
        status = path.lstat()
    except OSError:
        return _damage(store, record, entry, "missing", "the file is missing")
    if not path.is_file() or path.is_symlink():
        return _damage(store, record, entry, "missing", "it is not a regular file")
    if status.st_size != entry.size:
        text = f"it has {status.st_size} bytes, {entry.size} were committed"
        return _damage(store, record, entry, "size", text)
    if level == "default" and not _same_bytes(path, entry):
        return _damage(store, record, entry, "checksum", "its checksum differs from the record")
    return None


def _same_bytes(path: Path, entry: FileEntry) -> bool:
    """Read a file once, comparing every chunk and the whole with the record."""
    try:
        for _ in checked_blocks(path, entry):
            pass
    except DamagedStoreError:
        return False
    return True


def _damage(store: Store, record: Record, entry: FileEntry, kind: DamageKind, text: str) -> Damage:
    parts = entry.path.split("/")
    layer = None
    if parts[2:3] in (["sites"], ["pooled"]) and parts[4] == "values":
        spec = {**store.capture(record.capture).sites, **store.capture(record.capture).pooled}
        layers = spec[parts[3]].layers
        layer = None if layers is None else layers[int(parts[5].split(".")[1])]
    return Damage(
        kind=kind,
        path=entry.path,
        message=f"{entry.path}: {text}",
        capture=record.capture,
        site=parts[3] if len(parts) > 3 else "",
        layer=layer,
        samples=tuple(sample.id for sample in record.samples),
    )


def _check_metadata(root: Path, capture: Capture) -> Iterator[Damage]:
    definition = capture.definition
    for group in definition.groups()[1:]:
        yield from _check_exact(root, definition, group, group_metadata({}))
    for site in definition.sites:
        spec = definition.layer_spec(site)
        yield from _check_exact(root, definition, spec.path, spec.metadata())
    for name, value in capture.parameters.described.items():
        spec = definition.parameter_spec(name, value["shape"], value["dtype"])
        yield from _check_exact(root, definition, spec.path, spec.metadata())
    for spec in definition.segmented_arrays(capture.segments.columns):
        yield from _check_exact(root, definition, spec.path, _expected(root, capture, spec))


def _expected(root: Path, capture: Capture, spec: ArraySpec) -> bytes:
    """Return the metadata a segmented array should have.

    Without a plan the published length may lag behind the records by a crash: any length up to
    that of the records is sound.
    """
    definition = capture.definition
    if definition.plan is not None:
        return spec.metadata(definition.planned_size(spec))
    newest = capture.segments.records[-1] if len(capture.segments) else None
    segments = 0 if newest is None else (newest.segment or 0) + 1
    size = definition.cut_size(spec, segments, newest.attrs["used"] if newest else {})
    try:
        published = json.loads(read_file(root / spec.path / "zarr.json"))["shape"][spec.cut_axis]
        if isinstance(published, int) and 0 <= published <= size:
            size = published
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return spec.metadata(size)
    return spec.metadata(size)


def _check_exact(
    root: Path, definition: CaptureDefinition, folder: str, expected: bytes
) -> Iterator[Damage]:
    path = f"{folder}/zarr.json"
    try:
        content = read_file(root / path)
    except OSError:
        yield Damage("missing", path, f"{path}: the file is missing", definition.name)
        return
    if file_entry(path, content) != file_entry(path, expected):
        text = f"{path}: the metadata are not those of the capture's definition"
        yield Damage("metadata", path, text, definition.name)
