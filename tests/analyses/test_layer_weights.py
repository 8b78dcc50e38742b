"""The layer-weighted probe and the online code: gradients, closed forms, invariances."""

from itertools import pairwise

import numpy as np
import pytest
from scipy import optimize
from scipy.special import log_softmax, softmax

from lorascope.analyses import CodeLength, LayerWeights, analyze, to_tables
from lorascope.analyses.probes.mdl import block_ends, draw_orders, measure_code
from lorascope.analyses.probes.task import Task
from lorascope.analyses.probes.weighted import fit_weighted, predict_weighted


def draw(n: int = 120, width: int = 8, strength=(0.0, 1.0, 0.3)):
    rng = np.random.default_rng(3)
    class_n, group_n = np.arange(n) % 3, np.arange(n) // (n // 4)
    means = rng.normal(size=(3, width))
    layers = [rng.normal(size=(n, width)) + s * means[class_n] for s in strength]
    task = Task(np.arange(n), class_n[:, None], tuple("abc"), group_n, tuple("1234"), "")
    return layers, task


def test_the_optimum_is_that_of_a_plain_minimiser() -> None:
    layers, task = draw()
    stack, class_n = np.stack(layers), task.class_ns[:, 0]
    found = fit_weighted(stack, class_n, 10.0, 2.0)

    def loss(point):
        w, weight, b = point[:3], point[3:27].reshape(8, 3), point[27:]
        logits = np.tensordot(softmax(w), stack, axes=1) @ weight + b
        p = log_softmax(logits, axis=1)[np.arange(120), class_n]
        return -p.sum() + 5 * (weight**2).sum() + (w**2).sum()

    plain = optimize.minimize(loss, np.zeros(30), method="BFGS", options={"gtol": 1e-3})
    # numerical gradients of a sum of 120 terms
    np.testing.assert_allclose(found.weight_l, softmax(plain.x[:3]), atol=1e-3)
    np.testing.assert_allclose(found.weight_dk.ravel(), plain.x[3:27], atol=1e-3)


def test_the_layer_that_knows_gets_the_weight() -> None:
    layers, task = draw()
    _, weight = predict_weighted(layers, task, 10.0, normalise=True)
    assert weight.shape == (4, 3)
    np.testing.assert_allclose(weight.sum(axis=1), 1)
    assert (weight.argmax(axis=1) == 1).all()


def test_weights_follow_the_scale_only_without_normalisation() -> None:
    layers, task = draw(strength=(0.6, 0.6, 0.6))
    grown = [layers[0], 100 * layers[1] + 7, layers[2]]
    _, before = predict_weighted(layers, task, 10.0, normalise=True)
    _, after = predict_weighted(grown, task, 10.0, normalise=True)
    np.testing.assert_allclose(before, after, atol=1e-4)  # the same problem up to rounding
    _, plain = predict_weighted(layers, task, 10.0, normalise=False)
    _, moved = predict_weighted(grown, task, 10.0, normalise=False)
    assert np.abs(plain - moved).max() > 0.05


def test_tables_of_layer_weights(study) -> None:
    tables = to_tables(analyze(study.path, ["probe", LayerWeights()], captures=["frozen"]))
    probe, weights = tables["probe"], tables["probe_weights"]
    weighted = probe[probe["probe"] == "weighted"]
    assert weighted["layer"].isna().all()
    assert weighted["site"].tolist() == ["resid_post"]
    assert weighted["uar"].iloc[0] > 0.9
    assert weights["weight"].sum() == pytest.approx(1)
    assert (weights["weight_low"] <= weights["weight"]).all()
    assert set(probe["probe"]) == {"logistic", "ridge", "lda", "weighted"}


def test_blocks_hold_ten_samples_a_class() -> None:
    assert block_ends(1000, 4) == [62, 125, 250, 500, 1000]
    assert block_ends(60, 4) == [60]


def test_a_code_of_noise_and_of_certainty() -> None:
    rng = np.random.default_rng(0)
    class_n = rng.permutation(np.arange(320) % 4)
    task = Task(np.arange(320), class_n[:, None], tuple("abcd"), class_n * 0, ("1",), "")
    orders = draw_orders(np.arange(320).astype(str).astype(object), 5, 0)
    noise = measure_code(rng.normal(size=(320, 5)), task, orders, 100.0)
    assert noise.uniform == pytest.approx(640)
    assert noise.bits_o.mean() == pytest.approx(640, rel=0.03)  # nothing to learn
    sure = measure_code(30.0 * np.eye(4)[class_n], task, orders, 1e-3)
    # the first 40 samples take 2 bits each, the rest next to nothing
    assert 80 <= sure.bits_o.mean() < 82


def test_a_class_that_was_not_seen_takes_finitely_many_bits() -> None:
    class_n = np.array([0] * 100 + [1] * 100)
    task = Task(np.arange(200), class_n[:, None], ("a", "b"), class_n, ("1", "2"), "")
    in_order = np.arange(200)[None]
    x = np.random.default_rng(0).normal(size=(200, 3))
    code = measure_code(x, task, in_order, 1.0)
    ends = block_ends(200, 2)
    expected = ends[0] * 1.0
    for t, stop in pairwise(ends):  # up to 100 only `a` has been seen
        expected += (min(stop, 100) - min(t, 100)) * -np.log2((t + 1) / (t + 2))
        expected += (stop - max(t, 100)) * np.log2(t + 2) if stop > 100 else 0.0
    assert ends[-2] == 100
    assert code.bits_o[0] == pytest.approx(expected)


def test_table_of_codelengths(make_study, tmp_path) -> None:
    path = make_study(tmp_path / "s.zarr", speakers=5, per_speaker=20).path
    options = {"captures": ["frozen"], "sites": ["embed", "resid_post"]}
    table = to_tables(analyze(path, [CodeLength(orders=3)], **options))["mdl"]
    np.testing.assert_allclose(
        table["compression"], table["uniform_codelength"] / table["codelength"]
    )
    assert set(table["uniform_codelength"]) == {200.0}
    by_layer = table.set_index(table["layer"].fillna(-1).astype(int))
    assert by_layer.loc[2, "compression"] > by_layer.loc[-1, "compression"]
    small = to_tables(analyze(path, [CodeLength()], captures=["lora"]))["mdl"]
    assert (small["reason"] == "samples: 60; at least 80 are needed").all()
