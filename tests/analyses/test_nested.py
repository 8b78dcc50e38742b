"""Penalties chosen inside the training part; another group left out."""

import tracemalloc

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import recall_score
from sklearn.preprocessing import StandardScaler

from lorascope.analyses import AnalysisInputError, Probe, analyze, to_tables
from lorascope.analyses.probes import closed_form, nested
from lorascope.analyses.probes.closed_form import train_folds
from lorascope.analyses.probes.left_out import predict_closed_form, predict_logistic
from lorascope.analyses.probes.nested import PENALTIES, Inner
from lorascope.analyses.probes.task import Task
from lorascope.store import Site, create_store


def make_task(n: int, width: int, groups: int = 4, k: int = 3, signal: float = 1.0):
    rng = np.random.default_rng(n + width)
    class_n, group_n = rng.permutation(np.arange(n) % k), np.arange(n) % groups
    x = rng.normal(size=(n, width)) + signal * rng.normal(size=(k, width))[class_n]
    names = tuple(f"g{i}" for i in range(groups))
    return x, Task(np.arange(n), class_n[:, None], tuple("abc"[:k]), group_n, names, "")


@pytest.mark.parametrize(("n", "width"), [(48, 10), (40, 60)])
@pytest.mark.parametrize("penalty", [0.1, 100.0])
def test_inner_predictions_are_refits_without_the_inner_group(n, width, penalty) -> None:
    x, task = make_task(n, width)
    class_n, group_n = task.class_ns[:, 0], task.speaker_n
    test, _, training = next(train_folds(x, group_n, task.class_ns))
    found = Inner.of(x[~test], training, group_n[~test], class_n[~test]).predict(penalty)
    z = StandardScaler().fit_transform(x[~test])  # the scale of the whole training part
    target = np.eye(3)[class_n[~test]]
    for group in np.unique(group_n[~test]):
        held = group_n[~test] == group
        model = Ridge(alpha=penalty).fit(z[~held], target[~held])
        # both solve the same system; rounding times its condition
        np.testing.assert_allclose(found[held], model.predict(z[held]), atol=1e-8)


def test_the_logistic_choice_is_that_of_a_plain_nested_loop() -> None:
    x, task = make_task(48, 6, signal=0.5)
    class_n, group_n = task.class_ns[:, 0], task.speaker_n
    found = predict_logistic(x, task, None).penalty_g
    for outer in range(4):
        scores = []
        for penalty in PENALTIES:
            guess = np.full(48, -1)
            for inner in set(range(4)) - {outer}:
                train, held = (group_n != outer) & (group_n != inner), group_n == inner
                scaler = StandardScaler().fit(x[train])
                model = LogisticRegression(C=1 / penalty, tol=1e-8, max_iter=5000)
                model.fit(scaler.transform(x[train]), class_n[train])
                guess[held] = model.predict(scaler.transform(x[held]))
            rest = group_n != outer
            scores.append(recall_score(class_n[rest], guess[rest], average="macro"))
        assert found[outer] == PENALTIES[int(np.argmax(scores))]


@pytest.mark.parametrize("form", ["logistic", "ridge"])
def test_the_group_that_is_left_out_has_no_say(form: str) -> None:
    """Labels and features of the test group change nothing about its own fold's penalty."""
    x, task = make_task(48, 6, signal=0.5)
    changed_ns, other = task.class_ns.copy(), x.copy()
    test = task.speaker_n == 2
    changed_ns[test] = (changed_ns[test] + 1) % 3
    other[test] *= -30
    swapped = Task(task.samples, changed_ns, task.classes, task.speaker_n, task.speakers, "")

    def choose(features, labels):
        if form == "logistic":
            return predict_logistic(features, labels, None).penalty_g
        return predict_closed_form(features, labels, penalty=None, shrinkage=None)[form].penalty_g

    before, after = choose(x, task), choose(other, swapped)
    assert before[2] == after[2]
    assert (before != after).any(), "the other folds do see it"


def test_nested_penalties_are_in_the_table(study) -> None:
    probe = Probe(c="nested", shuffles=0)
    options = {"sites": ["resid_post"], "layers": [2], "captures": ["frozen"]}
    results = analyze(study.path, [probe], **options)
    table = to_tables(results)["probe"]
    folds = table[table["fold"] != "all"]
    assert set(folds["probe"]) == {"logistic", "ridge", "lda"}
    assert folds[folds["probe"] != "lda"]["penalty"].isin(PENALTIES).all()
    assert folds[folds["probe"] == "lda"]["penalty"].between(0, 1).all()
    assert "leaving one more speaker of the training out" in results["probe"].attrs["classifier"]


@pytest.fixture(scope="module")
def sessions(tmp_path_factory):
    path = tmp_path_factory.mktemp("sessions") / "s.zarr"
    rng = np.random.default_rng(0)
    with create_store(path, capture="a", sites=[Site("resid_post", [0], 4)]) as writer:
        for i in range(48):
            x = rng.normal(size=(1, 2, 4)) + 2 * (i % 2)
            groups = {"speaker": f"s{i // 8}", "session": f"day{i // 16}"}
            writer.append(f"u{i}", {"resid_post": x}, label="ab"[i % 2], groups=groups)
    return path


def test_one_session_is_left_out(sessions) -> None:
    results = analyze(sessions, [Probe(by="session")])
    table = to_tables(results)["probe"]
    assert set(table["split"]) == {"leave-one-session-out"}
    assert set(table["fold"]) == {"all", "day0", "day1", "day2"}
    assert "over sessions" in results["probe"].attrs["interval"]
    by_speaker = to_tables(analyze(sessions, [Probe(by="speaker")]))["probe"]
    assert set(by_speaker["fold"]) == {"all", *(f"s{i}" for i in range(6))}


def test_a_group_that_is_not_there_is_refused_with_those_that_are(sessions, study) -> None:
    with pytest.raises(AnalysisInputError, match=r"'room' out.*Present: session, speaker\."):
        analyze(sessions, [Probe(by="room")])
    with pytest.raises(AnalysisInputError, match=r"'session' out.*Present: speaker\."):
        analyze(study.path, [Probe(by="session")])


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        (Probe(c="best"), "'nested'"),  # type: ignore[arg-type]
        (Probe(shrinkage=1.0), "between 0 and 1"),
        (Probe(probes=("svm",)), "no probe svm. There are: logistic, ridge, lda"),
    ],
)
def test_options_out_of_range_are_refused(study, probe, message) -> None:
    with pytest.raises(AnalysisInputError, match=message):
        analyze(study.path, [probe])


def test_nested_ridge_stays_within_what_is_counted() -> None:
    """Few large groups: the hat matrix of one of them is more than the features five times."""
    n, width, groups = 600, 60, 3
    x, task = make_task(n, width, groups=groups)
    tracemalloc.start()
    predict_closed_form(x, task, penalty=None, shrinkage=None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    fixed = 5 * 8 * n * width + closed_form.count_bytes(n, width, groups, 3)
    counted = fixed + nested.count_bytes(n, width, n // groups)
    assert fixed < peak < counted
