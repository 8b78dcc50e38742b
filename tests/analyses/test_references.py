"""Every table against a plain computation in float64 on the arrays that the store was made of."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from lorascope.analyses import analyze, to_tables

LABELS = ("anger", "happiness", "neutral", "sadness")


@pytest.fixture(scope="module")
def tables(study):
    return to_tables(analyze(study.path, workers=1))


def one(table, **where):
    """Return the only row with these values."""
    for column, value in where.items():
        table = table[table[column].isna() if value is None else table[column] == value]
    assert len(table) == 1, f"{len(table)} rows for {where}"
    return table.iloc[0]


def hsic1(k: np.ndarray, m: np.ndarray) -> float:
    """Return the unbiased HSIC by its definition (Song et al. 2012, equation 5)."""
    n = len(k)
    k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    cross = k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k @ m).sum()
    return float((np.trace(k @ m) + cross) / (n * (n - 3)))


def cka(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Return biased and debiased linear CKA from dense Gram matrices in float64."""
    x, y = x - x.mean(0), y - y.mean(0)
    k, m = x @ x.T, y @ y.T
    biased = (k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum())
    return float(biased), hsic1(k, m) / np.sqrt(hsic1(k, k) * hsic1(m, m))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (("frozen", "resid_post", 0), ("frozen", "resid_post", 2)),
        (("frozen", "embed", None), ("lora", "mlp_out", 1)),
        (("lora", "lora_a.v_proj", 1), ("lora", "lora_b.v_proj", 1)),
        (("frozen", "resid_post", 2), ("lora", "resid_post", 2)),
    ],
)
def test_pooled_cka(study, tables, a, b):
    """1e-6: the pooled values are stored in float32."""
    x, y = (
        np.array([v[layer or 0] for v in study.pooled[capture, f"{site}.mean_valid"]], np.float64)
        for capture, site, layer in (a, b)
    )
    table = tables["cka"][tables["cka"]["granularity"] == "pooled"]
    names = ("capture", "site", "layer")
    there = {f"{n}_a": v for n, v in zip(names, a, strict=True)}
    there |= {f"{n}_b": v for n, v in zip(names, b, strict=True)}
    back = {f"{n}_b": v for n, v in zip(names, a, strict=True)}
    back |= {f"{n}_a": v for n, v in zip(names, b, strict=True)}
    for estimator, expected in zip(("biased", "debiased"), cka(x, y), strict=True):
        rows = [r for w in (there, back) if len(r := pick(table, estimator=estimator, **w))]
        assert rows, f"no row for {a} and {b}"
        assert rows[0]["value"].iloc[0] == pytest.approx(expected, abs=1e-6)
        assert rows[0]["n"].iloc[0] == len(x)


def pick(table, **where):
    for column, value in where.items():
        table = table[table[column].isna() if value is None else table[column] == value]
    return table


def test_what_is_constant_has_no_similarity_and_says_why(tables):
    """B = 0 in the untrained adapter: its output is constant, and no number would be right."""
    table = tables["cka"]
    rows = table[(table["capture_a"] == "untrained") & (table["site_a"] == "lora_b.v_proj")]
    rows = rows[rows["granularity"] == "pooled"]
    assert len(rows)
    assert rows["value"].isna().all()
    assert rows["reason"].str.len().gt(0).all()


