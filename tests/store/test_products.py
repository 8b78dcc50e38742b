"""Sites that are stored as factors are read like any other."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lorascope.store import (
    DamagedStoreError,
    MissingSiteError,
    Product,
    SampleError,
    Site,
    copy_store,
    create_store,
    open_store,
    seal_store,
    verify_store,
)

PRODUCT = Product("b.v", "a.v", 7, ["w.0.b", "w.2.b"])
ROWS = (3, 1, 4)


def make(path, *, products=(PRODUCT,), dtype="float32", **options):
    rng = np.random.default_rng(0)
    sites = [Site("a.v", layers=(0, 2), width=3, dtype=dtype), Site("embed", None, 5)]
    with create_store(
        path, capture="x", sites=sites, products=products, segment_samples=2, **options
    ) as writer:
        for i, rows in enumerate(ROWS):
            values = {"a.v": rng.standard_normal((2, rows, 3)), "embed": np.zeros((rows, 5))}
            writer.append(str(i), {k: v.astype(np.float32) for k, v in values.items()})
        matrices = {f"w.{i}.b": rng.standard_normal((7, 3)).astype(np.float32) for i in (0, 2)}
        writer.write_parameters(matrices)
    return matrices


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_product_is_read_like_a_stored_site(tmp_path, dtype):
    matrices = make(tmp_path / "s.zarr", dtype=dtype)
    store = open_store(tmp_path / "s.zarr")
    capture = store.capture("x")
    assert set(capture.sites) == {"a.v", "embed", "b.v"}
    assert set(capture.stored_sites) == {"a.v", "embed"}
    info = capture.sites["b.v"]
    assert (info.width, info.layers, info.dtype, info.stream) == (7, (0, 2), "float32", "tokens")
    data = store.dataset(capture="x", site="b.v")
    assert data["values"].shape == (2, 8, 7)
    for position, layer in enumerate((0, 2)):
        a = capture.read_rows("a.v", layer).astype(np.float64)
        expected = a @ matrices[f"w.{layer}.b"].T
        # float32 sums of 3 products
        np.testing.assert_allclose(capture.read_rows("b.v", layer), expected, atol=2e-6)
        got = data["values"].isel(layer=position).to_numpy()
        np.testing.assert_allclose(got, expected, atol=2e-6)
        part = capture.read_rows("b.v", layer, slice(1, 3))
        np.testing.assert_allclose(part, expected[3:], atol=2e-6)
    np.testing.assert_array_equal(
        data["position"], store.dataset(capture="x", site="a.v")["position"]
    )
    with pytest.raises(MissingSiteError, match=r"no layer 1 of site 'b\.v'\. Present: 0, 2"):
        capture.read_rows("b.v", 1)
    with pytest.raises(MissingSiteError, match=r"Present: a\.v, embed, b\.v"):
        capture.read_rows("c.v", 1)


def test_nothing_of_a_product_is_on_the_disk(tmp_path):
    make(tmp_path / "s.zarr")
    assert not list((tmp_path / "s.zarr").rglob("*b.v*"))
    assert verify_store(tmp_path / "s.zarr").damages == []
    make(tmp_path / "plain.zarr", products=())
    # factors are counted, so the products add nothing to what identifies the content
    plain, made = open_store(tmp_path / "plain.zarr"), open_store(tmp_path / "s.zarr")
    assert plain.content_digest() == made.content_digest()


def test_copies_and_sealed_stores_keep_products(tmp_path):
    make(tmp_path / "s.zarr")
    seal_store(tmp_path / "s.zarr")
    copy_store(tmp_path / "s.zarr", tmp_path / "c.zarr", profile="archive")
    expected = open_store(tmp_path / "s.zarr").capture("x").read_rows("b.v", 2)
    np.testing.assert_array_equal(
        open_store(tmp_path / "c.zarr").capture("x").read_rows("b.v", 2), expected
    )


@pytest.mark.parametrize(
    ("product", "message"),
    [
        (Product("b.v", "nowhere", 7, ["w.0.b", "w.2.b"]), r"source of b\.v is no row site"),
        (Product("embed", "a.v", 7, ["w.0.b", "w.2.b"]), "embed is stored and a product"),
        (Product("b.v", "a.v", 7, ["w.0.b"]), r"b\.v has not one parameter a layer"),
        (Product("b.v", "a.v", 0, ["w.0.b", "w.2.b"]), r"width of b\.v"),
        (Product("A.v", "a.v", 7, ["w.0.b", "w.2.b"]), "sites"),
    ],
)
def test_products_that_cannot_be_are_refused(tmp_path, product, message):
    with pytest.raises(SampleError, match=message):
        make(tmp_path / "s.zarr", products=(product,))
    assert not (tmp_path / "s.zarr" / "captures" / "x").exists()


def test_a_matrix_that_is_missing_or_of_another_shape_is_told(tmp_path):
    make(tmp_path / "s.zarr", products=(Product("b.v", "a.v", 6, ["w.0.b", "gone"]),))
    capture = open_store(tmp_path / "s.zarr").capture("x")
    with pytest.raises(DamagedStoreError, match=r"shape \(7, 3\), but b\.v needs \[6, 3\]"):
        capture.read_rows("b.v", 0)
    with pytest.raises(MissingSiteError, match="no parameter 'gone'"):
        capture.read_rows("b.v", 2)


def test_forged_products_are_refused_before_anything_is_made(tmp_path):
    make(tmp_path / "s.zarr")
    path = tmp_path / "s.zarr/captures/x/zarr.json"
    node = json.loads(path.read_text())
    node["attributes"]["products"][0]["width"] = 2**40
    path.write_text(json.dumps(node))
    with pytest.raises(DamagedStoreError):
        open_store(tmp_path / "s.zarr")
