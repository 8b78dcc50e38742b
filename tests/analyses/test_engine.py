"""The engine: one read of everything, the same results under any cut, order and number of workers."""

import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorascope.analyses import AnalysisInputError, ArrayKey, Block, Piece, analyze, to_tables
from lorascope.analyses.behaviour.contribution import ContributionFold
from lorascope.analyses.engine import Runner, open_runner, run_passes, split_slabs
from lorascope.analyses.memory import Pass
from lorascope.analyses.pooled import CollectFold
from lorascope.analyses.similarity.frame_fold import FrameFold, draw_rows, order_samples
from lorascope.analyses.source import Source
from lorascope.analyses.spectra.svd import ScatterFold
from lorascope.store import Capture, open_store

KEYS = [ArrayKey("a", site, 0) for site in ("h", "a", "m")]
N, WIDTH = 12, 4


def make_blocks(
    cuts: list[int], arrays: dict[ArrayKey, np.ndarray], counts: np.ndarray
) -> list[Block]:
    """Cut the same samples of all arrays into blocks."""
    ends = np.concatenate([[0], np.cumsum(counts)])
    blocks = []
    for start, stop in zip([0, *sorted(cuts)], [*sorted(cuts), N], strict=True):
        rows, samples = slice(ends[start], ends[stop]), np.arange(start, stop)
        offsets = ends[start : stop + 1] - ends[start]
        pieces = {key: Piece(x[rows], samples, offsets) for key, x in arrays.items()}
        blocks.append(Block(start, stop, pieces))
    return blocks


def make_folds(counts: np.ndarray) -> list:
    ids = [f"u{i}" for i in range(N)]
    drawn = draw_rows(ids, counts, 3, 0), order_samples(ids, 3, 0)
    return [
        ScatterFold(KEYS[0], WIDTH, WIDTH, 8),
        ContributionFold(("attention", "mlp", "layer"), tuple(KEYS), 1.0, N, WIDTH),
        CollectFold(ArrayKey("a", "h", 0, "mean_valid"), KEYS[0], 8 * N * WIDTH),
        FrameFold(tuple(KEYS), np.arange(N), *drawn, (WIDTH,) * 3, wide=True),
    ]


def leaves(result: object) -> list[np.ndarray]:
    """Return all numbers in the result of a fold."""
    if isinstance(result, np.ndarray):
        return [result.astype(np.float64)]
    if isinstance(result, int | float):
        return [np.asarray(float(result))]
    if isinstance(result, list | tuple):
        return [leaf for item in result for leaf in leaves(item)]
    names = getattr(type(result), "__slots__", ())
    return [leaf for name in names for leaf in leaves(getattr(result, name))]


@settings(max_examples=40, deadline=None)
@given(
    cuts=st.lists(st.integers(0, N), max_size=6),
    parts=st.integers(1, 4),
    counts=st.lists(st.integers(1, 5), min_size=N, max_size=N),
    right=st.booleans(),
)
def test_folds_do_not_depend_on_blocks_or_merges(cuts, parts, counts, right) -> None:
    counts = np.asarray(counts)
    rng = np.random.default_rng(0)
    arrays = {key: rng.normal(size=(counts.sum(), WIDTH)) for key in KEYS}
    for fold in make_folds(counts):
        whole = fold.empty()
        for block in make_blocks([], arrays, counts):
            whole = fold.add(whole, block)
        states = [fold.empty() for _ in range(parts)]
        for i, block in enumerate(make_blocks(cuts, arrays, counts)):
            states[i % parts] = fold.add(states[i % parts], block)
        while len(states) > 1:  # merge from one end or from the other
            pair = states[-2:] if right else states[:2]
            merged = fold.merge(*pair)
            states = [*states[:-2], merged] if right else [merged, *states[2:]]
        expected, found = leaves(fold.finish(whole)), leaves(fold.finish(states[0]))
        assert len(expected) == len(found) > 0
        for one, other in zip(expected, found, strict=True):
            # float64 sums in another order; square roots of eigenvalues near 0 lose half the digits
            np.testing.assert_allclose(other, one, rtol=1e-9, atol=1e-6)


def test_folds_are_values(study) -> None:
    source = Source.open(open_store(study.path), ["frozen"])
    again = pickle.loads(pickle.dumps(source))
    key = ArrayKey("frozen", "resid_post", 1)
    one, other = source.read(key, 3, 9), again.read(key, 3, 9)
    np.testing.assert_array_equal(one.values, other.values)
    np.testing.assert_array_equal(one.offsets, other.offsets)
    fold = ScatterFold(key, 12, 12, 4)
    assert pickle.loads(pickle.dumps(fold)) == fold
    assert len({fold, ScatterFold(key, 12, 12, 4)}) == 1


