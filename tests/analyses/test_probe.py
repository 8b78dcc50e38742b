"""The leave-one-speaker-out probe against a plain scikit-learn loop, and what it refuses."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, recall_score
from sklearn.preprocessing import StandardScaler

from lorascope.analyses import AnalysisInputError, MissingSitesError, Probe, analyze, to_tables
from lorascope.analyses.probes.left_out import predict_left_out
from lorascope.analyses.probes.probe import make_task
from lorascope.analyses.source import Source
from lorascope.store import Site, create_store, open_store


def loop(x: np.ndarray, labels: np.ndarray, speakers: np.ndarray, c: float) -> np.ndarray:
    """Probabilities of the left-out speakers, one fit at a time."""
    classes = np.unique(labels)
    out = np.zeros((len(x), len(classes)))
    for speaker in np.unique(speakers):
        test = speakers == speaker
        scaler = StandardScaler().fit(x[~test])
        model = LogisticRegression(C=c, tol=1e-10, max_iter=20_000)
        model.fit(scaler.transform(x[~test]), labels[~test])
        columns = np.searchsorted(classes, model.classes_)
        out[np.ix_(test, columns)] = model.predict_proba(scaler.transform(x[test]))
    return out


@pytest.fixture(scope="module")
def probed(study):
    table = to_tables(analyze(study.path, ["probe"]))["probe"]
    return table[table["probe"] == "logistic"]


def features(study, capture: str, site: str, layer: int) -> np.ndarray:
    return np.stack(study.pooled[capture, f"{site}.mean_valid"])[:, layer].astype(np.float64)


@pytest.mark.parametrize(("site", "layer"), [("embed", 0), ("resid_post", 1), ("lora_a.v_proj", 2)])
def test_scores_equal_a_scikit_learn_loop(study, probed, site: str, layer: int) -> None:
    capture = "untrained"
    labels, speakers = np.array(study.labels), np.array(study.speakers)
    p = loop(features(study, capture, site, layer), labels, speakers, 0.01)
    classes = np.unique(labels)
    rows = probed[(probed["capture"] == capture) & (probed["site"] == site)]
    rows = rows[rows["layer"].isna() if site == "embed" else rows["layer"] == layer]
    pooled = rows[rows["fold"] == "all"].iloc[0]
    predicted = classes[p.argmax(axis=1)]
    assert pooled["uar"] == pytest.approx(recall_score(labels, predicted, average="macro"))
    assert pooled["war"] == pytest.approx(np.mean(labels == predicted))
    # probabilities agree to 1e-5
    assert pooled["nll"] == pytest.approx(log_loss(labels, p), abs=1e-5)
    assert pooled["n"] == 40
    assert pooled["uar_low"] <= pooled["uar"] <= pooled["uar_high"]
    assert pooled["selectivity"] == pytest.approx(pooled["uar"] - pooled["control_uar"])
    for speaker in np.unique(speakers):
        fold = rows[rows["fold"] == speaker].iloc[0]
        test = speakers == speaker
        assert fold["war"] == pytest.approx(np.mean(labels[test] == predicted[test]))
        assert fold["n"] == test.sum()


def test_probabilities_equal_with_a_class_missing_in_training() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 6)) + 3
    speakers = np.repeat(["1", "2", "3"], 10)
    labels = np.array(["a", "b"] * 15)
    labels[[0, 3]] = "c"  # only speaker 1 shows it
    names, class_n = np.unique(labels, return_inverse=True)
    task = _task(class_n, speakers, tuple(names))
    found = predict_left_out(x, task, 0.5)[:, 0]
    np.testing.assert_allclose(found[10:], loop(x, labels, speakers, 0.5)[10:], atol=1e-5)
    assert (found[:10, 2] == 0).all()


def _task(class_n, speakers, classes):
    from lorascope.analyses.probes.probe import Task

    names, speaker_n = np.unique(speakers, return_inverse=True)
    samples = np.arange(len(class_n))
    return Task(samples, class_n[:, None], classes, speaker_n, tuple(names), "")


def test_only_unexposed_samples_where_training_shaped_the_features(study, probed) -> None:
    pooled = probed[probed["fold"] == "all"].set_index("capture")
    assert set(pooled.loc["lora", "n"]) == {24}  # speakers 01 and 02 trained the adapter
    assert set(pooled.loc["frozen", "n"]) == {40}
    assert set(probed[probed["capture"] == "lora"]["fold"]) == {"all", "03", "04", "05"}
    assert set(probed["exposed"]) == {"none"}


def test_the_probe_finds_what_was_put_there(probed) -> None:
    """Emotions enter with every MLP; the control task cannot be learnt."""
    pooled = probed[(probed["fold"] == "all") & (probed["capture"] == "frozen")]
    by_site = pooled.set_index("site")
    assert by_site.loc["embed", "uar"] < 0.45
    assert by_site.loc["resid_post"].set_index("layer").loc[2, "uar"] > 0.9
    assert (pooled["control_uar"] - 0.25).abs().max() < 0.1


def test_constant_features_give_a_reason(probed) -> None:
    rows = probed[(probed["capture"] == "untrained") & (probed["site"] == "lora_b.v_proj")]
    assert rows["uar"].isna().all()
    assert set(rows["reason"]) == {"constant features"}


def test_shuffles_stay_within_speakers_and_follow_the_ids(study) -> None:
    source = Source.open(open_store(study.path), ["frozen"])
    task = make_task(source.views["frozen"], source.ids, shuffles=5, seed=0)
    assert task.class_ns.shape == (40, 6)
    for s in range(1, 6):
        assert (task.class_ns[:, s] != task.class_ns[:, 0]).any()
        for speaker in range(5):
            members = task.speaker_n == speaker
            np.testing.assert_array_equal(
                np.sort(task.class_ns[members, s]), np.sort(task.class_ns[members, 0])
            )
    again = make_task(source.views["frozen"], source.ids, shuffles=5, seed=0)
    np.testing.assert_array_equal(task.class_ns, again.class_ns)


def _small(path, make_store, labels, speakers):
    x = np.random.default_rng(0).normal(size=(len(labels), 2, 3))
    return make_store(path, [x], labels=labels, speakers=speakers)


@pytest.mark.parametrize(
    ("labels", "speakers", "reason"),
    [
        (["a"] * 8, list("11223344"), "1 class among 8 samples"),
        (list("abababab"), ["1"] * 8, "1 speaker; leaving one out needs at least 2"),
    ],
)
def test_one_class_or_speaker_gives_a_reason(
    tmp_path, make_store, labels, speakers, reason
) -> None:
    rows = to_tables(analyze(_small(tmp_path / "s.zarr", make_store, labels, speakers), ["probe"]))
    assert rows["probe"]["uar"].isna().all()
    assert rows["probe"]["reason"].str.startswith(reason).all()


def test_folds_name_the_classes_they_lack(tmp_path, make_store) -> None:
    path = _small(tmp_path / "s.zarr", make_store, list("ababaaac"), list("11223344"))
    rows = to_tables(analyze(path, ["probe"]))["probe"].set_index("fold")
    assert rows.loc["3", "reason"] == "not in this fold: b, c"
    assert rows.loc["4", "reason"] == "not in this fold: b; only in this fold: c"
    assert rows.loc["4", "uar"] == pytest.approx(0.5)  # a is right, c cannot be


def test_all_exposed_is_nan_with_a_reason(tmp_path) -> None:
    site = Site("resid_post", [0], 3)
    attrs = {"trained": ["head", "adapter"]}
    with create_store(tmp_path / "s.zarr", capture="a", sites=[site], attrs=attrs) as writer:
        for i in range(6):
            x = np.random.default_rng(i).normal(size=(1, 2, 3)).astype(np.float32)
            groups = {"speaker": str(i % 3)}
            writer.append(
                f"u{i}", {"resid_post": x}, label="ab"[i % 2], groups=groups, exposed=True
            )
    rows = to_tables(analyze(tmp_path / "s.zarr", ["probe"]))["probe"]
    assert rows["uar"].isna().all()
    assert "training part" in rows["reason"].iloc[0]


def test_without_labels_or_speakers_it_is_refused(tmp_path, make_store) -> None:
    path = make_store(tmp_path / "s.zarr", [np.random.default_rng(0).normal(size=(6, 2, 3))])
    with pytest.raises(MissingSitesError, match="label and a group"):
        analyze(path, ["probe"])


def test_options_are_checked(study) -> None:
    with pytest.raises(AnalysisInputError, match="C > 0"):
        analyze(study.path, [Probe(c=0.0)])
