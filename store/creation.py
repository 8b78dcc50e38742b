"""Making a store and a capture on disk, and putting a store in order before a writer uses it."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .definition import CaptureDefinition
from .errors import ConfigMismatchError, InvalidStoreError
from .files import (
    crc32c,
    make_directories,
    remove,
    remove_tree,
    rename,
    sync_directory,
    write_all_synced,
    write_durable,
)
from .inside import check_tree
from .layout import (
    COMMITS,
    MANIFEST,
    QUARANTINE,
    STAGING,
    ArraySpec,
    Site,
    group_metadata,
    numpy_dtype,
)
from .records import RecordLog
from .root import new_attributes, read_metadata, root_attributes
from .shards import CRC_BYTES, FileEntry

_ABSENT = object()
_OWN_ENTRIES = {"zarr.json", "captures", COMMITS, MANIFEST, QUARANTINE}


def prepare_folder(root: Path) -> None:
    """Make the store's folders; they are nothing yet without the root's `zarr.json`.

    Raises
    ------
    InvalidStoreError
        If the path is a file, or a folder that holds something else.
    DamagedStoreError
        If anything in the folder is a link, a device or a pipe.
    """
    if root.exists() and not root.is_dir():
        msg = f"{root} is a file: a store is a folder. Name another path."
        raise InvalidStoreError(msg)
    make_directories(root)
    foreign = sorted(p.name for p in root.iterdir() if p.name not in _OWN_ENTRIES)
    if foreign and not (root / "zarr.json").exists():
        msg = (
            f"{root} holds other things ({', '.join(foreign[:3])}, …) and no store: "
            "name an empty or a new folder."
        )
        raise InvalidStoreError(msg)
    if (root / "zarr.json").exists():
        root_attributes(root)
    check_tree(root)
    make_directories(root / STAGING)


def prepare_root(root: Path, attributes: Mapping[str, Any] | None = None) -> None:
    """Write the root's metadata if they are not there yet; the caller holds the lock.

    `attributes` are those of a copy; a new store gets its own.
    """
    if (root / "zarr.json").exists():
        clear_folder(root / STAGING)
        remove_manifest(root)
        return
    prepare_captures(root)
    content = group_metadata(new_attributes() if attributes is None else attributes)
    write_durable(root / "zarr.json", content, staging=root / STAGING)
    sync_directory(root.parent)


def prepare_captures(root: Path) -> None:
    """Make the folder of the captures, and clear what was staged."""
    clear_folder(root / STAGING)
    captures = root / "captures"
    make_directories(captures)
    write_durable(captures / "zarr.json", group_metadata({}), staging=root / STAGING)
    # else a power cut may keep the root's metadata, which comes next, and lose this folder
    sync_directory(root)


def remove_manifest(root: Path) -> None:
    """Remove the manifest that an interrupted seal left in an open store."""
    if (root / MANIFEST).exists():
        remove(root / MANIFEST)
        sync_directory(root)


def clear_folder(folder: Path) -> None:
    """Remove everything below a folder of ours."""
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            remove_tree(entry)
        else:
            remove(entry)


def make_capture(root: Path, definition: CaptureDefinition, log: RecordLog) -> None:
    """Make a capture's groups and arrays, all or nothing, and commit its definition."""
    make_capture_files(root, definition)
    commit_definition(root, definition, log)


def make_capture_files(root: Path, definition: CaptureDefinition) -> None:
    """Make a capture's groups and arrays, all or nothing; they are nothing without a record."""
    staged = root / STAGING / "capture"
    contents: dict[Path, bytes] = {}
    for group in definition.groups():
        folder = staged / group.removeprefix(definition.root).lstrip("/")
        content = definition.metadata() if group == definition.root else group_metadata({})
        contents[folder / "zarr.json"] = content
    for spec in definition.segmented_arrays({}):
        folder = staged / spec.path.removeprefix(f"{definition.root}/")
        contents[folder / "zarr.json"] = spec.metadata(definition.planned_size(spec))
    for site in definition.sites:
        spec = definition.layer_spec(site)
        folder = staged / spec.path.removeprefix(f"{definition.root}/")
        contents |= {folder / "zarr.json": spec.metadata(), folder / "c.0": layer_chunk(site)}
    for path in contents:
        make_directories(path.parent)
    write_all_synced(contents)
    for folder in [staged, *(p for p in staged.rglob("*") if p.is_dir())]:
        sync_directory(folder)
    rename(staged, root / definition.root)
    sync_directory(root / "captures")


def commit_definition(root: Path, definition: CaptureDefinition, log: RecordLog) -> None:
    """Commit the definition of a capture whose files are durable."""
    files = [file_entry(f"{definition.root}/zarr.json", definition.metadata())]
    for site in definition.sites:
        path = definition.layer_spec(site).chunk_path(0)
        files.append(chunk_entry(path, layer_chunk(site)))
    uuid = read_metadata(root / "zarr.json")["attributes"]["uuid"]
    log.commit(
        "capture",
        definition.name,
        files=files,
        attrs={"config_digest": definition.config_digest, "store": uuid},
    )


def layer_chunk(site: Site) -> bytes:
    """Return the only chunk of a site's layer coordinate."""
    return with_checksum(np.array(site.layer_labels, "<i8").tobytes())


