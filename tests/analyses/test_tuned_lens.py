"""The tuned lens: its solver against scipy, known translators, the identity, and no leakage."""

import tracemalloc

import numpy as np
import pytest
from scipy import optimize
from scipy.special import log_softmax

from lorascope.analyses import MemoryBudgetError, TunedLens, analyze, to_tables
from lorascope.analyses.behaviour import translator
from lorascope.analyses.behaviour.translator import (
    PENALTIES,
    Design,
    choose_penalty,
    count_bytes,
    fit_translators,
    fold_groups,
    translate_left_out,
)
from lorascope.store import Output, Site, create_store


def kl(log_p: np.ndarray, log_q: np.ndarray) -> np.ndarray:
    return np.sum(np.exp(log_p) * (log_p - log_q), axis=1)


def problem(n: int, d: int, k: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return features, logits of the lens and the model's log-probabilities, loosely related."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) * rng.uniform(0.2, 3, size=d) + rng.normal(size=d)
    head = rng.normal(size=(d, k)) / np.sqrt(d)
    model = log_softmax(2 * x @ rng.normal(size=(d, k)) / np.sqrt(d) + rng.normal(size=k), axis=1)
    return x, x @ head, model


def refit(
    x: np.ndarray, offset: np.ndarray, model: np.ndarray, penalty: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return weights and constant of the minimum by scipy's Newton in float64, on x as it is."""
    n, k = offset.shape
    x = np.column_stack([x, np.ones(n)])

    def loss(point: np.ndarray) -> tuple[float, np.ndarray]:
        said = log_softmax(offset + x @ point.reshape(-1, k), axis=1)
        slope = (x.T @ (np.exp(said) - np.exp(model)) / n).ravel() + penalty * point
        return float(kl(model, said).mean() + penalty / 2 * point @ point), slope

    def hessian(point: np.ndarray) -> np.ndarray:
        p = np.exp(log_softmax(offset + x @ point.reshape(-1, k), axis=1))
        inner = np.einsum("nk,kj->nkj", p, np.eye(k)) - np.einsum("nk,nj->nkj", p, p)
        whole = np.einsum("nd,nkj,ne->dkej", x, inner, x, optimize=True) / n
        return whole.reshape(point.size, point.size) + penalty * np.eye(point.size)

    found = optimize.minimize(
        loss, np.zeros(x.shape[1] * k), jac=True, hess=hessian, method="trust-exact", tol=1e-10
    )
    point = found.x.reshape(-1, k)
    return point[:-1], point[-1]


def standardise(train: np.ndarray, held: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean, deviation = train.mean(axis=0), train.std(axis=0)
    return (train - mean) / deviation, (held - mean) / deviation


@pytest.mark.parametrize(("n", "d", "k"), [(60, 5, 3), (24, 40, 4)])
@pytest.mark.parametrize("penalty", [1.0, 1e-2])
def test_a_fold_equals_scipy(n: int, d: int, k: int, penalty: float) -> None:
    x, offset, model = problem(n + 10, d, k)
    design = Design.of(x[:n], x[n:])
    weights = np.ones((n, 2))
    weights[: n // 3, 1] = 0  # a second fit, of a part of the same training samples
    theta = fit_translators(
        design, offset[:n], model[:n], weights, np.full(2, penalty), tolerance=1e-10
    )
    assert theta is not None
    train, held = standardise(x[:n], x[n:])
    for fit in range(2):
        used = weights[:, fit] > 0
        v, c = refit(train[used], offset[:n][used], model[:n][used], penalty)
        # an error of at most gradient / penalty: 1e-10 · sqrt(eigenvalue) · sqrt(size) / 0.01
        np.testing.assert_allclose(design.held_mr @ theta[:, fit], held @ v + c, atol=2e-6)


def test_the_penalty_is_that_of_refits_of_every_inner_fold() -> None:
    x, offset, model = problem(48, 12, 3, seed=3)
    model = log_softmax(model + np.random.default_rng(4).normal(size=model.shape), axis=1)
    group = np.arange(48) % 6
    held = group == 0
    design = Design.of(x[~held], x[held])
    train = standardise(x[~held], x[held])[0]
    own = fold_groups(group[~held])
    assert own.max() == 4
    scores = [kl(model[~held], log_softmax(offset[~held], axis=1)).mean()]
    for penalty in PENALTIES[1:]:
        total = 0.0
        for fold in range(5):
            used = own != fold
            v, c = refit(train[used], offset[~held][used], model[~held][used], penalty)
            said = log_softmax(offset[~held] + train @ v + c, axis=1)
            total += kl(model[~held], said)[~used].sum()
        scores.append(total / own.size)
    best = PENALTIES[int(np.argmin(scores))]
    assert best not in (PENALTIES[0], PENALTIES[-1])  # the choice has something to choose
    assert choose_penalty(design, offset[~held], model[~held], group[~held]) == best


def test_a_known_translator_is_found() -> None:
    """The layer is an affine image of the last one: V = H W exists, and more samples than V."""
    rng = np.random.default_rng(1)
    last = rng.normal(size=(200, 6))
    head = rng.normal(size=(6, 4))
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0] * rng.uniform(0.5, 2, size=6)
    layer = last @ turn + rng.normal(size=6)
    model, lens = log_softmax(last @ head, axis=1), layer @ head
    group = np.repeat(np.arange(5), 40)
    said, penalty = translate_left_out(layer, lens, model, group)
    assert (penalty == PENALTIES[-1]).all()
    bare = kl(model, log_softmax(lens, axis=1)).mean()
    assert bare > 1
    assert kl(model, said).mean() < 0.01 * bare  # what the weakest penalty leaves
    held = group == 0
    design = Design.of(layer[~held], layer[held])
    every = np.ones((160, 1))
    theta = fit_translators(design, lens[~held], model[~held], every, np.array([1e-10]))
    assert theta is not None
    free = log_softmax(lens[held] + design.held_mr @ theta[:, 0], axis=1)
    assert kl(model[held], free).max() < 1e-6


def test_nothing_to_learn_is_the_lens_itself() -> None:
    x, offset, model = problem(60, 8, 3)
    group = np.arange(60) % 5
    # the layer says already what the model says: no fit moves
    said, _ = translate_left_out(x, model + 3.0, model, group)
    np.testing.assert_allclose(said, model, rtol=0, atol=1e-12)
    # features of no use (each sample has its own): the infinite penalty, bit for bit
    lens = model + 0.1 * np.tile([[1.0, -1.0], [-1.0, 1.0]], (30, 1))[:, [0, 1, 0]]
    said, penalty = translate_left_out(np.eye(60), lens, model, group)
    assert np.isinf(penalty).all()
    np.testing.assert_array_equal(said, log_softmax(lens, axis=1))
    # and a strong penalty comes to it as 1 / penalty
    design, every = Design.of(x, x), np.ones((60, 1))
    theta = fit_translators(design, offset, model, every, np.array([1e12]), tolerance=1e-14)
    assert theta is not None
    assert 0 < np.abs(design.basis_nr @ theta[:, 0]).max() < 1e-10


def test_the_speaker_who_is_left_out_changes_nothing_of_its_own_fit() -> None:
    x, offset, model = problem(60, 5, 3)
    group = np.arange(60) % 5
    said, penalty = translate_left_out(x, offset, model, group)
    own = group == 2
    other = model.copy()
    other[own] = model[own][::-1]
    changed, penalties = translate_left_out(x, offset, other, group)
    np.testing.assert_array_equal(changed[own], said[own])
    assert penalties[2] == penalty[2]
    assert (changed[~own] != said[~own]).any(axis=1).all()  # the other folds were fitted on them
    # nor do its features enter the scale: one sample of it that moves, moves alone
    moved = x.copy()
    at = int(np.flatnonzero(own)[0])
    moved[at] += 100.0
    after, _ = translate_left_out(moved, offset, model, group)
    rest = own.copy()
    rest[at] = False
    np.testing.assert_allclose(after[rest], said[rest], rtol=0, atol=1e-12)


def test_groups_are_put_into_equal_parts() -> None:
    group = np.repeat([0, 1, 2, 3, 4, 5, 6], [9, 1, 1, 1, 2, 2, 3])
    part = fold_groups(group)
    assert len({(int(g), int(p)) for g, p in zip(group, part, strict=True)}) == 7
    assert sorted(np.bincount(part).tolist()) == [2, 2, 3, 3, 9]
    assert fold_groups(np.array([4, 4, 7])).tolist() == [0, 0, 1]


def test_memory_is_what_was_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(translator, "_CHOICE_TOLERANCE", 1e-3)  # the sizes stay, the time does not
    x, offset, model = problem(300, 200, 4)
    x = x.astype(np.float32)
    tracemalloc.start()
    translate_left_out(x, offset, model, np.arange(300) % 4)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 0.3 * count_bytes(300, 200, 4) < peak < count_bytes(300, 200, 4)


@pytest.fixture(scope="module")
def tables(study):
    return to_tables(analyze(study.path, [TunedLens(), "lens"], workers=1))


def test_the_table_holds_scores_of_speakers_left_out(study, tables) -> None:
    table, lens = tables["tuned_lens"], tables["lens"]
    assert len(table) == len(lens) == 12
    assert (table["reason"] == "").all()
    both = table.merge(lens, on=["capture", "site", "layer"], suffixes=("", "_bare"))
    for name in ("kl_final_layer", "js", "overlap", "uar"):
        np.testing.assert_allclose(both[f"lens_{name}"], both[f"{name}_bare"], rtol=1e-12, atol=0)
        np.testing.assert_allclose(
            both[f"delta_{name}"], both[name] - both[f"lens_{name}"], rtol=0, atol=1e-12
        )
    assert (both["n"] == 24).all()  # 16 of 40 were in the training part of the head
    row = table[(table["capture"] == "lora") & (table["layer"] == 0)].iloc[0]
    used = ~study.exposed["lora"]
    x = np.stack(study.pooled["lora", "resid_post.mean_all_normed"])[used, 0].astype(float)
    head = {name.removeprefix("head."): v.astype(float) for name, v in study.head.items()}
    hidden = x @ head["projector.weight"].T + head["projector.bias"]
    logits = hidden @ head["classifier.weight"].T + head["classifier.bias"]
    model = log_softmax(study.logits["lora"][used].astype(float), axis=1)
    speakers = np.unique(np.asarray(study.speakers)[used], return_inverse=True)[1]
    said, penalty = translate_left_out(x, logits, model, speakers)
    assert row["kl_final_layer"] == pytest.approx(kl(model, said).mean(), rel=1e-6)
    assert row["penalty"] == np.median(penalty)
    assert row["overlap"] == np.mean(said.argmax(1) == model.argmax(1))
    chance = [
        kl(model[i : i + 1], np.log(np.exp(model[speakers != speakers[i]]).mean(0))[None])[0]
        for i in range(24)
    ]
    assert row["chance_kl"] == pytest.approx(np.mean(chance), rel=1e-12)
    assert row["delta_kl_final_layer_low"] <= row["delta_kl_final_layer"]
    assert row["delta_kl_final_layer"] <= row["delta_kl_final_layer_high"]


def test_exposed_speakers_may_be_fitted_on_but_never_scored(study) -> None:
    options = {"captures": ["lora"], "layers": [0], "sites": ["resid_post"]}
    found = to_tables(analyze(study.path, [TunedLens(fit_exposed=True)], **options))
    row = found["tuned_lens"].iloc[0]
    assert (row["n"], row["exposed"]) == (24, "none")
    x = np.stack(study.pooled["lora", "resid_post.mean_all_normed"])[:, 0].astype(float)
    head = {name.removeprefix("head."): v.astype(float) for name, v in study.head.items()}
    hidden = x @ head["projector.weight"].T + head["projector.bias"]
    logits = hidden @ head["classifier.weight"].T + head["classifier.bias"]
    model = log_softmax(study.logits["lora"].astype(float), axis=1)
    speakers = np.unique(study.speakers, return_inverse=True)[1]
    said, penalty = translate_left_out(x, logits, model, speakers)  # all five, each left out
    used = ~study.exposed["lora"]
    assert row["kl_final_layer"] == pytest.approx(kl(model, said)[used].mean(), rel=1e-6)
    assert row["penalty"] == np.median(penalty[2:])
    only, penalties = translate_left_out(x, logits, model, speakers, used)
    np.testing.assert_array_equal(only[used], said[used])
    assert np.isnan(only[~used]).all()
    np.testing.assert_array_equal(penalties, penalty[2:])


def test_the_last_layer_needs_no_translator(tables) -> None:
    last = tables["tuned_lens"]
    last = last[(last["site"] == "resid_post") & (last["layer"] == 2)]
    # the stored logits are float32: what they differ by is 1e-7 of a logit
    assert last["kl_final_layer"].max() < 1e-10
    assert (last["overlap"] == 1).all()


def test_workers_and_memory_change_nothing(study, tables) -> None:
    options = {"captures": ["lora"], "workers": 3, "memory": "8MiB"}
    again = to_tables(analyze(study.path, ["tuned_lens"], **options))["tuned_lens"]
    before = tables["tuned_lens"]
    before = before[before["capture"] == "lora"].reset_index(drop=True)
    np.testing.assert_allclose(
        again["kl_final_layer"], before["kl_final_layer"], rtol=1e-9, atol=1e-12
    )
    with pytest.raises(MemoryBudgetError, match="the tuned lens of embed"):
        analyze(study.path, ["tuned_lens"], memory="64KiB")


@pytest.mark.parametrize(
    ("n", "speakers", "trained", "reason"),
    [
        (20, 2, [], "2 speakers; at least 3 are needed"),
        (8, 4, [], "8 samples; at least 10 are needed"),
        (20, 4, ["head"], "every sample was in the training part"),
    ],
)
def test_too_little_gives_a_reason(tmp_path, n: int, speakers: int, trained, reason: str) -> None:
    pool = Site("resid_post.mean_all_normed", [0], 3, kind="sample")
    attrs = {"labels": ["a", "b"], "trained": trained}
    outputs = [Output("logits", (2,))]
    with create_store(
        tmp_path / "s.zarr", capture="c", sites=[pool], outputs=outputs, attrs=attrs
    ) as writer:
        for i in range(n):
            x = np.random.default_rng(i).normal(size=(1, 3)).astype(np.float32)
            writer.append(
                f"u{i}",
                {pool.name: x},
                label="ab"[i % 2],
                groups={"speaker": str(i % speakers)},
                exposed=bool(trained),
                outputs={"logits": x[0, :2]},
            )
        writer.write_parameters({"head.classifier.weight": np.eye(2, 3, dtype=np.float32)})
    row = to_tables(analyze(tmp_path / "s.zarr", ["tuned_lens"]))["tuned_lens"].iloc[0]
    assert reason in row["reason"]
    assert np.isnan(row["kl_final_layer"])
