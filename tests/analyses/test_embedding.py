"""Pictures and their numbers against scikit-learn and closed forms; order and chunks change nothing."""

import numpy as np
import pytest
from sklearn.manifold import TSNE, trustworthiness
from sklearn.metrics import silhouette_score

from lorascope.analyses import AnalysisInputError, Embedding, MissingSitesError, analyze, to_tables
from lorascope.analyses.embedding.layout import principal_components
from lorascope.analyses.embedding.neighbours import (
    Marks,
    chance_purity,
    measure_purity,
    measure_silhouette,
    measure_trust,
    order_neighbours,
)
from lorascope.analyses.embedding.tsne import (
    fit_tsne,
    make_affinities,
    measure_divergence,
    squared_distances,
)


@pytest.fixture(scope="module")
def cloud():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(90, 6)) + 4 * np.repeat(rng.normal(size=(3, 6)), 30, axis=0)
    return x - x.mean(axis=0)


def test_the_descent_ends_as_low_as_that_of_scikit_learn(cloud) -> None:
    start = principal_components(cloud, 2)
    start *= 1e-4 / start[:, 0].std()
    affinity = make_affinities(cloud, 20.0)
    assert affinity.sum() == pytest.approx(1)
    model = TSNE(init=start.astype(np.float32), perplexity=20.0, method="exact")
    ours = measure_divergence(affinity, fit_tsne(affinity, start))
    theirs = measure_divergence(affinity, model.fit_transform(cloud).astype(np.float64))
    assert ours <= 1.1 * theirs  # both end in local minima


def test_numbers_equal_scikit_learn(cloud) -> None:
    y = cloud[:, :2]
    order, drawn = order_neighbours(cloud), order_neighbours(y)
    # the same integers and distances up to rounding
    assert measure_trust(order, drawn, 10) == pytest.approx(
        trustworthiness(cloud, y, n_neighbors=10)
    )
    label = np.repeat(["a", "b", "c"], 30).astype(object)
    found = measure_silhouette(np.sqrt(squared_distances(cloud)), label)
    assert found == pytest.approx(silhouette_score(cloud, label), rel=1e-9)


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
    options = {"sites": ["resid_post"], "layers": [1], "captures": ["frozen"]}
    one, two = (
        to_tables(analyze(study.path, ["embedding"], workers=w, memory=m, **options))
        for w, m in ((1, "1GiB"), (2, "64MiB"))
    )
    np.testing.assert_array_equal(one["embedding"]["x"], two["embedding"]["x"])
    assert len(one["embedding"]) == 3 * 40
    quality = one["embedding_quality"]
    assert list(quality["init"]) == ["pca", "random", "random"]
    assert quality["knn_purity_label"].nunique() == 1
    assert (quality["knn_purity_label_low"] < quality["knn_purity_label"]).all()


def test_bad_options_and_data_are_refused(study, tmp_path, make_store) -> None:
    with pytest.raises(AnalysisInputError, match="no embedding method 'pca'"):
        analyze(study.path, [Embedding(method="pca")])
    with pytest.raises(AnalysisInputError, match="most >= 4 k"):
        analyze(study.path, [Embedding(most=5)])
    path = make_store(tmp_path / "s.zarr", [np.zeros((6, 2, 3))])
    with pytest.raises(MissingSitesError, match="at least 40 samples"):
        analyze(path, ["embedding"])
    rows = to_tables(
        analyze(make_store(tmp_path / "t.zarr", [np.zeros((40, 2, 3))]), ["embedding"])
    )
    assert list(rows["embedding_quality"]["reason"]) == ["constant features"]
