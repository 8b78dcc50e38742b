"""The summary of one analysis: how it was made, of what, and the values to look at first."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from ..store import Capture, Store
from .source import interventions_of

type _Row = dict[str, Any]

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
            name: _plain({"of": base, **store.capture(name).attrs["intervention"]})
            for name, base in changed.items()
        },
        "skipped": skipped,
        "tables": {
            name: {"rows": int(d.sizes["entry"]), "attrs": _plain(d.attrs)}
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
        "svd": partial(
            _mean_values, keys=("capture", "site"), columns=("sv90", "erank", "top10_energy")
        ),
        "contribution": partial(
            _mean_values, keys=("capture", "component"), columns=("ratio_mean", "cosine_mean")
        ),
        "cka": _cka_values,
        "alignment": partial(
            _mean_values, keys=("capture", "direction"), columns=("value", "null_mean")
        ),
        "erasure": _erasure_values,
        "weights": partial(
            _mean_values, keys=("capture", "matrix"), columns=("sv90", "erank", "fro_norm")
        ),
        "gradients": partial(
            _mean_values,
            keys=("capture", "site"),
            columns=("norm_mean", "within_class_cosine", "between_class_cosine"),
        ),
        "embedding_quality": partial(
            _mean_values,
            keys=("capture", "site"),
            columns=("knn_purity_label", "knn_purity_speaker", "knn_recall"),
        ),
    }
    makers["paper"] = _paper_values
    rows = {name: tables[name].to_dict("records") for name in makers if name in tables}
    return {name: makers[name](_plain(records)) for name, records in rows.items()}


def _outputs_values(rows: Sequence[_Row]) -> dict[str, Any]:
    columns = ("uar", "uar_low", "uar_high", "war", "n", "reason")
    return {row["capture"]: _pick(row, columns) for row in rows}


def _probe_values(rows: Sequence[_Row]) -> dict[str, Any]:
    """Return the best array of each capture: highest UAR over all folds, of the logistic probe."""
    names = (
        "site",
        "layer",
        "uar",
        "uar_low",
        "uar_high",
        "war",
        "control_uar",
        "selectivity",
        "n",
    )
    best: dict[str, Any] = {}
    for row in rows:
        if row["fold"] == "all" and row["probe"] == "logistic" and row["uar"] is not None:
            held = best.get(row["capture"])
            if held is None or row["uar"] > held["uar"]:
                best[row["capture"]] = _pick(row, names)
    return best


def _lens_values(rows: Sequence[_Row]) -> dict[str, Any]:
    """Return the last layer of each capture, which has to agree with the model."""
    last: dict[str, Any] = {}
    for row in rows:
        if row["layer"] is not None and row["overlap"] is not None:
            held = last.get(row["capture"])
            if held is None or row["layer"] > held["layer"]:
                names = ("layer", "kl_final_layer", "overlap", "uar", "n")
                last[row["capture"]] = _pick(row, names)
    return last


def _mean_values(
    rows: Sequence[_Row], *, keys: tuple[str, str], columns: Sequence[str]
) -> dict[str, Any]:
    """Return means over layers by two columns, one nested in the other.

    Of spectra the centred ones only; of rows with several masks those of `valid`.
    """
    groups: dict[str, dict[str, list[_Row]]] = {}
    with_audio = {tuple(row[k] for k in keys) for row in rows if row.get("mask") == "valid"}
    for row in rows:
        padded = row.get("mask") != "valid" and tuple(row[k] for k in keys) in with_audio
        if row.get("centred", True) and not padded:
            groups.setdefault(row[keys[0]], {}).setdefault(row[keys[1]], []).append(row)
    return {
        outer: {
            inner: {column: _mean([row[column] for row in part]) for column in columns}
            for inner, part in inside.items()
        }
        for outer, inside in groups.items()
    }


def _cka_values(rows: Sequence[_Row]) -> dict[str, Any]:
    """Return the mean CKA over layers of the same site and layer in two captures.

    From pairs of different groups where there are enough of them, else debiased; pooled, linear.
    """
    plain = {"granularity": "pooled", "kernel": "linear"}
    rows = [row for row in rows if all(row[name] == want for name, want in plain.items())]
    known = {row["estimator"] for row in rows if row["value"] is not None}
    estimator = "between_groups" if "between_groups" in known else "debiased"
    groups: dict[str, dict[str, list[float | None]]] = {}
    for row in rows:
        same = row["site_a"] == row["site_b"] and row["layer_a"] == row["layer_b"]
        if same and row["capture_a"] != row["capture_b"] and row["estimator"] == estimator:
            pair = f"{row['capture_a']} - {row['capture_b']}"
            groups.setdefault(pair, {}).setdefault(row["site_a"], []).append(row["value"])
    return {
        pair: {site: _mean(values) for site, values in sites.items()}
        for pair, sites in groups.items()
    }


def _erasure_values(rows: Sequence[_Row]) -> dict[str, Any]:
    """Return the differences of every intervention, by capture."""
    columns = ("layer", "delta_uar", "delta_uar_low", "delta_uar_high", "kl", "n", "reason")
    found: dict[str, Any] = {}
    for row in rows:
        found.setdefault(row["capture"], {})[row["intervention"]] = _pick(row, columns)
    return found


def _paper_values(rows: Sequence[_Row]) -> dict[str, Any]:
    """Return the mean of every quantity, corrected and under each fault, where both are known."""
    groups: dict[str, dict[str, list[_Row]]] = {}
    for row in rows:
        if row["value"] is not None and row["corrected"] is not None:
            groups.setdefault(row["quantity"], {}).setdefault(row["fault"], []).append(row)
    return {
        quantity: {
            fault: {name: _mean([row[name] for row in part]) for name in ("value", "corrected")}
            for fault, part in faults.items()
        }
        for quantity, faults in groups.items()
    }


def _pick(row: _Row, names: Sequence[str]) -> _Row:
    return {name: row[name] for name in names}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _plain(value: Any) -> Any:  # noqa: ANN401 - any JSON-able value
    """Return a value as JSON holds it: NaN and missing values become null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or value is pd.NA or (isinstance(value, float) and not np.isfinite(value)):
        return None
    return value if isinstance(value, str | int | float | bool) else str(value)
