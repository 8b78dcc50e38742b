"""What can be wrong with one file, and how a file is compared with what was committed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from .blocks import checked_blocks
from .definition import CaptureDefinition
from .errors import DamagedStoreError, StoreError
from .inside import opened
from .record import Record
from .shards import FileEntry, read_range
from .tree import Tree

BLOCK_BYTES = 8 * 2**20

type Level = Literal["quick", "default", "full"]
type DamageKind = Literal[
    "missing", "size", "checksum", "metadata", "records", "manifest", "unnamed", "digest", "foreign"
]


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that is not as it was committed."""

    kind: DamageKind
    """Class of damage."""
    path: str
    """File below the store's root."""
    message: str
    """What differs, in a sentence."""
    capture: str = ""
    """The capture it belongs to."""
    site: str = ""
    """The site (or output, column, parameter) it belongs to."""
    layer: int | None = None
    """The layer, where the file belongs to one."""
    samples: tuple[str, ...] = ()
    """Ids of the samples whose values are in the file."""


class FileChecker:
    """Compares the files of a store with commit records.

    Parameters
    ----------
    root
        The store's root.
    tree
        What lies there; what is reached through a link does not count.
    definitions
        Definitions of the captures, to name layers.
    """

    def __init__(
        self, root: Path, tree: Tree, definitions: Mapping[str, CaptureDefinition]
    ) -> None:
        self._root = root
        self._tree = tree
        self._definitions = definitions

    def check(
        self, record: Record, entry: FileEntry, level: Level
    ) -> tuple[Damage | None, str | None]:
        """Return what is wrong with a committed file, and its SHA-256 at level `full`."""
        if entry.path in self._tree.odd:
            return self._damage(record, entry, "missing", "it is not a regular file"), None
        size = self._tree.files.get(entry.path)
        if size is None:
            return self._damage(record, entry, "missing", "the file is missing"), None
        if size != entry.size:
            text = f"it has {size} bytes, {entry.size} were committed"
            return self._damage(record, entry, "size", text), None
        if level == "quick":
            return None, None
        digest = hashlib.sha256() if level == "full" else None
        if not self._same_bytes(entry, digest):
            return self._damage(
                record, entry, "checksum", "its checksum differs from the record"
            ), None
        return None, digest.hexdigest() if digest is not None else None

    def sha256(self, path: str) -> str | None:
        """Return the SHA-256 of a file, None if it cannot be read."""
        digest, block = hashlib.sha256(), np.empty(BLOCK_BYTES, np.uint8)
        try:
            with opened(self._root, path) as (descriptor, size):
                for offset in range(0, size, BLOCK_BYTES):
                    part = block[: min(BLOCK_BYTES, size - offset)]
                    read_range(descriptor, offset, part)
                    digest.update(part)
        except (StoreError, OSError):
            return None
        return digest.hexdigest()

    def _same_bytes(self, entry: FileEntry, digest: hashlib._Hash | None) -> bool:
        """Read a file once, comparing every chunk and the whole with the record."""
        try:
            for block in checked_blocks(self._root, entry):
                if digest is not None:
                    digest.update(block)
        except (DamagedStoreError, OSError):
            return False
        return True

    def _damage(self, record: Record, entry: FileEntry, kind: DamageKind, text: str) -> Damage:
        parts = entry.path.split("/")
        return Damage(
            kind=kind,
            path=entry.path,
            message=f"{entry.path}: {text}",
            capture=record.capture,
            site=parts[3] if len(parts) > 3 else "",
            layer=self._layer(record.capture, parts),
            samples=tuple(sample.id for sample in record.samples),
        )

    def _layer(self, capture: str, parts: list[str]) -> int | None:
        """Return the layer of `captures/<c>/sites/<site>/values/c.<position>.<segment>.0`."""
        definition = self._definitions.get(capture)
        if definition is None or len(parts) != 6 or parts[4] != "values":
            return None
        for site in definition.sites:
            position = parts[5].split(".")[1:2]
            if site.group == f"{parts[2]}/{parts[3]}" and site.layers and position[0].isdecimal():
                layers = site.layer_labels
                return layers[int(position[0])] if int(position[0]) < len(layers) else None
        return None
