"""The paper variant as a user meets it: what is asked, what is lacking, and the page."""

import json

import numpy as np
import pytest

from lorascope.analyses import (
    AnalysisInputError,
    MissingSitesError,
    analyze,
    to_tables,
    write_outputs,
)


def test_faults_and_names_restrict(store) -> None:
    results = analyze(store, ["svd"], variant="paper", faults=["uncentred"], workers=1)
    assert set(results) == {"paper", "svd", "spectrum", "angles"}
    assert results["paper"].attrs["variant"] == "paper"
    assert json.loads(results["paper"].attrs["faults"]) == ["uncentred"]
    found = to_tables(results)["paper"]
    assert set(found["part"]) == {"svd"}
    assert set(found["fault"]) == {"none", "all", "uncentred"}
    with pytest.raises(AnalysisInputError, match="are those of the variant `paper`"):
        analyze(store, faults=["uncentred"])


def test_what_was_not_recorded_is_said_before_and_in_the_rows(tmp_path, one, write_store) -> None:
    path = write_store(tmp_path / "valid.zarr", frames="valid")
    notes: list[str] = []
    found = to_tables(analyze(path, variant="paper", notify=notes.append, workers=1))["paper"]
    assert any("svd: fault padding" in note and "frames: all" in note for note in notes)
    assert any("not in paper, record it: erasure" in note for note in notes)
    padding = found[found["fault"].isin(["padding", "flattened", "no-final-norm"])]
    known = padding["reason"].str.contains("frames: all|B = 0", regex=True)
    assert padding["value"].isna().all()
    assert known.all()
    where = {"quantity": "sv90", "capture": "lora", "site": "lora_a.v", "layer": 0}
    assert one(found, fault="uncentred", **where)["value"] > 0


def test_a_store_without_any_of_it_is_refused(tmp_path, make_store) -> None:
    path = make_store(tmp_path / "s.zarr", [np.zeros((6, 2, 3))])
    with pytest.raises(MissingSitesError, match="frames: all"):
        analyze(path, variant="paper")


def test_workers_and_memory_change_nothing(store, table) -> None:
    other = to_tables(analyze(store, variant="paper", workers=3, memory="8MiB"))["paper"]
    np.testing.assert_allclose(other["value"], table["value"], rtol=1e-5, atol=1e-7)
    assert list(other["reason"]) == list(table["reason"])


@pytest.mark.usefixtures("unwritten_pictures")
def test_the_page_says_what_changes(store, results, tmp_path) -> None:
    summary = write_outputs(results, store, tmp_path / "out", command="analyze --variant paper")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "What the published code changes" in page
    assert "of samples that are paired at random" in " ".join(page.split())
    assert "Effect of each fault alone" in page
    for fault in ("padding", "uncentred", "swapped-gradients", "kl-direction", "std-ddof0"):
        assert fault in page
    assert page.count("Nothing here") == 0
    assert summary["variant"] == "paper"
    assert "padding" in summary["faults"]
    assert summary["values"]["paper"]["sv90"]["all"]["corrected"] > 0
