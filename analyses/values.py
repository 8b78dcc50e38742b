"""The values of each table to look at first, as `summary.json` holds them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

type _Row = dict[str, Any]

_WEIGHT = ("weight", "weight_low", "weight_high")
_CODE = ("codelength", "uniform_codelength", "compression", "control_compression")
_ROWS = ("probe", "uar", "uar_low", "uar_high", "control_uar", "selectivity")


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

    Of spectra the centred ones; where frames were told apart those of audio.
    """
    groups: dict[str, dict[str, list[_Row]]] = {}
    for row in rows:
        if row.get("centred", True):
            groups.setdefault(row[keys[0]], {}).setdefault(row[keys[1]], []).append(row)
    return {
        outer: {
            inner: {column: _mean([row[column] for row in part]) for column in columns}
            for inner, part in ((inner, _of_one_mask(rows)) for inner, rows in inside.items())
        }
        for outer, inside in groups.items()
    }


def _of_one_mask(rows: Sequence[_Row]) -> list[_Row]:
    """Return the rows of audio where there are some beside others; masks are never mixed."""
    masks = list(dict.fromkeys(row.get("mask") for row in rows))
    wanted = "valid" if "valid" in masks else masks[0]
    return [row for row in rows if row.get("mask") == wanted]


def _best_values(
    rows: Sequence[_Row], *, keys: tuple[str, str], by: str, columns: Sequence[str]
) -> dict[str, Any]:
    """Return the array with the highest value, by two columns, one nested in the other."""
    best: dict[str, dict[str, _Row]] = {}
    for row in rows:
        inside = best.setdefault(row[keys[0]], {})
        held = inside.get(row[keys[1]])
        if row[by] is not None and (held is None or row[by] > held[by]):
            inside[row[keys[1]]] = _pick(row, ("site", "layer", *columns, "n"))
    return {outer: inside for outer, inside in best.items() if inside}


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


def to_json(value: Any) -> Any:  # noqa: ANN401 - any JSON-able value
    """Return a value as JSON holds it: NaN, infinite and missing values become null."""
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or value is pd.NA or (isinstance(value, float) and not np.isfinite(value)):
        return None
    return value if isinstance(value, str | int | float | bool) else str(value)


_MAKERS: dict[str, Callable[[Sequence[_Row]], dict[str, Any]]] = {
    "outputs": _outputs_values,
    "probe": _probe_values,
    "lens": _lens_values,
    "svd": partial(
        _mean_values, keys=("capture", "site"), columns=("sv90", "erank", "top10_energy")
    ),
    "contribution": partial(
        _mean_values, keys=("capture", "component"), columns=("ratio_mean", "cosine_mean")
    ),
    "tuned_lens": partial(
        _mean_values,
        keys=("capture", "site"),
        columns=("kl_final_layer", "lens_kl_final_layer", "delta_kl_final_layer", "chance_kl"),
    ),
    "probe_weights": partial(_best_values, keys=("capture", "site"), by="weight", columns=_WEIGHT),
    "mdl": partial(_best_values, keys=("capture", "probe"), by="compression", columns=_CODE),
    "row_probe": partial(_best_values, keys=("capture", "rows"), by="uar", columns=_ROWS),
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
    "paper": _paper_values,
}
"""What is said of each table."""


def collect_values(tables: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """Return the headline values of every table that is there."""
    rows = {name: tables[name].to_dict("records") for name in _MAKERS if name in tables}
    return {name: _MAKERS[name](to_json(records)) for name, records in rows.items()}
