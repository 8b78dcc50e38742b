"""Scores, divergences, histograms and the bootstrap against closed forms and scikit-learn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from lorascope.analyses.statistics.divergence import (
    chance_overlap,
    js_divergence,
    kl_divergence,
    to_log_probabilities,
)
from lorascope.analyses.statistics.histogram import COSINE_BINS, RATIO_BINS
from lorascope.analyses.statistics.metrics import (
    count_confusion,
    score_predictions,
    unweighted_recall,
)
from lorascope.analyses.statistics.resampling import (
    cluster_bootstrap,
    weighted_mean,
    weighted_recall,
)


def test_scores_equal_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    true = rng.integers(0, 4, 200)
    p = np.exp(to_log_probabilities(rng.normal(size=(200, 4)) + 2 * np.eye(4)[true]))
    scores, predicted = score_predictions(true, p), p.argmax(axis=1)
    assert scores["uar"] == pytest.approx(reference.recall_score(true, predicted, average="macro"))
    assert scores["war"] == pytest.approx(reference.accuracy_score(true, predicted))
    assert scores["macro_f1"] == pytest.approx(reference.f1_score(true, predicted, average="macro"))
    assert scores["nll"] == pytest.approx(reference.log_loss(true, p))
    confusion = count_confusion(true, predicted, 4)
    np.testing.assert_array_equal(confusion, reference.confusion_matrix(true, predicted))


def test_calibration_error_by_hand() -> None:
    # confidence 0.95 twice, right once; confidence 0.55 twice, right twice
    p = np.array([[0.95, 0.05], [0.95, 0.05], [0.55, 0.45], [0.55, 0.45]])
    scores = score_predictions(np.array([0, 1, 0, 0]), p)
    assert scores["ece"] == pytest.approx((abs(1 - 1.9) + abs(2 - 1.1)) / 4)


def test_a_class_without_samples_is_left_out_of_uar() -> None:
    confusion = np.array([[3, 1, 0], [0, 0, 0], [0, 0, 4]])
    assert unweighted_recall(confusion) == pytest.approx((0.75 + 1) / 2)
    assert np.isnan(unweighted_recall(np.zeros((2, 2))))


def test_impossible_class_has_a_finite_likelihood() -> None:
    scores = score_predictions(np.array([1]), np.array([[1.0, 0.0]]))
    assert scores["nll"] == pytest.approx(-np.log(1e-15))


def test_divergences_by_hand() -> None:
    p, q = np.array([[0.5, 0.5]]), np.array([[0.9, 0.1]])
    kl = 0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1)
    assert kl_divergence(np.log(p), np.log(q))[0] == pytest.approx(kl)
    m = (p + q) / 2
    js = (np.sum(p * np.log(p / m)) + np.sum(q * np.log(q / m))) / 2
    assert js_divergence(np.log(p), np.log(q))[0] == pytest.approx(js)


def test_divergences_survive_underflow() -> None:
    log_p = to_log_probabilities(np.array([[2000.0, 0.0]]))
    log_q = to_log_probabilities(np.array([[0.0, 2000.0]]))
    assert kl_divergence(log_p, log_q)[0] == pytest.approx(2000)
    assert js_divergence(log_p, log_q)[0] == pytest.approx(np.log(2))


def test_chance_overlap_is_that_of_independent_choices() -> None:
    a, b = np.array([0, 0, 0, 1]), np.array([0, 1, 1, 1])
    assert chance_overlap(a, b, 3) == pytest.approx(0.75 * 0.25 + 0.25 * 0.75)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 300), max_size=5), st.integers(0, 10_000))
def test_histogram_medians_merge(cuts: list[int], seed: int) -> None:
    values = np.exp(np.random.default_rng(seed).normal(size=301))
    counts = sum((RATIO_BINS.tally(part) for part in np.split(values, sorted(cuts))), 0)
    np.testing.assert_array_equal(counts, RATIO_BINS.tally(values))
    # half a bin on either side
    assert RATIO_BINS.median(np.asarray(counts)) == pytest.approx(np.median(values), rel=0.006)


def test_histograms_at_their_ends() -> None:
    cosines = np.array([-1.0, 1.0, 1.0, np.nan])
    assert COSINE_BINS.median(COSINE_BINS.tally(cosines)) == pytest.approx(1.0, abs=1e-3)
    assert RATIO_BINS.median(RATIO_BINS.tally(np.zeros(3))) == pytest.approx(1e-8)
    assert np.isnan(RATIO_BINS.median(RATIO_BINS.empty()))


def test_bootstrap_covers_what_speakers_do() -> None:
    """Speakers of deviation 1, samples of 0.5: the interval is that of 30 speaker means."""
    rng = np.random.default_rng(0)
    speaker = np.repeat(np.arange(30), 20)
    values = rng.normal(size=30)[speaker] + 0.5 * rng.normal(size=600)
    low, high = cluster_bootstrap(speaker, weighted_mean(values[:, None]), seed=0, replicates=2000)
    means = np.array([values[speaker == s].mean() for s in range(30)])
    half = 1.96 * means.std() / np.sqrt(30)
    assert low[0] == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high[0] == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_bootstrap_is_seeded_and_refuses_two_speakers() -> None:
    speaker, values = np.repeat(np.arange(4), 5), np.arange(20.0)[:, None]
    first = cluster_bootstrap(speaker, weighted_mean(values), seed=3)
    again = cluster_bootstrap(speaker, weighted_mean(values), seed=3)
    other = cluster_bootstrap(speaker, weighted_mean(values), seed=4)
    assert first == again
    assert first != other
    low, high = cluster_bootstrap(speaker % 2, weighted_mean(values), seed=3)
    assert np.isnan(low).all()
    assert np.isnan(high).all()


def test_weighted_recall_of_ones_is_the_recall() -> None:
    true = np.array([0, 0, 0, 2, 2])
    hit = np.array([1, 0, 1, 1, 0.0])
    statistic = weighted_recall(true, hit[:, None], 3)
    assert statistic(np.ones((1, 5)))[0, 0] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert statistic(np.array([[1, 1, 1, 0, 0.0]]))[0, 0] == pytest.approx(2 / 3)
