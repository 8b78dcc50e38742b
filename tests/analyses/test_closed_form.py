"""Ridge and LDA in closed form: against refits of scikit-learn and float64 references."""

import numpy as np
import pytest
from sklearn.covariance import oas
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import RidgeClassifier
from sklearn.preprocessing import StandardScaler

from lorascope.analyses.probes.closed_form import fit_lda, fit_ridge, posterior, train_folds

SHAPES = [(90, 12), (60, 100)]
"""More samples than features (group sums), and fewer (products of rows)."""


def problem(n: int, d: int, k: int = 3, groups: int = 5, offset: float = 50.0):
    rng = np.random.default_rng(n)
    class_n = rng.permutation(np.arange(n) % k)
    group_n = np.arange(n) % groups
    x = rng.normal(size=(n, d)) * np.logspace(-2, 2, d) + rng.normal(size=(k, d))[class_n]
    x += offset * rng.normal(size=d)
    control_n = class_n.copy()
    for g in range(groups):
        control_n[group_n == g] = rng.permutation(class_n[group_n == g])
    return x, group_n, np.stack([class_n, control_n], axis=1)


def refit_ridge(x, y, penalty):
    """Ridge to one-hot on standardised features with a free intercept: augmented least squares."""
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    z = (x - mean) / deviation
    n, d = z.shape
    target = (y[:, None] == np.arange(y.max() + 1)).astype(float)
    design = np.vstack([np.c_[z, np.ones(n)], np.c_[np.sqrt(penalty) * np.eye(d), np.zeros(d)]])
    right = np.vstack([target, np.zeros((d, target.shape[1]))])
    solution = np.linalg.lstsq(design, right, rcond=None)[0]
    return lambda new: np.c_[(new - mean) / deviation, np.ones(len(new))] @ solution


@pytest.mark.parametrize(("n", "d"), SHAPES)
@pytest.mark.parametrize("penalty", [1.0, 100.0])
def test_ridge_of_every_fold_is_a_refit(n, d, penalty) -> None:
    x, group_n, class_ns = problem(n, d)
    for test, _, training in train_folds(x, group_n, class_ns):
        score = fit_ridge(training, penalty).score(x[test])
        for s in range(2):
            expected = refit_ridge(x[~test], class_ns[~test, s], penalty)(x[test])
            # float64 rounding of both; scores are of order 1
            np.testing.assert_allclose(score[:, s], expected, atol=1e-12)
            scaler = StandardScaler().fit(x[~test])
            other = RidgeClassifier(alpha=penalty).fit(
                scaler.transform(x[~test]), class_ns[~test, s]
            )
            decision = other.decision_function(scaler.transform(x[test]))
            np.testing.assert_allclose(2 * score[:, s] - 1, decision, atol=1e-10)


@pytest.mark.parametrize(("n", "d"), SHAPES)
@pytest.mark.parametrize("shrinkage", [0.05, 0.9, None])
def test_lda_of_every_fold_is_that_of_scikit_learn(n, d, shrinkage) -> None:
    x, group_n, class_ns = problem(n, d)
    for test, _, training in train_folds(x, group_n, class_ns):
        model = fit_lda(training, shrinkage)
        found = posterior(model.score(x[test]))[:, 0]
        scaler = StandardScaler().fit(x[~test])
        z, y = scaler.transform(x[~test]), class_ns[~test, 0]
        within = z - np.stack([z[y == k].mean(axis=0) for k in range(3)])[y]
        gamma = shrinkage or oas(within, assume_centered=True)[1]
        assert model.penalty == pytest.approx(gamma, rel=1e-9)
        # scikit-learn shrinks each class to its own trace, which sums to that of all
        peer = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=gamma).fit(z, y)
        expected = peer.predict_proba(scaler.transform(x[test]))
        np.testing.assert_allclose(found, expected, atol=1e-8)  # lstsq of scikit-learn


def test_control_sets_are_shrunk_like_the_real_labels() -> None:
    x, group_n, class_ns = problem(90, 12)
    test, _, training = next(train_folds(x, group_n, class_ns))
    found = fit_lda(training).score(x[test])[:, 1]
    z_all = (x - x[~test].mean(axis=0)) / x[~test].std(axis=0)
    z, y, n = z_all[~test], class_ns[~test], (~test).sum()

    def within(s: int) -> np.ndarray:
        means = np.stack([z[y[:, s] == k].mean(axis=0) for k in range(3)])
        return (z - means[y[:, s]]).T @ (z - means[y[:, s]]) / n, means

    real, _ = within(0)
    gamma = fit_lda(training).penalty
    control, means = within(1)
    covariance = (1 - gamma) * control + gamma * np.trace(real) / 12 * np.eye(12)
    weight = np.linalg.solve(covariance, means.T)
    prior = np.log(np.bincount(y[:, 1]) / n)
    expected = z_all[test] @ weight - 0.5 * (means.T * weight).sum(axis=0) + prior
    np.testing.assert_allclose(
        found - found.mean(axis=1, keepdims=True),
        expected - expected.mean(axis=1, keepdims=True),
        atol=1e-10,
    )


def test_both_forms_agree_where_either_could_be_taken() -> None:
    """One set of samples, its features repeated: beyond n the products of rows are taken."""
    x, group_n, class_ns = problem(60, 20)
    wide = np.tile(x, (1, 4))
    narrow_folds, wide_folds = (
        train_folds(x, group_n, class_ns),
        train_folds(wide, group_n, class_ns),
    )
    for (test, _, narrow), (_, _, broad) in zip(narrow_folds, wide_folds, strict=True):
        assert narrow.rows_nd is None
        assert broad.rows_nd is not None
        # four copies carry a weight at a quarter of the cost each
        left = fit_ridge(narrow, 10.0).score(x[test])
        right = fit_ridge(broad, 40.0).score(wide[test])
        np.testing.assert_allclose(left, right, atol=1e-11)


def test_constant_features_and_absent_classes() -> None:
    x, group_n, class_ns = problem(90, 12)
    x[:, 3] = 7.0
    x[group_n != 0, 4] = -2.0  # varies in the first group alone
    class_ns[class_ns == 2] = 0
    class_ns[np.flatnonzero(group_n == 0)[:4]] = 2
    without = np.delete(x, [3, 4], axis=1)
    test, present, training = next(train_folds(x, group_n, class_ns))
    assert present.tolist() == [0, 1]
    _, _, plain = next(train_folds(without, group_n, class_ns))
    for fit in (lambda t: fit_ridge(t, 5.0), lambda t: fit_lda(t, 0.2)):
        score, expected = fit(training).score(x[test]), fit(plain).score(without[test])
        if fit(plain).penalty == 5.0:
            np.testing.assert_allclose(score, expected, atol=1e-9)
        assert np.isfinite(score).all()


def test_an_offset_costs_no_precision() -> None:
    x, group_n, class_ns = problem(90, 12, offset=0.0)
    for (test, _, near), (_, _, far) in zip(
        train_folds(x, group_n, class_ns), train_folds(x + 1e4, group_n, class_ns), strict=True
    ):
        # x + 1e4 itself is rounded to 2e-12, against features of deviation 0.01
        np.testing.assert_allclose(
            fit_ridge(near, 1.0).score(x[test]), fit_ridge(far, 1.0).score(x[test] + 1e4), atol=1e-8
        )
