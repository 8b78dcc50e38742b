"""Every fold gives the same for any cutting into blocks and any order of merging."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorascope.analyses import ArrayKey, Block, Piece
from lorascope.analyses.behaviour.contribution import ContributionFold
from lorascope.analyses.masks import Frames
from lorascope.analyses.pooled import CollectFold
from lorascope.analyses.similarity.exact_fold import ExactFold, Origin
from lorascope.analyses.similarity.frame_fold import FrameFold, draw_rows, order_samples
from lorascope.analyses.similarity.hsic import find_moments
from lorascope.analyses.similarity.row_sums import Layout
from lorascope.analyses.spectra.blocks import Blocks
from lorascope.analyses.spectra.svd import ScatterFold
from lorascope.analyses.spectra.tail import TailFold
from lorascope.analyses.statistics.histogram import COSINE_BINS, RATIO_BINS

N, WIDTH = 14, 3
KEYS = tuple(ArrayKey("a", site, 0) for site in ("embed", "attn_out", "mlp_out"))
RNG = np.random.default_rng(0)
COUNTS = RNG.integers(1, 6, N)
OFFSETS = np.concatenate([[0], np.cumsum(COUNTS)])
VALUES = {key: 50 + RNG.standard_normal((OFFSETS[-1], WIDTH)) for key in KEYS}
IDS = [f"u{i}" for i in range(N)]

FOLDS: dict[str, Any] = {
    "scatter": ScatterFold(KEYS[0], WIDTH, WIDTH, 8),
    "scatter of audio by speaker": ScatterFold(
        KEYS[0],
        WIDTH,
        WIDTH,
        8,
        mask="valid",
        frames=Frames("embed", "all", np.maximum(COUNTS - 1, 0), padded=True),
        blocks=Blocks(4, N, 4, "speaker", np.arange(N) % 4),
    ),
    "tail": TailFold(KEYS[0], WIDTH, WIDTH),
    "collect": CollectFold(ArrayKey("a", "embed", 0, "mean_valid"), KEYS[0], 8 * N * WIDTH),
    "contribution": ContributionFold(("attention", "mlp", "layer"), KEYS, 1.0, N, WIDTH),
    "frames": FrameFold(
        KEYS,
        np.arange(N),
        draw_rows(IDS, COUNTS, 2, 0),
        order_samples(IDS, 2, 0),
        (WIDTH,) * 3,
        wide=True,
        group_n=np.arange(N) % 4,
    ),
    "exact": ExactFold(
        KEYS,
        Layout((WIDTH,) * 3),
        np.arange(1, N),
        np.maximum(COUNTS - 1, 1)[1:],
        np.arange(1, N) % 6,
        wide=True,
        tile_rows=4,
        origins=(Origin(np.full(WIDTH, 49.5), 0.5),) * 3,
    ),
}


def block(start: int, stop: int) -> Block:
    """Return the samples start … stop - 1; fresh arrays, as a reader gives them."""
    rows = slice(OFFSETS[start], OFFSETS[stop])
    offsets = OFFSETS[start : stop + 1] - OFFSETS[start]
    samples = np.arange(start, stop)
    return Block(
        start, stop, {key: Piece(x[rows].copy(), samples, offsets) for key, x in VALUES.items()}
    )


def numbers(result: Any) -> list[np.ndarray]:
    """Return all numbers in a result, in order."""
    if isinstance(result, np.ndarray | int | float):
        return [np.asarray(result)]
    if isinstance(result, list | tuple):
        return [x for item in result for x in numbers(item)]
    if result is None or isinstance(result, str):
        return []
    return [x for name in result.__dataclass_fields__ for x in numbers(getattr(result, name))]


def assert_same(found: Any, expected: Any) -> None:
    """1e-10: float64 sums of some 40 numbers around 50 in another order."""
    pairs = zip(numbers(found), numbers(expected), strict=True)
    for a, b in pairs:
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


def fold_in_one(fold: Any) -> Any:
    return fold.finish(fold.add(fold.empty(), block(0, N)))


@pytest.mark.parametrize("name", FOLDS)
@settings(max_examples=30, deadline=None)
@given(
    cuts=st.sets(st.integers(1, N - 1)),
    parts=st.lists(st.integers(0, 2), min_size=N, max_size=N),
    order=st.permutations(range(3)),
)
def test_any_chunking_gives_the_same(name, cuts, parts, order):
    """Blocks go to three states in any way, which are merged in any order."""
    fold = FOLDS[name]
    borders = [0, *sorted(cuts), N]
    states = [fold.empty() for _ in range(3)]
    for i, (start, stop) in enumerate(itertools.pairwise(borders)):
        states[parts[i]] = fold.add(states[parts[i]], block(start, stop))
    a, b, c = (states[i] for i in order)
    assert_same(fold.finish(fold.merge(fold.merge(a, b), c)), fold_in_one(fold))


@pytest.mark.parametrize("name", FOLDS)
def test_merge_is_associative_and_has_a_zero(name):
    fold = FOLDS[name]

    def states() -> list[Any]:
        return [fold.add(fold.empty(), block(*part)) for part in ((0, 4), (4, 5), (5, N))]

    a, b, c = states()
    left = fold.finish(fold.merge(fold.merge(a, b), c))
    a, b, c = states()
    right = fold.finish(fold.merge(a, fold.merge(b, c)))
    assert_same(left, right)
    a, b, c = states()
    whole = fold.merge(fold.merge(fold.empty(), fold.merge(a, b)), fold.merge(c, fold.empty()))
    assert_same(fold.finish(whole), left)


@pytest.mark.parametrize("name", FOLDS)
def test_merge_leaves_its_right_side_alone(name):
    fold = FOLDS[name]
    right = fold.add(fold.empty(), block(5, N))
    fold.merge(fold.add(fold.empty(), block(0, 5)), right)
    again = fold.merge(fold.add(fold.empty(), block(0, 5)), right)
    assert_same(fold.finish(again), fold_in_one(fold))


@settings(max_examples=50, deadline=None)
@given(
    values=st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=60),
    cut=st.integers(0, 60),
)
def test_histogram_adds_up_and_knows_the_median(values, cut):
    """A median of the histogram is one of numpy's two middle values within a bin of 0.46 %."""
    x = np.asarray(values)
    counts = RATIO_BINS.tally(x[:cut]) + RATIO_BINS.tally(x[cut:])
    assert np.array_equal(counts, RATIO_BINS.tally(x))
    assert counts.sum() == x.size
    low, high = np.sort(x)[(x.size - 1) // 2], np.sort(x)[x.size // 2]
    assert low * 0.995 <= RATIO_BINS.median(counts) <= high * 1.005


@pytest.mark.parametrize(
    ("values", "median"),
    [([], np.nan), ([-1.0, -1.0, 1.0], -1.0), ([0.25] * 9, 0.25), ([np.nan, 0.5], 0.5)],
)
def test_histogram_of_cosines(values, median):
    """A bin is 0.0005 wide."""
    found = COSINE_BINS.median(COSINE_BINS.tally(np.asarray(values)))
    assert found == pytest.approx(median, abs=0.0005, nan_ok=True)


def test_histogram_keeps_zero_and_what_lies_beyond():
    counts = RATIO_BINS.tally(np.asarray([0.0, 1e-12, 1.0, 1e12]))
    assert counts[0] == 2
    assert counts[-1] == 1
    assert counts.sum() == 4


def test_draws_depend_on_the_sample_alone():
    """Asking for more frames or fewer samples leaves the others where they were."""
    whole = draw_rows(IDS, COUNTS, 6, seed=3)
    assert np.array_equal(whole[:, :4], draw_rows(IDS, COUNTS, 4, seed=3))
    assert np.array_equal(whole[5:8], draw_rows(IDS[5:8], COUNTS[5:8], 6, seed=3))
    assert (whole < COUNTS[:, None]).all()
    for row, count in zip(whole, COUNTS, strict=True):
        assert len(set(row[:count])) == min(count, 6), "all different while there are enough"
    assert not np.array_equal(whole, draw_rows(IDS, COUNTS, 6, seed=4))


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_moments_of_many_samples_are_those_of_one_read(offset):
    """1,300 samples are read in three parts; 1e-9: float64 at an offset of 1e6 resolves 1e-10."""
    x = np.random.default_rng(1).standard_normal((1300, 3)) + offset
    broken = np.where(np.arange(1300)[:, None] == 900, np.inf, x)
    arrays = [x, np.full((1300, 2), 0.1 + offset), broken]
    largest = 0

    def read(a, rows):
        nonlocal largest
        largest = max(largest, rows.size)
        return arrays[a][rows]

    found = find_moments(read, 3, 1300)
    assert largest <= 512
    np.testing.assert_allclose(found.means[0], x.mean(0), rtol=1e-9)
    expected = np.sqrt(np.square(x - x.mean(0)).sum() / 1300)
    assert found.scales[0] == pytest.approx(expected, rel=1e-9)
    assert found.faults == ["", "constant features", "NaN or infinite features"]
