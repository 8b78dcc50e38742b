"""A against B from one side and the matrix; the null of random orientation; what has no answer."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from lorascope.analyses import Alignment, MissingSitesError, analyze, linear_cka, to_tables
from lorascope.analyses.lora.projection import Turned
from lorascope.store import Site, create_store

RANK, WIDTH = 4, 12


def rows_of(rng: np.random.Generator, width: int) -> np.ndarray:
    """Rows of unequal directions, away from 0, [300, width]."""
    return rng.normal(size=(300, width)) * np.linspace(3, 0.3, width) + 5


def write(path, b: np.ndarray | None, *, a_rows=None, layers=(2,), valid_n=None):
    """Write A's outputs and the gradients at B's of one module, 30 samples of 10 rows.

    `valid_n`: how many rows of each sample hold audio, in a store of all frames.
    """
    rng = np.random.default_rng(0)
    a_rows = rows_of(rng, RANK) if a_rows is None else a_rows
    g_rows = rows_of(rng, WIDTH) / 1e6  # gradients are small
    sites = [
        Site("lora_a.v_proj", list(layers) or None, RANK),
        Site("grad.lora_b.v_proj", list(layers) or None, WIDTH),
    ]
    attrs = {} if valid_n is None else {"record": {"frames": "all"}}
    with create_store(path, capture="lora", sites=sites, attrs=attrs) as writer:
        if b is not None:
            layer = "".join(f"{n}." for n in layers)
            writer.write_parameters({f"adapter.{layer}v_proj.lora_b": b})
        for i in range(30):
            at = slice(10 * i, 10 * i + 10)
            values = {"lora_a.v_proj": a_rows[at], "grad.lora_b.v_proj": g_rows[at]}
            rows = {k: v[None] if layers else v for k, v in values.items()}
            columns = {} if valid_n is None else {"valid_frames": int(valid_n[i])}
            writer.append(f"s{i}", rows, columns=columns)
    return path, a_rows, g_rows


def b_matrix(seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(WIDTH, RANK)) * [3, 1, 1, 0.5]


def table(path, **options):
    return to_tables(analyze(path, [Alignment(**options)]))["alignment"].set_index("direction")


@pytest.mark.parametrize("layers", [(2,), ()])
def test_both_directions_equal_cka_of_the_rows(tmp_path, layers) -> None:
    """Rows of the partner are made here: B' times the outputs of A, B times the gradients."""
    b = b_matrix()
    path, a_rows, g_rows = write(tmp_path / "s", b, layers=layers)
    found = table(path)
    for direction, x, y in (("forward", a_rows, a_rows @ b.T), ("backward", g_rows, g_rows @ b)):
        expected = linear_cka([x.astype("f4"), y])["biased"].value[0, 1]
        assert found.loc[direction, "value"] == pytest.approx(expected, abs=1e-6)  # float32 sums
        assert found.loc[direction, "n"] == 300
        assert found.loc[direction, "module"] == "v_proj"
        assert found.loc[direction, "reason"] == ""


def test_the_null_is_that_of_matrices_drawn_and_multiplied(tmp_path) -> None:
    """Drawn here: Q D V' with Q of the orthogonal group, applied to rows; same distribution."""
    b = b_matrix()
    path, a_rows, g_rows = write(tmp_path / "s", b)
    found = table(path, draws=999)
    sigma = np.linalg.svd(b, compute_uv=False)
    rng = np.random.default_rng(3)
    drawn = {"forward": [], "backward": []}
    for _ in range(999):
        left = np.linalg.qr(rng.normal(size=(WIDTH, RANK)))[0]
        right = np.linalg.qr(rng.normal(size=(RANK, RANK)))[0]
        other = left * sigma @ right.T
        for direction, x, p in (("forward", a_rows, other.T), ("backward", g_rows, other)):
            c = x - x.mean(axis=0)
            y = c @ p
            cka = np.sum((c.T @ y) ** 2) / np.linalg.norm(c.T @ c) / np.linalg.norm(y.T @ y)
            drawn[direction].append(cka)
    for direction, values in drawn.items():
        error = 5 * np.std(values) * np.sqrt(2 / 999)
        assert found.loc[direction, "null_mean"] == pytest.approx(np.mean(values), abs=error)
        # ends of 999 draws have a standard error of about .01 of the probability
        for name, point in (("null_low", 0.025), ("null_high", 0.975)):
            assert np.mean(values <= found.loc[direction, name]) == pytest.approx(point, abs=0.025)
        above, below = (
            np.mean(values >= found.loc[direction, "value"]),
            np.mean(values <= found.loc[direction, "value"]),
        )
        assert found.loc[direction, "p_value"] == pytest.approx(2 * min(above, below), abs=0.1)


