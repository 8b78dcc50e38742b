"""CKA beside independent implementations, where they are right, and where one is known to fail."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from lorascope.analyses import kernel_cka, linear_cka


@pytest.fixture(scope="module")
def peers() -> SimpleNamespace:
    """Import what takes seconds once, and not when tests are collected (dcor compiles itself)."""
    import cka
    import dcor
    import rsatoolbox
    import torch
    from sklearn.metrics import pairwise

    return SimpleNamespace(
        cka=cka, dcor=dcor, rsatoolbox=rsatoolbox, torch=torch, pairwise=pairwise
    )


def golden() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.RandomState(1337)
    x = rng.randn(100, 10)
    return x, rng.randn(100, 10) + x


def distances(x: np.ndarray) -> np.ndarray:
    return np.linalg.norm(x[:, None] - x[None], axis=-1)


def torch_cka(peers: SimpleNamespace, x: np.ndarray, y: np.ndarray) -> float:
    tensors = [peers.torch.from_numpy(a.astype(np.float32)) for a in (x, y)]
    return float(peers.cka.cka_from_features(*tensors))


def test_pytorch_cka_on_centred_data(peers) -> None:
    """Its Gram matrices are float32 and it clamps to [0, 1]: centred data, values inside."""
    x, y = golden()
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    ours = linear_cka([x, y])["debiased"].value[0, 1]
    # 100² float32 products of relative error 6e-8, and the differences that HSIC takes of them
    assert torch_cka(peers, x, y) == pytest.approx(ours, abs=2e-6)
    rng = np.random.default_rng(0)
    layers = [x @ rng.normal(size=(10, d)) + rng.normal(size=(100, d)) for d in (3, 30, 200)]
    stack = [peers.torch.from_numpy((a - a.mean(axis=0)).astype(np.float32)) for a in layers]
    theirs = peers.cka.cka_from_features(stack, stack).numpy()
    np.testing.assert_allclose(theirs, linear_cka(layers)["debiased"].value, atol=5e-6)


def test_an_offset_that_pytorch_cka_cannot_take(peers) -> None:
    """Ours at +1000 is what theirs is without it; theirs at +1000 has no digit left."""
    x, y = golden()
    ours = linear_cka([(x + 1000).astype(np.float32), y])["debiased"].value[0, 1]
    assert ours == pytest.approx(torch_cka(peers, x - x.mean(axis=0), y - y.mean(axis=0)), abs=1e-5)
    assert abs(torch_cka(peers, x + 1000, y) - ours) > 0.1, "mended: compare the values instead"


def test_bias_corrected_distance_correlation(peers) -> None:
    """Debiased CKA of distances is dcor's, by another order of the same sums: 1e-12."""
    x, y = golden()
    theirs = float(peers.dcor.u_distance_correlation_sqr(x, y))
    ours = kernel_cka([distances(x), distances(y)])["debiased"].value[0, 1]
    assert ours == pytest.approx(theirs, abs=1e-12)
    assert ours == pytest.approx(0.502082583264, abs=1e-12)
    assert kernel_cka([-distances(x), 3 - distances(y)])["debiased"].value[0, 1] == pytest.approx(
        ours, abs=1e-12
    )


def test_its_t_test(peers) -> None:
    """The p-value of the same statistic, one-sided, from the same t distribution."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 30, 40))
    theirs = peers.dcor.independence.distance_correlation_t_test(x, y)
    found = kernel_cka([distances(x), distances(y)])["debiased"]
    assert found.p_value[0, 1] == pytest.approx(theirs.pvalue, rel=1e-9)


def test_whitened_similarity_of_distances_is_biased_cka(peers) -> None:
    """rsatoolbox: cosine of squared distances, whitened by their covariance."""
    x, y = golden()
    data = [peers.rsatoolbox.data.Dataset(a) for a in (x, y)]
    dissimilarities = [peers.rsatoolbox.rdm.calc_rdm(d, method="euclidean") for d in data]
    theirs = peers.rsatoolbox.rdm.compare(*dissimilarities, method="cosine_cov")
    ours = linear_cka([x, y])["biased"].value[0, 1]
    assert ours == pytest.approx(float(np.ravel(theirs)[0]), abs=1e-9)


@pytest.mark.parametrize("width", [0.3, 1.0, 4.0])
def test_biased_cka_of_scikit_learn_kernels(peers, width) -> None:
    """HSIC as the trace of KHLH, from kernel matrices of scikit-learn."""
    arrays = golden()
    grams = [peers.pairwise.rbf_kernel(x, gamma=0.5 / (width**2 * x.shape[1])) for x in arrays]
    centre = np.eye(100) - 1 / 100
    k, m = (centre @ gram @ centre for gram in grams)
    theirs = np.sum(k * m) / np.sqrt(np.sum(k * k) * np.sum(m * m))
    assert kernel_cka(grams)["biased"].value[0, 1] == pytest.approx(theirs, abs=1e-13)
