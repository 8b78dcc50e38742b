"""The log of commit records: their chain, what repairs took back, and how one more is added.

The records of a writer are numbered without gaps and each names the SHA-256 of the one before it.
A record that a repair withdrew stays a link of that chain, by the hash that the withdrawal states,
whether its file is there or not; it commits nothing any more.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any, Self

from .errors import DamagedStoreError, RecordVersionError, SampleError
from .files import write_durable
from .guard import MAX_METADATA_BYTES, BrokenRule, parse_json, require
from .inside import list_inside, read_inside
from .layout import COMMITS, STAGING
from .record import (
    UNKNOWN_SHA256,
    Record,
    RecordKind,
    SampleEntry,
    decode_record,
    record_name,
)
from .record_rules import RECORD_NAME, check_body
from .shards import FileEntry

MAX_GAP = 10_000
"""More missing numbers in a row than this are no gap: the record after them is foreign."""


@dataclass(frozen=True, slots=True)
class Link:
    """One record file as it was found."""

    digest: str | None
    """SHA-256 of the file; None if it could not be read."""
    record: Record | None
    """The record; None if it is damaged."""
    error: str = ""
    """What is wrong with it."""


_ABSENT = Link(None, None)


@dataclass(frozen=True, slots=True)
class Problem:
    """A record that is missing, or is not the one that was written."""

    name: str
    """Name of its file."""
    message: str
    """What is wrong."""
    sha256: str
    """Hash under which it stays a link of the chain; zeros if nobody knows it."""


@dataclass(slots=True)
class Chain:
    """What the records of a store say together."""

    records: list[Record] = field(default_factory=list)
    """Sound records that are not withdrawn, by writer and number; withdrawals among them."""
    last: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Per writer, number and hash of the newest link."""
    problems: list[Problem] = field(default_factory=list)
    """What breaks the chain."""


def read_links(root: Path) -> dict[str, Link]:
    """Return every record file of a store by name, damaged ones included.

    Raises
    ------
    RecordVersionError
        If a newer lorascope wrote one of them.
    """
    if not os.path.lexists(root / COMMITS):
        return {}
    names = [name for name in list_inside(root, COMMITS) if RECORD_NAME.fullmatch(name)]
    return {name: _read_link(root, name) for name in names}


def _read_link(root: Path, name: str) -> Link:
    try:
        data = read_inside(root, f"{COMMITS}/{name}")
    except DamagedStoreError as error:
        return Link(None, None, f"the commit record {name} cannot be read: {error}")
    digest = hashlib.sha256(data).hexdigest()
    try:
        record = decode_record(data, name)
    except RecordVersionError:
        raise
    except DamagedStoreError as error:
        return Link(digest, None, str(error))
    if record.file_name != name or (record.number == 0) != (record.previous is None):
        text = f"the chain of commit records is broken at {name}: it was made for another place"
        return Link(digest, None, text)
    return Link(digest, record)


def follow_chain(links: Mapping[str, Link]) -> Chain:
    """Return what sound records say, and where their chain is broken."""
    withdrawn: dict[str, str] = {}
    for link in links.values():
        withdrawn |= link.record.withdrawn if link.record else {}
    numbers: dict[str, set[int]] = {}
    for name in [*links, *withdrawn]:
        match = RECORD_NAME.fullmatch(name)
        if match is not None:
            numbers.setdefault(match[1], set()).add(int(match[2]))
    chain = Chain()
    for writer in sorted(numbers):
        near = _without_foreign(writer, sorted(numbers[writer]), withdrawn, chain)
        _follow_writer(writer, near, links, withdrawn, chain)
    return chain


def _without_foreign(
    writer: str, numbers: Sequence[int], withdrawn: Mapping[str, str], chain: Chain
) -> list[int]:
    """Leave out numbers that no writer can have reached: a name must not make us count for ever."""
    near = list(takewhile(lambda pair: pair[1] - pair[0] <= MAX_GAP, pairwise([-1, *numbers])))
    for number in numbers[len(near) :]:
        name = record_name(writer, number)
        if name not in withdrawn:
            text = f"the commit record {name} follows on none: the chain of records is broken"
            chain.problems.append(Problem(name, text, UNKNOWN_SHA256))
    return [number for _, number in near]


