"""The summary of one analysis: how it was made, of what, and the values to look at first."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import pandas as pd
import xarray as xr

from ..store import Capture, Store
from .source import interventions_of
from .values import collect_values, to_json

_PACKAGES = ("lorascope", "numpy", "scipy", "xarray", "dask", "pandas", "zarr")
_DIGEST_LIMIT_BYTES = 8 * 2**30
"""Stores of more than this are not read once more for their content digest."""


def summarise(
    results: Mapping[str, xr.Dataset],
    tables: Mapping[str, pd.DataFrame],
    store: Store,
    *,
    command: str,
    seed: int,
) -> dict[str, Any]:
    """Return what `summary.json` holds.

    Parameters
    ----------
    results, tables
        What `analyze` and `to_tables` gave.
    store
        The store that was analysed.
    command
        The command line, or the call.
    seed
        Of everything drawn.

    Returns
    -------
    dict
        JSON-able, without NaN: `command`, `created`, `seed`, `memory`, `variant`, `faults`,
        `versions`, `store` (name, uuid, content digest), `captures` (what each is),
        `interventions` (what each changed), `skipped` (analysis: reason), `tables` (rows and
        estimator choices of each), `values`.
    """
    attrs = [dataset.attrs for dataset in results.values()]
    changed = interventions_of(store)
    skipped: dict[str, str] = {}
    for one in attrs:
        skipped |= json.loads(one.get("skipped", "{}"))
    return {
        "command": command,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": seed,
        "memory": attrs[0].get("memory") if attrs else None,
        "variant": "paper" if "paper" in results else "corrected",
        "faults": json.loads(results["paper"].attrs.get("faults", "[]"))
        if "paper" in results
        else [],
        "versions": {"python": sys.version.split()[0], **_versions()},
        "store": describe_store(store),
        "captures": {
            name: describe_capture(store.capture(name))
            for name in store.captures
            if name not in changed
        },
        "interventions": {
            name: to_json({"of": base, **store.capture(name).attrs["intervention"]})
            for name, base in changed.items()
        },
        "skipped": skipped,
        "tables": {
            name: {"rows": int(d.sizes["entry"]), "attrs": to_json(d.attrs)}
            for name, d in results.items()
        },
        "values": collect_values(tables),
    }


def describe_store(store: Store) -> dict[str, Any]:
    """Return name, identity and content digest of a store; no path, which may be private."""
    size = sum(_count_bytes(store.capture(name)) for name in store.captures)
    digest = store.content_digest() if size <= _DIGEST_LIMIT_BYTES else None
    return {
        "name": store.path.name,
        "uuid": store.uuid,
        "content_digest": digest,
        "content_digest_note": ""
        if digest
        else f"not computed: {size / 2**30:.1f} GiB would be read once more; see `lorascope info`",
    }


def _count_bytes(capture: Capture) -> int:
    """Return the bytes of the rows of a capture, as float32."""
    return sum(
        4 * info.width * len(info.layers or (None,)) * int(capture.row_counts(info.stream).sum())
        for info in capture.sites.values()
    )


def describe_capture(capture: Capture) -> dict[str, Any]:
    """Return what a capture is: model, adapter, training, head, labels, samples and sites."""
    table = capture.samples
    kept = ("model", "corpus", "adapter", "trained", "head", "labels", "split", "pools", "seed")
    described = {name: capture.attrs.get(name) for name in kept if name in capture.attrs}
    described |= {"samples": len(table), "exposed": int(table["exposed"].to_numpy().sum())}
    described |= {"groups": {name: len(set(table[name])) for name in capture.groups}}
    described |= {"sites": sorted({*capture.sites, *capture.pooled})}
    return to_json(described)


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "unknown"
    return found