def test_independent_features_have_debiased_cka_around_zero(tmp_path, make_store):
    """Biased CKA of independent data comes near 1 for n < d, debiased stays near 0."""
    rng = np.random.default_rng(4)
    layers = [rng.standard_normal((40, 1, 400)) for _ in range(2)]
    path = make_store(tmp_path / "s", layers, speakers=[f"{i % 8}" for i in range(40)])
    table = to_tables(analyze(path, ["cka"]))["cka"]
    pair = table[(table["layer_a"] != table["layer_b"]) & (table["granularity"] == "pooled")]
    values = dict(zip(pair["estimator"], pair["value"].astype(float), strict=True))
    ceiling = dict(zip(pair["estimator"], pair["null_ceiling"].astype(float), strict=True))
    assert values["biased"] == pytest.approx(400 / (40 + 400), abs=0.03)
    assert ceiling["biased"] == pytest.approx(values["biased"], abs=0.03)
    # Three standard deviations of the null, 1 / sqrt(n (n - 3) / 2).
    assert abs(values["debiased"]) < 3 / np.sqrt(40 * 37 / 2)


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (lambda x, q: x @ q, True),
        (lambda x, q: 7.5 * x, True),
        (lambda x, q: x + 30, True),
        (lambda x, q: x * np.arange(1, 1 + x.shape[-1]), False),
    ],
    ids=["rotation", "scale", "shift", "stretch"],
)
def test_what_cka_does_not_see(tmp_path, make_store, change, same):
    rng = np.random.default_rng(5)
    x = rng.standard_normal((30, 1, 8))
    y = x[..., ::-1] * 0.5 + rng.standard_normal((30, 1, 8))
    rotation = np.linalg.qr(rng.standard_normal((8, 8)))[0]
    values = []
    for name, layers in {"a": [x, y], "b": [change(x, rotation), y]}.items():
        table = to_tables(analyze(make_store(tmp_path / name, layers), ["cka"]))["cka"]
        rows = table[(table["layer_a"] != table["layer_b"]) & (table["granularity"] == "pooled")]
        values.append(rows.set_index("estimator")["value"])
    difference = (values[0] - values[1]).abs().max()
    assert difference < 1e-10 if same else difference > 1e-2


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize(("site", "layer"), [("resid_post", 1), ("lora_a.v_proj", 2)])
def test_spectra(study, tables, centred, site, layer):
    """1e-5: products in float32, sums in float64 (ANALYSES: 6e-5 over all values at most)."""
    x = study.rows("lora", site, layer).astype(np.float64)
    sigma = np.linalg.svd(x - x.mean(0) if centred else x, compute_uv=False)
    where = {"capture": "lora", "site": site, "layer": layer, "centred": centred}
    stored = pick(tables["spectrum"], **where).sort_values("index")["singular_value"].to_numpy()
    np.testing.assert_allclose(stored, sigma[: len(stored)], rtol=1e-5)
    assert len(stored) == len(sigma)
    row = one(tables["svd"], **where)
    energy = np.cumsum(sigma**2) / np.sum(sigma**2)
    p = sigma / sigma.sum()
    assert row["n"] == len(x)
    assert row["sv90"] == np.argmax(energy >= 0.9) + 1
    assert row["sv90"] - 1 <= row["sv90_interpolated"] <= row["sv90"]
    assert row["top10_energy"] == pytest.approx(energy[min(10, len(energy)) - 1], rel=1e-5)
    assert row["erank"] == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-4)
    assert row["stable_rank"] == pytest.approx((sigma**2).sum() / sigma[0] ** 2, rel=1e-4)
    ratio = (sigma**2).sum() ** 2 / (sigma**4).sum()
    assert row["participation_ratio"] == pytest.approx(ratio, rel=1e-4)


@pytest.mark.parametrize(
    ("capture", "site", "layer", "unexposed"),
    [("frozen", "resid_post", 1, False), ("lora", "resid_post", 2, True)],
)
def test_probe_is_a_plain_loop_over_speakers(study, tables, capture, site, layer, unexposed):
    """The same answers as scikit-learn; the trained adapter's exposed samples are left out."""
    kept = ~study.exposed[capture] if unexposed else np.ones(len(study.ids), bool)
    x = np.array([v[layer] for v in study.pooled[capture, f"{site}.mean_valid"]], np.float64)[kept]
    y, speakers = np.array(study.labels)[kept], np.array(study.speakers)[kept]
    predicted = np.empty_like(y)
    for speaker in np.unique(speakers):
        test = speakers == speaker
        scaler = StandardScaler().fit(x[~test])
        model = LogisticRegression(C=0.01, tol=1e-8, max_iter=10_000)
        model.fit(scaler.transform(x[~test]), y[~test])
        predicted[test] = model.predict(scaler.transform(x[test]))
    uar = np.mean([(predicted[y == label] == label).mean() for label in LABELS])
    table = tables["probe"]
    rows = pick(table, capture=capture, site=site, layer=layer, fold="all")
    assert len(rows) == 1
    assert rows["uar"].iloc[0] == pytest.approx(uar, abs=1e-9)
    assert rows["war"].iloc[0] == pytest.approx((predicted == y).mean(), abs=1e-9)
    assert rows["n"].iloc[0] == kept.sum()
    assert rows["exposed"].iloc[0] == "none"
    low, high = rows["uar_low"].iloc[0], rows["uar_high"].iloc[0]
    assert low <= uar <= high


