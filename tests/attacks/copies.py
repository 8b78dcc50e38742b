"""A copy of the sound store that is made sound again after every case, at little cost."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterable
from functools import cache
from pathlib import Path

type Facts = tuple[int, ...]
_restored: dict[str, Facts] = {}


def restore(sound: Path, copy: Path) -> None:
    """Make `copy` what `sound` is; only what changed since the last time is copied."""
    copy.mkdir(parents=True, exist_ok=True)
    there = scan(str(copy))
    left = {path for path, facts in there.items() if _restored.get(path) == facts}
    for path in sorted(there.keys() - left, reverse=True):
        target = copy / path
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
            left = {kept for kept in left if not kept.startswith(f"{path}/")}
        elif os.path.lexists(target):
            target.unlink()
    _restored.clear()
    _restored.update((path, there[path]) for path in left)
    for path in _entries(sound):
        if path not in left:
            if (sound / path).is_dir():
                (copy / path).mkdir()
            else:
                shutil.copy2(sound / path, copy / path)
            _restored[path] = _facts((copy / path).lstat())


def put_back(sound: Path, copy: Path, touched: Iterable[Path]) -> None:
    """Make `copy` what `sound` is where only these files of it were written or removed."""
    for target in touched:
        path = str(target.relative_to(copy))
        target.unlink(missing_ok=True)
        _restored.pop(path, None)
        if path in _contents(sound):
            target.write_bytes(_contents(sound)[path])
            _restored[path] = _facts(target.lstat())


def changed(copy: Path, touched: Iterable[Path]) -> set[str]:
    """Return what differs from the last `restore` and `put_back`, besides the files `touched`."""
    there = scan(str(copy))
    differ = {path for path, facts in there.items() if _restored.get(path) != facts}
    return (differ | (_restored.keys() - there)) - {str(p.relative_to(copy)) for p in touched}


@cache
def _contents(sound: Path) -> dict[str, bytes]:
    files = [path for path in _entries(sound) if (sound / path).is_file()]
    return {path: (sound / path).read_bytes() for path in files}


@cache
def _entries(sound: Path) -> list[str]:
    return sorted(scan(str(sound)))


def scan(root: str, below: str = "") -> dict[str, Facts]:
    """Return what tells whether an entry was replaced or changed; of folders, only the kind."""
    found: dict[str, Facts] = {}
    with os.scandir(f"{root}/{below}") as entries:
        for entry in entries:
            path = f"{below}{entry.name}"
            found[path] = _facts(entry.stat(follow_symlinks=False))
            if entry.is_dir(follow_symlinks=False):
                found |= scan(root, f"{path}/")
    return found


def _facts(status: os.stat_result) -> Facts:
    if stat.S_ISDIR(status.st_mode):
        return (status.st_mode,)
    return (status.st_mode, status.st_ino, status.st_mtime_ns, status.st_size)
