"""The summary of one analysis: how it was made, of what, and the values that a reader looks for first."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from ..store import Capture, Store

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
        JSON-able, without NaN: `command`, `created`, `seed`, `memory`, `versions`, `store` (name, uuid,
        content digest), `captures` (what each is), `skipped` (analysis: reason), `tables` (rows and
        estimator choices of each), `values`.
    """
    attrs = [dataset.attrs for dataset in results.values()]
    skipped: dict[str, str] = {}
    for one in attrs:
        skipped |= json.loads(one.get("skipped", "{}"))
    return {
        "command": command,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": seed,
        "memory": attrs[0].get("memory") if attrs else None,
        "versions": {"python": sys.version.split()[0], **_versions()},
        "store": describe_store(store),
        "captures": {name: describe_capture(store.capture(name)) for name in store.captures},
        "skipped": skipped,
        "tables": {
            name: {"rows": int(d.sizes["entry"]), "attrs": _plain(d.attrs)}
            for name, d in results.items()
        },
        "values": _plain(collect_values(tables)),
    }


def describe_store(store: Store) -> dict[str, Any]:
    """Return name, identity and content digest of a store; no path, which may hold private names."""
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
    kept = ("model", "adapter", "trained", "head", "labels", "split", "pools", "seed")
    described = {name: capture.attrs.get(name) for name in kept if name in capture.attrs}
    described |= {"samples": len(table), "exposed": int(table["exposed"].sum())}
    described |= {"groups": {name: int(table[name].nunique()) for name in capture.groups}}
    described |= {"sites": sorted({*capture.sites, *capture.pooled})}
    return _plain(described)


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "unknown"
    return found


def collect_values(tables: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """Return the headline values of every table that is there."""
    makers = {
        "outputs": _outputs_values,
        "probe": _probe_values,
        "lens": _lens_values,
        "svd": _svd_values,
        "contribution": _contribution_values,
        "cka": _cka_values,
    }
    return {name: make(tables[name]) for name, make in makers.items() if name in tables}


def _outputs_values(table: pd.DataFrame) -> dict[str, Any]:
    columns = ["uar", "uar_low", "uar_high", "war", "n", "reason"]
    return {str(name): part.iloc[0][columns].to_dict() for name, part in table.groupby("capture")}


def _probe_values(table: pd.DataFrame) -> dict[str, Any]:
    """Return the best array of each capture: the one with the highest UAR over all folds."""
    columns = [
        "site",
        "layer",
        "uar",
        "uar_low",
        "uar_high",
        "war",
        "control_uar",
        "selectivity",
        "n",
    ]
    pooled = table[(table["fold"] == "all") & table["uar"].notna()]
    return {
        str(name): part.loc[part["uar"].idxmax(), columns].to_dict()
        for name, part in pooled.groupby("capture")
    }


def _lens_values(table: pd.DataFrame) -> dict[str, Any]:
    """Return the last layer of each capture, which has to agree with the model."""
    columns = ["layer", "kl_final_layer", "overlap", "uar", "n"]
    layers = table[table["layer"].notna() & table["overlap"].notna()]
    return {
        str(name): part.loc[part["layer"].astype(int).idxmax(), columns].to_dict()
        for name, part in layers.groupby("capture")
    }


def _svd_values(table: pd.DataFrame) -> dict[str, Any]:
    """Return the mean over layers of the centred numbers, by capture and site."""
    columns = ["sv90", "erank", "top10_energy"]
    centred = table[table["centred"]]
    found: dict[str, Any] = {}
    for (capture, site), part in centred.groupby(["capture", "site"]):
        found.setdefault(str(capture), {})[str(site)] = part[columns].mean().to_dict()
    return found


def _contribution_values(table: pd.DataFrame) -> dict[str, Any]:
    """Return the mean over layers of ratio and cosine, by capture and component."""
    columns = ["ratio_mean", "cosine_mean"]
    found: dict[str, Any] = {}
    for (capture, component), part in table.groupby(["capture", "component"]):
        found.setdefault(str(capture), {})[str(component)] = part[columns].mean().to_dict()
    return found


def _cka_values(table: pd.DataFrame) -> dict[str, Any]:
    """Return the mean debiased CKA over layers of the same site and layer in two captures."""
    same = (table["site_a"] == table["site_b"]) & (table["capture_a"] != table["capture_b"])
    same &= table["layer_a"].fillna(-1) == table["layer_b"].fillna(-1)
    rows = table[same & (table["estimator"] == "debiased")]
    found: dict[str, Any] = {}
    for (a, b, site), part in rows.groupby(["capture_a", "capture_b", "site_a"]):
        found.setdefault(f"{a} - {b}", {})[str(site)] = part["value"].mean()
    return found


def _plain(value: Any) -> Any:
    """Return a value as JSON holds it: NaN and missing become null, numpy numbers become numbers."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or value is pd.NA or (isinstance(value, float) and not np.isfinite(value)):
        return None
    return value if isinstance(value, str | int | float | bool) else str(value)