def test_lens(study, tables):
    """The last layer is the model itself; a layer before it is the head on its normed pool."""
    scored = ~study.exposed["frozen"]
    head = {name: value.astype(np.float64) for name, value in study.head.items()}

    def logits(layer: int) -> np.ndarray:
        x = np.array(
            [v[layer] for v in study.pooled["frozen", "resid_post.mean_all_normed"]], np.float64
        )[scored]
        hidden = x @ head["head.projector.weight"].T + head["head.projector.bias"]
        return hidden @ head["head.classifier.weight"].T + head["head.classifier.bias"]

    table = pick(tables["lens"], capture="frozen")
    last = one(table, layer=2)
    assert last["kl_final_layer"] <= 1e-6
    assert last["kl_layer_final"] <= 1e-6
    assert last["overlap"] == 1
    first, final = logits(0), study.logits["frozen"][scored].astype(np.float64)
    p, log_p, log_q = softmax(final, 1), log_softmax(final, 1), log_softmax(first, 1)
    row = one(table, layer=0)
    # 1e-5: the stored pool and logits are float32.
    assert row["kl_final_layer"] == pytest.approx((p * (log_p - log_q)).sum(1).mean(), rel=1e-5)
    reverse = (np.exp(log_q) * (log_q - log_p)).sum(1).mean()
    assert row["kl_layer_final"] == pytest.approx(reverse, rel=1e-5)
    assert row["overlap"] == pytest.approx((first.argmax(1) == final.argmax(1)).mean())
    shares = [np.bincount(z.argmax(1), minlength=4) / len(z) for z in (first, final)]
    assert row["chance_overlap"] == pytest.approx((shares[0] * shares[1]).sum())


@pytest.mark.parametrize("layer", [0, 2])
def test_contribution(study, tables, layer):
    """|a|/|h|, |m|/|h+a|, |a+m|/|h|: mean over frames, then samples; medians over frames."""
    means: dict[str, list[float]] = {"attention": [], "mlp": [], "layer": []}
    frames: dict[str, list[np.ndarray]] = {name: [] for name in means}
    for number in range(len(study.ids)):
        before = ("embed", 0) if layer == 0 else ("resid_post", layer - 1)
        h = study.arrays["frozen", before[0]][number][before[1]].astype(np.float64)
        a = study.arrays["frozen", "attn_out"][number][layer].astype(np.float64)
        m = study.arrays["frozen", "mlp_out"][number][layer].astype(np.float64)
        pairs = {"attention": (a, h), "mlp": (m, h + a), "layer": (a + m, h)}
        for name, (part, whole) in pairs.items():
            ratio = np.linalg.norm(part, axis=1) / np.linalg.norm(whole, axis=1)
            means[name].append(ratio.mean())
            frames[name].append(ratio)
    for name, expected in means.items():
        row = one(tables["contribution"], capture="frozen", layer=layer, component=name)
        assert row["ratio_mean"] == pytest.approx(np.mean(expected), rel=1e-6)
        # Medians come from bins 0.46 % wide.
        median = np.median(np.concatenate(frames[name]))
        assert row["ratio_median"] == pytest.approx(median, rel=0.0046)


def test_scores_use_samples_that_no_training_saw(study, tables):
    scored = ~study.exposed["lora"]
    answers = np.array(LABELS)[study.logits["lora"].argmax(1)][scored]
    truth = np.array(study.labels)[scored]
    row = one(tables["outputs"], capture="lora")
    assert row["war"] == pytest.approx((answers == truth).mean())
    recalls = [(answers[truth == label] == label).mean() for label in LABELS]
    assert row["uar"] == pytest.approx(np.mean(recalls))
    assert row["n"] == scored.sum()
    assert pick(tables["confusion"], capture="lora")["count"].sum() == scored.sum()
