"""The batched logistic solver against scikit-learn, one label set at a time."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from lorascope.analyses.errors import AnalysisError
from lorascope.analyses.probes.logistic import fit_logistic


def problem(n: int, d: int, k: int, sets: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n + d)
    x = rng.normal(size=(n, d)) / np.sqrt(np.arange(1, d + 1))
    y = (x @ rng.normal(size=(d, k)) + rng.normal(size=(n, k))).argmax(axis=1)
    y[:k] = np.arange(k)  # every class is there
    labels = np.stack([y, *(rng.permutation(y) for _ in range(sets - 1))], axis=1)
    return (x - x.mean(axis=0)) / x.std(axis=0), labels


@pytest.mark.parametrize(("n", "d", "k"), [(120, 30, 4), (60, 200, 4), (150, 8, 2), (90, 90, 6)])
@pytest.mark.parametrize("c", [0.01, 1.0])
def test_probabilities_equal_scikit_learn(n: int, d: int, k: int, c: float) -> None:
    x, labels = problem(n, d, k)
    test = np.random.default_rng(0).normal(size=(40, d))
    model = fit_logistic(x, labels, 1 / c)
    for s in range(labels.shape[1]):
        expected = LogisticRegression(C=c, tol=1e-10, max_iter=20_000).fit(x, labels[:, s])
        # both stop at a gradient of about 1e-7
        found = np.exp(model.predict(test)[:, s])
        reference = expected.predict_proba(test)
        if k == 2:  # two classes: scikit-learn has one weight vector, whose penalty counts half
            expected = LogisticRegression(C=2 * c, tol=1e-10, max_iter=20_000)
            reference = expected.fit(x, labels[:, s]).predict_proba(test)
        np.testing.assert_allclose(found, reference, atol=1e-5)


def test_label_sets_do_not_depend_on_each_other() -> None:
    x, labels = problem(80, 20, 3, sets=4)
    together = fit_logistic(x, labels, 10.0)
    alone = fit_logistic(x, labels[:, 2:3], 10.0)
    # the same optimum to the tolerance of the gradient
    np.testing.assert_allclose(together.weight_dsk[:, 2], alone.weight_dsk[:, 0], atol=1e-6)


def test_gradient_is_zero_at_the_end() -> None:
    x, labels = problem(100, 40, 4, sets=1)
    model, penalty = fit_logistic(x, labels, 5.0), 5.0
    p = np.exp(model.predict(x)[:, 0]) - np.eye(4)[labels[:, 0]]
    assert np.abs(x.T @ p + penalty * model.weight_dsk[:, 0]).max() < 1e-4
    assert np.abs(p.sum(axis=0)).max() < 1e-5


def test_what_cannot_converge_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorascope.analyses.probes.logistic._MAX_ITERATIONS", 3)
    x, labels = problem(50, 10, 3)
    with pytest.raises(AnalysisError, match="did not converge"):
        fit_logistic(x, labels, 1e-6)
