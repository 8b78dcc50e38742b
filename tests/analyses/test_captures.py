"""Samples are matched by id: captures and stores in other orders, or of some samples only."""

from __future__ import annotations

import numpy as np
import pytest

from lorascope.analyses import CKA, analyze, linear_cka, to_tables
from lorascope.store import Site, create_store


def write(path, capture: str, ids: list[int], offset: float = 0.0, seed: int = 0):
    """Write rows that depend on the sample's number alone; `offset` mixes in other noise."""
    site = Site("resid_post", [0], 4, "float64")
    with create_store(path, capture=capture, sites=[site], segment_samples=4) as writer:
        for i in ids:
            writer.append(f"u{i:02d}", {"resid_post": rows(i, offset, seed)})
    return path


def rows(i: int, offset: float = 0.0, seed: int = 0) -> np.ndarray:
    shared = np.random.default_rng(i).standard_normal((1, 2 + i % 3, 4))
    return shared + offset * np.random.default_rng((seed, i)).standard_normal(shared.shape)


def pooled(ids, offset: float = 0.0, seed: int = 0) -> np.ndarray:
    return np.stack([rows(i, offset, seed)[0].mean(0) for i in ids])


@pytest.mark.parametrize("memory", ["2GiB", "4MiB"])
def test_another_order_and_missing_samples(tmp_path, one, memory):
    """The pair is compared over the samples that both have, however each stores them."""
    path = write(tmp_path / "s", "a", list(range(20)))
    write(path, "b", [19, 3, 2, 1, 7, 8, 9, 0, 12, 15, 18, 17], 0.7)
    table = to_tables(analyze(path, [CKA()], memory=memory))["cka"]
    common = sorted([19, 3, 2, 1, 7, 8, 9, 0, 12, 15, 18, 17])
    expected = linear_cka([pooled(common), pooled(common, 0.7)])
    for name, found in expected.items():
        row = one(table, capture_a="a", capture_b="b", estimator=name)
        assert row["n"] == 12
        assert row["value"] == pytest.approx(found.value[0, 1], abs=1e-10)
    frame = one(table, capture_a="a", capture_b="b", granularity="frame")
    assert frame["n"] == 12 * 8
    assert frame["value"] > 0.2
    alone = one(table, capture_a="a", capture_b="a", estimator="debiased")
    assert alone["n"] == 20


def test_another_store(tmp_path, one):
    first = write(tmp_path / "s", "a", list(range(12)))
    second = write(tmp_path / "t", "a", list(range(15, 1, -1)), 0.5, seed=3)
    table = to_tables(analyze(first, ["cka"], against=second))["cka"]
    common = range(2, 12)
    expected = linear_cka([pooled(common), pooled(common, 0.5, 3)])["debiased"].value[0, 1]
    row = one(table, capture_a="a", capture_b="against:a", estimator="debiased")
    assert row["value"] == pytest.approx(expected, abs=1e-10)
    assert row["n"] == 10
    assert not table["capture_a"].str.startswith("against:").any(), "the other store alone: no"


def test_stores_without_common_samples_say_so(tmp_path, one):
    first = write(tmp_path / "s", "a", list(range(6)))
    second = write(tmp_path / "t", "b", list(range(10, 16)))
    table = to_tables(analyze(first, ["cka"], against=second))["cka"]
    row = one(table, capture_a="a", capture_b="against:b", estimator="biased")
    assert "0 common samples; HSIC needs at least 4" in row["reason"]
