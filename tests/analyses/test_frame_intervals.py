"""Intervals of minibatch CKA: without one speaker as if it had never been there, and true to 95 %."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lorascope.analyses import CKA, ArrayKey, analyze, to_tables
from lorascope.analyses.fold import Block, Piece
from lorascope.analyses.similarity.frame_estimate import estimate_frames
from lorascope.analyses.similarity.frame_fold import FrameFold, draw_rows, order_samples
from lorascope.analyses.similarity.hsic import u_centre
from lorascope.analyses.similarity.minibatch import GroupTotals, sum_batch

KEYS = tuple(ArrayKey("a", "resid_post", layer) for layer in (0, 1))


def unbiased(grams: list[np.ndarray]) -> np.ndarray:
    """Return n(n-3) HSIC₁ of all pairs by its definition (Song et al. 2012)."""
    n = len(grams[0])
    off = [k - np.diag(np.diag(k)) for k in grams]
    found = [
        [
            np.trace(k @ m) + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k @ m).sum()
            for m in off
        ]
        for k in off
    ]
    return np.array(found)


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_without_a_speaker_is_as_if_it_were_not_there(offset: float) -> None:
    """Two batches; speaker 3 is in one only, and the second keeps 3 rows without speaker 0."""
    rng = np.random.default_rng(0)
    totals = GroupTotals.empty(5, 3)
    expected = np.zeros((5, 3, 3))
    for sizes in ((3, 4, 1, 5, 2), (4, 1, 1, 0, 1)):
        groups = np.repeat(np.arange(5), sizes)
        features = [rng.standard_normal((groups.size, d)) + offset for d in (3, 20, 1)]
        totals.add(features, groups)
        for g in range(5):
            rows = [x[groups != g] - offset for x in features]
            if len(rows[0]) >= 4:
                expected[g] += unbiased([x @ x.T for x in rows])
    # 1e-10 of the largest: float64, and 1,000 leaves 13 digits of the features
    np.testing.assert_allclose(totals.pairs_left_gll, expected, atol=1e-10 * np.abs(expected).max())
    plain = np.zeros((3, 3))
    rng = np.random.default_rng(0)
    for n in (15, 7):
        sum_batch([rng.standard_normal((n, d)) + offset for d in (3, 20, 1)], plain)
    np.testing.assert_allclose(totals.pairs_ll, plain, rtol=1e-12)


def between(u: np.ndarray, v: np.ndarray, groups: np.ndarray) -> tuple[float, int]:
    """Return HSIC over all pairs, triples and quadruples of different groups, and the pairs."""

    def tuples(size: int) -> np.ndarray:
        found = permutations(range(len(groups)), size)
        return np.array([t for t in found if len({*groups[list(t)]}) == size]).T

    (a, b), (c, d, e), (f, g, h, i) = tuples(2), tuples(3), tuples(4)
    means = (u[a, b] * v[a, b]).mean(), (u[c, d] * v[c, e]).mean(), (u[f, g] * v[h, i]).mean()
    return means[0] - 2 * means[1] + means[2], len(a)


def test_frames_of_different_speakers_only() -> None:
    """By its definition, over U-centred matrices of the batch, weighed with its pairs."""
    rng = np.random.default_rng(4)
    totals = GroupTotals.empty(6, 2)
    expected = np.zeros((7, 2, 2))
    for sizes in ((2, 1, 2, 1, 2, 0), (2, 2, 0, 1, 1, 1), (3, 0, 0, 1, 2, 2), (4, 0, 4, 0, 0, 1)):
        groups = np.repeat(np.arange(6), sizes)
        features = [rng.standard_normal((groups.size, d)) for d in (3, 9)]
        totals.add(features, groups)
        us = [u_centre((x - x.mean(axis=0)) @ (x - x.mean(axis=0)).T) for x in features]
        for place, left in enumerate((-1, *range(6))):
            keep = groups != left
            if len({*groups[keep]}) >= 4:
                for a, u in enumerate(us):
                    for b, v in enumerate(us):
                        at = np.ix_(keep, keep)
                        value, pairs = between(u[at], v[at], groups[keep])
                        expected[place, a, b] += pairs * value
    np.testing.assert_allclose(totals.between_ll, expected[0], rtol=1e-10)
    np.testing.assert_allclose(totals.between_left_gll, expected[1:], rtol=1e-9)


def fold_frames(arrays, groups: np.ndarray, draws: int = 4, seed: int = 0):
    """Return what the fold gives of arrays [sample, row, feature], without a store."""
    n, rows = arrays[0].shape[:2]
    ids = [f"u{i}" for i in range(n)]
    fold = FrameFold(
        KEYS,
        np.arange(n),
        draw_rows(ids, np.full(n, rows), draws, seed),
        order_samples(ids, draws, seed),
        tuple(x.shape[2] for x in arrays),
        wide=True,
        group_n=groups,
    )
    offsets = np.arange(n + 1) * rows
    pieces = {
        key: Piece(x.reshape(n * rows, -1), np.arange(n), offsets)
        for key, x in zip(KEYS, arrays, strict=True)
    }
    return fold.finish(fold.add(fold.empty(), Block(0, n, pieces)))


def test_the_table_has_the_jackknife_over_speakers(tmp_path, make_store, one) -> None:
    """From sums over batches that never held the speaker, by the formula of the jackknife."""
    rng = np.random.default_rng(1)
    speakers = np.repeat(np.arange(6), [7, 3, 9, 5, 4, 8])
    x = rng.standard_normal((speakers.size, 5, 4))
    layers = [x, x[:, :, ::-1] + 2 * rng.standard_normal(x.shape)]
    path = make_store(tmp_path / "s", layers, speakers=[f"s{s}" for s in speakers])
    row = one(
        to_tables(analyze(path, [CKA(frames_per_sample=3)]))["cka"],
        granularity="frame",
        estimator="minibatch",
        layer_a=0,
        layer_b=1,
    )
    ids = [f"u{i}" for i in range(speakers.size)]
    rows = draw_rows(ids, np.full(speakers.size, 5), 3, 0)
    values = []
    for left in [None, *range(6)]:
        keep = np.flatnonzero(speakers != left)
        sums = np.zeros((2, 2))
        for draw in range(3):
            drawn = [x[keep, rows[keep, draw]] for x in layers]
            sums += unbiased([x @ x.T for x in drawn])
        values.append(sums[0, 1] / np.sqrt(sums[0, 0] * sums[1, 1]))
    value, parts = values[0], np.array(values[1:])
    error = np.sqrt(5 / 6 * np.square(parts - parts.mean()).sum())
    half = stats.t.ppf(0.975, 5) * error
    assert row["value"] == pytest.approx(value, abs=1e-10)
    assert row["value_low"] == pytest.approx(value - half, abs=1e-10)
    assert row["value_high"] == pytest.approx(value + half, abs=1e-10)
    assert row["p_value"] == pytest.approx(stats.t.sf(value / error, 5), rel=1e-8)


@pytest.mark.parametrize("speakers", [None, ["a", "b"] * 10])
def test_two_speakers_have_no_interval(tmp_path, make_store, one, speakers) -> None:
    x = np.random.default_rng(2).standard_normal((2, 20, 3, 4))
    table = to_tables(analyze(make_store(tmp_path / "s", list(x), speakers=speakers), ["cka"]))
    place = {"granularity": "frame", "layer_a": 0, "layer_b": 1}
    row = one(table["cka"], estimator="minibatch", **place)
    assert np.isfinite(row["value"])
    assert row[["value_low", "value_high", "p_value"]].isna().all()
    assert row["reason"] == ""
    if speakers:
        row = one(table["cka"], estimator="minibatch_between_groups", **place)
        assert np.isnan(row["value"])
        assert row["reason"] == "pairs between speakers need at least 5 of them"


def test_a_speaker_whose_absence_leaves_too_few(tmp_path, make_store, one) -> None:
    """Without the speaker of four of seven samples three are left: no value, so no interval."""
    x = np.random.default_rng(3).standard_normal((2, 7, 3, 4))
    path = make_store(tmp_path / "s", list(x), speakers=[*"aaaabcd"])
    table = to_tables(analyze(path, ["cka"]))["cka"]
    place = {"granularity": "frame", "layer_a": 0, "layer_b": 1}
    row = one(table, estimator="minibatch", **place)
    assert np.isfinite(row["value"])
    assert np.isnan(row["value_low"])
    assert np.isnan(row["p_value"])


DRAWS = 60
"""Data sets; 1,000 gave the figures in docs/analyses.md."""
MIXES = np.random.default_rng(5).normal(size=(2, 2, 6))


def simulate(*, shared: bool, voices: bool = False, draws: int = DRAWS, speakers: int = 10):
    """Return errors, the share of intervals that cover the truth, and p-values, by estimator.

    Speakers of 4 to 12 utterances of 6 frames. Frames of an utterance share half of their
    variance; x and y share two directions of every frame, or nothing; each may have speaker
    effects of its own, as strong as the noise.
    """
    rng = np.random.default_rng([6, shared, voices])
    true = truth(voices=voices) * shared
    found = []
    for _ in range(draws):
        groups = np.repeat(np.arange(speakers), rng.integers(4, 13, speakers))
        n = groups.size
        content = rng.normal(size=(n, 6, 2)) * shared
        arrays = []
        for mix in MIXES:
            noise = rng.normal(size=(n, 6, 6)) + rng.normal(size=(n, 1, 6))
            voice = rng.normal(size=(speakers, 1, 6))[groups] * voices
            arrays.append(content @ mix + noise + voice)
        for name, one in estimate_frames(fold_frames(arrays, groups).totals).items():
            value, spread, p_value = (x[0, 1] for x in (one.value, one.spread, one.p_value))
            found.append((name, value - true, abs(value - true) <= spread, p_value))
    table = pd.DataFrame(found, columns=["estimator", "error", "covered", "p"])
    return {str(name): part for name, part in table.groupby("estimator")}


def truth(*, voices: bool) -> float:
    """CKA of the covariances of single frames of different speakers."""
    a, b = MIXES
    own = (2 + voices) * np.eye(6)
    both, xx, yy = a.T @ b, a.T @ a + own, b.T @ b + own
    return float(np.sum(both**2) / np.sqrt(np.sum(xx**2) * np.sum(yy**2)))


def test_independent_frames() -> None:
    """Bars leave three standard errors of 60 draws (.028 at .95)."""
    for part in simulate(shared=False).values():
        assert part["covered"].mean() >= 0.95 - 0.084
        assert (part["p"] < 0.05).mean() <= 0.05 + 0.084
        assert 0.4 < part["p"].mean() < 0.6


def test_dependent_frames_are_covered() -> None:
    for part in simulate(shared=True).values():
        assert 0.95 - 0.084 <= part["covered"].mean() < 1
        assert (part["p"] < 0.05).mean() > 0.95, "power"
        assert abs(part["error"].mean()) < 0.01


def test_frames_of_speakers() -> None:
    """What frames of one speaker share is in `minibatch` alone."""
    found = simulate(shared=False, voices=True)
    right, wrong = found["minibatch_between_groups"], found["minibatch"]
    assert right["covered"].mean() >= 0.95 - 0.084
    assert (right["p"] < 0.05).mean() <= 0.05 + 0.084
    assert abs(right["error"].mean()) < 4 * right["error"].std() / DRAWS**0.5
    assert wrong["error"].mean() > 0.03, "the bias that it is there for"