def make_array(
    root: Path, spec: ArraySpec, cut_size: int | None, chunk: bytes | None = None
) -> None:
    """Make one array durable, all or nothing, with its only chunk where one is given."""
    staged = root / STAGING / f"array-{os.getpid()}-{time.monotonic_ns()}"
    make_directories(staged)
    contents = {staged / "zarr.json": spec.metadata(cut_size)}
    if chunk is not None:
        contents[staged / Path(spec.chunk_path(*(0 for _ in spec.shape))).name] = chunk
    write_all_synced(contents)
    sync_directory(staged)
    target = root / spec.path
    try:
        rename(staged, target)
    except OSError as error:
        if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
            raise
        remove_tree(staged)  # another rank made the same array in the meantime
    sync_directory(target.parent)


def with_checksum(content: bytes) -> bytes:
    """Return a chunk as the codec `crc32c` stores it."""
    return content + np.uint32(crc32c(content)).tobytes()


def file_entry(path: str, content: bytes) -> FileEntry:
    """Return what a record says of a file of metadata."""
    return FileEntry(path, len(content), crc32c(content))


def chunk_entry(path: str, content: bytes) -> FileEntry:
    """Return what a record says of a file that is one chunk with its checksum."""
    payload = content[:-CRC_BYTES]
    return FileEntry(path, len(content), crc32c(content), (crc32c(payload),), len(payload))


def parameter_chunk(values: np.ndarray, dtype: str) -> bytes:
    """Return a parameter's only chunk."""
    return with_checksum(np.ascontiguousarray(values, numpy_dtype(dtype)).tobytes())


def sweep(root: Path, log: RecordLog, captures: Iterable[str]) -> None:
    """Remove what no record names: captures and parameters half made, shards never committed."""
    named = {entry.path for record in log.records for entry in record.files}
    known = set(captures)
    for capture in [p for p in (root / "captures").iterdir() if p.is_dir()]:
        if capture.name not in known:
            remove_tree(capture)
            continue
        for path in [p for p in capture.rglob("c*") if p.is_file()]:
            relative = path.relative_to(root).as_posix()
            if relative not in named:
                remove(path)
        for folder in [p for p in (capture / "parameters").iterdir() if p.is_dir()]:
            if not any(path.name != "zarr.json" for path in folder.iterdir()):
                remove_tree(folder)


def check_same_run(
    stored: CaptureDefinition, asked: CaptureDefinition, *, fixed_shape: Sequence[str]
) -> None:
    """Raise `ConfigMismatchError` that names the first field in which two definitions differ.

    Parameters
    ----------
    stored, asked
        The capture in the store and the one that somebody wants to continue.
    fixed_shape
        Which of `rows`, `samples` were asked for explicitly (others follow the store).
    """
    difference = first_difference(stored.config, asked.config)
    if difference is None and stored.profile != asked.profile:
        difference = ("profile", stored.profile, asked.profile)
    if difference is None and stored.plan != asked.plan:
        difference = ("the samples (ids, order or rows)", "another plan", "this plan")
    if difference is None and stored.outputs != asked.outputs:
        difference = ("outputs", _names(stored.outputs), _names(asked.outputs))
    if difference is None:
        difference = _site_difference(stored, asked)
    for side in fixed_shape:
        if difference is None and getattr(stored.shape, side) != getattr(asked.shape, side):
            difference = (
                f"segment_{side}",
                getattr(stored.shape, side),
                getattr(asked.shape, side),
            )
    if difference is None:
        return
    field, there, here = difference
    msg = (
        f"capture {stored.name!r} is in the store already, made with another configuration: "
        f"{field} is {_short(there)} there and {_short(here)} now. "
        "Use another store, another capture name, or the same configuration."
    )
    raise ConfigMismatchError(msg)


def _site_difference(
    stored: CaptureDefinition, asked: CaptureDefinition
) -> tuple[str, object, object] | None:
    if stored.sites == asked.sites:
        return None
    if _names(stored.sites) != _names(asked.sites):
        return "sites", _names(stored.sites), _names(asked.sites)
    there, here = next((a, b) for a, b in zip(stored.sites, asked.sites, strict=True) if a != b)
    return f"site {there.name}", there.to_dict(), here.to_dict()


def _names(items: Sequence[Any]) -> str:
    return ", ".join(item.name for item in items)


def _short(value: object) -> str:
    if value is _ABSENT:
        return "absent"
    said = repr(value) if isinstance(value, str) else str(value)
    return said if len(said) <= 120 else said[:117] + "…"


def first_difference(
    stored: Mapping[str, Any], asked: Mapping[str, Any], prefix: str = ""
) -> tuple[str, object, object] | None:
    """Return dotted field, stored value and asked value of the first difference, or None."""
    for key in sorted({*stored, *asked}):
        there, here = stored.get(key, _ABSENT), asked.get(key, _ABSENT)
        if isinstance(there, Mapping) and isinstance(here, Mapping):
            inner = first_difference(there, here, f"{prefix}{key}.")
            if inner is not None:
                return inner
        elif there != here:
            return f"{prefix}{key}", there, here
    return None
