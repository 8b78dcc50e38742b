"""Gram blocks in float32: errors beside float64, any number of workers, what chooses them."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from lorascope.analyses import CKA, ArrayKey, analyze, linear_cka
from lorascope.analyses.engine import Runner, split_slabs
from lorascope.analyses.memory import plan_passes
from lorascope.analyses.pooled import CollectFold
from lorascope.analyses.similarity import gram
from lorascope.analyses.similarity.cka_estimate import estimate
from lorascope.analyses.similarity.gram import choose_dtype, sum_at_a_glance, sum_pairs
from lorascope.analyses.similarity.moments import find_moments
from lorascope.store import open_store

N, D = 150, 1280


def layers(kind: str) -> list[np.ndarray]:
    """Three float32 arrays whose similarity is 0 (`independent`), or small and not 0."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(3, N, D)).astype(np.float32)
    if kind == "independent":
        return list(noise)
    if kind == "outlier":  # one feature a hundred times as large as the others
        noise[:, :, 7] *= 100
        return list(noise)
    return [x + np.float32(50) * (1 + i) for i, x in enumerate(noise)]  # `offset`


def estimates(arrays: list[np.ndarray], groups: np.ndarray, dtype, **options):
    def read(a: int, rows: np.ndarray) -> np.ndarray:
        return arrays[a][rows]

    moments = find_moments(read, len(arrays), len(groups))
    return estimate(sum_pairs(read, moments, groups, dtype=dtype, **options))


def glanced(arrays: list[np.ndarray], groups: np.ndarray, **options):
    """The same where features are in memory, and whether the glance was enough."""

    def read(a: int, rows: np.ndarray) -> np.ndarray:
        return arrays[a][rows]

    moments, sums = sum_at_a_glance(read, groups, len(arrays), dtype=np.float32, **options)
    exact = find_moments(read, len(arrays), len(groups))
    enough = any((a != b).any() for a, b in zip(moments.means, exact.means, strict=True))
    return moments, estimate(sums), enough


@pytest.mark.parametrize("kind", ["independent", "outlier", "offset"])
@pytest.mark.parametrize("n_groups", [1, 10])
@pytest.mark.parametrize("tile_bytes", [2**26, 2**16])
def test_float32_products_keep_values_near_0(kind, n_groups, tile_bytes) -> None:
    """1e-6 is the bound of the documentation, for values and for ends of intervals."""
    arrays, groups = layers(kind), np.arange(N) % n_groups
    exact = estimates([x.astype(np.float64) for x in arrays], groups, np.float64)
    single = estimates(arrays, groups, np.float32, tile_bytes=tile_bytes)
    moments, at_a_glance, enough = glanced(arrays, groups, tile_bytes=tile_bytes)
    assert enough
    assert moments.faults == ["", "", ""]
    for name, want in exact.items():
        for part in ("value", "low", "high", "null_ceiling"):
            for found in (single, at_a_glance):
                got = getattr(found[name], part)
                np.testing.assert_allclose(got, getattr(want, part), atol=1e-6, rtol=0)
    near = exact["debiased"].value[np.triu_indices(3, 1)]
    assert (np.abs(near) < 0.2).all(), "otherwise this shows nothing about values near 0"


SEEN = np.linspace(0, N - 1, 64).astype(int)
"""Samples that a glance takes; the tests below hide what is wrong from it."""


@pytest.mark.parametrize("kind", ["apart", "still", "broken", "endless", "huge", "seen", "rounded"])
def test_a_glance_that_saw_too_little_is_not_believed(kind) -> None:
    """Values are then those of a closer look, to the last bit, and faults are named."""
    arrays, groups = layers("independent"), np.arange(N) % 10
    hidden = np.setdiff1d(np.arange(N), SEEN)
    if kind == "apart":  # the samples that are looked at have another mean than all
        arrays[1][SEEN] += np.float32(3)
    if kind == "broken":
        arrays[1][hidden[5], 3] = np.nan
    if kind == "endless":
        arrays[1][hidden[5], 3] = -np.inf
    if kind == "huge":  # finite, its square is not
        arrays[1][hidden[5], 3] = 3e38
    if kind == "still":
        arrays[1][:] = np.float32(0.1)
    if kind == "seen":
        arrays[1][SEEN[5], 3] = np.inf
    if kind == "rounded":  # differences of float32 numbers that are mostly rounding
        arrays[1] = (1e5 + 0.01 * arrays[1]).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        moments, found, enough = glanced(arrays, groups, mapper=Runner(2).map, workers=2)
    assert not enough
    faults = dict.fromkeys(("broken", "endless", "seen"), "NaN or infinite features")
    assert moments.faults[1] == (faults | {"still": "constant features"}).get(kind, "")
    want = estimates(arrays, groups, np.float32)
    for name, one in want.items():
        np.testing.assert_array_equal(found[name].value, one.value)


def test_sums_do_not_depend_on_workers() -> None:
    """To the last bit: blocks and strips are the same, and are added in one order."""
    arrays, groups = layers("offset"), np.arange(N) % 7
    one = estimates(arrays, groups, np.float32, tile_bytes=2**17)
    with_three = Runner(3)
    three = estimates(
        arrays, groups, np.float32, tile_bytes=2**17, mapper=with_three.map, workers=3
    )
    for name, want in one.items():
        np.testing.assert_array_equal(three[name].value, want.value)
        np.testing.assert_array_equal(three[name].low, want.low)


