"""`MANIFEST.json` of a sealed store: every file with size and SHA-256, and two digests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from .errors import DamagedStoreError
from .files import read_file
from .layout import MANIFEST, canonical, to_json

MANIFEST_FORMAT = "lorascope-manifest"
MANIFEST_VERSION = 1
MAX_MANIFEST_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Manifest:
    """The files of a sealed store as they are, and what they hold."""

    content_digest: str
    """Digest of the values, whatever the files."""
    files: Mapping[str, tuple[int, str]]
    """Size in bytes and SHA-256 of every file by path, the manifest itself excepted."""

    @property
    def digest(self) -> str:
        """The `manifest_digest`: SHA-256 over the sorted files with size and SHA-256."""
        rows = [[path, *self.files[path]] for path in sorted(self.files)]
        return hashlib.sha256(canonical(rows)).hexdigest()

    def encode(self) -> bytes:
        """Return the bytes of `MANIFEST.json`."""
        return to_json(
            {
                "format": MANIFEST_FORMAT,
                "version": MANIFEST_VERSION,
                "content_digest": self.content_digest,
                "manifest_digest": self.digest,
                "files": [
                    {"path": path, "size": size, "sha256": sha256}
                    for path, (size, sha256) in sorted(self.files.items())
                ],
            }
        )

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Return the manifest in `data`.

        Raises
        ------
        DamagedStoreError
            If the bytes are not exactly what a seal made.
        """
        try:
            body = json.loads(data)
            files = {str(f["path"]): (f["size"], f["sha256"]) for f in body["files"]}
            manifest = cls(body["content_digest"], files)
            if manifest.encode() == data:
                return manifest
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            msg = f"{MANIFEST} cannot be read: {type(error).__name__}. Restore it from a copy."
            raise DamagedStoreError(msg) from error
        msg = f"{MANIFEST} was changed after the store was sealed. Restore it from a copy."
        raise DamagedStoreError(msg)


def read_manifest(root: Path) -> Manifest:
    """Return the manifest of a sealed store.

    Raises
    ------
    DamagedStoreError
        If it is missing or was changed.
    """
    path = root / MANIFEST
    try:
        size = path.lstat().st_size
        data = read_file(path) if size <= MAX_MANIFEST_BYTES else b""
    except OSError as error:
        msg = f"{MANIFEST} of a sealed store cannot be read: {error.strerror}."
        raise DamagedStoreError(msg) from error
    return Manifest.decode(data)
