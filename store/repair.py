"""`repair_store`: a damaged store becomes sound again and loses only what is damaged.

Nothing that may have been committed is deleted: what no sound record names is moved to
`__quarantine__/`, with a file that says why. The order makes a crash harmless: first the data are
moved, and lost records of sound definitions are written again; then one record withdraws what is
damaged and its records are moved; then what follows from definitions is written. After a crash the
next repair finds the rest and goes on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .creation import clear_folder, commit_definition, remove_manifest
from .errors import DamagedStoreError, InvalidStoreError
from .files import (
    disk_errors,
    exclusive_lock,
    make_directories,
    rename,
    sync_directory,
    write_durable,
)
from .layout import COMMITS, LOCK, QUARANTINE, STAGING, to_json
from .manifest import read_manifest
from .records import RecordLog
from .repair_plan import RepairPlan, Withdrawn, plan_repair
from .tree import remove_empty_folders, scan_committed

WRITER = "repair"
"""Name under which repairs write records."""
QUARANTINE_FORMAT = "lorascope-quarantine"


@dataclass(frozen=True, slots=True)
class RepairReport:
    """What `repair_store` did, or would do."""

    dry_run: bool
    """Whether nothing was changed."""
    withdrawn: tuple[Withdrawn, ...] = ()
    """Commit records that were taken back, with the samples to capture again."""
    adopted: tuple[str, ...] = ()
    """Captures whose definition was sound, but whose record was lost and is written again."""
    rewritten: tuple[str, ...] = ()
    """Files of metadata that were written again."""
    quarantined: tuple[str, ...] = ()
    """Files that were moved."""
    swept: tuple[str, ...] = ()
    """Files that were removed: staged, never committed."""
    quarantine: str | None = None
    """Where the moved files are, below the store's root."""

    @property
    def changed(self) -> bool:
        """Whether anything was, or would be, done."""
        done = (self.withdrawn, self.adopted, self.rewritten, self.quarantined, self.swept)
        return any(done)

    @property
    def samples(self) -> dict[str, list[str]]:
        """Ids to capture again, per capture."""
        lost: dict[str, list[str]] = {}
        for withdrawn in self.withdrawn:
            if withdrawn.samples:
                lost.setdefault(withdrawn.capture, []).extend(withdrawn.samples)
        return lost


def repair_store(path: str | Path, *, dry_run: bool = False) -> RepairReport:
    """Make a damaged store sound, losing only what is damaged.

    Parameters
    ----------
    path
        The store's folder.
    dry_run
        Say what would be done and change nothing (the lock is taken).

    Returns
    -------
    RepairReport
        What was withdrawn, moved, written again. A writer with the same plan then records what is
        missing, and the content is that of an undisturbed run.

    Raises
    ------
    InvalidStoreError
        If there is no store of this version.
    DamagedStoreError
        If a sealed store lost data: only a copy has them.
    LockedStoreError
        If a writer is at work.

    Notes
    -----
    Reads every byte once. A damaged definition costs its whole capture, a damaged file its segment
    or its set of parameters; metadata that follow from a definition cost nothing.
    """
    root = Path(path)
    _refuse_strangers(root)
    with disk_errors(f"repairing {root}"), exclusive_lock(root / LOCK):
        plan = plan_repair(root)
        _refuse_sealed(root, plan)
        quarantine = _next_quarantine(root) if plan.moved or plan.moved_records else None
        if not dry_run and not plan.empty:
            _carry_out(root, plan, quarantine)
    return RepairReport(
        dry_run,
        tuple(plan.withdrawn),
        tuple(definition.name for definition in plan.adopted),
        tuple(sorted(plan.rewritten)),
        tuple([*plan.moved, *plan.moved_records]),
        tuple(plan.staged),
        quarantine,
    )


def _refuse_strangers(root: Path) -> None:
    """Refuse what is no store, and links that would lead out of it."""
    if not root.is_dir() or not (root / COMMITS).is_dir():
        msg = f"{root} is not a lorascope store: it has no folder {COMMITS}."
        raise InvalidStoreError(msg)
    for name in ("captures", COMMITS, STAGING, QUARANTINE):
        if (root / name).is_symlink():
            msg = f"{root}/{name} is a link, not a folder of the store: remove the link first"
            raise DamagedStoreError(msg)


