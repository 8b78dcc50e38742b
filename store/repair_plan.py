"""What a repair would do: found from records, definitions and data, without changing anything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from .capture import Capture
from .creation import file_entry, layer_chunk
from .damage import FileChecker
from .definition import CaptureDefinition
from .errors import DamagedStoreError, InvalidStoreError
from .expected import Expected, expected_metadata, root_metadata, sealed_root
from .files import read_file
from .guard import BrokenRule
from .layout import COMMITS, FORMAT_NAME, FORMAT_VERSION, MANIFEST, MAX_METADATA_BYTES, STAGING
from .record import UNKNOWN_SHA256, Record
from .records import Chain, RecordLog, follow_chain, read_links
from .root import copy_origin, read_metadata
from .tree import Tree, scan, scan_committed


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """One commit record that a repair takes back, and what that costs."""

    record: str
    """Name of the record's file."""
    reason: str
    """What is damaged."""
    sha256: str
    """Hash under which the record stays a link of its chain."""
    kind: str = ""
    """`capture`, `segment` or `parameters`; empty where the record itself cannot be read."""
    capture: str = ""
    """The capture; empty where the record itself cannot be read."""
    segment: int | None = None
    """Number of the segment."""
    samples: tuple[str, ...] = ()
    """Ids that the store no longer holds until they are captured again."""


@dataclass(slots=True)
class RepairPlan:
    """All that a repair has to do; empty for a sound store without leftovers."""

    chain: Chain
    """The records as they are."""
    withdrawn: list[Withdrawn] = field(default_factory=list)
    """Records to take back."""
    adopted: list[CaptureDefinition] = field(default_factory=list)
    """Sound definitions whose record is lost: they are committed again."""
    rewritten: dict[str, bytes] = field(default_factory=dict)
    """Files whose content follows from definitions and records."""
    moved: list[str] = field(default_factory=list)
    """Files to quarantine: those that no sound record names."""
    moved_records: list[str] = field(default_factory=list)
    """Files of records that are taken back; they are moved last."""
    staged: list[str] = field(default_factory=list)
    """Files that were never committed."""
    named: set[str] = field(default_factory=set)
    """Every file below `captures/` and `__commits__/` that the store will have."""
    sealed: bool = False
    """Whether the store is sealed."""

    @property
    def empty(self) -> bool:
        """Whether nothing has to be done."""
        return not (
            self.withdrawn
            or self.adopted
            or self.rewritten
            or self.moved
            or self.moved_records
            or self.staged
        )


def plan_repair(root: Path) -> RepairPlan:
    """Return what has to be done to make a store sound again; it must be locked.

    Raises
    ------
    InvalidStoreError
        If there is no store, or one of another version.
    """
    links = read_links(root)
    chain = follow_chain(links)
    plan = RepairPlan(chain)
    plan.withdrawn = [
        Withdrawn(problem.name, problem.message, problem.sha256)
        for problem in sorted(chain.problems, key=lambda problem: problem.name)
    ]
    digests = {name: link.digest or UNKNOWN_SHA256 for name, link in links.items()}
    records = [record for record in chain.records if record.kind != "withdrawal"]
    tree = scan_committed(root)
    definitions = _definitions(root, tree, records, plan, digests)
    kept = list(_sound(root, tree, records, definitions, plan, digests))
    known = {record.capture for record in kept if record.kind == "capture"}
    plan.adopted = [definitions[name] for name in sorted(definitions.keys() - known)]
    _expect(root, tree, definitions, kept, plan)
    return plan


def _root(root: Path, records: Sequence[Record]) -> tuple[str, Mapping[str, Any] | None, bool]:
    """Return uuid, what the store is a copy of, and whether it is sealed.

    Where the root does not say so, records know the uuid and the manifest tells a sealed store.
    """
    try:
        attributes = read_metadata(root / "zarr.json")["attributes"]
    except InvalidStoreError:
        attributes = {}
    version = attributes.get("version", FORMAT_VERSION)
    if attributes.get("format") == FORMAT_NAME and version != FORMAT_VERSION:
        msg = (
            f"{root} has format version {version!r}; this lorascope repairs version "
            f"{FORMAT_VERSION}: upgrade it, or restore zarr.json from a copy"
        )
        raise InvalidStoreError(msg)
    named = [r.attrs.get("store") for r in records if r.kind == "capture"]
    uuid = next((u for u in [*named, attributes.get("uuid")] if isinstance(u, str)), str(uuid4()))
    state = attributes.get("state")
    sealed = (root / MANIFEST).is_file() if state not in ("open", "sealed") else state == "sealed"
    try:
        origin = copy_origin(attributes)
    except BrokenRule:
        origin = None
    return uuid, origin, sealed


def _take_back(record: Record, reason: str, digests: Mapping[str, str]) -> Withdrawn:
    return Withdrawn(
        record.file_name,
        reason,
        digests[record.file_name],
        record.kind,
        record.capture,
        record.segment,
        tuple(sample.id for sample in record.samples),
    )