def test_a_random_matrix_is_in_its_null() -> None:
    """p of Haar matrices is uniform: 400 of them, Kolmogorov-Smirnov."""
    rng = np.random.default_rng(4)
    energy, sigma = np.array([5.0, 3, 1, 0.5, 0.1]), np.array([2.0, 1, 0.3])
    p_values = []
    for seed in range(400):
        turned = Turned(energy, np.linalg.qr(rng.normal(size=(5, 3)))[0] * sigma)
        null = turned.draw(99, seed)
        p_values.append((np.sum(null >= turned.cka()) + rng.uniform()) / 100)
    assert stats.kstest(p_values, "uniform").pvalue > 0.001


def test_flat_spectra_leave_one_value() -> None:
    """Rows alike in all directions, orthonormal B: every orientation gives √(r/d)."""
    turned = Turned(np.ones(16), np.eye(16)[:, :4])
    assert turned.cka() == pytest.approx(np.sqrt(4 / 16), abs=1e-12)
    np.testing.assert_allclose(turned.draw(20, 0), np.sqrt(4 / 16), atol=1e-12)


def test_a_matrix_along_the_first_direction_leaves_the_null(tmp_path) -> None:
    a_rows = rows_of(np.random.default_rng(5), RANK)
    b = np.zeros((WIDTH, RANK))
    b[0, 0], b[1, 1] = 1.0, 0.1  # A's first output has the largest variance
    found = table(write(tmp_path / "s", b, a_rows=a_rows)[0])
    assert found.loc["forward", "value"] > found.loc["forward", "null_high"]
    assert found.loc["forward", "p_value"] < 0.05


@pytest.mark.parametrize(
    ("b", "reason"),
    [
        (None, "the store holds no matrix adapter.2.v_proj.lora_b of this width"),
        (np.ones((WIDTH, RANK + 1)), "the store holds no matrix"),
        (np.zeros((WIDTH, RANK)), "B = 0"),
        (np.full((WIDTH, RANK), np.inf), "NaN or infinite values in B"),
    ],
)
def test_no_usable_matrix_is_a_reason(tmp_path, b, reason: str) -> None:
    row = table(write(tmp_path / "s", b)[0]).loc["forward"]
    assert np.isnan(row["value"])
    assert np.isnan(row["p_value"])
    assert row["reason"].startswith(reason)


@pytest.mark.parametrize(
    ("value", "reason"), [(np.nan, "NaN or infinite features"), (1.5, "constant features")]
)
def test_rows_without_a_geometry_are_a_reason(tmp_path, value: float, reason: str) -> None:
    a_rows = np.full((300, RANK), value)
    found = table(write(tmp_path / "s", b_matrix(), a_rows=a_rows)[0])
    assert np.isnan(found.loc["forward", "value"])
    assert found.loc["forward", "reason"] == reason
    assert found.loc["backward", "reason"] == ""


def test_without_lora_sites_it_is_refused_by_name(tmp_path, make_store) -> None:
    path = make_store(tmp_path / "s", [np.ones((5, 2, 3))])
    with pytest.raises(MissingSitesError, match=r"needs rows of lora_a.*record.sites"):
        analyze(path, ["alignment"])


def test_padding_is_told_apart(tmp_path) -> None:
    """Padding lies far off in the direction that audio has least of."""
    valid_n = np.random.default_rng(3).integers(3, 10, 30)
    audio = np.concatenate([10 * i + np.arange(n) for i, n in enumerate(valid_n)])
    a_rows = rows_of(np.random.default_rng(0), RANK)
    a_rows[np.setdiff1d(np.arange(300), audio)] = [0, 0, 0, 50]
    b = b_matrix()
    path, a_rows, g_rows = write(tmp_path / "s", b, a_rows=a_rows, valid_n=valid_n)
    found = to_tables(analyze(path, ["alignment", "svd"]))["alignment"]
    assert len(found) == 4
    for mask, rows in (("valid", audio), ("all", slice(None))):
        part = found[found["mask"] == mask].set_index("direction")
        for direction, every, p in (("forward", a_rows, b.T), ("backward", g_rows, b)):
            x = every[rows]
            expected = linear_cka([x.astype("f4"), x @ p])["biased"].value[0, 1]
            assert part.loc[direction, "value"] == pytest.approx(expected, abs=1e-6)
            assert part.loc[direction, "n"] == len(x)
    forward = found[found["direction"] == "forward"].set_index("mask")["value"]
    assert abs(forward["valid"] - forward["all"]) > 0.02


def test_spectra_and_alignment_share_one_pass(tmp_path) -> None:
    path = write(tmp_path / "s", b_matrix())[0]
    together = analyze(path, ["svd", "alignment"])
    alone = analyze(path, ["svd"])
    assert together["svd"].attrs["bytes_read"] == alone["svd"].attrs["bytes_read"]
    np.testing.assert_array_equal(together["svd"]["sv90"], alone["svd"]["sv90"])
