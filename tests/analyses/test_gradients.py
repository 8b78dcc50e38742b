"""Table `gradients` against pairs compared one by one, and noise of known size."""

import itertools
import json

import numpy as np
import pytest

from lorascope.analyses import ArrayKey, Block, MissingSitesError, Piece, analyze, to_tables
from lorascope.analyses.gradients.gradient_fold import GradientFold
from lorascope.analyses.statistics.resampling import jackknife_spread, weighted_median
from lorascope.analyses.tables import COLUMNS
from lorascope.store import Site, create_store

WIDTH = 6
SITE = "grad.resid_post"


def make_rows(n: int = 36, seed: int = 0) -> list[np.ndarray]:
    """Return rows of n samples, 1 to 4 each, whose classes (three in turn) and speakers show."""
    rng = np.random.default_rng(seed)
    classes, voices = rng.normal(size=(3, WIDTH)), rng.normal(size=(6, WIDTH))
    return [
        (rng.normal(size=(1 + i % 4, WIDTH)) + classes[i % 3] + voices[i // 6 % 6]).astype(
            np.float32
        )
        for i in range(n)
    ]


def write(path, rows, *, labels=None, speakers=None, site=SITE, capture="a", **attrs):
    described = {"trained": ["head", "adapter"], **attrs}
    site = site if isinstance(site, Site) else Site(site, [0], rows[0].shape[1])
    with create_store(path, capture=capture, sites=[site], attrs=described) as writer:
        for i, x in enumerate(rows):
            writer.append(
                f"u{i}",
                {site.name: x[None] if site.kind == "row" else x},
                label="abc"[i % 3] if labels is None else labels[i],
                groups=None if speakers is None else {"speaker": speakers[i]},
                exposed=i == 0,
            )
    return path


def table_of(path, **options):
    return to_tables(analyze(path, ["gradients"], **options))["gradients"]


def row_of(path, **options):
    (row,) = table_of(path, **options).to_dict("records")
    return row


def brute_force(gradients, labels, speakers=None) -> tuple[float, float]:
    """Return the mean cosine of all pairs of one class and of two, one pair at a time."""
    found: dict[bool, list[float]] = {True: [], False: []}
    for i, j in itertools.combinations(range(len(gradients)), 2):
        if speakers is not None and speakers[i] == speakers[j]:
            continue
        g, h = gradients[i], gradients[j]
        cosine = g @ h / np.linalg.norm(g) / np.linalg.norm(h)
        found[labels[i] == labels[j]].append(cosine)
    return float(np.mean(found[True])), float(np.mean(found[False]))


SPEAKERS = [f"s{i // 6}" for i in range(36)]
LABELS = ["abc"[i % 3] for i in range(36)]


def sums(rows) -> np.ndarray:
    return np.stack([x.astype(np.float64).sum(axis=0) for x in rows])


@pytest.mark.parametrize("speakers", [None, SPEAKERS])
def test_values_are_those_of_all_pairs(tmp_path, speakers) -> None:
    rows = make_rows()
    row = row_of(write(tmp_path / "s", rows, speakers=speakers))
    g = sums(rows)
    within, between = brute_force(g, LABELS, speakers)
    assert row["within_class_cosine"] == pytest.approx(within, abs=1e-12)
    assert row["between_class_cosine"] == pytest.approx(between, abs=1e-12)
    norms = np.linalg.norm(g, axis=1)
    assert row["norm_mean"] == pytest.approx(norms.mean(), rel=1e-12)
    assert row["norm_median"] == pytest.approx(np.median(norms), rel=1e-12)
    trace = np.trace(np.cov(g.T))
    noise = trace / (np.sum(g.mean(axis=0) ** 2) - trace / len(g))
    assert row["noise_scale"] == pytest.approx(noise, rel=1e-10)
    assert (row["n"], row["exposed"], row["reason"]) == (36, "all", "")
    names = ("norm_mean", "norm_median", "within_class_cosine", "noise_scale")
    for name in names:
        if speakers is None:
            assert np.isnan(row[f"{name}_low"])
        else:
            assert row[f"{name}_low"] < row[name] < row[f"{name}_high"]


def test_intervals_are_those_of_leaving_speakers_out(tmp_path) -> None:
    from scipy import stats

    rows = make_rows()
    row = row_of(write(tmp_path / "s", rows, speakers=SPEAKERS))
    g = sums(rows)
    left = []
    for speaker in sorted(set(SPEAKERS)):
        kept = [i for i in range(36) if SPEAKERS[i] != speaker]
        left.append(brute_force(g[kept], [LABELS[i] for i in kept], [SPEAKERS[i] for i in kept]))
    half = stats.t.ppf(0.975, 5) * np.sqrt(5 / 6 * np.square(left - np.mean(left, 0)).sum(0))
    for name, spread in zip(("within", "between"), half, strict=True):
        key = f"{name}_class_cosine"
        assert row[f"{key}_high"] - row[key] == pytest.approx(spread, rel=1e-9)
        assert row[key] - row[f"{key}_low"] == pytest.approx(spread, rel=1e-9)


def test_noise_scale_of_known_truth(tmp_path) -> None:
    """tr Σ / |G|² = 20 / 4 = 5 with n = 1500.

    Standard deviation of |G|²: √(4 G'ΣG/n) = √(16/1500) = 0.103, 2.6 % of 4; of tr Σ:
    √(2 · 20/1500) = 0.16, 0.8 %. Four of both together: 11 %.
    """
    rng = np.random.default_rng(0)
    mean = np.zeros(20)
    mean[0] = 2.0
    rows = [(mean + rng.normal(size=(1, 20))).astype(np.float32) for _ in range(1500)]
    assert row_of(write(tmp_path / "s", rows))["noise_scale"] == pytest.approx(5, rel=0.11)


def test_a_mean_gradient_of_zero_has_no_noise_scale(tmp_path) -> None:
    half = [x for pair in make_rows(18) for x in (pair, -pair)]
    row = row_of(write(tmp_path / "s", half))
    assert np.isnan(row["noise_scale"])
    assert "cannot be told from 0" in row["reason"]
    assert np.isfinite(row["within_class_cosine"])


def test_scale_and_rotation(tmp_path) -> None:
    rows = make_rows()
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(WIDTH, WIDTH)))[0]
    first = row_of(write(tmp_path / "a", [x.astype(np.float64) for x in rows],
                         site=Site(SITE, [0], WIDTH, dtype="float64"), speakers=SPEAKERS))  # fmt: skip
    other = row_of(write(tmp_path / "b", [3 * x.astype(np.float64) @ turn for x in rows],
                         site=Site(SITE, [0], WIDTH, dtype="float64"), speakers=SPEAKERS))  # fmt: skip
    for name in ("within_class_cosine", "between_class_cosine", "noise_scale"):
        assert other[name] == pytest.approx(first[name], rel=1e-9)
        assert other[f"{name}_low"] == pytest.approx(first[f"{name}_low"], rel=1e-9)
    assert other["norm_mean"] == pytest.approx(3 * first["norm_mean"], rel=1e-9)


