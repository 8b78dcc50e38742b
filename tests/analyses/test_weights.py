"""Tables `weights` and `subspaces` against the products formed in full, and planted cases."""

import numpy as np
import pytest

from lorascope.analyses import MissingSitesError, analyze, to_tables
from lorascope.analyses.lora.adapters import find_scaling
from lorascope.analyses.lora.factors import (
    Product,
    count_intruders,
    left_vectors,
)
from lorascope.analyses.statistics.subspaces import leading_directions, overlap
from lorascope.analyses.tables import COLUMNS
from lorascope.store import Output, create_store

R, D_IN, D_OUT = 4, 20, 24
SCALING = 2.0


def factors(seed: int, *, r: int = R) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(r, D_IN)), rng.normal(size=(D_OUT, r))
    return a.astype(np.float32), b.astype(np.float32)


def write(path, capture, parameters, *, adapter=None, **attrs) -> None:
    """Write a capture of one sample and the given parameters."""
    adapter = {"r": R, "alpha": 8, "scaling": SCALING} if adapter is None else adapter
    described = {"adapter": adapter, "trained": ["head", "adapter"], **attrs}
    output = [Output("loss")]
    with create_store(path, capture=capture, sites=[], outputs=output, attrs=described) as writer:
        writer.append("u0", {}, label="a", outputs={"loss": np.float32(1)})
        if parameters:
            writer.write_parameters(parameters)


def named(a, b, stem="adapter.0.v_proj") -> dict[str, np.ndarray]:
    return {f"{stem}.lora_a": a, f"{stem}.lora_b": b}


def tables_of(path, **options):
    return to_tables(analyze(path, ["weights"], **options))


