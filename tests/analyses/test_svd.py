"""Table `svd` and `spectrum` against numpy's SVD of the rows in the store."""

import numpy as np
import pytest

from lorascope.analyses import analyze, to_tables


def test_spectra_equal_numpy(study) -> None:
    tables = to_tables(analyze(study.path, ["svd"]))
    svd, spectrum = tables["svd"], tables["spectrum"]
    for row in svd.to_dict("records"):
        layer = 0 if row["site"] == "embed" else int(row["layer"])
        x = study.rows(row["capture"], row["site"], layer).astype(np.float64)
        if not x.any():
            assert row["reason"] == "constant features"
            assert np.isnan(row["sv90"])
            continue
        assert row["n"] == len(x)
        sigma = np.linalg.svd(x - x.mean(axis=0) if row["centred"] else x)[1]
        sigma = sigma[:3] if row["site"].startswith("lora") else sigma
        energy = np.cumsum(sigma**2) / np.sum(sigma**2)
        assert row["sv90"] == np.flatnonzero(energy >= 0.9)[0] + 1
        p = sigma / sigma.sum()
        # float32 products of about 330 rows
        assert row["erank"] == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-5)
        assert row["stable_rank"] == pytest.approx(np.sum(sigma**2) / sigma[0] ** 2, rel=1e-5)
        same = np.ones(len(spectrum), bool)
        for name in ("capture", "site", "centred"):
            same &= (spectrum[name] == row[name]).to_numpy()
        if row["site"] != "embed":
            same &= (spectrum["layer"] == layer).fillna(False).to_numpy(dtype=bool)  # noqa: FBT003
        part = spectrum[same]
        assert part["index"].tolist() == list(range(1, len(sigma) + 1))
        np.testing.assert_allclose(part["singular_value"], sigma, rtol=1e-5, atol=1e-4 * sigma[0])
        assert part["energy"].sum() == pytest.approx(1)


def test_b_outputs_have_no_more_values_than_the_rank(study) -> None:
    spectrum = to_tables(analyze(study.path, ["svd"], sites=["lora_b"]))["spectrum"]
    assert set(spectrum.groupby(["capture", "layer", "centred"])["index"].max()) == {3}


def test_nan_and_single_rows_give_a_reason(tmp_path, make_store) -> None:
    x = np.random.default_rng(0).normal(size=(5, 2, 4))
    x[2, 1, 1] = np.inf
    broken = to_tables(analyze(make_store(tmp_path / "n.zarr", [x]), ["svd"]))["svd"]
    assert broken["sv90"].isna().all()
    assert set(broken["reason"]) == {"NaN or infinite features"}
    single = analyze(make_store(tmp_path / "one.zarr", [np.ones((1, 1, 4))]), ["svd"])
    assert set(to_tables(single)["svd"]["reason"]) == {"rows: 1; at least 2 are needed"}


def test_a_shared_constant_is_not_a_centred_direction(tmp_path, make_store) -> None:
    """Rows that are all the same have one direction as they are, and none around their mean."""
    x = np.full((6, 3, 4), 0.1, dtype=np.float32)
    rows = to_tables(analyze(make_store(tmp_path / "c.zarr", [x]), ["svd"]))["svd"]
    centred = rows.set_index("centred")
    assert centred.loc[True, "reason"] == "constant features"
    assert centred.loc[False, "erank"] == pytest.approx(1, abs=1e-4)
