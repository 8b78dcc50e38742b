"""Results of analyses go to Zarr and come back; what was there is replaced as a whole."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from lorascope.store import InvalidStoreError, read_results, write_results


def table(n: int) -> xr.Dataset:
    return xr.Dataset(
        {"value": ("entry", np.linspace(0, 1, n)), "site": ("entry", ["é"] * n)}, attrs={"seed": 3}
    )


def test_round_trip_and_replacement(tmp_path):
    path = write_results(tmp_path / "results.zarr", {"cka": table(3), "svd": table(2)})
    assert set(read_results(path)) == {"cka", "svd"}
    write_results(path, {"cka": table(5)}, attrs={"command": "analyze"})
    results = read_results(path)
    assert set(results) == {"cka"}
    np.testing.assert_array_equal(results["cka"]["value"], np.linspace(0, 1, 5))
    assert results["cka"]["site"].to_numpy().tolist() == ["é"] * 5
    assert results["cka"].attrs["seed"] == 3
    assert [p.name for p in tmp_path.iterdir()] == ["results.zarr"]


def test_other_folders_are_left_alone(tmp_path):
    (tmp_path / "results.zarr").mkdir()
    (tmp_path / "results.zarr/mine.txt").write_text("x")
    with pytest.raises(InvalidStoreError, match="not a Zarr group"):
        write_results(tmp_path / "results.zarr", {"cka": table(1)})
    assert (tmp_path / "results.zarr/mine.txt").exists()
    with pytest.raises(InvalidStoreError, match="holds no results"):
        read_results(tmp_path / "results.zarr")
