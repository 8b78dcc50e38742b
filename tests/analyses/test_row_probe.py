"""Probes of single rows: against refits on all rows in memory, whatever the memory and workers."""

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import precision_score, recall_score
from sklearn.preprocessing import StandardScaler

from lorascope.analyses import AnalysisInputError, MissingSitesError, RowProbe, analyze, to_tables
from lorascope.store import Site, add_row_column, create_store

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
            rows.append(x)
            phones.append(phone)
            speakers.append(np.full(n, i // 3))
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


NAMES = ["", "AY", "HH", "T"]
SCORES = ["uar", "war", "macro_f1", "control_uar", "p_value", "n"]


@pytest.fixture(scope="module")
def added(spoken, tmp_path_factory):
    """The same rows without their site, in two captures; the classes are added by name.

    Capture `b` holds every second row of some samples, in another order.
    """
    _, x, phone, _ = spoken
    path = tmp_path_factory.mktemp("added") / "s.zarr"
    ends = np.flatnonzero(np.diff(_sample_of(spoken))) + 1
    parts = list(zip(np.split(x, ends, axis=1), np.split(phone, ends), strict=True))
    sites = [Site("resid_post", [0, 1], WIDTH, dtype="float64")]
    of = [f"s{i // 3}" for i in range(12)]
    with create_store(path, capture="a", sites=sites, attrs={"trained": ["adapter"]}) as writer:
        for i, (rows, _) in enumerate(parts):
            groups = {"speaker": of[i]}
            writer.append(f"u{i}", {"resid_post": rows}, groups=groups)
    with create_store(path, capture="b", sites=sites, attrs={"trained": ["adapter"]}) as writer:
        for i in (11, 0, 7, 1, 4, 8, 3):
            rows = parts[i][0][:, ::2]
            at = {"tokens": np.arange(0, parts[i][1].size, 2)}
            groups = {"speaker": of[i]}
            writer.append(f"u{i}", {"resid_post": rows}, groups=groups, positions=at)
    texts = {f"u{i}": [NAMES[int(p) + 1] for p in phones] for i, (_, phones) in enumerate(parts)}
    add_row_column(path, "phone", texts)
    return path, parts


def _sample_of(spoken):
    """Return the number of the sample of every row, from the seed that wrote them."""
    rng, counts = np.random.default_rng(0), []
    rng.normal(size=(CLASSES, WIDTH))
    for _ in range(12):
        n = int(rng.integers(10, 25))
        rng.integers(-1, CLASSES, size=n)
        rng.normal(size=(2, n, WIDTH))
        counts.append(n)
    assert sum(counts) == spoken[2].size
    return np.repeat(np.arange(12), counts)


def test_an_added_column_gives_what_a_recorded_one_gives(spoken, added) -> None:
    recorded = to_tables(analyze(spoken[0], ["row_probe"]))["row_probe"]
    found = to_tables(analyze(added[0], ["row_probe"], captures=["a"]))["row_probe"]
    assert list(found["rows"]) == list(recorded["rows"])
    for name in SCORES:
        np.testing.assert_array_equal(found[name], recorded[name])


def test_added_classes_go_by_sample_and_position(added, tmp_path) -> None:
    """A capture of every second row, samples in another order, against a store of just that."""
    path, parts = added
    sites = [Site("resid_post", [0, 1], WIDTH, dtype="float64"), Site("phone", None, 1)]
    alone = tmp_path / "b.zarr"
    with create_store(alone, capture="b", sites=sites, attrs={"trained": ["adapter"]}) as writer:
        for i in (0, 1, 3, 4, 7, 8, 11):
            values = {"resid_post": parts[i][0][:, ::2], "phone": parts[i][1][::2]}
            writer.append(f"u{i}", values, groups={"speaker": f"s{i // 3}"})
    wanted = to_tables(analyze(alone, ["row_probe"]))["row_probe"]
    for memory, workers in (("2GiB", 1), ("4MiB", 3)):
        options = {"memory": memory, "workers": workers}
        results = analyze(path, ["row_probe"], captures=["b"], **options)
        assert results["row_probe"].attrs["slabs"] > 1
        found = to_tables(results)["row_probe"]
        for name in SCORES:
            np.testing.assert_allclose(found[name], wanted[name], rtol=1e-9)


def test_every_class_has_its_name_recall_and_confusion(spoken, added) -> None:
    _, x, phone, speaker = spoken
    results = analyze(added[0], [RowProbe(shrinkage=0.3)], captures=["a"])
    table = to_tables(results)["row_probe_classes"]
    kept = phone >= 0
    z, y, g = x[1][kept], phone[kept].astype(int), speaker[kept]
    guess = np.empty_like(y)
    for left in range(4):
        scaler = StandardScaler().fit(z[g != left])
        lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.3)
        lda.fit(scaler.transform(z[g != left]), y[g != left])
        guess[g == left] = lda.predict(scaler.transform(z[g == left]))
    rows = table[(table["layer"] == 1) & (table["probe"] == "lda")]
    assert rows["class_name"].tolist() == NAMES[1:]
    assert rows["n"].tolist() == np.bincount(y).tolist()
    np.testing.assert_allclose(rows["recall"], recall_score(y, guess, average=None))
    np.testing.assert_allclose(rows["precision"], precision_score(y, guess, average=None))
    for k, row in enumerate(rows.itertuples()):
        wrong = np.bincount(guess[(y == k) & (guess != k)], minlength=CLASSES)
        assert row.taken_for == NAMES[1 + wrong.argmax()]
        assert row.taken_share == pytest.approx(wrong.max() / (y == k).sum())
    recorded = to_tables(analyze(spoken[0], ["row_probe"]))["row_probe_classes"]
    assert set(recorded["class_name"]) == {"0", "1", "2"}, "nobody said what they are called"


def test_an_added_column_is_no_activation(added) -> None:
    results = analyze(added[0], ["cka", "svd", "row_probe"])
    seen = to_tables(results)
    assert set(seen["svd"]["capture"]) == {"a", "b"}
    assert set(seen["cka"]["site_a"]) == {"resid_post"}
    assert set(seen["row_probe"]["capture"]) == {"a", "b"}
    with pytest.raises(AnalysisInputError, match=r"no capture 'rows\.phone'.*Present: a, b"):
        analyze(added[0], ["svd"], captures=["rows.phone"])