def _follow_writer(
    writer: str,
    numbers: Sequence[int],
    links: Mapping[str, Link],
    withdrawn: Mapping[str, str],
    chain: Chain,
) -> None:
    """Walk one writer's records backwards: each is judged by what the next one says of it."""
    wanted: str | None = None
    accepted: list[Record] = []
    for number in range(numbers[-1] if numbers else -1, -1, -1):
        name = record_name(writer, number)
        link = links.get(name, _ABSENT)
        stated = withdrawn.get(name, wanted)
        sound = link.record is not None and stated in {None, link.digest}
        if not sound and name not in withdrawn:
            text = link.error or f"the commit record {name} is not the one that was written"
            if link is _ABSENT:
                text = f"the chain of commit records is broken at {name}: it is missing"
            chain.problems.append(Problem(name, text, wanted or link.digest or UNKNOWN_SHA256))
        chain.last.setdefault(writer, (number, stated or link.digest or UNKNOWN_SHA256))
        record = link.record if sound else None
        wanted = record.previous if record is not None else None
        if record is not None and (name not in withdrawn or record.kind == "withdrawal"):
            accepted.append(record)
    chain.records += reversed(accepted)


class RecordLog:
    """All records of a store, in order, and the way to add one.

    Parameters
    ----------
    root
        The store's root.
    writer
        Name under which new records are written; may be changed between them.

    Attributes
    ----------
    records
        What is committed: captures, segments and parameters that no repair withdrew.
    withdrawals
        What repairs took back.
    names
        Files of these records and of the withdrawals.

    Raises
    ------
    DamagedStoreError
        If a record was changed, or one is missing from the chain.
    """

    def __init__(self, root: Path, writer: str = "w0") -> None:
        chain = follow_chain(read_links(root))
        if chain.problems:
            first = min(chain.problems, key=lambda problem: problem.name)
            msg = f"{first.message}. lorascope repair takes it back and keeps the rest."
            raise DamagedStoreError(msg)
        self._take(root, writer, chain)

    @classmethod
    def of_chain(cls, root: Path, writer: str, chain: Chain) -> Self:
        """Return the log of a chain that may be broken: a repair goes on from what is sound."""
        log = cls.__new__(cls)
        log._take(root, writer, chain)
        return log

    def _take(self, root: Path, writer: str, chain: Chain) -> None:
        self._root = root
        self.writer = writer
        self.names = {record.file_name for record in chain.records}
        self.records = [record for record in chain.records if record.kind != "withdrawal"]
        self.withdrawals = [record for record in chain.records if record.kind == "withdrawal"]
        self._last = dict(chain.last)
        self._committing = threading.Lock()

    def commit(
        self,
        kind: RecordKind,
        capture: str,
        *,
        files: Sequence[FileEntry],
        segment: int | None = None,
        samples: Sequence[SampleEntry] = (),
        attrs: Mapping[str, Any] | None = None,
    ) -> Record:
        """Write the record that commits `files`; they must be durable already."""
        with self._committing:
            number, previous = self._last.get(self.writer, (-1, None))
            record = Record(
                kind=kind,
                capture=capture,
                writer=self.writer,
                number=number + 1,
                previous=previous,
                files=tuple(files),
                segment=segment,
                samples=tuple(samples),
                attrs=dict(attrs or {}),
            )
            data = record.encode()
            _check_own(data)
            self._write(record, data)
        return record

    def adopt(self, record: Record, data: bytes) -> Record:
        """Write a record of another store as it is there: `data`, which say `record`."""
        with self._committing:
            self._write(record, data)
        return record

    def _write(self, record: Record, data: bytes) -> None:
        write_durable(self._root / COMMITS / record.file_name, data, staging=self._root / STAGING)
        self._last[record.writer] = (record.number, hashlib.sha256(data).hexdigest())
        self.names.add(record.file_name)
        (self.withdrawals if record.kind == "withdrawal" else self.records).append(record)


def _check_own(data: bytes) -> None:
    """Refuse to commit what no reader would accept."""
    try:
        require(len(data) <= MAX_METADATA_BYTES, f"it has more than {MAX_METADATA_BYTES} bytes")
        check_body(parse_json(data)["body"])
    except BrokenRule as error:
        msg = f"a segment or set cannot be committed: {error}. Record fewer samples in a segment."
        raise SampleError(msg) from error
