"""Kernels of the paper variant, in closed form and in the regime of the paper."""

import numpy as np
import pytest

from lorascope.analyses import AnalysisInputError
from lorascope.analyses.paper.erasure import erasure_score
from lorascope.analyses.paper.faults import choose_faults, switches
from lorascope.analyses.paper.grams import cka, flattened_gram, permuted_cka, rbf_kernel
from lorascope.analyses.paper.lens import mean_divergence


def test_the_regime_of_the_paper() -> None:
    """Independent data, 40 items, 85 % shared padding: biased near 1, debiased near 0.

    150 frames instead of 1,500, for time; still 4,800 columns of 40 items.
    """
    rng = np.random.default_rng(0)
    frames, audio, rank, n = 150, 22, 32, 40
    sides = []
    for _ in range(2):
        x = np.repeat(rng.normal(size=(1, frames, rank)), n, axis=0)
        x[:, :audio] = rng.normal(size=(n, audio, rank))
        sides.append(x)
    k, el = (flattened_gram(lambda i, x=x: x[i], n, 10**9, x[0].nbytes) for x in sides)
    # d/(n + d) of 704 columns that vary is .946; the published 7,200 give .994
    assert cka(k, el, biased=True) > 0.94
    assert abs(cka(k, el, biased=False)) < 0.05
    full = [rng.normal(size=(n, 225 * rank)) for _ in range(2)]  # 15 % of 1,500 frames vary
    k, el = (x @ x.T for x in full)
    assert cka(k, el, biased=True) >= 0.99
    assert abs(cka(k, el, biased=False)) < 0.05
    assert permuted_cka(k, el, biased=True, draws=5, seed=0) >= 0.99
    # a random B keeps what A has: "alignment" of any adapter
    z = rng.normal(size=(n, 60, rank)) * np.linspace(1, 0.1, rank)
    out = z @ rng.normal(size=(rank, 1280))
    k, el = (x.reshape(n, -1) @ x.reshape(n, -1).T for x in (z, out))
    assert cka(k, el, biased=True) > 0.999


def test_kernels_that_see_no_difference_give_nothing() -> None:
    """Gradients of 1e-6: every value of the kernel is 1 in float32, and CKA 0 / 0."""
    x = 1e-6 * np.random.default_rng(0).normal(size=(10, 50))
    k = rbf_kernel(x @ x.T, 50, single=True)
    assert (k == 1).all()
    assert np.isnan(cka(k, k, biased=True))
    assert cka(*[rbf_kernel(x @ x.T, 50, single=False)] * 2, biased=True) == pytest.approx(1)


@pytest.mark.parametrize("room", [1, 3 * 4 * 5 * 8, 10**9])
def test_flattened_grams_do_not_depend_on_what_is_held(room: int) -> None:
    x = np.random.default_rng(1).normal(size=(7, 4, 5))
    gram = flattened_gram(lambda i: x[i], 7, room, x[0].nbytes)
    flat = x.reshape(7, -1)
    np.testing.assert_allclose(gram, flat @ flat.T, rtol=1e-13, atol=1e-13)


def test_lens() -> None:
    rng = np.random.default_rng(0)
    final, layer = rng.normal(size=(2, 5, 3))
    p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (final, layer))
    forth = (p * np.log(p / q)).sum(1).mean()
    back = (q * np.log(q / p)).sum(1).mean()
    assert mean_divergence(final, layer, frozenset()) == pytest.approx(back, rel=1e-12)
    value = mean_divergence(final, layer, frozenset({"kl-direction"}))
    assert value == pytest.approx(forth, rel=1e-12)
    both = frozenset({"kl-direction", "softmax-log"})
    assert mean_divergence(final, layer, both) == pytest.approx(forth, rel=1e-5)  # float32
    layer[0] = [0.0, 0.0, -200.0]  # e^-200 is 0 in float32
    assert np.isinf(mean_divergence(final, layer, both))
    assert np.isfinite(mean_divergence(final, layer, frozenset({"kl-direction"})))


def test_erasure_scores() -> None:
    before = np.log([[0.8, 0.2], [0.6, 0.4], [0.3, 0.7]])
    after = np.log([[0.5, 0.5], [0.1, 0.9], [0.2, 0.8]])
    true = np.asarray([0, 0, 1])
    # predictions: 0 0 1, then 0 1 1; recalls 1 1, then 1/2 1
    assert erasure_score(before, after, true, frozenset()) == pytest.approx(0.25)
    lost = (0.8 + 0.6 + 0.7) / 3 - (0.5 + 0.1 + 0.8) / 3
    top = (0.8 + 0.6 + 0.7) / 3 - (0.5 + 0.9 + 0.8) / 3
    gain = np.mean(np.log([0.8 / 0.5, 0.6 / 0.1, 0.7 / 0.8]))
    expected = {
        ("mixed-units",): 1 / 3 + 0.5 * lost + 0.1 * gain,
        ("mixed-units", "loss-sign"): 1 / 3 + 0.5 * lost - 0.1 * gain,
        ("mixed-units", "argmax-confidence", "loss-sign"): 1 / 3 + 0.5 * top - 0.1 * gain,
    }
    for faults, value in expected.items():
        assert erasure_score(before, after, true, frozenset(faults)) == pytest.approx(value)


def test_switches_hold_what_a_fault_needs() -> None:
    names = dict(switches(["mixed-units", "loss-sign"], ["loss-sign"]))
    assert names["loss-sign"] == {"mixed-units", "loss-sign"}
    assert set(names) == {"none", "all", "loss-sign"}
    both = dict(switches(["padding", "uncentred", "biased"], ["padding", "biased"]))
    assert both["padding+biased"] == {"padding", "biased"}
    with pytest.raises(AnalysisInputError, match="Did you mean 'uncentred'"):
        choose_faults(["uncentered"])
