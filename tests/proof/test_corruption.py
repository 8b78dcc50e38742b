"""Whatever is changed in a committed store is found, and never read as if it were right."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from lorascope.store import StoreError, open_store, verify_store

from .small_run import Run

RUNS = [Run(n_samples=5, layers=2), Run(n_samples=7, planned=False, dtype="float32")]

type Change = Callable[[Path, Path, random.Random], str]


def flip(file: Path, _other: Path, rng: random.Random) -> str:
    """Flip one bit."""
    data = bytearray(file.read_bytes())
    at, bit = rng.randrange(len(data)), rng.randrange(8)
    data[at] ^= 1 << bit
    file.write_bytes(data)
    return f"bit {bit} of byte {at}"


def truncate(file: Path, _other: Path, rng: random.Random) -> str:
    """Cut the file short, perhaps to nothing."""
    data = file.read_bytes()
    kept = rng.randrange(len(data))
    file.write_bytes(data[:kept])
    return f"{kept} of {len(data)} bytes kept"


def extend(file: Path, _other: Path, rng: random.Random) -> str:
    """Add bytes at the end."""
    more = rng.randbytes(rng.randint(1, 9))
    file.write_bytes(file.read_bytes() + more)
    return f"{len(more)} bytes added"


def zero(file: Path, _other: Path, rng: random.Random) -> str:
    """Blank a block, as a disk does that lost it."""
    data = file.read_bytes()
    start = rng.randrange(len(data))
    stop = min(len(data), start + rng.randint(1, 64))
    blank = data[:start] + bytes(stop - start) + data[stop:]
    if blank == data:
        blank = b"\xff" * len(data)
    file.write_bytes(blank)
    return f"bytes {start} to {stop} blanked"


def delete(file: Path, _other: Path, _rng: random.Random) -> str:
    """Remove the file."""
    file.unlink()
    return "deleted"


def swap(file: Path, other: Path, _rng: random.Random) -> str:
    """Exchange two files."""
    mine, theirs = file.read_bytes(), other.read_bytes()
    file.write_bytes(theirs)
    other.write_bytes(mine)
    return f"swapped with {other.name}"


def duplicate(file: Path, other: Path, _rng: random.Random) -> str:
    """Put a copy of another file in the place of this one."""
    file.write_bytes(other.read_bytes())
    return f"replaced by {other.name}"


CHANGES: list[Change] = [flip, flip, flip, truncate, extend, zero, delete, swap, duplicate]


def committed(root: Path) -> dict[Path, bytes]:
    """Return all files but the locks, with their content."""
    files = sorted(p for p in root.rglob("*") if p.is_file() and p.suffix != ".lock")
    return {path: path.read_bytes() for path in files}


def other_than(file: Path, files: dict[Path, bytes], rng: random.Random) -> Path:
    """Draw a file with other content, of the same kind half of the time."""
    others = [path for path, content in files.items() if content != files[file]]
    alike = [p for p in others if p.name[:2] == file.name[:2] and len(p.parts) == len(file.parts)]
    return rng.choice(alike if alike and rng.random() < 0.5 else others)


def test_every_change_is_found(ram, seed, amount, note):
    """`verify` finds each; reading gives the right values or a typed error, never wrong ones."""
    rng = random.Random(seed)
    total = amount("corruptions", change=1000, release=20000)
    errors = 0
    stores = [ram / str(number) for number in range(len(RUNS))]
    for run, store in zip(RUNS, stores, strict=True):
        run.digest(store)
    sound = [committed(store) for store in stores]
    cases = list(zip(RUNS, stores, sound, strict=True))
    for number in range(total):
        run, store, files = cases[number % len(cases)]
        file = rng.choice(list(files))
        other = other_than(file, files, rng)
        change = rng.choice(CHANGES)
        where = f"{change.__name__} {file.relative_to(store)}: "
        where += change(file, other, rng)
        try:
            assert not found_sound(store), "verify found nothing"
            errors += read_or_refuse(run, store)
        except Exception as error:
            error.add_note(where)
            raise
        for changed in (file, other):
            changed.write_bytes(files[changed])
    assert [committed(store) for store in stores] == sound, "reading or verifying changed a store"
    assert errors > total / 10, "nothing was ever refused: nothing was damaged"
    note("changes of a committed store: not found, or read as wrong values", changes=total)


def found_sound(store: Path) -> bool:
    """Whether `verify` has nothing to say of a store.

    A last record that is gone leaves nothing that could miss it: its files are then reported as
    leftovers, as those of a crash before a commit are. A published length that became that of the
    commit before is reported as unsettled, as that of a crash after a commit is.
    """
    try:
        report = verify_store(store)
    except StoreError:
        return False
    return report.ok and not (report.leftovers or report.unsettled)


def read_or_refuse(run: Run, store: Path) -> bool:
    """Read everything; return whether it was refused. A wrong value is an AssertionError."""
    try:
        run.check_values(open_store(store))
    except StoreError:
        return True
    return False
