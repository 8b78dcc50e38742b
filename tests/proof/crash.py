"""What a power cut may leave: every state that the operations done so far allow.

The model is the weakest one that POSIX gives. The content of a file is safe after an fsync of that
file, an entry of a directory after an fsync of that directory; whatever came since may be there or
not, each entry and each file on its own. A rename that was not synced may have reached the old
directory, the new one, both or neither.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .disks import Operation

type Node = "FileNode | FolderNode"
type Tree = dict[str, "bytes | Tree"]


@dataclass(eq=False)
class FileNode:
    """A file: what was written, and how much of it is safe."""

    data: bytearray = field(default_factory=bytearray)
    safe: bytes = b""


@dataclass(eq=False)
class FolderNode:
    """A directory: its entries, those that are safe, and the changes in between."""

    entries: dict[str, Node] = field(default_factory=dict)
    safe: dict[str, Node] = field(default_factory=dict)
    pending: list[tuple[str, Node | None]] = field(default_factory=list)

    def put(self, name: str, node: Node | None) -> None:
        """Add, replace or (None) remove an entry."""
        self.pending.append((name, node))
        _apply(self.entries, name, node)

    def sync(self) -> None:
        """Make the entries safe."""
        self.safe = dict(self.entries)
        self.pending.clear()


def _safe_folder(path: Path) -> FolderNode:
    folder = FolderNode()
    for entry in path.iterdir():
        if entry.is_dir():
            folder.entries[entry.name] = _safe_folder(entry)
        else:
            data = entry.read_bytes()
            folder.entries[entry.name] = FileNode(bytearray(data), data)
    folder.sync()
    return folder


def _apply(entries: dict[str, Node], name: str, node: Node | None) -> None:
    if node is None:
        entries.pop(name, None)
    else:
        entries[name] = node


class SimulatedDisk:
    """Replays operations and gives the states in which a power cut may leave the disk.

    Parameters
    ----------
    base
        A directory that is safe as it is, with all that is in it; all operations lie below it.
    """

    def __init__(self, base: Path) -> None:
        self._base = base
        self._root = _safe_folder(base)

    def replay(self, operation: Operation) -> None:
        """Carry out one operation."""
        kind, path = operation.kind, operation.path
        if kind == "sync_directory":
            self._folder(path).sync()
            return
        parent = self._folder(path.parent)
        if kind == "create":
            parent.put(path.name, FileNode())
        elif kind == "mkdir":
            parent.put(path.name, FolderNode())
        elif kind == "write":
            self._file(path).data += operation.data
        elif kind == "sync":
            file = self._file(path)
            file.safe = bytes(file.data)
        elif kind in {"unlink", "rmdir"}:
            parent.put(path.name, None)
        elif kind == "rename":
            assert operation.target is not None
            node = parent.entries[path.name]
            self._folder(operation.target.parent).put(operation.target.name, node)
            parent.put(path.name, None)

    def states(self, rng: random.Random, *, drawn: int) -> Iterator[Tree]:
        """Yield what may be on the disk: the least, the most, the most with lost data, and draws."""
        yield self._tree(_Cut(entries=0.0, data=0.0))
        yield self._tree(_Cut(entries=1.0, data=1.0))
        yield self._tree(_Cut(entries=1.0, data=0.0))
        for _ in range(drawn):
            yield self._tree(_Cut(entries=rng.random(), data=rng.random(), rng=rng))

    def _tree(self, cut: _Cut) -> Tree:
        return cut.tree(self._root)

    def _folder(self, path: Path) -> FolderNode:
        node: Node = self._root
        for name in path.relative_to(self._base).parts:
            assert isinstance(node, FolderNode)
            node = node.entries[name]
        assert isinstance(node, FolderNode)
        return node

    def _file(self, path: Path) -> FileNode:
        node = self._folder(path.parent).entries[path.name]
        assert isinstance(node, FileNode)
        return node


@dataclass
class _Cut:
    """How much of what is not safe reached the disk."""

    entries: float
    data: float
    rng: random.Random | None = None

    def _reached(self, share: float) -> bool:
        return share >= 1 if self.rng is None else self.rng.random() < share

    def tree(self, folder: FolderNode) -> Tree:
        entries = dict(folder.safe)
        for name, node in folder.pending:
            if self._reached(self.entries):
                _apply(entries, name, node)
        return {
            name: self.tree(node) if isinstance(node, FolderNode) else self._content(node)
            for name, node in sorted(entries.items())
        }

    def _content(self, file: FileNode) -> bytes:
        fresh = bytes(file.data[len(file.safe) :])
        if self._reached(self.data):
            return file.safe + fresh
        if self.rng is not None and fresh and self.rng.random() < 0.5:
            # The length reached the disk, a part of the blocks did not: they read as zeros.
            kept = self.rng.randrange(len(fresh))
            return file.safe + fresh[:kept] + bytes(len(fresh) - kept)
        return file.safe


def put_tree(tree: Tree, folder: Path) -> None:
    """Write a state to a real folder that does not exist yet."""
    folder.mkdir()
    _change_tree({}, tree, folder)


class Shown:
    """A real folder that shows one state after the other; only what differs is written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._tree: Tree | None = None

    def show(self, tree: Tree) -> None:
        """Let the folder be a state."""
        if self._tree is None:
            put_tree(tree, self.folder)
        else:
            _change_tree(self._tree, tree, self.folder)
        self._tree = tree

    def forget(self) -> None:
        """Remove the folder, in which something was changed."""
        shutil.rmtree(self.folder)
        self._tree = None


def _change_tree(old: Tree, new: Tree, folder: Path) -> None:
    for name, node in old.items():
        if isinstance(new.get(name), bytes) != isinstance(node, bytes) or name not in new:
            (folder / name).unlink() if isinstance(node, bytes) else shutil.rmtree(folder / name)
    for name, node in new.items():
        before = old.get(name)
        if isinstance(node, bytes):
            if node != before:
                (folder / name).write_bytes(node)
        elif isinstance(before, dict):
            _change_tree(before, node, folder / name)
        else:
            put_tree(node, folder / name)


def freeze(tree: Tree, ignored: Iterable[str] = ()) -> object:
    """Return a hashable form of a state, without the entries named `ignored`."""
    skip = set(ignored)
    return tuple(
        (name, node if isinstance(node, bytes) else freeze(node, skip))
        for name, node in tree.items()
        if name not in skip
    )
