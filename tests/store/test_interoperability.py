"""The store opens without lorascope: in zarr, in xarray and in TensorStore."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import tensorstore
import xarray as xr
import zarr

from lorascope.store import SampleRows, Site, copy_store, create_store, open_store

DTYPES = ["float16", "bfloat16", "float32", "float64"]


@pytest.fixture(scope="module", params=[True, False], ids=["planned", "unplanned"])
def fast_path(request, tmp_path_factory):
    """Three short segments of ragged samples, each storage type a site."""
    path = tmp_path_factory.mktemp("interop") / "s.zarr"
    sites = [Site(f"x.{dtype}", [0, 3], 5, dtype) for dtype in DTYPES]
    sites += [Site("x.mean", None, 5, kind="sample")]
    rng = np.random.default_rng(11)
    counts = [3, 1, 4, 2, 6]
    plan = [SampleRows(f"s{i}", {"tokens": n}) for i, n in enumerate(counts)]
    with create_store(
        path, capture="a", sites=sites, segment_samples=2, plan=plan if request.param else None
    ) as writer:
        for number, count in enumerate(counts):
            x = rng.standard_normal((2, count, 5)).astype(np.float32)
            values = {f"x.{dtype}": x for dtype in DTYPES} | {"x.mean": x[0].mean(0)}
            writer.append(f"s{number}", values, label="ärger", groups={"speaker": "01"})
    return path


@pytest.fixture(scope="module", params=["fast", "compact", "archive", "portable"])
def store_path(request, fast_path):
    """The same in every profile."""
    path = fast_path.with_name(request.param)
    if not path.exists():
        copy_store(fast_path, path, profile=request.param)
    return path


def used_rows(path) -> np.ndarray:
    """Row slots that hold a row, from the row column that plain readers see."""
    sample = zarr.open_array(path / "captures/a/rows/tokens/sample", mode="r")
    return np.flatnonzero(np.asarray(sample[:]) >= 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_zarr_and_tensorstore_read_the_same(fast_path, store_path, dtype):
    folder = store_path / f"captures/a/sites/x.{dtype}/values"
    array = zarr.open_array(folder, mode="r")
    plain = np.asarray(array[:])
    names = json.loads((folder / "zarr.json").read_text())["dimension_names"]
    assert names == ["layer", "row", "feature"]
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder)}}
    other = np.asarray(tensorstore.open(spec).result().read().result())
    assert other.tobytes() == plain.tobytes()
    used = used_rows(store_path)
    for position, layer in enumerate((0, 3)):
        ours = open_store(store_path).capture("a").read_rows(f"x.{dtype}", layer)
        np.testing.assert_array_equal(plain[position, used].astype(ours.dtype), ours)
        recorded = open_store(fast_path).capture("a").read_rows(f"x.{dtype}", layer)
        assert recorded.tobytes() == ours.tobytes()
        part = open_store(store_path).capture("a").read_rows(f"x.{dtype}", layer, slice(1, 4))
        np.testing.assert_array_equal(part, ours[3:10])
    unused = np.setdiff1d(np.arange(plain.shape[1]), used)
    assert len(unused)
    assert np.isnan(plain[:, unused].astype(np.float32)).all()


def test_xarray_opens_every_group(store_path):
    capture = store_path / "captures/a"
    for dtype in DTYPES:
        resid = xr.open_zarr(capture / f"sites/x.{dtype}", consolidated=False)
        assert resid["values"].dims == ("layer", "row", "feature")
        assert resid["layer"].to_numpy().tolist() == [0, 3]
        ours = open_store(store_path).capture("a").read_rows(f"x.{dtype}", 3)
        theirs = resid["values"].to_numpy()[1, used_rows(store_path)]
        np.testing.assert_array_equal(theirs.astype(ours.dtype), ours)
    pooled = xr.open_zarr(capture / "pooled/x.mean", consolidated=False)
    assert pooled["values"].dims == ("layer", "sample", "feature")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*vlen-utf8.*|.*string.*")
        samples = xr.open_zarr(capture / "samples", consolidated=False).load()
    assert [x for x in samples["id"].to_numpy().tolist() if x] == [f"s{i}" for i in range(5)]
    assert set(samples["label"].to_numpy().tolist()) <= {"ärger", ""}


def test_codecs_are_those_of_the_zarr_core(store_path):
    """Nothing that only one implementation knows: no `numcodecs.*`."""
    known = {"bytes", "transpose", "blosc", "crc32c", "sharding_indexed", "vlen-utf8"}
    named = set()
    for path in store_path.rglob("zarr.json"):
        codecs = json.loads(path.read_text()).get("codecs", [])
        inner = [c for codec in codecs for c in codec.get("configuration", {}).get("codecs", [])]
        named |= {codec["name"] for codec in [*codecs, *inner]}
    extra = {"compact": {"blosc"}, "archive": {"blosc", "transpose"}}
    assert named == known - {"blosc", "transpose"} | extra.get(store_path.name, set())


def test_the_root_opens_as_a_zarr_group(store_path):
    root = zarr.open_group(store_path, mode="r")
    assert root.attrs["format"] == "lorascope"
    values = root["captures/a/sites/x.float32/values"]
    assert isinstance(values, zarr.Array)
    assert values.shape[0] == 2


def test_a_flipped_bit_is_an_error_in_plain_zarr_too(store_path):
    folder = store_path / "captures/a/sites/x.float64/values"
    shard = next(folder.glob("c.0.0.0"))
    content = bytearray(shard.read_bytes())
    content[40] ^= 1
    shard.write_bytes(content)
    try:
        with pytest.raises(ValueError, match=r"(?i)checksum|crc"):
            zarr.open_array(folder, mode="r")[:]
    finally:
        content[40] ^= 1
        shard.write_bytes(content)
