"""What is written: tables in two formats, results.zarr, the summary, and cells that stay text."""

import json

import numpy as np
import pandas as pd
import pytest

from lorascope.analyses import analyze, to_tables, write_outputs
from lorascope.analyses.outputs import guard_cells
from lorascope.store import Output, Site, create_store, open_store, read_results


@pytest.fixture(scope="module")
def written(study, tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("out") / "analysis"
    results = analyze(
        study.path, captures=["frozen", "untrained"], sites=["embed", "resid_post", "lora_b"]
    )
    summary = write_outputs(results, study.path, out, command="analyze --store x", seed=0)
    return out, results, summary


def test_every_table_is_written_in_both_formats(written) -> None:
    out, results, _ = written
    for name, table in to_tables(results).items():
        parquet = pd.read_parquet(out / "tables" / f"{name}.parquet")
        pd.testing.assert_frame_equal(parquet, table, check_dtype=False)
        csv = pd.read_csv(out / "tables" / f"{name}.csv", keep_default_na=False)
        assert list(csv.columns) == list(table.columns)
        assert len(csv) == len(table)
    svd = pd.read_csv(out / "tables" / "svd.csv")
    assert svd["layer"].isna().any()


def test_results_come_back_from_zarr(written) -> None:
    out, results, summary = written
    found = read_results(out / "results.zarr")
    assert set(found) == set(results)
    for name, dataset in results.items():
        for column, values in dataset.items():
            np.testing.assert_array_equal(found[name][column], values)
        assert found[name].attrs["store_digest"] == summary["store"]["content_digest"]
        assert found[name].attrs["seed"] == 0


def test_summary_is_plain_json_and_says_what_matters(study, written) -> None:
    out, results, summary = written

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    loaded = json.loads((out / "summary.json").read_text(), parse_constant=refuse)
    assert loaded == summary
    assert loaded["command"] == "analyze --store x"
    assert loaded["store"]["content_digest"] == open_store(study.path).content_digest()
    assert str(study.path.parent) not in json.dumps(loaded)
    assert loaded["captures"]["untrained"]["adapter"]["r"] == 3
    assert loaded["captures"]["frozen"]["labels"] == ["anger", "happiness", "neutral", "sadness"]
    assert "contribution" in loaded["skipped"] or "contribution" in results
    assert loaded["versions"]["numpy"] == np.__version__
    values = loaded["values"]
    assert values["probe"]["frozen"]["site"] == "resid_post"
    assert values["lens"]["frozen"]["layer"] == 2
    assert values["lens"]["frozen"]["overlap"] == 1
    assert values["cka"]["frozen - untrained"]["resid_post"] == pytest.approx(1)
    assert values["svd"]["untrained"]["lora_b.v_proj"]["sv90"] is None
    assert values["outputs"]["frozen"]["n"] == 24


def test_report_and_figures_are_there(written) -> None:
    out, _, _ = written
    assert (out / "report.html").stat().st_size > 1000
    assert list((out / "figures").glob("*.svg"))


def test_cells_never_become_formulas(tmp_path) -> None:
    table = pd.DataFrame({"label": ["=1+1", "@x", "-a", "+b", "plain"], "value": [-1.0] * 5})
    guarded = guard_cells(table)
    assert guarded["label"].tolist() == ["'=1+1", "'@x", "'-a", "'+b", "plain"]
    assert guarded["value"].tolist() == [-1.0] * 5
    assert table["label"].tolist()[0] == "=1+1"


def test_hostile_labels_reach_the_csv_as_text(tmp_path) -> None:
    attrs = {"labels": ["=cmd()", "b"], "trained": []}
    sites, outputs = [Site("embed", None, 2)], [Output("logits", (2,))]
    with create_store(
        tmp_path / "s.zarr", capture="c", sites=sites, outputs=outputs, attrs=attrs
    ) as writer:
        for i in range(6):
            x = np.random.default_rng(i).normal(size=(2, 2)).astype(np.float32)
            label = attrs["labels"][i % 2]
            writer.append(f"u{i}", {"embed": x}, label=str(label), outputs={"logits": x[0]})
    write_outputs(analyze(tmp_path / "s.zarr", ["outputs"]), tmp_path / "s.zarr", tmp_path / "o")
    csv = pd.read_csv(tmp_path / "o" / "tables" / "confusion.csv")
    assert set(csv["label"]) == {"'=cmd()", "b"}
    parquet = pd.read_parquet(tmp_path / "o" / "tables" / "confusion.parquet")
    assert set(parquet["label"]) == {"=cmd()", "b"}