def compare_tables(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for name, dataset in one.items():
        for column, values in dataset.items():
            a, b = values.to_numpy(), other[name][column].to_numpy()
            if column in {"angle_smallest", "angle_largest"}:
                # a span whose next direction is nearly as large turns far: its row says how far
                there = ~np.isnan(a)
                np.testing.assert_array_equal(~np.isnan(b), there)
                turn = dataset["angle_rounding"].to_numpy()[there] + 1e-9
                np.testing.assert_array_less(np.abs(b - a)[there], turn)
            elif a.dtype.kind == "f":
                # float32 products of other tiles in the spectra; float64 sums elsewhere
                np.testing.assert_allclose(b, a, rtol=2e-5, atol=2e-5, err_msg=f"{name}.{column}")
            else:
                np.testing.assert_array_equal(b, a, err_msg=f"{name}.{column}")


@pytest.mark.parametrize(
    ("workers", "memory"), [(3, "2GiB"), (1, "3MiB"), (2, "4MiB"), (2, "6MiB")]
)
def test_all_tables_agree_under_any_memory_and_workers(study, results, workers, memory) -> None:
    found = analyze(study.path, workers=workers, memory=memory)
    assert (
        found["svd"].attrs["passes"] == 1 if memory == "2GiB" else found["svd"].attrs["passes"] > 1
    )
    compare_tables(results, found)


def test_every_array_is_read_once(study, monkeypatch: pytest.MonkeyPatch) -> None:
    """All analyses together read each sample of each array exactly once."""
    counts: Counter = Counter()
    for method in ("read_rows", "read_pooled"):
        original = getattr(Capture, method)

        def count(self, site, layer, samples, *, _original=original, _name=method, **options):
            for i in range(samples.start, samples.stop):
                counts[self.name, _name, site, layer, i] += 1
            return _original(self, site, layer, samples, **options)

        monkeypatch.setattr(Capture, method, count)
    analyze(study.path)
    assert set(counts.values()) == {1}
    rows = {key[:4] for key in counts if key[1] == "read_rows"}
    assert len(rows) == 10 + 16 + 16  # embed, and 3 layers of 3 or 5 sites


def test_slabs_are_shared_out_evenly() -> None:
    slabs = [(i, i + 1) for i in range(10)]
    parts = split_slabs(slabs, np.ones(10, int), 3)
    assert [slab for part in parts for slab in part] == slabs
    assert [len(part) for part in parts] == [4, 3, 3]
    assert split_slabs(slabs[:2], np.ones(10, int), 5) == [((0, 1),), ((1, 2),)]


def test_progress_counts_to_the_end(study) -> None:
    told: list[tuple[int, int, str]] = []
    analyze(study.path, ["svd"], progress=lambda *event: told.append(event), workers=2)
    done = [event[0] for event in told]
    assert done == sorted(done)
    assert done[-1] == told[-1][1] > 0
    assert told[-1][2] == "computing svd"


def test_more_blas_threads_than_workers_are_never_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[int] = []

    class Limit:
        def __init__(self, count: int) -> None:
            limits.append(count)

        def __enter__(self) -> None: ...
        def __exit__(self, *error: object) -> None: ...

    monkeypatch.setattr("lorascope.analyses.engine.threadpool_limits", Limit)
    runner = Runner(4)
    assert runner.map(lambda i: i * i, range(5)) == [0, 1, 4, 9, 16]
    runner.compute([], 2)
    runner.compute([], 1)
    assert limits == [1, 2, 4]


def test_wrong_workers_and_schedulers_are_refused(study) -> None:
    with pytest.raises(AnalysisInputError, match="at least 1"):
        analyze(study.path, ["svd"], workers=0)
    with pytest.raises(AnalysisInputError, match="no dask scheduler"), open_runner(None, "tcp"):
        pass


def test_errors_of_a_fold_come_out(study) -> None:
    class Broken:
        needs = (ArrayKey("frozen", "embed", -1),)
        scratch_bytes = 0

        def empty(self) -> int:
            return 0

        def add(self, state: int, block: Block) -> int:
            msg = f"broken at {block.start}"
            raise RuntimeError(msg)

    source = Source.open(open_store(study.path), ["frozen"])
    broken = Broken()
    one = Pass((broken,), broken.needs, ((0, 40),), 1)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="broken at 0"):
        run_passes(source, [one], Runner(1))


def test_a_cluster_gives_the_same(study, results) -> None:
    """Two worker processes of dask.distributed, reached by address, that open the store themselves."""
    from distributed import LocalCluster

    options = {"n_workers": 2, "threads_per_worker": 1, "processes": True}
    with LocalCluster(**options, dashboard_address=None) as cluster:  # type: ignore[arg-type]
        found = analyze(study.path, scheduler=cluster.scheduler_address)
    compare_tables(results, found)
    assert set(to_tables(found)) == set(results)
