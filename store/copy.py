"""`copy_store`: the same content in another folder, byte for byte or in another profile.

The copy takes over the source's commits one by one: their files first, checked against the
source's record while they are read, then the record. An interrupted copy is a sound store with
fewer commits, and the same call goes on with the next one.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .copying import CommitCopier, in_order
from .creation import (
    file_entry,
    prepare_captures,
    prepare_folder,
    prepare_root,
    sweep,
)
from .definition import CaptureDefinition
from .errors import (
    ConfigMismatchError,
    InvalidStoreError,
    StoreError,
    StoreSpaceError,
)
from .files import disk_errors, exclusive_lock
from .layout import LOCK
from .profiles import ProfileName, check_profile
from .reader import Store, open_store
from .record import Record
from .records import Chain, RecordLog, follow_chain, read_links
from .root import COPY_OF, new_attributes, refuse_sealed, root_attributes

_ELSEWHERE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/.*|.*\.(zip|tar|tgz|gz)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class CopyReport:
    """What `copy_store` did."""

    source: str
    """Path that was read."""
    target: str
    """Path that was written."""
    profile: str | None
    """The profile asked for; None for a copy byte for byte."""
    captures: tuple[str, ...]
    """Captures of the copy."""
    commits: int
    """Commits (definitions, parameter sets, segments) that were copied now."""
    skipped: int
    """Commits that were there already."""
    bytes_read: int
    """Bytes of the files that were copied now, in the source."""
    bytes_written: int
    """The same in the copy."""


def copy_store(
    source: str | Path,
    target: str | Path,
    *,
    profile: str | None = None,
    captures: Sequence[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CopyReport:
    """Copy a store, checking every byte that is read; the same call resumes a broken copy.

    Parameters
    ----------
    source
        The store's folder; it may be growing: what is committed is copied.
    target
        A new or empty folder, or a started copy of the same source.
    profile
        `fast`, `compact`, `archive` or `portable`: how the copy stores values. None keeps every
        file, every record and the uuid as they are.
    captures
        Names of the captures to copy; None copies all.
    progress
        Called with bytes of the source done and in all.

    Returns
    -------
    CopyReport
        What was copied.

    Raises
    ------
    DamagedStoreError
        If the source differs from its records; what was copied before is sound.
    ConfigMismatchError
        If the target is another store, or a copy made otherwise.
    InvalidStoreError
        If the source is no store, or the target holds other things.
    StoreSpaceError
        If the disk has no room.

    Notes
    -----
    `content_digest` of the copy is that of the source, except where `portable` widens float16 or
    bfloat16 sites: the values are equal, their data type is another one. Memory stays at some
    inner chunks. A copy is open, also that of a sealed store; sealing a copy byte for byte gives
    the manifest of its source. A copy in another profile, or of some captures, has its own uuid and
    says in its root attribute `copy_of` what it is a copy of.
    """
    wanted = None if profile is None else check_profile(profile)
    root = _folder(target)
    store = open_store(_folder(source))
    _check_apart(store.path, root)
    names = list(store.every_capture) if captures is None else list(captures)
    definitions = {name: _in_profile(store, name, wanted) for name in names}
    records = [record for record in in_order(store.log) if record.capture in definitions]
    origin = None
    if wanted is not None or captures is not None:
        chosen = None if captures is None else sorted(names)
        origin = {"uuid": store.uuid, "profile": wanted, "captures": chosen}
    same = origin is None
    if same:
        records += store.log.withdrawals
    with ExitStack() as stack, disk_errors(f"copying {store.path} to {root}"):
        refuse_sealed(root)
        prepare_folder(root)
        stack.enter_context(exclusive_lock(root / LOCK))
        refuse_sealed(root)
        started = _is_started(store, root, origin)
        log = RecordLog(root) if started else RecordLog.of_chain(root, "", _chain(root))
        done = _copied(root, log, records, same=same)
        left = [record for record in records if _key(record) not in done]
        late = any(record.kind == "withdrawal" for record in left)
        if late and started:
            msg = f"{store.path} was repaired after {root} was copied: name another target"
            raise ConfigMismatchError(msg)
        _check_space(root, left, wanted)
        attributes = _attributes(store, origin)
        prepare_captures(root) if late else prepare_root(root, attributes)
        sweep(root, log, [r.capture for r in log.records if r.kind == "capture"])
        copier = CommitCopier(store, root, log, definitions, same=same)
        copier.settle()
        read, total = 0, sum(_size(record) for record in left)
        written = 0
        for record in left:
            written += _size(copier.copy(record))
            read += _size(record)
            if progress is not None:
                progress(read, total)
        # Records that lack a withdrawn one are sound only together with the withdrawal: until
        # all are there, such a copy has no root.
        prepare_root(root, attributes)
    return CopyReport(
        source=str(source),
        target=str(target),
        profile=wanted,
        captures=tuple(names),
        commits=len(left),
        skipped=len(done),
        bytes_read=read,
        bytes_written=written,
    )


def _folder(place: str | Path) -> Path:
    """Return a path of this machine; archives and addresses are refused."""
    if _ELSEWHERE.fullmatch(str(place)) and not Path(place).is_dir():
        msg = f"{place} is no folder: stores are copied from folder to folder. Name a folder."
        raise StoreError(msg)
    return Path(place)


def _check_apart(source: Path, target: Path) -> None:
    here, there = source.resolve(), target.resolve()
    if here == there or here in there.parents or there in here.parents:
        msg = f"{target} and {source} lie inside each other: name a folder beside the store"
        raise StoreError(msg)


def _in_profile(store: Store, name: str, profile: ProfileName | None) -> CaptureDefinition:
    """Return a capture's definition as the copy will have it."""
    definition = store.capture(name).definition
    path = f"{definition.root}/zarr.json"
    record = next(r for r in store.log.records if r.kind == "capture" and r.capture == name)
    if file_entry(path, definition.metadata()) not in record.files:
        msg = (
            f"capture {name!r} of {store.path} says more than this lorascope knows, which a copy "
            "would lose: upgrade it"
        )
        raise InvalidStoreError(msg)
    if profile is None:
        return definition
    sites = tuple(site.in_profile(profile) for site in definition.sites)
    return replace(definition, sites=sites, profile=profile)


