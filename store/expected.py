"""The metadata a store must have: all of them follow from definitions and commit records."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .capture import Capture
from .layout import (
    FORMAT_NAME,
    FORMAT_VERSION,
    MAX_METADATA_BYTES,
    ArraySpec,
    group_metadata,
    to_json,
)
from .root import COPY_OF


@dataclass(frozen=True, slots=True)
class Expected:
    """One file whose bytes follow from definitions and records."""

    path: str
    """Path below the store's root."""
    content: bytes
    """What it should hold."""
    unsettled: tuple[bytes, ...] = ()
    """What it holds after a crash, until a writer or a repair settles it: another length."""
    capture: str = ""
    """The capture it belongs to."""


def expected_metadata(captures: Mapping[str, Capture], *, sealed: bool) -> Iterator[Expected]:
    """Yield every `zarr.json` below `captures/`, those of the captures' definitions excepted.

    Parameters
    ----------
    captures
        What is committed.
    sealed
        Whether arrays must be exactly as long as what is committed.
    """
    yield Expected("captures/zarr.json", group_metadata({}))
    for name, capture in captures.items():
        definition = capture.definition
        for group in definition.groups()[1:]:
            yield Expected(f"{group}/zarr.json", group_metadata({}), (), name)
        for spec in _whole_arrays(capture):
            yield Expected(f"{spec.path}/zarr.json", spec.metadata(), (), name)
        for spec in definition.segmented_arrays(capture.segments.columns):
            yield _segmented(capture, spec, sealed=sealed)


def metadata_paths(captures: Mapping[str, Capture]) -> set[str]:
    """Return the paths of what `expected_metadata` yields."""
    paths = {"captures/zarr.json"}
    for capture in captures.values():
        definition = capture.definition
        specs = _whole_arrays(capture) + definition.segmented_arrays(capture.segments.columns)
        nodes = definition.groups()[1:] + [spec.path for spec in specs]
        paths.update(f"{node}/zarr.json" for node in nodes)
    return paths


def _whole_arrays(capture: Capture) -> list[ArraySpec]:
    """Return the specs of the arrays that are not cut into segments."""
    definition = capture.definition
    return [definition.layer_spec(site) for site in definition.sites] + [
        definition.parameter_spec(name, value["shape"], value["dtype"])
        for name, value in capture.parameters.described.items()
    ]


def committed_size(capture: Capture, spec: ArraySpec, *, commits_back: int = 0) -> int:
    """Return the length of an array's cut axis that the records account for.

    `commits_back` 1 gives the length before the newest segment was committed.
    """
    records = capture.segments.records
    if len(records) <= commits_back:
        return 0
    newest = records[-1 - commits_back]
    return capture.definition.cut_size(spec, (newest.segment or 0) + 1, newest.attrs["used"])


def _segmented(capture: Capture, spec: ArraySpec, *, sealed: bool) -> Expected:
    """Return what is expected of an array that is cut into segments.

    With a plan an open store has the planned lengths; an interrupted seal leaves those of a sealed
    one. Without a plan every commit publishes its lengths before the next one begins; a crash
    leaves those of the commit before.
    """
    definition = capture.definition
    size = committed_size(capture, spec)
    before = committed_size(capture, spec, commits_back=1)
    if not sealed and definition.plan is not None:
        size, before = definition.planned_size(spec), size
    content = spec.metadata(size)
    unsettled = () if sealed or before == size else (spec.metadata(before),)
    return Expected(f"{spec.path}/zarr.json", content, unsettled, capture.name)


def root_metadata(
    uuid: str, origin: Mapping[str, Any] | None, *, consolidated: Mapping[str, Any] | None = None
) -> bytes:
    """Return the bytes of the root's `zarr.json`.

    Parameters
    ----------
    uuid
        The store's.
    origin
        What the store is a copy of, if it is one.
    consolidated
        Metadata of all nodes below, for a sealed store.
    """
    attributes = ({} if origin is None else {COPY_OF: dict(origin)}) | {
        "format": FORMAT_NAME,
        "version": FORMAT_VERSION,
        "uuid": uuid,
        "state": "open" if consolidated is None else "sealed",
    }
    if consolidated is None:
        return group_metadata(attributes)
    body = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    content = to_json(body | {"consolidated_metadata": _inline(consolidated)})
    # Without them a reader lists folders, which is slower and gives the same.
    return content if len(content) <= MAX_METADATA_BYTES else to_json(body)


def sealed_root(
    uuid: str,
    origin: Mapping[str, Any] | None,
    captures: Mapping[str, Capture],
) -> bytes:
    """Return the bytes of a sealed root's `zarr.json`, in the form that zarr-python 3 reads."""
    nodes: dict[str, Any] = {
        capture.definition.root: json.loads(capture.definition.metadata())
        for capture in captures.values()
    }
    for expected in expected_metadata(captures, sealed=True):
        nodes[expected.path.removesuffix("/zarr.json")] = json.loads(expected.content)
    for node in nodes.values():
        if node["node_type"] == "group":
            node["consolidated_metadata"] = _inline({})
    return root_metadata(uuid, origin, consolidated=nodes)


def _inline(nodes: Mapping[str, Any]) -> dict[str, Any]:
    return {"kind": "inline", "must_understand": False, "metadata": dict(nodes)}