def full(a, b, matrix: str) -> np.ndarray:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return {"A": a, "B": b, "BA": SCALING * b @ a}[matrix]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Three moments of a training, a capture that was not trained, and one without an adapter."""
    path = tmp_path_factory.mktemp("weights") / "s.zarr"
    write(path, "frozen", {}, trained=["head"])
    a, b = factors(0)
    write(path, "untrained", named(a, 0 * b), trained=["head"])
    for seed, (name, step) in enumerate((("lora.step0", 0), ("lora.step5", 5), ("lora", 9))):
        da, db = factors(seed)
        moved = named(a + 0.1 * seed * da, b + 0.2 * seed * db)
        write(path, name, moved, of="lora", step=step)
    return path


@pytest.fixture(scope="module")
def found(path):
    return tables_of(path)


@pytest.mark.parametrize("matrix", ["A", "B", "BA"])
def test_measures_are_those_of_the_matrix_formed_in_full(found, one, matrix) -> None:
    a, b = factors(0)
    da, db = factors(2)
    whole = full(a + 0.2 * da, b + 0.4 * db, matrix)
    sigma = np.linalg.svd(whole, compute_uv=False)[:R]
    energy = np.cumsum(sigma**2) / np.sum(sigma**2)
    p = sigma / sigma.sum()
    row = one(found["weights"], capture="lora", matrix=matrix)
    expected = {
        "sv90": int(np.argmax(energy >= 0.9)) + 1,
        "erank": np.exp(-np.sum(p * np.log(p))),
        "stable_rank": np.sum(sigma**2) / sigma[0] ** 2,
        "fro_norm": np.linalg.norm(whole),
    }
    for name, value in expected.items():
        # the moved factors are stored as float32
        assert row[name] == pytest.approx(value, rel=1e-6), name
    assert (row["n"], row["exposed"], row["module"], row["layer"]) == (R, "only", "v_proj", 0)


@pytest.mark.parametrize("matrix", ["A", "B", "BA"])
def test_drift_is_that_of_the_matrices_formed_in_full(found, one, matrix) -> None:
    a, b = factors(0)
    da, db = factors(1)
    first, now = full(a, b, matrix), full(a + 0.1 * da, b + 0.2 * db, matrix)
    row = one(found["weights"], capture="lora.step5", matrix=matrix)
    assert row["first_step"] == 0
    change = np.linalg.norm(now - first) / np.linalg.norm(first)
    assert row["change_from_first"] == pytest.approx(change, rel=1e-5)
    cosine = (now * first).sum() / np.linalg.norm(now) / np.linalg.norm(first)
    assert row["cosine_to_first"] == pytest.approx(cosine, rel=1e-6)
    start = one(found["weights"], capture="lora.step0", matrix=matrix)
    assert start["change_from_first"] == pytest.approx(0, abs=1e-12)
    assert start["cosine_to_first"] == pytest.approx(1, abs=1e-12)
    assert np.isnan(one(found["weights"], capture="untrained", matrix=matrix)["first_step"])


def test_b_of_zeros_gives_no_spectrum_but_a_norm(found, one) -> None:
    for matrix in ("B", "BA"):
        row = one(found["weights"], capture="untrained", matrix=matrix)
        assert np.isnan(row["erank"])
        assert row["fro_norm"] == 0
        assert row["reason"].startswith("B = 0")
        assert row["exposed"] == "none"
    assert one(found["weights"], capture="untrained", matrix="A")["reason"] == ""


def test_columns_and_captures(found) -> None:
    for name in ("weights", "subspaces"):
        assert list(found[name].columns) == list(COLUMNS[name])
    assert "frozen" not in set(found["weights"]["capture"])
    # moments are compared with the end of their training, not with each other or other captures
    pairs = set(zip(found["subspaces"]["capture_a"], found["subspaces"]["capture_b"], strict=True))
    assert pairs == {("untrained", "lora"), ("lora.step0", "lora"), ("lora.step5", "lora")}


def test_overlap_is_the_mean_squared_cosine_of_principal_angles(found, pick) -> None:
    from scipy.linalg import subspace_angles

    a, b = factors(0)
    da, db = factors(2)
    rows = pick(found["subspaces"], capture_a="lora.step0", capture_b="lora")
    assert list(pick(rows, matrix="A")["directions"]) == [1, 2, 4]
    for matrix, first, now in (("A", a.T, (a + 0.2 * da).T), ("B", b, b + 0.4 * db)):
        row = pick(rows, matrix=matrix, directions=R).iloc[0]
        expected = np.mean(np.cos(subspace_angles(first, now)) ** 2)
        assert row["overlap"] == pytest.approx(expected, rel=1e-5)
        assert row["overlap_random"] == R / len(first)
    empty = pick(found["subspaces"], capture_a="untrained", matrix="B").iloc[0]
    assert np.isnan(empty["overlap"])
    assert empty["reason"] == "B = 0"


def test_random_directions_share_count_over_features() -> None:
    rng = np.random.default_rng(0)
    draws = [
        overlap(
            leading_directions(rng.normal(size=(40, 5))),
            leading_directions(rng.normal(size=(40, 5))),
        )
        for _ in range(400)
    ]
    # standard deviation of one draw is below 0.06, of the mean of 400 below 0.003
    assert np.mean(draws) == pytest.approx(5 / 40, abs=0.012)


def test_products_do_not_depend_on_how_they_are_factored() -> None:
    a, b = (x.astype(np.float64) for x in factors(3))
    mix = np.random.default_rng(4).normal(size=(R, R))
    one, other = Product(b, a), Product(b @ mix, np.linalg.solve(mix, a))
    np.testing.assert_allclose(one.singular_values(), other.singular_values(), rtol=1e-10)
    assert one.minus(other).norm() == pytest.approx(0, abs=1e-10 * one.norm())
    assert one.dot(other) == pytest.approx(one.norm() ** 2, rel=1e-10)


def test_rank_above_the_sides_is_no_error() -> None:
    rng = np.random.default_rng(0)
    b, a = rng.normal(size=(3, 7)), rng.normal(size=(7, 5))
    sigma = np.linalg.svd(b @ a, compute_uv=False)
    np.testing.assert_allclose(Product(b, a).singular_values(), sigma, rtol=1e-10)


@pytest.mark.parametrize(
    ("adapter", "rank", "expected"),
    [
        ({"scaling": 2.0}, 4, 2.0),
        ({"scaling": 2.0, "r": 4, "alpha": 8}, 4, 2.0),
        ({"scaling": 2.0, "r": 4, "alpha": 8}, 2, 4.0),
        ({"scaling": 4.0, "r": 4, "alpha": 8, "rslora": True}, 16, 2.0),
        ({"alpha": 8}, 4, 2.0),
        ({"alpha": 8, "alpha_pattern": {"v": 4}}, 4, None),
        ({"scaling": 2.0, "r": 4}, 2, None),
        ({"scaling": "2", "alpha": True}, 4, None),
        ({"scaling": float("nan")}, 4, None),
        (None, 4, None),
    ],
)
def test_scaling(adapter, rank, expected) -> None:
    assert find_scaling(adapter, rank) == expected


def planted(angle: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return W, A and B: BA adds a direction, larger than all of W, at an angle to W's vectors.

    W has the left singular vectors e_0 … e_9 of 12 outputs; the added vector is
    cos(angle) e_0 + sin(angle) e_11.
    """
    w = np.zeros((12, 10))
    w[:10, :10] = np.diag(np.linspace(2, 1, 10))
    b = np.zeros((12, 1))
    b[0], b[11] = np.cos(angle), np.sin(angle)
    a = np.zeros((1, 10))
    a[0, 9] = 50.0
    return w, a, b


