"""`seal_store`: a finished store becomes one that never changes and that names all its bytes.

The order makes a crash harmless: first what no record names is removed, then the arrays get the
length of what is committed, then the manifest is written, which names the root as it will be, and
the rename of that root is the seal. Until then the store is open, and a writer puts it back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .creation import clear_folder
from .damage import FileChecker
from .errors import DamagedStoreError, IncompleteCaptureError
from .expected import expected_metadata, metadata_paths, sealed_root
from .files import (
    disk_errors,
    exclusive_lock,
    make_directories,
    read_file,
    remove,
    sync_directory,
    write_durable,
)
from .layout import COMMITS, LOCK, MANIFEST, STAGING
from .manifest import Manifest
from .reader import Store, open_store
from .tree import remove_empty_folders, scan_committed, scan_sealed
from .verify import verify_store

type Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class SealReport:
    """What `seal_store` did."""

    changed: bool
    """False if the store was sealed already, and is sound."""
    files: int
    """Files that the manifest names."""
    bytes: int
    """Their bytes."""
    content_digest: str
    """Digest of the values: the same run gives the same one."""
    manifest_digest: str
    """Digest of the files as they are."""
    incomplete: tuple[str, ...] = ()
    """Captures that were sealed without all of their planned samples."""


def seal_store(
    path: str | Path, *, incomplete: bool = False, progress: Progress | None = None
) -> SealReport:
    """Seal a store: from now on nothing in it changes.

    Parameters
    ----------
    path
        The store's folder.
    incomplete
        Seal captures that lack planned samples too; the arrays end where the samples do.
    progress
        Called with bytes done and bytes in all.

    Returns
    -------
    SealReport
        Digests and sizes. Sealing a sound sealed store changes nothing.

    Raises
    ------
    IncompleteCaptureError
        If a planned capture lacks samples and `incomplete` is false.
    DamagedStoreError
        If any byte is not as it was committed: a seal must not make damage permanent.
    LockedStoreError
        If a writer is at work.

    Notes
    -----
    Reads every byte three times: against the records, for SHA-256, for the content digest.
    """
    root = Path(path)
    store = open_store(root)
    if store.state == "sealed":
        _refuse_damage(root, "full", progress)
        return _report(store, changed=False)
    with disk_errors(f"sealing {root}"):
        make_directories(root / STAGING)
        with exclusive_lock(root / LOCK):
            store = open_store(root)
            if store.state == "open":
                _refuse_incomplete(store, incomplete=incomplete)
                _refuse_damage(root, "default", progress)
                _seal(store)
    return _report(open_store(root), changed=True)


def _refuse_damage(root: Path, level: str, progress: Progress | None) -> None:
    report = verify_store(root, "full" if level == "full" else "default", progress=progress)
    if report.ok:
        return
    more = f" (and {len(report.damages) - 1} more)" if len(report.damages) > 1 else ""
    what = "is sealed already and damaged" if level == "full" else "is damaged and cannot be sealed"
    do = "restore it from a copy" if level == "full" else "lorascope repair, capture again, seal"
    msg = f"{root} {what}: {report.damages[0].message}{more}. What to do: {do}."
    raise DamagedStoreError(msg)


def _refuse_incomplete(store: Store, *, incomplete: bool) -> None:
    lacking = _incomplete(store)
    if lacking and not incomplete:
        capture = store.capture(lacking[0])
        planned = sum(capture.definition.planned_sizes)
        msg = (
            f"capture {lacking[0]!r} of {store.path} has {len(capture)} of {planned} planned "
            "samples: finish the run, or seal it as it is with --incomplete (incomplete=True)"
        )
        raise IncompleteCaptureError(msg)


def _incomplete(store: Store) -> tuple[str, ...]:
    return tuple(name for name, held in store.every_capture.items() if not held.complete)


def _seal(store: Store) -> None:
    root, staging = store.path, store.path / STAGING
    captures = store.every_capture
    _sweep(store)
    for expected in expected_metadata(captures, sealed=True):
        if read_file(root / expected.path) != expected.content:
            write_durable(root / expected.path, expected.content, staging=staging)
    sealed = sealed_root(store.uuid, store.origin, captures)
    manifest = _manifest(store, sealed)
    write_durable(root / MANIFEST, manifest.encode(), staging=staging)
    write_durable(root / "zarr.json", sealed, staging=staging)


def _manifest(store: Store, sealed: bytes) -> Manifest:
    """Return the manifest of the store as it will be when its root is replaced by `sealed`."""
    tree = scan_sealed(store.path)
    if tree.odd:
        msg = f"{store.path}/{tree.odd[0]} is no regular file: remove it, then seal"
        raise DamagedStoreError(msg)
    checker = FileChecker(store.path, tree, {})
    files: dict[str, tuple[int, str]] = {}
    for path, size in tree.files.items():
        if path == "zarr.json":
            files[path] = (len(sealed), hashlib.sha256(sealed).hexdigest())
            continue
        sha256 = checker.sha256(path)
        if sha256 is None:
            msg = f"{store.path}/{path} cannot be read: see to it, then seal"
            raise DamagedStoreError(msg)
        files[path] = (size, sha256)
    return Manifest(store.content_digest(), files)


def _sweep(store: Store) -> None:
    """Remove what no record names below `captures/` and `__commits__/`, and what was staged."""
    root = store.path
    captures = store.every_capture
    named = {entry.path for record in store.log.records for entry in record.files}
    named |= {f"{COMMITS}/{name}" for name in store.log.names}
    named |= metadata_paths(captures)
    clear_folder(root / STAGING)
    doomed = sorted(scan_committed(root).entries - named)
    for path in doomed:
        remove(root / path)
    for folder in {(root / path).parent for path in doomed}:
        sync_directory(folder)
    remove_empty_folders(root, scan_committed(root), named)


def _report(store: Store, *, changed: bool) -> SealReport:
    manifest = store.manifest
    if manifest is None:
        msg = f"{store.path} is not sealed: another process changed it meanwhile"
        raise DamagedStoreError(msg)
    return SealReport(
        changed,
        len(manifest.files),
        sum(size for size, _ in manifest.files.values()),
        manifest.content_digest,
        manifest.digest,
        _incomplete(store),
    )
