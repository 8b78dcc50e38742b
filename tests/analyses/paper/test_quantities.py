"""The paper variant: every fault against arithmetic that follows the published code step by step.

The references are written from its description with plain loops and numpy, in float64 unless the
published code is in float32.
"""

import numpy as np
import pytest

from lorascope.analyses.paper.faults import BY_NAME, FAULTS
from lorascope.analyses.paper.lens import mean_divergence
from lorascope.store import open_store

N, FRAMES = 12, 9  # of the store in conftest.py
VALID = np.asarray([3 + i % 4 for i in range(N)])
LORA_SITES = ("lora_a.v", "lora_b.v", "grad.lora_a.v", "grad.lora_b.v")


def test_every_fault_is_described_and_switched(table) -> None:
    assert len(BY_NAME) == len(FAULTS)
    assert all(len(f.published) > 15 and len(f.right) > 6 for f in FAULTS)
    assert all(not f.within or f.within in BY_NAME for f in FAULTS)
    missing = {f.name for f in FAULTS} - set(table["fault"])
    # this store has no interventions
    assert missing == {"mixed-units", "loss-sign", "argmax-confidence", "fifty-items"}
    assert (table.loc[table["value"].isna(), "reason"] != "").all()
    same = table[table["fault"] == "none"]
    np.testing.assert_array_equal(same["value"], same["corrected"])


def test_contributions(table, rows, one) -> None:
    h, a, m = (rows["lora", s, n] for s, n in (("embed", -1), ("attn_out", 0), ("mlp_out", 0)))
    ratio, cosine, count = 0.0, 0.0, 0
    for i in range(N):  # as published: all frames of all utterances, m against h
        for t in range(FRAMES):
            ratio += np.linalg.norm(m[i][t]) / max(np.linalg.norm(h[i][t]), 1e-6)
            norms = np.linalg.norm(m[i][t]) * np.linalg.norm(h[i][t])
            cosine += m[i][t] @ h[i][t] / norms
            count += 1
    where = {"capture": "lora", "layer": 0}
    all_ = one(table, quantity="ratio_mlp", fault="all", **where)
    np.testing.assert_allclose(all_["value"], ratio / count, rtol=1e-12)
    assert all_["n"] == N * FRAMES
    value = one(table, quantity="cosine_mlp", fault="all", **where)["value"]
    np.testing.assert_allclose(value, cosine / count, rtol=1e-12)

    means, flat = [], []
    for i in range(N):  # corrected: frames with audio, m against h + a, utterances alike
        v = slice(VALID[i])
        r = np.linalg.norm(m[i][v], axis=1) / np.linalg.norm((h[i] + a[i])[v], axis=1)
        means.append(r.mean())
        flat += r.tolist()
    none = one(table, quantity="ratio_mlp", fault="none", **where)
    np.testing.assert_allclose(none["value"], np.mean(means), rtol=1e-12)
    assert none["n"] == VALID.sum()
    micro = one(table, quantity="ratio_mlp", fault="micro-average", **where)["value"]
    np.testing.assert_allclose(micro, np.mean(flat), rtol=1e-12)
    assert abs(micro - none["value"]) > 1e-4


def _sv90(x: np.ndarray) -> int:
    energy = np.cumsum(np.linalg.svd(x, compute_uv=False) ** 2)
    return int(np.argmax(energy / energy[-1] >= 0.9)) + 1


def test_spectra(table, rows, one) -> None:
    every = {site: np.concatenate(rows["lora", site, 1]) for site in LORA_SITES}
    where = {"quantity": "sv90", "capture": "lora", "layer": 1}
    for site, x in every.items():
        shown = every["grad.lora_a.v"] if site == "grad.lora_b.v" else x
        assert one(table, site=site, fault="all", **where)["value"] == _sv90(shown)
        audio = np.concatenate([r[: VALID[i]] for i, r in enumerate(rows["lora", site, 1])])
        none = one(table, site=site, fault="none", **where)
        assert none["value"] == _sv90(audio - audio.mean(0))
        assert none["n"] == VALID.sum()
        assert one(table, site=site, fault="uncentred", **where)["value"] == _sv90(audio)
        value = one(table, site=site, fault="padding", **where)["value"]
        assert value == _sv90(x - x.mean(0))
    ratio = one(table, quantity="sv90_ratio", site="lora_a.v", fault="all")
    means = [
        np.mean([_sv90(np.concatenate(rows[c, "lora_a.v", n])) for n in (0, 1)])
        for c in ("random", "lora")
    ]
    np.testing.assert_allclose(ratio["value"], means[0] / means[1], rtol=1e-12)
    assert ratio["capture_b"] == "random"
    none = one(table, quantity="sv90_ratio", site="lora_b.v", fault="none")
    assert none["reason"] == "untrained: all values are 0: B = 0"