def _definitions(
    root: Path,
    tree: Tree,
    records: Sequence[Record],
    plan: RepairPlan,
    digests: Mapping[str, str],
) -> dict[str, CaptureDefinition]:
    """Return the sound definitions; captures without one are withdrawn as a whole."""
    definitions: dict[str, CaptureDefinition] = {}
    for name in dict.fromkeys(record.capture for record in records):
        mine = [record for record in records if record.capture == name]
        definition = _definition(root, tree, name, mine)
        if definition is not None:
            definitions[name] = definition
            continue
        reason = f"the definition of capture {name} (captures/{name}/zarr.json) is damaged"
        plan.withdrawn += [_take_back(record, reason, digests) for record in mine]
    return definitions


def _definition(
    root: Path, tree: Tree, name: str, mine: Sequence[Record]
) -> CaptureDefinition | None:
    """Return a capture's definition if its file is what was committed.

    Where the record that named the file is lost, the file speaks for itself: it must have the
    spelling of a definition, and the configuration's digest that the segments' records name.
    """
    path = f"captures/{name}/zarr.json"
    if path not in tree.files:
        return None
    try:
        content = read_file(root / path)
        attributes = read_metadata(root / path)["attributes"]
        definition = CaptureDefinition.from_attributes(name, attributes)
    except (OSError, ValueError, InvalidStoreError, DamagedStoreError):
        return None
    makers = [record for record in mine if record.kind == "capture"]
    if makers:
        return definition if file_entry(path, content) in makers[0].files else None
    segments = [record for record in mine if record.kind == "segment"]
    same = all(r.attrs.get("config_digest") == definition.config_digest for r in segments)
    return definition if same and definition.metadata() == content else None


def _sound(
    root: Path,
    tree: Tree,
    records: Sequence[Record],
    definitions: Mapping[str, CaptureDefinition],
    plan: RepairPlan,
    digests: Mapping[str, str],
) -> Iterator[Record]:
    """Yield the records whose data are intact; the others are withdrawn."""
    checker = FileChecker(root, tree, definitions)
    seen: set[tuple[str, int | None]] = set()
    for record in records:
        if record.capture not in definitions:
            continue
        if record.kind == "capture":
            yield record
            continue
        reason = next(
            (d.message for e in record.files if (d := checker.check(record, e, "default")[0])), ""
        )
        if record.kind == "segment" and (record.capture, record.segment) in seen:
            reason = reason or f"segment {record.segment} was committed twice"
        if reason:
            plan.withdrawn.append(_take_back(record, reason, digests))
            continue
        seen.add((record.capture, record.segment))
        yield record


def _expect(
    root: Path,
    tree: Tree,
    definitions: Mapping[str, CaptureDefinition],
    kept: Sequence[Record],
    plan: RepairPlan,
) -> None:
    """Find what has to be written and moved, from what the store will hold."""
    log = RecordLog.of_chain(root, "", Chain(list(kept)))
    captures = {name: Capture(root, d, log) for name, d in definitions.items()}
    uuid, origin, plan.sealed = _root(root, plan.chain.records)
    wanted = list(expected_metadata(captures, sealed=plan.sealed))
    wanted += [
        Expected(definition.layer_spec(site).chunk_path(0), layer_chunk(site))
        for definition in definitions.values()
        for site in definition.sites
    ]
    for expected in wanted:
        small = tree.files.get(expected.path, MAX_METADATA_BYTES + 1) <= MAX_METADATA_BYTES
        content = _read(root / expected.path) if small else None
        if content != expected.content:
            plan.rewritten[expected.path] = expected.content
    top = root_metadata(uuid, origin)
    if plan.sealed:
        top = sealed_root(uuid, origin, captures)
    if _read(root / "zarr.json") != top:
        plan.rewritten["zarr.json"] = top
    named = {entry.path for record in kept for entry in record.files}
    named |= {expected.path for expected in wanted}
    named |= {f"{definition.root}/zarr.json" for definition in definitions.values()}
    lost = {withdrawn.record for withdrawn in plan.withdrawn}
    alive = {record.file_name for record in plan.chain.records} - lost
    named |= {f"{COMMITS}/{name}" for name in alive}
    plan.named = named
    foreign = sorted((tree.entries - named) | (set(tree.odd) & named))
    if (root / "zarr.json").is_dir():
        foreign.append("zarr.json")
    records = {f"{COMMITS}/{name}" for name in lost}
    plan.moved = [path for path in foreign if path not in records]
    plan.moved_records = [path for path in foreign if path in records]
    plan.staged = sorted(scan(root, STAGING).entries)
    if not plan.sealed and (root / MANIFEST).exists():
        plan.staged.append(MANIFEST)


def _read(path: Path) -> bytes | None:
    try:
        return read_file(path)
    except OSError:
        return None
