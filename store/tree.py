"""What lies in a store's folder, links not followed: regular files, and what has no place there."""

from __future__ import annotations

import os
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from .files import remove_tree, sync_directory
from .layout import COMMITS, MANIFEST, QUARANTINE, STAGING

MAX_DEPTH = 16
"""Folders deeper than this are no store's: they are not entered."""


@dataclass(slots=True)
class Tree:
    """Everything below a folder."""

    files: dict[str, int] = field(default_factory=dict)
    """Regular files: path below the store's root, and size in bytes."""
    odd: list[str] = field(default_factory=list)
    """Links, sockets, folders that are too deep; a link hides what seems to lie behind it."""
    folders: list[str] = field(default_factory=list)
    """Directories, parents first."""

    @property
    def entries(self) -> set[str]:
        """Paths of all that is no directory."""
        return {*self.files, *self.odd}


def scan(root: Path, *below: str, without: tuple[str, ...] = ()) -> Tree:
    """Return what lies in folders of a store, locks left out; absent folders hold nothing.

    Parameters
    ----------
    root
        The store's root.
    below
        Paths of folders below it; none means the root itself.
    without
        Paths of entries that are left out, with all that is in them.
    """
    tree = Tree()
    left = deque(folder for folder in below or [""] if _is_folder(root / folder, folder))
    while left:
        folder = left.popleft()
        for entry in _entries(f"{root}/{folder}"):
            path = f"{folder}/{entry.name}" if folder else entry.name
            if path in without or (folder == COMMITS and entry.name.endswith(".lock")):
                continue  # the content of a lock is for people, and it comes and goes
            if entry.is_dir(follow_symlinks=False) and path.count("/") < MAX_DEPTH:
                tree.folders.append(path)
                left.append(path)
            elif entry.is_file(follow_symlinks=False):
                tree.files[path] = entry.stat(follow_symlinks=False).st_size
            else:
                tree.odd.append(path)
    return tree


def _is_folder(path: Path, below: str) -> bool:
    """Whether a folder is there; only the root itself may be a link."""
    return path.is_dir() and not (below and path.is_symlink())


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return []  # another process has removed it since it was seen


def scan_committed(root: Path) -> Tree:
    """Return what lies where only committed files have a place."""
    return scan(root, "captures", COMMITS, without=(STAGING,))


def scan_sealed(root: Path) -> Tree:
    """Return what a manifest must name: everything but itself, the lock and what is not committed.

    Quarantined files are evidence of a repair, not content: they may be removed at any time.
    """
    return scan(root, without=(STAGING, MANIFEST, QUARANTINE))


def remove_empty_folders(root: Path, tree: Tree, named: set[str]) -> None:
    """Remove folders that hold nothing and lead to nothing that is named."""
    needed = {str(parent) for path in named for parent in Path(path).parents}
    used = {str(parent) for path in tree.entries for parent in Path(path).parents}
    empty = [folder for folder in tree.folders if folder not in needed | used]
    for folder in reversed(empty):
        remove_tree(root / folder)
    for folder in {(root / folder).parent for folder in empty}:
        if folder.is_dir():
            sync_directory(folder)
