"""`analyze`: names, filters, what is skipped and what is refused."""

import json

import numpy as np
import pytest

from lorascope.analyses import (
    ANALYSES,
    CKA,
    AnalysisInputError,
    MissingSitesError,
    Probe,
    analyze,
    to_tables,
)
from lorascope.analyses.tables import COLUMNS
from lorascope.store import LorascopeError, create_store, open_store


def test_the_catalogue_describes_every_analysis() -> None:
    every = {"cka", "svd", "probe", "lens", "contribution", "outputs", "erasure"}
    every |= {"row_probe", "embedding", "layer_weights", "mdl", "tuned_lens"}
    assert set(ANALYSES) == every | {"alignment", "weights", "gradients"}
    assert all(len(text) > 20 for text in ANALYSES.values())


def test_none_means_everything(study) -> None:
    results = analyze(open_store(study.path))
    # this store has no interventions, no matrices of its adapters, no gradients, no row columns
    absent = {"erasure", "weights", "gradients", "row_probe"}
    by_name = {"layer_weights", "mdl", "tuned_lens"}  # run where they are asked for
    further = {"subspaces", "row_probe_classes", "probe_weights", "paper"}
    assert set(results) == set(COLUMNS) - absent - by_name - further
    for name, dataset in results.items():
        assert set(dataset.sizes) == {"entry"}
        assert list(dataset.data_vars)[: len(COLUMNS[name])] == list(COLUMNS[name])
        assert dataset.attrs["seed"] == 0
        assert dataset.attrs["passes"] == 1
        assert set(json.loads(dataset.attrs["skipped"])) == absent | by_name
    layers = results["cka"]["layer_a"].to_numpy()
    assert layers.dtype == np.int64
    assert layers.min() == -1


def test_tables_leave_the_layer_of_layerless_sites_empty(study) -> None:
    tables = to_tables(analyze(study.path, ["svd", "lens"]))
    for table in tables.values():
        assert table["layer"].dtype == "Int64"
    svd = tables["svd"]
    assert svd[svd["site"] == "embed"]["layer"].isna().all()
    assert svd[svd["site"] != "embed"]["layer"].notna().all()
    assert tables["svd"].attrs["seed"] == 0


def test_what_cannot_be_served_is_skipped_and_said(tmp_path, make_store) -> None:
    x = np.random.default_rng(0).normal(size=(6, 2, 3))
    results = analyze(make_store(tmp_path / "s.zarr", [x]))
    assert set(results) == {"cka", "svd", "spectrum"}
    skipped = json.loads(results["cka"].attrs["skipped"])
    assert set(skipped) == set(ANALYSES) - {"cka", "svd"}
    assert "label" in skipped["probe"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": ["ckaa"]}, "no analysis 'ckaa'. Did you mean 'cka'? There are: cka, svd"),
        ({"captures": ["lore"]}, "no capture 'lore' in the store. Did you mean 'lora'? Present:"),
        ({"sites": ["resid_pos"]}, "Did you mean 'resid_post'?"),
        ({"layers": [7]}, "no layer 7 in the store. Present: 0, 1, 2."),
        ({"memory": "a lot"}, "memory 'a lot' is not an amount"),
    ],
)
def test_wrong_names_are_refused_with_what_is_there(study, options, message: str) -> None:
    with pytest.raises(AnalysisInputError) as error:
        analyze(study.path, **{"names": ["svd"]} | options)
    assert message in str(error.value)
    assert isinstance(error.value, LorascopeError)


def test_missing_sites_are_refused_by_name_only(tmp_path, make_store) -> None:
    path = make_store(tmp_path / "s.zarr", [np.zeros((6, 2, 3))])
    with pytest.raises(MissingSitesError, match="Record"):
        analyze(path, ["svd", "lens"])


def test_a_store_without_captures_is_refused(tmp_path, make_store) -> None:
    path = make_store(tmp_path / "s.zarr", [np.zeros((6, 2, 3))])

    class Empty:
        captures: list[str] = []

    from lorascope.analyses.selection import check_captures

    with pytest.raises(AnalysisInputError, match="no captures yet"):
        check_captures(None, Empty.captures)
    assert check_captures(["a", "a"], open_store(path).captures) == ["a"]


def test_filters_choose_arrays(study) -> None:
    options = {"captures": ["lora"], "sites": ["lora_a", "embed"], "layers": [1]}
    tables = to_tables(analyze(study.path, ["svd", "probe", "cka"], **options))
    svd = tables["svd"]
    assert set(zip(svd["capture"], svd["site"], svd["layer"].fillna(-1), strict=True)) == {
        ("lora", "embed", -1),
        ("lora", "lora_a.v_proj", 1),
    }
    assert set(tables["probe"]["site"]) == {"embed", "lora_a.v_proj"}
    assert set(tables["cka"]["site_b"]) == {"embed", "lora_a.v_proj"}


def test_options_and_seed_are_honoured(study) -> None:
    two = analyze(study.path, [Probe(shuffles=2)], sites=["embed"], captures=["frozen"])
    assert "mean of 2 shuffles" in two["probe"].attrs["control"]
    other = analyze(study.path, [Probe(shuffles=2)], sites=["embed"], captures=["frozen"], seed=1)
    assert not np.array_equal(two["probe"]["control_uar"], other["probe"]["control_uar"])
    np.testing.assert_array_equal(two["probe"]["uar"], other["probe"]["uar"])
    assert "minibatch" not in analyze(study.path, [CKA(frames=False)])["cka"].attrs


def test_a_capture_without_samples_gives_reasons(tmp_path, make_store) -> None:
    """An interrupted run has committed nothing yet."""
    path = make_store(tmp_path / "s.zarr", [np.random.default_rng(0).normal(size=(6, 2, 3))])
    site = open_store(path).capture("a").definition.sites[0]
    with create_store(path, capture="empty", sites=[site]):
        pass
    tables = to_tables(analyze(path))
    rows = tables["svd"][tables["svd"]["capture"] == "empty"]
    assert rows["sv90"].isna().all()
    assert (rows["reason"] == "rows: 0; at least 2 are needed").all()
    between = tables["cka"][tables["cka"]["capture_b"] == "empty"]
    assert between["value"].isna().all()
    assert (between["reason"] != "").all()
