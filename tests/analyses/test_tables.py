"""Tables: the contract's columns, and what is written comes back."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from lorascope.analyses.outputs import guard_cells, write_tables

CONTRACT = {
    "cka": "capture_a site_a layer_a capture_b site_b layer_b granularity kernel estimator mask "
    "value value_low value_high p_value null_ceiling",
    "svd": "capture site layer centred mask n sv90 sv90_interpolated top10_energy erank "
    "erank_energy stable_rank participation_ratio",
    "spectrum": "capture site layer centred mask index singular_value energy",
    "angles": "capture_a capture_b site layer mask span directions_a directions_b overlap "
    "overlap_random angle_smallest angle_largest",
    "probe": "capture site layer probe split fold uar war macro_f1 nll ece control_uar selectivity",
    "lens": "capture layer kl_final_layer kl_layer_final js overlap chance_overlap uar",
    "contribution": "capture layer component mask ratio_mean ratio_median cosine_mean "
    "cosine_median n",
    "alignment": "capture module layer direction mask value null_mean null_low null_high p_value",
    "outputs": "capture uar war",
    "confusion": "capture label predicted count",
    "embedding": "capture site layer sample x y seed knn_purity_label knn_purity_speaker",
    "embedding_quality": "capture site layer method seed knn_recall trustworthiness "
    "knn_purity_label knn_purity_speaker silhouette_label silhouette_speaker",
}


@pytest.fixture(scope="module")
def folder(tables, tmp_path_factory):
    path = tmp_path_factory.mktemp("tables")
    write_tables(tables, path)
    return path


def test_every_table_is_there(results):
    assert set(results) == set(CONTRACT)


@pytest.mark.parametrize("name", CONTRACT)
def test_tables_have_the_columns_of_the_contract(results, tables, name):
    wanted = {*CONTRACT[name].split(), "n", "exposed", "reason"}
    assert wanted <= set(tables[name].columns)
    assert list(results[name].sizes) == ["entry"]
    assert wanted <= {str(v) for v in results[name].variables}
    assert len(tables[name]) == results[name].sizes["entry"] > 0
    assert set(tables[name]["exposed"]) <= {"none", "all", "only"}
    assert {"seed", "memory", "passes", "bytes_read", "store_uuid"} <= set(results[name].attrs)


@pytest.mark.parametrize(
    ("name", "column"),
    [
        *(("cka", "value"), ("svd", "erank"), ("probe", "uar"), ("lens", "overlap")),
        *(("contribution", "ratio_mean"), ("outputs", "uar"), ("alignment", "value")),
    ],
)
def test_every_missing_value_has_a_reason_and_no_other(tables, name, column):
    """The reason of a value that is there can only be a remark about its fold."""
    missing = tables[name][column].isna()
    assert (tables[name]["reason"][missing] != "").all()
    remarks = tables[name]["reason"][~missing]
    assert remarks.isin(["", "no frame has a cosine: a norm is 0"]).all()


@pytest.mark.parametrize("name", CONTRACT)
def test_layers_are_whole_numbers_or_empty(results, tables, name):
    for column in {"layer", "layer_a", "layer_b"} & set(tables[name].columns):
        assert tables[name][column].dtype == "Int64"
        site = column.replace("layer", "site")
        without = tables[name][column].isna()
        assert np.array_equal(results[name][column].to_numpy() == -1, without)
        if site in tables[name]:
            assert np.array_equal(without, tables[name][site] == "embed")


@pytest.mark.parametrize("name", CONTRACT)
def test_files_hold_the_tables(folder, tables, name):
    """Parquet is exact; CSV writes the shortest text that reads back to the same float64."""
    expected = pd.DataFrame(tables[name])
    expected.attrs = {}
    parquet = pd.read_parquet(folder / f"{name}.parquet")
    pd.testing.assert_frame_equal(parquet, expected, check_dtype=False, check_exact=True)
    csv = pd.read_csv(folder / f"{name}.csv", dtype=str, keep_default_na=False)
    assert list(csv.columns) == list(expected.columns)
    for column in expected:
        cells = csv[column]
        if expected[column].dtype.kind == "f":
            found = [float(cell) if cell else np.nan for cell in cells]
            np.testing.assert_array_equal(found, expected[column])
        else:
            known = expected[column].astype(object)
            assert list(cells) == ["" if value is pd.NA else str(value) for value in known]


def test_text_that_a_spreadsheet_would_run_is_quoted():
    table = pd.DataFrame(
        {
            "site": ["=1+1", "+x", "-x", "@x", "\tx", "x=1", ""],
            "value": [-1.5, 2.0, np.nan, -0.0, 1e-9, -np.inf, 3.0],
            "=sum": pd.array([-1, 2, 3, 4, 5, 6, pd.NA], dtype="Int64"),
        }
    )
    guarded = guard_cells(table)
    assert list(guarded["site"]) == ["'=1+1", "'+x", "'-x", "'@x", "'\tx", "x=1", ""]
    assert list(guarded.columns) == ["site", "value", "'=sum"]
    pd.testing.assert_series_equal(guarded["value"], table["value"])
    assert list(guarded["'=sum"])[:2] == [-1, 2]