def test_the_cost_chooses_the_type() -> None:
    for single, device, limit in ((True, "cpu", 5e9), (False, "cpu", 4e11), (True, "cuda", 4e14)):
        assert choose_dtype(limit, single=single, device=device) is np.float64
        assert choose_dtype(1.01 * limit, single=single, device=device) is np.float32


def test_the_table_says_the_arithmetic(tmp_path, make_store, monkeypatch) -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(40, 3, 6))
    path = make_store(tmp_path / "s.zarr", [x, x[::-1]], speakers=[f"s{i % 6}" for i in range(40)])
    exact = analyze(path, [CKA(frames=False)])["cka"]
    assert exact.attrs["arithmetic"] == exact.attrs["gram_dtype"] == "float64"
    monkeypatch.setitem(gram.TOO_DEAR, "cpu", 0.0)
    monkeypatch.setattr(
        "lorascope.analyses.similarity.cka_pooled.prefers_features", lambda *_: False
    )
    single = analyze(path, [CKA(frames=False)])["cka"]
    assert single.attrs["arithmetic"].startswith("Gram products in float32")
    for column in ("value", "value_low", "value_high", "null_ceiling"):
        np.testing.assert_allclose(single[column], exact[column], atol=1e-6)
        assert not np.array_equal(single[column][exact["estimator"] == "biased"], exact[column])


@pytest.mark.parametrize("offset", [0.0, 3.0, 1e4])
def test_moments_of_float32_features(offset) -> None:
    """700 samples are two reads; the mean to float32 of the offset, the scale to 1e-4 of itself."""
    x = (np.random.default_rng(2).normal(size=(700, 20)) + offset).astype(np.float32)
    broken, still = x.copy(), np.full_like(x, 0.1 + offset)
    broken[600, 3] = np.inf
    arrays = [x, still, broken]
    found = find_moments(lambda a, rows: arrays[a][rows], 3, 700)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(found.means[0], wide.mean(axis=0), atol=1e-6 * (1 + offset))
    expected = np.sqrt(np.square(wide - wide.mean(axis=0)).sum() / 700)
    assert found.scales[0] == pytest.approx(expected, rel=1e-4)
    assert found.faults == ["", "constant features", "NaN or infinite features"]


def test_features_of_a_reader_are_not_written_to_where_it_says_so() -> None:
    x = layers("offset")[0]
    kept = x.copy()
    x.flags.writeable = False
    moments = find_moments(lambda _, rows: x[: rows.size], 1, N)
    sum_pairs(lambda _, rows: x[: rows.size], moments, np.zeros(N, int), dtype=np.float32)
    np.testing.assert_array_equal(x, kept)
    np.testing.assert_allclose(
        moments.centre_as(0, x, np.float32), moments.centre(0, x), atol=1e-5, rtol=0
    )


def test_arrays_in_memory_take_the_same_choice(monkeypatch) -> None:
    arrays = layers("independent")
    exact = linear_cka(arrays)["biased"].value
    monkeypatch.setitem(gram.DEAR, "cpu", 0.0)
    single = linear_cka(arrays)["biased"].value
    assert not np.array_equal(single, exact)
    np.testing.assert_allclose(single, exact, atol=1e-6)
    double = linear_cka([x.astype(np.float64) for x in arrays])["biased"].value
    np.testing.assert_allclose(double, exact, rtol=1e-13)  # means that differ in their last digits


def fold(layer: int, pool: str) -> CollectFold:
    key = ArrayKey("a", "h", layer, "mean_valid")
    return CollectFold(key, ArrayKey("a", "h", layer, pool), 100)


@pytest.mark.parametrize("pool", ["mean_valid", ""])
def test_pooled_features_alone_are_read_in_whole_segments(pool) -> None:
    """80 samples in segments of 30: one slab where they fit, else a slab ends where a segment does."""
    size, borders = np.full(80, 250), np.array([30, 60])  # 1,000 of three, one stored

    def cut(memory: int) -> tuple[tuple[int, int], ...]:
        folds = [fold(layer, pool) for layer in range(3)]
        options = {"memory_bytes": memory, "workers": 2}
        (one,) = plan_passes(folds, lambda _: size, borders, **options)
        return one.slabs

    if not pool:  # rows are cut for workers, wherever segments end
        assert len(cut(10**6)) > 4
        return
    assert cut(10**6) == ((0, 80),)
    assert cut(90_000) == ((0, 30), (30, 60), (60, 80))  # 33 samples for each of two workers
    assert all(stop - start <= 16 for start, stop in cut(45_000))


def test_parts_of_uneven_slabs() -> None:
    for slabs in ([(0, 244), (244, 500)], [(0, 256), (256, 500)]):
        assert split_slabs(slabs, np.ones(500, int), 2) == [(slabs[0],), (slabs[1],)]


def test_readers_of_a_block_change_nothing(study) -> None:
    from lorascope.analyses.source import Source

    source = Source.open(open_store(study.path), ["frozen"])
    view = source.views["frozen"]
    keys = [
        ArrayKey("frozen", "resid_post", layer, "mean_valid")
        for layer in view.pooled["resid_post.mean_valid"].layers or ()
    ]
    one, three = (source.block(keys, 2, 9, readers=count) for count in (1, 3))
    for key in keys:
        np.testing.assert_array_equal(three[key].values, one[key].values)
        np.testing.assert_array_equal(three[key].samples, one[key].samples)
