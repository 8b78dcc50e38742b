"""Corrected tests: closed forms, and how often they find what is not there."""

import numpy as np
import pytest
from scipy import stats

from lorascope.analyses.fold import ArrayKey
from lorascope.analyses.probes.left_out import predict_closed_form
from lorascope.analyses.probes.scoring import _test_layers
from lorascope.analyses.probes.task import Task
from lorascope.analyses.statistics.corrected import compare_folds, correct_holm
from lorascope.analyses.statistics.metrics import fold_recalls


def test_the_t_of_nadeau_and_bengio() -> None:
    d = np.array([[0.1, 0.0], [0.3, 0.2], [0.2, -0.2], [0.4, 0.0]])
    found = compare_folds(d, 1 / 3, two_sided=False)
    # mean .25, variance (.15² + .05² + .05² + .15²)/3 = .05/3; 1/4 + 1/3 = 7/12
    t = 0.25 / np.sqrt(0.05 / 3 * 7 / 12)
    assert found[0] == pytest.approx(stats.t.sf(t, 3))
    assert found[1] == pytest.approx(0.5)
    assert compare_folds(d, 1 / 3, two_sided=True)[0] == pytest.approx(2 * stats.t.sf(t, 3))
    uncorrected = stats.ttest_1samp(d[:, 0], 0, alternative="greater").pvalue
    assert compare_folds(d, 0.0, two_sided=False)[0] == pytest.approx(uncorrected)


def test_without_spread_or_folds_there_is_no_p() -> None:
    assert np.isnan(compare_folds(np.ones((4, 1)), 0.3, two_sided=False)).all()
    assert np.isnan(compare_folds(np.array([[0.1], [0.2]]), 1.0, two_sided=False)).all()


def test_holm_by_hand() -> None:
    found = correct_holm(np.array([0.01, 0.04, np.nan, 0.03, 0.9]))
    # .01 x 4, .03 x 3, .04 x 2 raised to .09, .9 x 1
    np.testing.assert_allclose(found, [0.04, 0.09, np.nan, 0.09, 0.9])


def test_recalls_of_folds_by_hand() -> None:
    class_ns = np.array([[0, 1], [0, 0], [1, 1], [1, 1]])
    guess_ns = np.array([[0, 1], [1, 1], [1, 1], [0, 1]])
    found = fold_recalls(class_ns, guess_ns, np.array([0, 0, 0, 1]), 3)
    np.testing.assert_allclose(found, [[0.75, 0.5], [0.0, 1.0]])


def draw_p(seed: int, layers: int = 3, signal: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Return p and corrected p of layers of noise, by the ridge probe with five control sets.

    Speakers have their own offsets and their own shares of the classes.
    """
    rng = np.random.default_rng(seed)
    group_n = np.repeat(np.arange(8), 12)
    share = rng.dirichlet([2.0, 2.0, 2.0], size=8)
    class_n = np.concatenate([rng.choice(3, size=12, p=p) for p in share])
    sets = [class_n]
    for _ in range(5):
        sets.append(class_n.copy())
        for g in range(8):
            sets[-1][group_n == g] = rng.permutation(class_n[group_n == g])
    names = tuple(map(str, range(8)))
    task = Task(np.arange(96), np.stack(sets, axis=1), tuple("abc"), group_n, names, "")
    recalls = {}
    for layer in range(layers):
        x = rng.normal(size=(96, 6)) + rng.normal(size=(8, 6))[group_n]
        x[:, 0] += signal * class_n
        found = predict_closed_form(x, task, penalty=10.0, shrinkage=0.5)["ridge"]
        guess = found.score_nsk.argmax(axis=2)
        key = ArrayKey("a", "resid_post", layer, "mean_valid")
        recalls[key] = fold_recalls(task.class_ns, guess, group_n, 3)
    rows = _test_layers(recalls, task).values()
    columns = ("p_value", "p_holm")
    return tuple(np.array([row[name] for row in rows]) for name in columns)  # type: ignore[return-value]


def test_noise_is_found_no_more_often_than_promised() -> None:
    draws = [draw_p(seed) for seed in range(150)]
    p = np.concatenate([first for first, _ in draws])
    holm = np.array([corrected.min() for _, corrected in draws])
    # 450 draws, 5 % of which are 22 ± 4.6; overlapping training parts make the test conservative
    assert (p < 0.05).mean() <= 0.05 + 0.02
    assert (p < 0.2).mean() <= 0.2 + 0.04
    assert 0.4 < np.median(p) < 0.6  # neither side is preferred
    assert (holm < 0.05).mean() <= 0.05 + 0.035  # 150 draws: two standard errors


def test_a_signal_is_found() -> None:
    p = np.concatenate([draw_p(seed, layers=1, signal=3.0)[0] for seed in range(10)])
    assert np.median(p) < 0.01
