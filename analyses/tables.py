"""Results as tidy tables: the order of their columns, and the way to and from xarray."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from .plan import Table


def with_interval(*names: str) -> tuple[str, ...]:
    """Return the columns of estimates, each with the ends of its interval."""
    return tuple(f"{name}{end}" for name in names for end in ("", "_low", "_high"))


_PAIR = ("capture_a", "site_a", "layer_a", "capture_b", "site_b", "layer_b")
_END = ("n", "exposed", "reason")
COLUMNS: dict[str, tuple[str, ...]] = {
    "cka": (
        *_PAIR,
        *("granularity", "kernel", "estimator", "mask", "value", "value_low", "value_high"),
        *("p_value", "null_ceiling", "p_permutation", *_END),
    ),
    "svd": (
        *("capture", "site", "layer", "centred", "mask", "n"),
        *with_interval("sv90", "sv90_interpolated", "top10_energy", "erank", "erank_energy"),
        *with_interval("stable_rank", "participation_ratio"),
        *("independent", "noise_variance", "mp_edge", "above_mp", "shuffled_edge"),
        *("above_shuffled", "exposed", "reason"),
    ),
    "spectrum": (
        *("capture", "site", "layer", "centred", "mask", "index", "singular_value", "energy"),
        *_END,
    ),
    "angles": (
        *("capture_a", "capture_b", "site", "layer", "mask", "span", "directions_a"),
        *("directions_b", "overlap", "overlap_random", "angle_smallest", "angle_largest"),
        *("angle_rounding", *_END),
    ),
    "probe": (
        *(
            "capture",
            "site",
            "layer",
            "probe",
            "split",
            "fold",
            "uar",
            "uar_low",
            "uar_high",
            "war",
        ),
        *("macro_f1", "nll", "ece", "control_uar", "selectivity", "p_value", "p_holm"),
        *("delta_first", "p_first", "p_first_holm", "uar_fold_mean", "uar_fold_sd", "penalty"),
        *_END,
    ),
    "probe_weights": (
        *("capture", "site", "layer", "weight", "weight_low", "weight_high", "weight_sd", *_END),
    ),
    "mdl": (
        *("capture", "site", "layer", "probe", "codelength", "codelength_sd"),
        *("uniform_codelength", "compression", "control_compression", *_END),
    ),
    "row_probe": (
        *("capture", "site", "layer", "rows", "probe", "split", "mask", "classes", "uar"),
        *("uar_low", "uar_high", "war", "macro_f1", "control_uar", "selectivity", "p_value"),
        *("p_holm", *_END),
    ),
    "row_probe_classes": (
        *("capture", "site", "layer", "rows", "probe", "class", "class_name", "recall"),
        *("precision", "control_recall", "taken_for", "taken_share", *_END),
    ),
    "lens": (
        *(
            "capture",
            "site",
            "layer",
            "kl_final_layer",
            "kl_final_layer_low",
            "kl_final_layer_high",
        ),
        *("kl_layer_final", "kl_layer_final_low", "kl_layer_final_high", "js", "js_low", "js_high"),
        *("overlap", "overlap_low", "overlap_high", "chance_overlap", "uar", "uar_low", "uar_high"),
        *_END,
    ),
    "tuned_lens": (
        *("capture", "site", "layer", "kl_final_layer", "kl_final_layer_low"),
        *("kl_final_layer_high", "js", "js_low", "js_high", "overlap", "overlap_low"),
        *("overlap_high", "uar", "uar_low", "uar_high", "lens_kl_final_layer", "lens_js"),
        *("lens_overlap", "lens_uar", "delta_kl_final_layer", "delta_kl_final_layer_low"),
        *("delta_kl_final_layer_high", "delta_js", "delta_js_low", "delta_js_high"),
        *("delta_overlap", "delta_overlap_low", "delta_overlap_high", "delta_uar"),
        *("delta_uar_low", "delta_uar_high", "chance_kl", "chance_overlap", "penalty", *_END),
    ),
    "contribution": (
        *(
            "capture",
            "layer",
            "component",
            "mask",
            "ratio_mean",
            "ratio_mean_low",
            "ratio_mean_high",
        ),
        *("ratio_median", "cosine_mean", "cosine_mean_low", "cosine_mean_high", "cosine_median"),
        *_END,
    ),
    "alignment": (
        *("capture", "module", "layer", "direction", "mask", "value", "null_mean", "null_low"),
        *("null_high", "p_value", *_END),
    ),
    "outputs": (
        *("capture", "uar", "uar_low", "uar_high", "war", "macro_f1", "nll", "ece", *_END),
    ),
    "confusion": ("capture", "label", "predicted", "count", *_END),
    "erasure": (
        *("capture", "intervention", "change", "layer", "delta_uar", "delta_uar_low"),
        *("delta_uar_high", "delta_war", "delta_war_low", "delta_war_high", "delta_nll"),
        *("delta_nll_low", "delta_nll_high", "delta_p_true", "delta_p_true_low"),
        *("delta_p_true_high", "kl", "kl_low", "kl_high", *_END),
    ),
    "weights": (
        *("capture", "module", "layer", "matrix", "sv90", "sv90_interpolated", "erank"),
        *("stable_rank", "intruders", "fro_norm", "first_step", "change_from_first"),
        *("cosine_to_first", *_END),
    ),
    "subspaces": (
        *("capture_a", "capture_b", "module", "layer", "matrix", "directions", "overlap"),
        *("overlap_random", *_END),
    ),
    "gradients": (
        *("capture", "site", "layer", "mask", "norm_mean", "norm_mean_low", "norm_mean_high"),
        *("norm_median", "norm_median_low", "norm_median_high", "within_class_cosine"),
        *("within_class_cosine_low", "within_class_cosine_high", "between_class_cosine"),
        *("between_class_cosine_low", "between_class_cosine_high", "noise_scale"),
        *("noise_scale_low", "noise_scale_high", *_END),
    ),
    "embedding": (
        *("capture", "site", "layer", "sample", "x", "y", "seed", "knn_purity_label"),
        *("knn_purity_speaker", "label", "speaker", "method", "k", *_END),
    ),
    "embedding_quality": (
        *("capture", "site", "layer", "method", "seed", "init", "k", "knn_recall"),
        *("knn_recall_chance", "trustworthiness", "knn_purity_label", "knn_purity_label_low"),
        *("knn_purity_label_high", "knn_purity_label_chance", "knn_purity_label_across"),
        *("knn_purity_label_across_low", "knn_purity_label_across_high"),
        *("knn_purity_label_across_chance", "knn_purity_speaker", "knn_purity_speaker_low"),
        *("knn_purity_speaker_high", "knn_purity_speaker_chance", "silhouette_label"),
        *("silhouette_speaker", *_END),
    ),
    "paper": (
        *("part", "quantity", "capture", "site", "layer", "capture_b", "site_b", "fault"),
        *("value", "corrected", "difference", "ratio", "permuted", *_END),
    ),
}
"""Columns of each table in their order; a table may have more after them."""
_TEXT = {
    *("capture", "site", "capture_a", "site_a", "capture_b", "site_b", "granularity", "kernel"),
    *("estimator", "mask", "probe", "split", "fold", "component", "label", "predicted"),
    *("intervention", "change", "module", "direction", "matrix", "rows", "exposed", "reason"),
    *("part", "quantity", "fault", "span"),
    *("sample", "speaker", "method", "init"),
}
_WHOLE = {
    *("layer", "layer_a", "layer_b", "n", "index", "count", "directions", "seed", "k"),
    *("directions_a", "directions_b"),
}
_LAYERS = ("layer", "layer_a", "layer_b")


def to_dataset(name: str, table: Table, attrs: Mapping[str, Any]) -> xr.Dataset:
    """Return a table as a dataset of one dimension `entry`, with its attributes.

    Text is text, whole numbers are int64 (`layer` -1 for sites without layers). Columns of a table
    that is not in `COLUMNS` (that of a user's own fold) keep their type, whatever their name.
    """
    frame = table.frame
    columns = [*COLUMNS.get(name, ()), *frame.columns]
    convert = _convert if name in COLUMNS else _keep
    data = {column: convert(frame, column) for column in dict.fromkeys(columns)}
    # `fastpath`: text is text already, and xarray would look at every word of it
    variables = {
        column: xr.Variable(("entry",), values, fastpath=True) for column, values in data.items()
    }
    return xr.Dataset(variables, attrs={**attrs, **table.attrs})


def _convert(frame: pd.DataFrame, column: str) -> np.ndarray:
    if column in _TEXT:
        if column not in frame:
            return np.full(len(frame), "", dtype=object)
        return _to_text(frame, column)
    if column not in frame:
        return np.full(len(frame), np.nan)
    if column in _WHOLE:
        return frame[column].to_numpy(dtype=np.int64)
    return frame[column].to_numpy()


def _keep(frame: pd.DataFrame, column: str) -> np.ndarray:
    values = frame[column]
    if pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values):
        return values.to_numpy()
    return _to_text(frame, column)


def _to_text(frame: pd.DataFrame, column: str) -> np.ndarray:
    values = frame[column]
    if values.dtype == object and pd.api.types.infer_dtype(values, skipna=False) == "string":
        return values.to_numpy()
    return values.astype(object).where(values.notna(), "").astype(str).to_numpy(dtype=object)


def to_tables(results: Mapping[str, xr.Dataset]) -> dict[str, pd.DataFrame]:
    """Return the results of `analyze` as tidy tables.

    Parameters
    ----------
    results
        Datasets by table name.

    Returns
    -------
    dict
        One table each; `layer` is empty (pandas `NA`) for sites without layers; `attrs` are kept.
    """
    tables = {}
    for name, dataset in results.items():
        frame = pd.DataFrame({str(k): v.to_numpy() for k, v in dataset.variables.items()})
        for column in _LAYERS:
            if column in frame:
                layers = frame[column].astype("Int64")
                frame[column] = layers.mask(layers < 0)
        frame.attrs = dict(dataset.attrs)
        tables[name] = frame
    return tables
