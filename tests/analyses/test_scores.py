"""Tables `outputs` and `confusion` against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, recall_score

from lorascope.analyses import MissingSitesError, analyze, to_tables
from lorascope.store import Output, Site, create_store

LABELS = ["anger", "happiness", "neutral", "sadness"]


def test_scores_are_those_of_unexposed_samples(study) -> None:
    tables = to_tables(analyze(study.path, ["outputs"]))
    for row in tables["outputs"].to_dict("records"):
        used = ~study.exposed[row["capture"]]
        true = np.array(study.labels)[used]
        predicted = np.array(LABELS)[study.logits[row["capture"]][used].argmax(axis=1)]
        assert row["uar"] == pytest.approx(recall_score(true, predicted, average="macro"))
        assert row["war"] == pytest.approx(np.mean(true == predicted))
        assert row["n"] == 24
        assert row["exposed"] == "none"
        cells = tables["confusion"]
        cells = cells[cells["capture"] == row["capture"]]
        counts = cells.pivot_table(index="label", columns="predicted", values="count")
        expected = confusion_matrix(true, predicted, labels=LABELS)
        np.testing.assert_array_equal(counts.loc[LABELS, LABELS], expected)


def _write(path, *, exposed: bool, trained: list[str], label: str = "a") -> None:
    attrs = {"labels": ["a", "b"], "trained": trained}
    sites, outputs = [Site("embed", None, 2)], [Output("logits", (2,))]
    with create_store(path, capture="c", sites=sites, outputs=outputs, attrs=attrs) as writer:
        for i in range(4):
            x = np.eye(2, dtype=np.float32)
            logits = {"logits": x[i % 2]}
            writer.append(f"u{i}", {"embed": x}, label=label, outputs=logits, exposed=exposed)


def test_all_exposed_has_no_score(tmp_path) -> None:
    _write(tmp_path / "s.zarr", exposed=True, trained=["head"])
    tables = to_tables(analyze(tmp_path / "s.zarr", ["outputs"]))
    assert tables["outputs"]["uar"].isna().all()
    assert "training part" in tables["outputs"]["reason"].iloc[0]
    assert len(tables["confusion"]) == 0


def test_an_untrained_head_is_scored_on_all(tmp_path) -> None:
    _write(tmp_path / "s.zarr", exposed=True, trained=[])
    row = to_tables(analyze(tmp_path / "s.zarr", ["outputs"]))["outputs"].iloc[0]
    assert row["war"] == pytest.approx(0.5)
    assert row["n"] == 4


def test_unknown_labels_give_a_reason(tmp_path) -> None:
    _write(tmp_path / "s.zarr", exposed=False, trained=[], label="z")
    row = to_tables(analyze(tmp_path / "s.zarr", ["outputs"]))["outputs"].iloc[0]
    assert "class of the head" in row["reason"]


def test_without_logits_it_is_refused(tmp_path, make_store) -> None:
    path = make_store(tmp_path / "s.zarr", [np.ones((4, 2, 3))])
    with pytest.raises(MissingSitesError, match="needs the logits"):
        analyze(path, ["outputs"])