def test_equal_gradients_have_cosine_one_and_no_noise(tmp_path) -> None:
    row = row_of(write(tmp_path / "s", [np.ones((2, WIDTH), np.float32)] * 9))
    assert row["within_class_cosine"] == pytest.approx(1, abs=1e-12)
    assert row["between_class_cosine"] == pytest.approx(1, abs=1e-12)
    assert row["noise_scale"] == pytest.approx(0, abs=1e-12)


KEY = ArrayKey("a", SITE, 0)


def fold_block(rows, start: int, stop: int) -> Block:
    part = rows[start:stop]
    offsets = np.concatenate([[0], np.cumsum([len(x) for x in part])]).astype(np.int64)
    values = np.concatenate([*part, np.empty((0, WIDTH), np.float32)])
    return Block(start, stop, {KEY: Piece(values, np.arange(start, stop), offsets)})


def test_any_chunking_and_merging_gives_the_same() -> None:
    rows = make_rows()
    fold = GradientFold(KEY, WIDTH, np.arange(36) % 5, 5)

    def states(*cuts: int):
        ends = itertools.pairwise([0, *cuts, 36])
        return [fold.add(fold.empty(), fold_block(rows, *part)) for part in ends]

    whole = fold.finish(states()[0])
    a, b, c = states(7, 8)
    left = fold.finish(fold.merge(fold.merge(a, b), c))
    a, b, c = states(7, 8)
    right = fold.finish(fold.merge(a, fold.merge(b, c)))
    a, b, c, d = states(0, 20, 35)
    mixed = fold.finish(fold.merge(fold.merge(d, fold.empty()), fold.merge(c, fold.merge(b, a))))
    for found in (left, right, mixed):
        for name in whole.__dataclass_fields__:
            np.testing.assert_allclose(
                getattr(found, name), getattr(whole, name), rtol=1e-12, atol=1e-12
            )
    assert fold.state_bytes(2) > 2 * (a.sum_cd.nbytes + a.unit_cd.nbytes)


def test_small_memory_gives_the_same_table(tmp_path) -> None:
    path = write(tmp_path / "s", make_rows(), speakers=SPEAKERS)
    whole = table_of(path, workers=1)
    # the smallest that is planned for: one tile of scratch
    cut = table_of(path, workers=3, memory="40MB")
    for name in COLUMNS["gradients"]:
        if whole[name].dtype.kind == "f":
            np.testing.assert_allclose(cut[name], whole[name], rtol=1e-12)
        else:
            assert list(cut[name].fillna(-1)) == list(whole[name].fillna(-1))