@pytest.mark.parametrize(("angle", "expected"), [(np.pi / 2, 1), (0.0, 0), (np.pi / 4, 0)])
def test_a_planted_intruder_is_found(tmp_path, one, angle, expected) -> None:
    w, a, b = planted(angle)
    parameters = named(a, b) | {"base.0.v_proj": w}
    write(tmp_path / "s", "lora", parameters, adapter={"scaling": 1.0})
    row = one(tables_of(tmp_path / "s")["weights"], matrix="BA")
    assert row["intruders"] == expected
    assert row["reason"] == ""


def test_intruders_are_those_of_a_direct_count(tmp_path, one) -> None:
    rng = np.random.default_rng(0)
    w = rng.normal(size=(D_OUT, D_IN)).astype(np.float32)
    a, b = factors(5)
    write(tmp_path / "s", "lora.step0", named(a, b), of="lora", step=0)
    write(tmp_path / "s", "lora", named(a, b) | {"base.0.v_proj": w}, of="lora", step=3)
    u0 = np.linalg.svd(w.astype(np.float64))[0][:, :D_IN]
    u1 = np.linalg.svd(w + full(a, b, "BA"))[0]
    count = 0
    for j in range(10):
        count += all(abs(u1[:, j] @ u0[:, i]) < 0.5 for i in range(D_IN))
    rows = tables_of(tmp_path / "s")["weights"]
    assert one(rows, capture="lora", matrix="BA")["intruders"] == count > 0
    # a moment of the training finds the base weight at its end
    assert one(rows, capture="lora.step0", matrix="BA")["intruders"] == count


def test_an_adapter_of_zeros_has_no_intruders() -> None:
    w = np.random.default_rng(1).normal(size=(12, 10))
    vectors = left_vectors(w)
    assert count_intruders(vectors, vectors, first=10, similar=0.5) == 0


def test_what_cannot_be_computed_is_said(tmp_path, one) -> None:
    a, b = factors(0)
    broken = a.copy()
    broken[0, 0] = np.nan
    write(tmp_path / "s", "nan", named(broken, b))
    write(tmp_path / "s", "shape", named(a, b[:, :2]))
    write(tmp_path / "s", "scale", named(a, b), adapter={"type": "lora"})
    write(tmp_path / "s", "base", named(a, b) | {"base.0.v_proj": np.ones((2, 2))})
    rows = tables_of(tmp_path / "s")["weights"]
    for capture, why in (
        ("nan", "NaN or infinite weights"),
        ("shape", "are not those of A and B"),
        ("scale", "the scaling of the adapter is unknown"),
        ("base", "the base weight has shape (2, 2)"),
    ):
        row = one(rows, capture=capture, matrix="BA")
        assert why in row["reason"]
        assert np.isnan(row["intruders"])
    scale = one(rows, capture="scale", matrix="BA")
    assert np.isnan(scale["fro_norm"])
    assert scale["erank"] > 1
    tight = tables_of(tmp_path / "s", memory="30kB")["weights"]
    assert len(tight) == len(rows)


def test_a_store_without_an_adapter_says_what_to_do(study) -> None:
    with pytest.raises(MissingSitesError, match=r"captures\.<name>\.adapter"):
        analyze(study.path, ["weights"])


def test_modules_outside_of_layers_and_the_filter_of_layers(tmp_path) -> None:
    a, b = factors(0)
    parameters = named(a, b) | named(a, b, "adapter.2.decoder.q") | named(a, b, "adapter.proj.x")
    write(tmp_path / "s", "lora", parameters | named(a, b, "grad.adapter.1.v_proj"))
    rows = tables_of(tmp_path / "s")["weights"]
    places = set(zip(rows["module"], rows["layer"].fillna(-1), strict=True))
    assert places == {("v_proj", 0), ("decoder.q", 2), ("proj.x", -1)}