def _refuse_sealed(root: Path, plan: RepairPlan) -> None:
    """Refuse to change the content of a sealed store; derived metadata are written as sealed."""
    if not plan.sealed:
        return
    manifest = read_manifest(root)
    wrong = [w.reason for w in plan.withdrawn] + [d.name for d in plan.adopted]
    if wrong:
        msg = (
            f"{root} is sealed and lost data ({wrong[0]}): restore the damaged files from a copy; "
            "lorascope verify --full names them"
        )
        raise DamagedStoreError(msg)
    for path, content in plan.rewritten.items():
        if manifest.files.get(path) != (len(content), hashlib.sha256(content).hexdigest()):
            msg = f"{root} is sealed, and its manifest has another {path}: restore it from a copy"
            raise DamagedStoreError(msg)


def _next_quarantine(root: Path) -> str:
    folder = root / QUARANTINE
    taken = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    numbers = [int(name) for name in taken if name.isascii() and name.isdecimal()]
    return f"{QUARANTINE}/{max(numbers, default=-1) + 1:06d}"


def _carry_out(root: Path, plan: RepairPlan, quarantine: str | None) -> None:
    make_directories(root / STAGING)
    clear_folder(root / STAGING)
    if not plan.sealed:
        remove_manifest(root)
    if quarantine is not None:
        make_directories(root / quarantine)
        why = root / quarantine / "why.json"
        write_durable(why, _why(plan), staging=root / STAGING)
        _move(root, plan.moved, quarantine)
    if "zarr.json" in plan.rewritten:
        _rewrite(root, {"zarr.json": plan.rewritten["zarr.json"]})
    log = RecordLog.of_chain(root, WRITER, plan.chain)
    for definition in plan.adopted:
        commit_definition(root, definition, log)
    if plan.withdrawn:
        named = [{"name": w.record, "sha256": w.sha256} for w in plan.withdrawn]
        reasons = {w.record: w.reason for w in plan.withdrawn}
        attrs = {"records": named, "reasons": reasons, "quarantine": quarantine}
        log.commit("withdrawal", "", files=(), attrs=attrs)
    if quarantine is not None:
        _move(root, plan.moved_records, quarantine)
    remove_empty_folders(root, scan_committed(root), plan.named)
    _rewrite(root, plan.rewritten)


def _why(plan: RepairPlan) -> bytes:
    body = {
        "format": QUARANTINE_FORMAT,
        "version": 1,
        "withdrawn": [
            {
                "record": w.record,
                "reason": w.reason,
                "kind": w.kind,
                "capture": w.capture,
                "segment": w.segment,
                "samples": list(w.samples),
            }
            for w in plan.withdrawn
        ],
        "moved": [*plan.moved, *plan.moved_records],
    }
    return to_json(body)


def _move(root: Path, paths: Sequence[str], quarantine: str) -> None:
    """Move files below the quarantine, durable there before they are gone from where they were."""
    target = root / quarantine
    for path in paths:
        make_directories((target / path).parent)
        rename(root / path, target / path)
    _sync_upwards(root, {(target / path).parent for path in paths})
    for folder in sorted({(root / path).parent for path in paths}):
        sync_directory(folder)


def _rewrite(root: Path, files: dict[str, bytes]) -> None:
    for path, content in files.items():
        make_directories((root / path).parent)
        write_durable(root / path, content, staging=root / STAGING)
    _sync_upwards(root, {(root / path).parent for path in files})


def _sync_upwards(root: Path, folders: Iterable[Path]) -> None:
    """Make folders durable and all that lead to them, which may be new as well."""
    every = {root}
    for folder in folders:
        every |= {folder, *(p for p in folder.parents if p.is_relative_to(root))}
    for folder in sorted(every, reverse=True):
        sync_directory(folder)
