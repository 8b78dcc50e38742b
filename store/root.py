"""The root of a store: what its `zarr.json` says of the whole, checked before anything else."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import InvalidStoreError, SealedStoreError
from .files import read_file
from .guard import BrokenRule, items, name, parse_json, require, table, text
from .inside import read_inside
from .layout import FORMAT_NAME, FORMAT_VERSION
from .node_rules import check_group
from .profiles import PROFILES

COPY_OF = "copy_of"
"""Root attribute of a copy that is not the same store: what it was made of."""
STATES = ("open", "sealed")


def new_attributes() -> dict[str, Any]:
    """Return the root attributes of a new store."""
    return {
        "format": FORMAT_NAME,
        "version": FORMAT_VERSION,
        "uuid": str(uuid.uuid4()),
        "state": "open",
    }


def refuse_sealed(root: Path) -> None:
    """Raise `SealedStoreError` if a sealed store is at the path."""
    try:
        sealed = read_metadata(root / "zarr.json")["attributes"].get("state") == "sealed"
    except InvalidStoreError:
        return
    if sealed:
        msg = (
            f"{root} is sealed and never changes: name another path. (Reading, verifying and "
            "analysing it need no writer.)"
        )
        raise SealedStoreError(msg)


def root_attributes(root: Path) -> dict[str, Any]:
    """Return the attributes of a store's root.

    Raises
    ------
    InvalidStoreError
        If there is no lorascope store of this version.
    """
    if not (root / "zarr.json").is_file():
        msg = f"{root} is not a lorascope store: it has no zarr.json."
        raise InvalidStoreError(msg)
    node, attributes = _root_node(root)
    if attributes.get("format") != FORMAT_NAME:
        msg = f"{root} is a Zarr group, but not a lorascope store (no format {FORMAT_NAME!r})."
        raise InvalidStoreError(msg)
    version = attributes.get("version")
    if type(version) is not int or version != FORMAT_VERSION:
        said = repr(version)[:80]
        msg = (
            f"{root} has format version {said}; this lorascope reads version {FORMAT_VERSION}: "
            "upgrade it."
        )
        raise InvalidStoreError(msg)
    if not isinstance(attributes.get("uuid"), str) or attributes.get("state") not in STATES:
        msg = f"{root}/zarr.json has no uuid or an unknown state."
        raise InvalidStoreError(msg)
    try:
        copy_origin(attributes)
        return check_group(node)
    except BrokenRule as error:
        msg = f"{root}/zarr.json cannot be used: {error}"
        raise InvalidStoreError(msg) from error


def copy_origin(attributes: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what a store says it is a copy of, None if it is none; raises `BrokenRule`."""
    if COPY_OF not in attributes:
        return None
    origin = table(attributes[COPY_OF], COPY_OF)
    require(origin.keys() == {"uuid", "profile", "captures"}, f"{COPY_OF} has other fields")
    text(origin["uuid"], f"uuid of {COPY_OF}")
    profile, captures = origin["profile"], origin["captures"]
    require(profile is None or profile in PROFILES, f"profile of {COPY_OF} is unknown")
    for capture in items(captures, f"captures of {COPY_OF}") if captures is not None else []:
        name(capture, f"a capture of {COPY_OF}")
    return origin


def _root_node(root: Path) -> tuple[object, dict[str, Any]]:
    try:
        node = parse_json(read_inside(root, "zarr.json"))
    except BrokenRule as error:
        msg = f"{root}/zarr.json cannot be read as Zarr metadata: {error}"
        raise InvalidStoreError(msg) from error
    attributes = node.get("attributes") if isinstance(node, dict) else None
    if not isinstance(attributes, dict):
        msg = f"{root}/zarr.json is not the metadata of a Zarr group"
        raise InvalidStoreError(msg)
    return node, attributes


def read_metadata(path: Path) -> dict[str, Any]:
    """Return the object in a group's `zarr.json`; raises `InvalidStoreError` if there is none."""
    try:
        value = parse_json(read_file(path))
    except (OSError, BrokenRule) as error:
        msg = f"{path} cannot be read as Zarr metadata: {error}"
        raise InvalidStoreError(msg) from error
    if not isinstance(value, dict) or not isinstance(value.get("attributes"), dict):
        msg = f"{path} is not the metadata of a Zarr group"
        raise InvalidStoreError(msg)
    return value
