"""Probes of single rows: against refits on all rows in memory, whatever the memory and workers."""

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import recall_score
from sklearn.preprocessing import StandardScaler

from lorascope.analyses import MissingSitesError, RowProbe, analyze, to_tables
from lorascope.store import Site, create_store

WIDTH, CLASSES = 6, 3


def write(path, *, column=None, exposed=False):
    """Write 12 utterances of 4 speakers; class means show in layer 1 only; some rows have none."""
    rng = np.random.default_rng(0)
    sites = [Site("resid_post", [0, 1], WIDTH, dtype="float64"), Site("phone", None, 1)]
    means = rng.normal(size=(CLASSES, WIDTH))
    rows, phones, speakers = [], [], []
    with create_store(path, capture="a", sites=sites, attrs={"trained": ["adapter"]}) as writer:
        for i in range(12):
            n = int(rng.integers(10, 25))
            phone = rng.integers(-1, CLASSES, size=n).astype(np.float32)
            if column is not None:
                phone = column(rng, n)
            x = 100 + rng.normal(size=(2, n, WIDTH))
            x[1] += means[np.maximum(phone, 0).astype(int) % CLASSES]
            out = exposed and i < 3
            values = {"resid_post": x, "phone": phone[:, None]}
            writer.append(f"u{i}", values, groups={"speaker": f"s{i // 3}"}, exposed=out)
            rows.append(x), phones.append(phone), speakers.append(np.full(n, i // 3))
    return np.concatenate(rows, axis=1), np.concatenate(phones), np.concatenate(speakers)


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "s.zarr"
    return path, *write(path)


def test_scores_are_those_of_refits(spoken) -> None:
    path, x, phone, speaker = spoken
    table = to_tables(analyze(path, [RowProbe("phone", shrinkage=0.3)]))["row_probe"]
    kept = phone >= 0
    for layer in range(2):
        z, y, g = x[layer][kept], phone[kept].astype(int), speaker[kept]
        guesses = {"ridge": np.empty_like(y), "lda": np.empty_like(y)}
        for left in range(4):
            test = g == left
            scaler = StandardScaler().fit(z[~test])
            ridge = RidgeClassifier(alpha=100.0)
            lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.3)
            for name, model in (("ridge", ridge), ("lda", lda)):
                model.fit(scaler.transform(z[~test]), y[~test])
                guesses[name][test] = model.predict(scaler.transform(z[test]))
        for name, guess in guesses.items():
            row = table[(table["layer"] == layer) & (table["probe"] == name)].iloc[0]
            assert row["uar"] == pytest.approx(recall_score(y, guess, average="macro"))
            assert row["war"] == pytest.approx((y == guess).mean())
            assert row["n"] == kept.sum()
            assert row["uar_low"] <= row["uar"] <= row["uar_high"]


def test_classes_are_found_where_they_are(spoken) -> None:
    table = to_tables(analyze(spoken[0], ["row_probe"]))["row_probe"].set_index(["layer", "probe"])
    assert table.loc[(1, "ridge"), "uar"] > 0.6
    assert table.loc[(1, "lda"), "p_holm"] < 0.05
    assert table.loc[(0, "ridge"), "uar"] < 0.45
    assert (table["control_uar"] - 1 / 3).abs().max() < 0.12
    assert set(table["split"]) == {"leave-one-speaker-out"}


def test_slabs_and_workers_change_nothing(spoken) -> None:
    whole, cut = (
        to_tables(analyze(spoken[0], ["row_probe"], memory=memory, workers=workers))["row_probe"]
        for memory, workers in (("2GiB", 1), ("4MiB", 3))
    )
    for name in ("uar", "war", "control_uar", "n"):
        np.testing.assert_array_equal(whole[name], cut[name])


def test_exposed_samples_are_left_out(tmp_path) -> None:
    _, phone, speaker = write(tmp_path / "s.zarr", exposed=True)
    table = to_tables(analyze(tmp_path / "s.zarr", ["row_probe"]))["row_probe"]
    assert set(table["n"]) == {int(((phone >= 0) & (speaker > 0)).sum())}


def test_columns_that_hold_no_classes_are_said(tmp_path) -> None:
    write(tmp_path / "many.zarr", column=lambda rng, n: rng.integers(0, 5000, size=n))
    with pytest.raises(MissingSitesError, match="more than 128 classes; 2 to 128"):
        analyze(tmp_path / "many.zarr", ["row_probe"])
    write(tmp_path / "energy.zarr", column=lambda rng, n: np.abs(rng.normal(size=n)))
    with pytest.raises(MissingSitesError, match="not whole"):
        analyze(tmp_path / "energy.zarr", ["row_probe"])


def test_an_absent_column_is_refused_with_those_that_are_there(spoken, study) -> None:
    with pytest.raises(MissingSitesError, match=r"row column 'word' .* Present: phone\."):
        analyze(spoken[0], [RowProbe("word")])
    with pytest.raises(MissingSitesError, match=r"needs a row column .* Present: none\."):
        analyze(study.path, ["row_probe"])
