"""Permutation p-values: their definition, uniform under the null of speakers, power, the table."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from lorascope.analyses import CKA, AnalysisInputError, MemoryBudgetError, analyze, to_tables
from lorascope.analyses.similarity.gram import map_in_turn
from lorascope.analyses.similarity.permutation import draw_permutations, pack, permute


def u_centred(x: np.ndarray) -> np.ndarray:
    n = len(x)
    k = x @ x.T
    np.fill_diagonal(k, 0)
    rows = k.sum(1) / (n - 2)
    u = k - rows[:, None] - rows + k.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(u, 0)
    return u / np.sqrt(np.sum(u**2))


def packed(arrays: list[np.ndarray]) -> np.ndarray:
    n = len(arrays[0])
    u_ml = np.zeros((n * (n - 1) // 2, len(arrays)), np.float32)
    for a, x in enumerate(arrays):
        pack(u_centred(x), u_ml[:, a])
    return u_ml


def p_of(arrays, groups, count: int, *, seed: int = 0, workers: int = 1) -> np.ndarray:
    orders = draw_permutations(np.asarray(groups), count, seed)
    assert orders is not None
    return permute(packed(arrays), orders, mapper=map_in_turn, workers=workers)


def test_p_counts_permutations_that_reach_the_value() -> None:
    """By the definition, in float64, side b permuted; any number of workers."""
    rng = np.random.default_rng(0)
    groups = np.arange(24) % 3
    x = rng.normal(size=(24, 3))
    arrays = [x, x[:, :2] + 3 * rng.normal(size=(24, 2)), rng.normal(size=(24, 5))]
    orders = draw_permutations(groups, 300, 0)
    assert orders is not None
    u = [u_centred(a) for a in arrays]
    for workers in (1, 3):
        found = p_of(arrays, groups, 300, workers=workers)
        for a in range(3):
            for b in range(a, 3):
                moved = [np.sum(u[a] * u[b][np.ix_(order, order)]) for order in orders]
                reached = np.sum(np.asarray(moved) >= np.sum(u[a] * u[b]) - 1e-6)
                assert found[a, b] == found[b, a] == (1 + reached) / 301


def test_samples_stay_in_their_group() -> None:
    groups = np.repeat([2, 0, 1], [4, 1, 6])
    orders = draw_permutations(groups, 50, 1)
    assert orders is not None
    for order in orders:
        assert np.array_equal(np.sort(order), np.arange(11))
        assert np.array_equal(groups[order], groups)
    assert len({tuple(order) for order in orders}) > 40
    assert draw_permutations(np.arange(5), 10, 0) is None, "nothing to exchange"


def simulate(*, shared: float, within: bool) -> np.ndarray:
    """Return p-values of 300 data sets: 8 speakers with effects of their own on both sides."""
    found = []
    for draw in range(300):
        rng = np.random.default_rng([draw, int(10 * shared)])
        groups = np.repeat(np.arange(8), rng.integers(3, 8, 8))
        content = shared * rng.normal(size=(len(groups), 2))
        voice = rng.normal(size=(8, 6))
        sides = []
        for _ in range(2):
            own = voice @ rng.normal(size=(6, 6))
            noise = rng.normal(size=(len(groups), 6))
            sides.append(own[groups] + noise + content @ rng.normal(size=(2, 6)))
        used = groups if within else np.zeros_like(groups)
        found.append(p_of(sides, used, 99, seed=draw)[0, 1])
    return np.asarray(found)


def test_uniform_where_only_speakers_are_shared() -> None:
    """Exactly so: p of 99 permutations takes 0.01 … 1, each with the same probability.

    Distances of Kolmogorov above the 99.9 % point, and 0.01 of the discreteness, would fail.
    """
    p = simulate(shared=0.0, within=True)
    distance = stats.kstest(p, "uniform").statistic
    assert distance < stats.kstwo.ppf(0.999, 300) + 0.01
    assert np.mean(p <= 0.05) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)
    free = simulate(shared=0.0, within=False)
    assert np.mean(free <= 0.05) > 0.3, "what exchanging speakers would call content"


def test_power() -> None:
    assert np.mean(simulate(shared=2.0, within=True) <= 0.05) > 0.9


def study(rng, n: int = 40) -> tuple[list[np.ndarray], list[str]]:
    x = rng.normal(size=(n, 2, 5))
    return [x, x + 2 * rng.normal(size=x.shape), rng.normal(size=x.shape)], [
        f"s{i % 5}" for i in range(n)
    ]


def table(path, analysis=CKA(frames=False), **options):  # noqa: B008 - a frozen value
    return to_tables(analyze(path, [analysis], **options))["cka"]


def test_the_table_has_them_for_debiased(tmp_path, make_store) -> None:
    """They do not depend on the order of samples or on workers, but on the seed."""
    layers, speakers = study(np.random.default_rng(3))
    path = make_store(tmp_path / "a", layers, speakers=speakers)
    order = np.random.default_rng(4).permutation(40)
    turned = make_store(
        tmp_path / "b",
        [x[order] for x in layers],
        speakers=[speakers[i] for i in order],
        ids=[f"u{i}" for i in order],
    )
    keys = ["layer_a", "layer_b"]
    rows = table(path).query("estimator == 'debiased'").set_index(keys)
    again = table(turned, workers=3).query("estimator == 'debiased'").set_index(keys)
    assert rows["p_permutation"].to_dict() == again["p_permutation"].to_dict()
    assert rows["p_permutation"][0, 1] < 0.01 < rows["p_permutation"][0, 2]
    assert rows["p_permutation"][0, 0] == pytest.approx(1 / 1001)
    other = table(path, seed=1).query("estimator == 'debiased'").set_index(keys)
    assert other["p_permutation"][0, 2] != rows["p_permutation"][0, 2]
    assert other["p_permutation"][0, 2] == pytest.approx(rows["p_permutation"][0, 2], abs=0.1)
    assert table(path).query("estimator != 'debiased'")["p_permutation"].isna().all()


def test_they_can_be_left_out_or_asked_for(tmp_path, make_store) -> None:
    layers, speakers = study(np.random.default_rng(5))
    path = make_store(tmp_path / "a", layers, speakers=speakers)
    none = analyze(path, [CKA(frames=False, permutations=0)])["cka"]
    assert np.isnan(none["p_permutation"]).all()
    some = analyze(path, [CKA(frames=False, permutations=49)])["cka"]
    assert some.attrs["permutations"] == 49
    assert np.nanmin(some["p_permutation"]) == pytest.approx(1 / 50)


def test_those_that_cannot_be_drawn_say_why(tmp_path, make_store) -> None:
    """Asked for, but nobody has two samples; asked for, but 1e6 orders of 40 samples are 160 MB."""
    layers, speakers = study(np.random.default_rng(6))
    alone = make_store(tmp_path / "a", layers, speakers=[f"s{i}" for i in range(40)])
    path = make_store(tmp_path / "b", layers, speakers=speakers)
    for store, count, memory, why in (
        (alone, 49, "2GiB", "every speaker has one sample"),
        (path, 1_000_000, "64MiB", "1000000 take 153 MiB and "),
    ):
        analysis = CKA(frames=False, permutations=count)
        found = analyze(store, [analysis], memory=memory)["cka"]
        assert found.attrs["permutations"] == 0
        assert found.attrs["p_permutation"].startswith(f"none: {why}")
        assert np.isnan(found["p_permutation"]).all()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"kernels": ("cosine",)}, "linear, rbf"),
        ({"kernels": ("rbf",), "bandwidths": (0.0,)}, "above 0"),
        ({"bandwidth_rule": "mean"}, "kornblith"),
        ({"permutations": -1}, "0 means none"),
    ],
)
def test_other_options_are_refused(options, says) -> None:
    with pytest.raises(AnalysisInputError, match=says):
        CKA(**options)


def test_a_table_that_does_not_fit_is_refused_before_the_pass(tmp_path, make_store) -> None:
    """170 layers: 14,535 pairs, three estimators, 1,300 bytes a row are 54 MiB."""
    layers = list(np.random.default_rng(6).normal(size=(170, 5, 1, 2)))
    path = make_store(tmp_path / "a", layers)
    with pytest.raises(MemoryBudgetError, match="43,605 rows"):
        analyze(path, [CKA(frames=False)], memory="64MiB")