def _attributes(store: Store, origin: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the root attributes of the copy: it is open, also where the source is sealed."""
    if origin is not None:
        return new_attributes() | {COPY_OF: dict(origin)}
    return root_attributes(store.path) | {"state": "open"}


def _is_started(store: Store, root: Path, origin: Mapping[str, Any] | None) -> bool:
    """Whether the target is a store already; it must then be a started copy."""
    if not (root / "zarr.json").exists():
        return False
    found = root_attributes(root)
    wanted = _attributes(store, origin)
    if (found == wanted) if origin is None else (found.get(COPY_OF) == origin):
        return True
    msg = (
        f"{root} holds a store that is not a started copy of {store.path} "
        "with this profile and these captures: name another target"
    )
    raise ConfigMismatchError(msg)


def _chain(root: Path) -> Chain:
    """Return the records of a target without a root; a withdrawal may still be missing."""
    return follow_chain(read_links(root))


type _Key = tuple[str, str, object]


def _key(record: Record) -> _Key:
    """Return what a commit is of."""
    what: object = tuple(sorted(_arrays(record)))
    if record.kind == "segment":
        what = record.segment
    elif record.kind == "withdrawal":
        what = record.file_name
    return record.kind, record.capture, what


def _arrays(record: Record) -> Mapping[str, Any]:
    return record.attrs.get("arrays", {}) if record.kind == "parameters" else {}


def _copied(root: Path, log: RecordLog, records: Sequence[Record], *, same: bool) -> set[_Key]:
    """Return what the target has already; all of it must come from the source."""
    known = {_key(record): record for record in records}
    there = [*log.records, *log.withdrawals]
    for record in there:
        original = known.get(_key(record))
        if original is None or not _is_copy(record, original, same=same):
            msg = (
                f"{root} was a copy and went on by itself, or its source was repaired since: its "
                f"commit {record.file_name} is not one of the source. Name another target."
            )
            raise ConfigMismatchError(msg)
    return {_key(record) for record in there}


def _is_copy(record: Record, original: Record, *, same: bool) -> bool:
    if same:
        return record == original
    mine = {**record.attrs, "store": None}
    return record.samples == original.samples and mine == {**original.attrs, "store": None}


def _check_space(root: Path, records: Sequence[Record], profile: ProfileName | None) -> None:
    """Refuse early what cannot fit; compressed sizes are not known beforehand."""
    if profile in {"compact", "archive"}:
        return
    raw = profile is not None
    needed = sum(
        max(entry.size, len(entry.chunks) * entry.chunk_bytes if raw else 0)
        for record in records
        for entry in record.files
    )
    free = shutil.disk_usage(root).free
    if needed > free:
        msg = (
            f"the copy needs {needed / 2**30:.1f} GiB, the disk of {root} has "
            f"{free / 2**30:.1f} GiB free: name a target on another disk"
        )
        raise StoreSpaceError(msg)


def _size(record: Record) -> int:
    return sum(entry.size for entry in record.files)
