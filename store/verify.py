"""`verify_store`: is what was committed still there, byte for byte? Never modifies anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .consistency import read_definition
from .damage import Damage, FileChecker, Level
from .errors import DamagedStoreError, InvalidStoreError, RecordVersionError, UnsealedStoreError
from .expected import expected_metadata, metadata_paths, root_metadata, sealed_root
from .files import is_locked, read_file
from .inside import tree_faults
from .layout import COMMITS, LOCK, MANIFEST, MAX_METADATA_BYTES, STAGING
from .manifest import Manifest
from .reader import Store, open_store
from .records import RecordLog, follow_chain, read_links
from .tree import Tree, scan, scan_committed, scan_sealed

LOOKS = 3
"""How often metadata of a live store are looked at again; commits are seconds apart."""


@dataclass(slots=True)
class VerifyReport:
    """What `verify_store` saw."""

    level: Level
    """How much was checked."""
    state: str = "open"
    """`open` or `sealed`."""
    files: int = 0
    """Files checked."""
    bytes: int = 0
    """Bytes read and compared (sizes only count as nothing)."""
    samples: int = 0
    """Committed samples over all captures."""
    damages: list[Damage] = field(default_factory=list)
    """All that is wrong; empty for a sound store."""
    leftovers: list[str] = field(default_factory=list)
    """Files that nothing names and nobody is writing: no damage; `lorascope repair` sweeps them."""
    unsettled: list[str] = field(default_factory=list)
    """Metadata of an open store that publish another length than the one that is committed.

    A crash between a commit and its publication leaves them, but a changed byte can look the same.
    Readers of lorascope go by the records, plain Zarr readers by this length. The next writer or
    `lorascope repair` settles it.
    """

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
    """Compare a store with its commit records, and a sealed one with its manifest.

    Parameters
    ----------
    path
        The store's folder.
    level
        `quick`: records, metadata, presence and sizes; `default`: also every checksum; `full`, for
        a sealed store: also the SHA-256 of every file and the digests.
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
    UnsealedStoreError
        If level `full` is asked of an open store.

    Notes
    -----
    Reads every byte once at level `default`, twice at level `full`; memory stays at some MiB, and
    at one shard at level `full`.
    """
    report = VerifyReport(level)
    try:
        store = open_store(path)
    except RecordVersionError:
        raise
    except (DamagedStoreError, InvalidStoreError) as error:
        report.damages += _why_closed(Path(path), error)
        return report
    report.state = store.state
    if level == "full" and store.state != "sealed":
        msg = (
            f"{path} is open: it has no manifest yet to compare with. Seal it first (lorascope "
            "seal), or verify it without full: that compares every byte with the commit records."
        )
        raise UnsealedStoreError(msg)
    for fault, reason in tree_faults(store.path):
        report.damages.append(Damage("foreign", fault, f"{fault}: {reason}"))
    tree = scan_committed(store.path)
    digests = _check_files(store, tree, report, progress)
    report.samples += sum(map(len, store.every_capture.values()))
    damages, report.unsettled = _look_at_metadata(store, tree)
    report.damages += damages
    if store.state == "sealed":
        _check_sealed(store, digests, report)
    report.leftovers += _leftovers(store, tree)
    return report


def _why_closed(root: Path, error: Exception) -> Iterator[Damage]:
    """Yield what keeps a store from opening; raises `error` again if there is no store at all."""
    try:
        chain = follow_chain(read_links(root))
    except OSError:
        raise error from None
    if not chain.records and not chain.problems:
        raise error
    if isinstance(error, InvalidStoreError):
        yield Damage("metadata", "zarr.json", str(error))
    for problem in sorted(chain.problems, key=lambda problem: problem.name):
        yield Damage("records", f"{COMMITS}/{problem.name}", problem.message)
    if chain.problems:
        return
    log, found = RecordLog.of_chain(root, "", chain), False
    for record in log.records:
        if record.kind != "capture":
            continue
        try:
            read_definition(root, record.capture, log)
        except (DamagedStoreError, InvalidStoreError) as damage:
            found = True
            path = f"captures/{record.capture}/zarr.json"
            yield Damage("metadata", path, str(damage), record.capture)
    if not found and isinstance(error, DamagedStoreError):
        yield Damage("records", COMMITS, str(error))


def _check_files(
    store: Store, tree: Tree, report: VerifyReport, progress: Callable[[int, int], None] | None
) -> dict[str, str]:
    """Check every committed file; return the SHA-256 of those that were read for it."""
    definitions = {name: capture.definition for name, capture in store.every_capture.items()}
    checker = FileChecker(store.path, tree, definitions)
    entries = [(record, entry) for record in store.log.records for entry in record.files]
    total = sum(entry.size for _, entry in entries)
    done = 0
    digests: dict[str, str] = {}
    for record, entry in entries:
        damage, sha256 = checker.check(record, entry, report.level)
        if damage is not None:
            report.damages.append(damage)
        if sha256 is not None:
            digests[entry.path] = sha256
        report.files += 1
        done += entry.size
        report.bytes += entry.size if report.level != "quick" else 0
        if progress is not None:
            progress(done, total)
    return digests


def _look_at_metadata(store: Store, tree: Tree) -> tuple[list[Damage], list[str]]:
    """Return damaged and unsettled metadata; looks again where a writer may have just committed."""
    damages, unsettled = _check_metadata(store, tree)
    for _ in range(LOOKS):
        if not (damages or unsettled) or not is_locked(store.path / LOCK):
            break
        damages, unsettled = _check_metadata(open_store(store.path), scan_committed(store.path))
    return damages, unsettled


def _check_metadata(store: Store, tree: Tree) -> tuple[list[Damage], list[str]]:
    captures = store.every_capture
    damages: list[Damage] = []
    unsettled: list[str] = []
    sealed = store.state == "sealed"
    for expected in expected_metadata(captures, sealed=sealed):
        path, size = expected.path, tree.files.get(expected.path)
        if size is None:
            text = f"{path}: the file is missing"
            damages.append(Damage("missing", path, text, expected.capture))
            continue
        content = _read(store.path / path) if size <= MAX_METADATA_BYTES else None
        if content in expected.unsettled:
            unsettled.append(path)
        elif content != expected.content:
            text = f"{path}: the metadata are not those of the capture's definition"
            damages.append(Damage("metadata", path, text, expected.capture))
    wanted = root_metadata(store.uuid, store.origin)
    if sealed:
        wanted = sealed_root(store.uuid, store.origin, captures)
    named = [r.attrs.get("store", store.uuid) for r in store.log.records if r.kind == "capture"]
    if any(uuid != store.uuid for uuid in named) or _read(store.path / "zarr.json") != wanted:
        text = "zarr.json: the root's metadata were changed"
        damages.append(Damage("metadata", "zarr.json", text))
    return damages, unsettled


def _read(path: Path) -> bytes | None:
    try:
        return read_file(path)
    except OSError:
        return None


def _check_sealed(store: Store, digests: dict[str, str], report: VerifyReport) -> None:
    """Compare the files of a sealed store with its manifest, as far as the level asks for it."""
    try:
        manifest = store.manifest
    except DamagedStoreError as error:
        report.damages.append(Damage("manifest", MANIFEST, str(error)))
        return
    if manifest is None:
        return
    said = {damage.path for damage in report.damages}
    tree = scan_sealed(store.path)
    found = _against_manifest(store, manifest, tree, digests, report.level)
    report.damages += [damage for damage in found if damage.path not in said]
    if report.level != "full":
        return
    for path in sorted(tree.entries - set(manifest.files)):
        text = f"{path}: the manifest of the sealed store does not name it"
        report.damages.append(Damage("unnamed", path, text))
    if not report.damages and store.content_digest() != manifest.content_digest:
        text = f"{MANIFEST}: its content_digest is not that of the values"
        report.damages.append(Damage("digest", MANIFEST, text))


def _against_manifest(
    store: Store, manifest: Manifest, tree: Tree, digests: dict[str, str], level: Level
) -> Iterator[Damage]:
    checker = FileChecker(store.path, tree, {})
    for path, (size, sha256) in manifest.files.items():
        if path not in tree.files:
            yield Damage("missing", path, f"{path}: the file that the manifest names is missing")
        elif tree.files[path] != size:
            text = f"{path}: it has {tree.files[path]} bytes, {size} were sealed"
            yield Damage("size", path, text)
        elif level == "full" and (digests.get(path) or checker.sha256(path)) != sha256:
            yield Damage("checksum", path, f"{path}: its SHA-256 is not that of the manifest")


def _leftovers(store: Store, tree: Tree) -> list[str]:
    """Return files that nothing names; none while a writer is at work, whose files they may be."""
    entries = tree.entries | scan(store.path, STAGING).entries
    if store.state == "open" and (store.path / MANIFEST).exists():
        entries.add(MANIFEST)
    if not entries - _named(store) or is_locked(store.path / LOCK):
        return []
    # The writer may have committed some of them and gone since the records were read.
    return sorted(path for path in entries - _named(open_store(store.path)) if _exists(store, path))


def _exists(store: Store, path: str) -> bool:
    return (store.path / path).exists() or (store.path / path).is_symlink()


def _named(store: Store) -> set[str]:
    captures = store.every_capture
    named = {entry.path for record in store.log.records for entry in record.files}
    named |= {f"{COMMITS}/{name}" for name in store.log.names}
    return named | metadata_paths(captures)
