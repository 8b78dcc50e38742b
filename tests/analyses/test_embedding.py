"""Pictures and their numbers against definitions and closed forms; order and workers change nothing."""

import sys
from types import ModuleType

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from lorascope.analyses import (
    AnalysisInputError,
    Embedding,
    MemoryBudgetError,
    MissingSitesError,
    analyze,
    to_tables,
)
from lorascope.analyses.embedding.embedding import spread_layers
from lorascope.analyses.embedding.layout import draw_layouts, make_starts, principal_components
from lorascope.analyses.embedding.neighbours import (
    Marks,
    chance_purity,
    measure_distances,
    measure_purity,
    measure_recall,
    measure_silhouette,
    order_neighbours,
)

IDS = np.asarray([f"u{i:03d}" for i in range(90)], dtype=object)


@pytest.fixture(scope="module")
def cloud():
    """Return three groups of 30 points, far from each other; the last two points are one."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(90, 6)) + 8 * np.repeat(rng.normal(size=(3, 6)), 30, axis=0)
    x[89] = x[88]
    return x - x.mean(axis=0)


@pytest.fixture(scope="module")
def pictures(cloud):
    with threadpool_limits(1, user_api="openmp"):
        return draw_layouts(cloud, IDS, make_starts(0, 2), method="tsne", perplexity=20.0)


def test_pictures_keep_groups_and_identical_samples_together(pictures) -> None:
    group = np.repeat([0, 1, 2], 30)
    for y in pictures:
        near = order_neighbours(y)[:, :10]
        assert (group[near] == group[:, None]).mean() > 0.95  # far apart: blindly it is 29/89
        distance = measure_distances(y)
        assert distance[88, 89] < 0.02 * distance.max()
    first, second = pictures
    assert not np.allclose(first, second)


def test_pictures_do_not_depend_on_threads_or_what_else_is_drawn(cloud, pictures) -> None:
    starts = make_starts(0, 2)[1:]
    with threadpool_limits(2, user_api="openmp"):
        (again,) = draw_layouts(cloud, IDS, starts, method="tsne", perplexity=20.0)
    np.testing.assert_array_equal(again, pictures[1])


def test_components_are_those_of_the_covariance(cloud) -> None:
    score = principal_components(cloud, 4)
    value = np.linalg.eigvalsh(np.cov(cloud.T))[::-1]
    np.testing.assert_allclose(np.cov(score.T), np.diag(value[:4]), atol=1e-9 * value[0])
    line = np.outer(np.arange(9.0), [1.0, 2.0, 3.0])
    assert principal_components(line - line.mean(axis=0), 3).shape == (9, 1)


def test_recall_and_silhouette_of_a_line() -> None:
    x = np.asarray([[0.0], [1.0], [3.0], [4.5], [100.0]])
    order = order_neighbours(x)
    np.testing.assert_array_equal(order[2], [3, 1, 0, 4])
    assert measure_recall(order, order, 2) == 1
    # the nearest ones are 1, 0, 3, 2, 3; after the ends changed places 3, 4, 3, 2, 1
    assert measure_recall(order, order_neighbours(x[[4, 1, 2, 3, 0]]), 1) == pytest.approx(2 / 5)
    mark = np.asarray(["a", "a", "b", "b", ""], dtype=object)
    inside, outside = np.asarray([1, 1, 1.5, 1.5]), np.asarray([3.75, 2.75, 2.5, 4.0])
    expected = ((outside - inside) / outside).mean()  # the sample without a mark does not count
    assert measure_silhouette(measure_distances(x), mark) == pytest.approx(expected)
    for one in (["a"] * 5, list("abcde"), [""] * 5):
        assert np.isnan(measure_silhouette(measure_distances(x), np.asarray(one, dtype=object)))


def test_purities_are_counts_of_neighbours(cloud) -> None:
    rng = np.random.default_rng(1)
    label = rng.choice(["a", "b", ""], size=90).astype(object)
    speaker = rng.choice(["1", "2", "3", "4"], size=90).astype(object)
    found = measure_purity(order_neighbours(cloud), Marks(label, speaker), 5)
    chance = [[], [], []]
    for i in range(90):
        near = np.argsort(np.linalg.norm(cloud - cloud[i], axis=1))
        near = near[near != i]
        known = near[label[near] != ""]
        across = known[speaker[known] != speaker[i]]
        assert found[i, 2] == np.mean(speaker[near[:5]] == speaker[i])
        chance[2].append(np.mean(speaker[near] == speaker[i]))
        if label[i] == "":
            assert np.isnan(found[i, :2]).all()
            continue
        assert found[i, 0] == np.mean(label[known[:5]] == label[i])
        assert found[i, 1] == np.mean(label[across[:5]] == label[i])
        chance[0].append(np.mean(label[known] == label[i]))
        chance[1].append(np.mean(label[across] == label[i]))
    np.testing.assert_allclose(chance_purity(Marks(label, speaker)), [np.mean(c) for c in chance])


def test_tables_do_not_depend_on_slabs_or_workers(study) -> None:
    options = {"sites": ["resid_post"], "captures": ["frozen", "untrained"]}
    one, two = (
        to_tables(analyze(study.path, ["embedding"], workers=w, memory=m, **options))
        for w, m in ((1, "1GiB"), (3, "64MiB"))
    )
    for name in ("embedding", "embedding_quality"):
        for column in one[name].select_dtypes("number"):
            np.testing.assert_array_equal(one[name][column], two[name][column], err_msg=column)
    assert len(one["embedding"]) == 2 * 3 * 2 * 40
    quality = one["embedding_quality"]
    assert list(quality["init"]) == ["pca", "random"] * 6
    assert quality["knn_purity_label"].nunique() > 1
    # the last layer's classes lie apart whichever speaker is left out
    low = quality["knn_purity_label_low"] < quality["knn_purity_label"]
    assert list(low) == [layer < 2 for layer in quality["layer"]]


def test_a_few_depths_are_drawn_and_exposed_samples_are_not(study) -> None:
    found = to_tables(analyze(study.path, [Embedding(starts=1)]))["embedding_quality"]
    layers = found.groupby(["capture", "site"])["layer"].apply(list).to_dict()
    assert layers == {
        ("frozen", "resid_post"): [0, 1, 2],
        ("untrained", "resid_post"): [0, 1, 2],
        ("untrained", "lora_a.v_proj"): [2],
        ("lora", "resid_post"): [0, 1, 2],
        ("lora", "lora_a.v_proj"): [2],
    }
    trained = found[found["capture"] == "lora"]  # on two of five speakers
    text = "24 samples that did not shape the features; at least 40 are needed"
    assert set(trained["reason"]) == {text}
    assert trained["knn_recall"].isna().all()
    assert spread_layers(range(32), 3) == [0, 16, 31]
    assert spread_layers([4], 3) == [4]


def test_without_labels_and_speakers_pictures_have_no_purity(tmp_path, make_store) -> None:
    x = np.random.default_rng(0).normal(size=(40, 2, 3))
    tables = to_tables(analyze(make_store(tmp_path / "s.zarr", [x]), [Embedding(starts=1)]))
    points, quality = tables["embedding"], tables["embedding_quality"]
    assert len(points) == 40
    assert np.isfinite(points[["x", "y"]].to_numpy()).all()
    assert list(quality["reason"]) == ["no labels; no speakers"]
    marked = [name for name in quality if name.startswith(("knn_purity", "silhouette"))]
    assert len(marked) == 14
    assert quality[marked].isna().all(axis=None)
    assert 0 < quality["knn_recall"].item() <= 1


def test_features_that_are_not_finite_or_constant_give_the_reason(tmp_path, make_store) -> None:
    x = np.random.default_rng(0).normal(size=(40, 2, 3))
    hole = x.copy()
    hole[7, 0, 1] = np.nan
    path = make_store(tmp_path / "s.zarr", [x, hole, np.zeros_like(x)])
    rows = to_tables(analyze(path, [Embedding(starts=1)]))["embedding_quality"]
    expected = ["no labels; no speakers", "NaN or infinite features", "constant features"]
    assert list(rows["reason"]) == expected
    assert list(rows["knn_recall"].isna()) == [False, True, True]


def test_more_samples_than_the_cap_are_thinned_along_their_ids(tmp_path, make_store) -> None:
    x = np.random.default_rng(0).normal(size=(120, 1, 3))
    ids = [f"u{i:03d}" for i in range(120)]
    path = make_store(tmp_path / "s.zarr", [x], ids=ids)
    drawn = [
        to_tables(analyze(path, [Embedding(starts=1, most=40)], seed=seed))["embedding"]
        for seed in (0, 1)
    ]
    for table in drawn:
        numbers = table["sample"].str[1:].astype(int).to_numpy()
        np.testing.assert_array_equal(numbers // 3, np.arange(40))  # one of every three
        assert set(table["n"]) == {40}
    assert list(drawn[0]["sample"]) != list(drawn[1]["sample"])


def test_bad_options_and_too_few_samples_are_refused(
    study, tmp_path, make_store, monkeypatch
) -> None:
    for options, text in (
        ({"method": "pca"}, "no embedding method 'pca'"),
        ({"most": 5}, "most >= 4 k"),
        ({"starts": 0}, "needs starts, k and components of at least 1"),
    ):
        with pytest.raises(AnalysisInputError, match=text):
            analyze(study.path, [Embedding(**options)])
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(AnalysisInputError, match=r"pip install 'lorascope\[umap\]'"):
        analyze(study.path, [Embedding(method="umap")])
    path = make_store(tmp_path / "s.zarr", [np.zeros((6, 2, 3))])
    with pytest.raises(MissingSitesError, match="at least 40 samples"):
        analyze(path, ["embedding"])
    with pytest.raises(MemoryBudgetError, match="the pictures of 40 samples"):
        analyze(study.path, ["embedding"], memory="200kB")


def test_umap_gets_a_start_and_a_seed(cloud, monkeypatch) -> None:
    """With a stand-in: umap-learn itself compiles for a quarter of a minute."""
    options = {}

    class UMAP:
        def __init__(self, **given: object) -> None:
            options.update(given)

        def fit_transform(self, x: np.ndarray) -> np.ndarray:
            return options["init"][: len(x)]

    module = ModuleType("umap")
    module.UMAP = UMAP  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "umap", module)
    first, second = make_starts(5, 2)
    y, other = draw_layouts(cloud, IDS, [first, second], method="umap", perplexity=20.0)
    assert {k: v for k, v in options.items() if k != "init"} == {
        "n_neighbors": 15,
        "random_state": 6,
        "n_jobs": 1,
    }
    assert np.abs(y).max() == np.abs(other).max() == 10
    assert abs(np.corrcoef(y[:, 0], cloud[:, 0])[0, 1]) > 1 - 1e-6