def test_zero_gradients(tmp_path) -> None:
    zero = [np.zeros((2, 3), np.float32)] * 6
    for number, (site, why) in enumerate(
        (("grad.lora_a.v_proj", "B = 0 passes none to A"), (SITE, "every gradient is 0"))
    ):
        row = row_of(write(tmp_path / f"{number}", zero, site=site))
        assert why in row["reason"]
        assert row["norm_mean"] == 0
        for name in ("within_class_cosine", "between_class_cosine", "noise_scale"):
            assert np.isnan(row[name])


def test_single_zeros_have_no_direction(tmp_path) -> None:
    rows = make_rows()
    rows[4] = rows[4] * 0
    row = row_of(write(tmp_path / "s", rows))
    kept = [i for i in range(36) if i != 4]
    within, _ = brute_force(sums(rows)[kept], [LABELS[i] for i in kept])
    assert row["within_class_cosine"] == pytest.approx(within, abs=1e-12)
    assert row["norm_mean"] == pytest.approx(np.linalg.norm(sums(rows), axis=1).mean(), rel=1e-12)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_bad_values_are_said(tmp_path, value) -> None:
    rows = make_rows()
    rows[5][0, 0] = value
    row = row_of(write(tmp_path / "s", rows))
    assert row["reason"] == "NaN or infinite gradients in 1 samples"
    assert np.isnan(row["norm_mean"])
    assert np.isnan(row["noise_scale"])


@pytest.mark.parametrize(
    ("labels", "speakers", "n", "why"),
    [
        (["a"] * 36, None, 36, "one class: no cosine between classes"),
        ([""] * 36, None, 36, "no sample has a label: no cosines"),
        (LABELS, ["s"] * 36, 36, "one speaker: no pairs of two"),
        (list("abcdefghi"), None, 9, "no two samples of one class to compare"),
        (LABELS, None, 3, "samples: 3; at least 4 are needed"),
    ],
)
def test_what_cannot_be_compared_is_said(tmp_path, labels, speakers, n, why) -> None:
    rows = make_rows()[:n]
    row = row_of(write(tmp_path / "s", rows, labels=labels, speakers=speakers))
    assert why in row["reason"]
    assert np.isnan([row["within_class_cosine"], row["between_class_cosine"]]).any()
    assert np.isfinite(row["norm_mean"])


def test_gradients_of_matrices_and_pools_without_rows(tmp_path) -> None:
    rows = [x[:1] for x in make_rows()]
    pool = Site(f"{SITE}.mean_valid", [0], WIDTH, kind="sample")
    weight = Site("grad.lora_a_weight.dec.v_proj", [0], WIDTH, kind="sample")
    expected, _ = brute_force(sums(rows), LABELS)
    for site, name, mask in ((pool, SITE, "mean_valid"), (weight, weight.name, "all")):
        row = row_of(write(tmp_path / site.name, rows, site=site))
        assert (row["site"], row["mask"]) == (name, mask)
        assert row["within_class_cosine"] == pytest.approx(expected, abs=1e-12)
    found = table_of(tmp_path / weight.name, sites=["grad.lora_a_weight"])
    assert len(found) == 1


def test_columns_attributes_and_a_store_without_gradients(tmp_path, study) -> None:
    path = write(tmp_path / "s", make_rows())
    dataset = analyze(path, ["gradients"])["gradients"]
    assert list(dataset.data_vars) == list(COLUMNS["gradients"])
    assert "shift" in dataset.attrs["gradient"]
    assert "weights" in json.loads(analyze(path)["gradients"].attrs["skipped"])
    with pytest.raises(MissingSitesError, match=r"record\.gradients"):
        analyze(study.path, ["gradients"])


def test_the_weighted_median_is_that_of_repeated_values() -> None:
    rng = np.random.default_rng(0)
    values, weights = rng.normal(size=9), rng.integers(0, 3, size=(20, 9)).astype(float)
    expected = [np.median(np.repeat(values, w.astype(int))) for w in weights]
    np.testing.assert_allclose(weighted_median(values)(weights), expected, rtol=1e-12)


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    from scipy import stats

    x = np.random.default_rng(0).normal(size=8)
    left = np.array([[np.delete(x, i).mean()] for i in range(8)])
    expected = stats.t.ppf(0.975, 7) * stats.sem(x)
    assert jackknife_spread(left[0], left, len(left)) == pytest.approx(expected, rel=1e-12)
    assert np.isnan(jackknife_spread(left[0], left[:2], 2)).all()