def _published_cka(x: np.ndarray, y: np.ndarray, *, rbf: bool) -> float:
    """Return the published function: centring matrices, biased HSIC."""
    n = len(x)
    if rbf:
        k, el = (
            np.exp(-((z[:, None] - z[None]) ** 2).sum(-1) / z.shape[1]).astype(np.float32)
            for z in (x, y)
        )
    else:
        k, el = ((z @ z.T).astype(np.float32) for z in (x, y))
    h = np.eye(n) - 1 / n

    def hsic(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.trace(a @ h @ b @ h)) / (n - 1) ** 2

    k, el = k.astype(np.float64), el.astype(np.float64)
    return hsic(k, el) / np.sqrt(hsic(k, k) * hsic(el, el))


def test_cka(table, rows, one) -> None:
    flat = {key: np.stack([r.reshape(-1) for r in part]) for key, part in rows.items()}
    where = {"fault": "all", "layer": 0}
    # float32 sums of about 1 against the reference's float64: 1e-5
    trained = one(table, quantity="cka_forward", capture="lora", **where)
    assert (trained["site"], trained["capture_b"], trained["site_b"]) == (
        "lora_a.v", "random", "lora_a.v",
    )  # fmt: skip
    x, y = flat["lora", "lora_a.v", 0], flat["random", "lora_a.v", 0]
    assert trained["value"] == pytest.approx(_published_cka(x, y, rbf=False), abs=1e-5)
    untrained = one(table, quantity="cka_forward", capture="random", **where)
    assert (untrained["capture_b"], untrained["site_b"]) == ("lora", "lora_b.v")
    x, y = flat["random", "lora_b.v", 0], flat["lora", "lora_b.v", 0]
    assert untrained["value"] == pytest.approx(_published_cka(x, y, rbf=True), abs=1e-5)
    backward = one(table, quantity="cka_backward", capture="lora", **where)
    x, y = flat["lora", "grad.lora_a.v", 0], flat["lora", "grad.lora_b.v", 0]
    assert backward["value"] == pytest.approx(_published_cka(x, y, rbf=True), abs=1e-5)
    # corrected: means over the frames with audio, debiased by the sums of Song et al.
    x, y = (
        np.stack([r[: VALID[i]].mean(0) for i, r in enumerate(rows["lora", site, 0])])
        for site in ("lora_a.v", "lora_b.v")
    )
    k, el = (z @ z.T - np.diag((z**2).sum(1)) for z in (x, y))

    def hsic(a: np.ndarray, b: np.ndarray) -> float:
        last = a.sum() * b.sum() / ((N - 1) * (N - 2))
        return np.trace(a @ b) + last - 2 / (N - 2) * (a @ b).sum()

    found = one(table, quantity="cka_forward", fault="none", capture="lora", layer=0)["value"]
    assert found == pytest.approx(hsic(k, el) / np.sqrt(hsic(k, k) * hsic(el, el)), abs=1e-10)


def test_lens_without_the_norm_reads_the_mean_of_all_rows(table, rows, one, store) -> None:
    capture = open_store(store).capture("lora")
    head = {k: np.asarray(v, np.float64) for k, v in dict(capture.parameters).items()}
    x = np.stack([r.mean(0) for r in rows["lora", "resid_post", 0]])
    x = x @ head["head.projector.weight"].T + head["head.projector.bias"]
    logits = x @ head["head.classifier.weight"].T + head["head.classifier.bias"]
    final = np.array(capture.read_output("logits"), np.float64)
    unseen = np.arange(N) % 4 != 0
    expected = mean_divergence(final[unseen], logits[unseen], frozenset())
    row = one(table, quantity="lens_kl", capture="lora", layer=0, fault="no-final-norm")
    assert row["value"] == pytest.approx(expected, rel=1e-12)
    assert row["n"] == unseen.sum()


def test_scores(table, store, one) -> None:
    logits = np.asarray(open_store(store).capture("lora").read_output("logits"))
    true, speaker = np.arange(N) % 2, np.arange(N) % 4
    hit = logits.argmax(1) == true
    seen = speaker == 0
    where = {"capture": "lora"}
    value = one(table, quantity="score", fault="accuracy", **where)["value"]
    assert value == pytest.approx(hit[~seen].mean())
    uar = np.mean([np.mean(hit[~seen & (true == c)]) for c in (0, 1)])
    assert one(table, quantity="score", fault="none", **where)["value"] == pytest.approx(uar)
    each = [float(np.mean(hit[speaker == s])) for s in (1, 2, 3)]
    value = one(table, quantity="score_std", fault="all", **where)["value"]
    assert value == pytest.approx(np.std(each, ddof=0))
