"""Stores that an earlier release wrote are read for ever, value by value.

`golden/make.py` wrote them, `golden/closed_form.py` has what they hold. If a test here fails, a
change broke stores that people have: mend the change, never the stores.
"""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import zarr

from lorascope.store import (
    Capture,
    Store,
    create_store,
    open_store,
    repair_store,
    seal_store,
    verify_store,
)

from .golden import closed_form as golden

HERE = Path(__file__).parent / "golden"
IDS = list(golden.ROWS)
DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16)}
CONTENT_DIGEST = "14ee48336aadf6afd1dbda46b431a59b04b92c259995395bdbe4fd1be43cc6b0"
SEALED_CONTENT_DIGEST = "c76496964cfa1cd2e6d3109cffcdde9b96afd075b082c589cedc4af318c27885"
SEALED_MANIFEST_DIGEST = "f582618196f1e4648a83e443a3ea371d4c66886c6986c8a2f1b922a7bd6b45c2"


@pytest.fixture(scope="module")
def store() -> Store:
    return open_store(HERE / "v1.zarr")


@pytest.fixture(scope="module")
def planned(store) -> Capture:
    return store.capture("planned")


@pytest.mark.parametrize("name", ["v1.zarr", "v1-sealed.zarr"])
def test_they_are_sound_and_small(name):
    level = "full" if "sealed" in name else "default"
    report = verify_store(HERE / name, level)
    assert (report.damages, report.leftovers) == ([], [])
    assert sum(p.stat().st_size for p in (HERE / name).rglob("*") if p.is_file()) < 60_000


def test_captures_and_their_definitions(store, planned):
    assert (store.captures, store.state, store.manifest_digest) == (
        ["planned", "unplanned"],
        "open",
        None,
    )
    assert (planned.config, planned.attrs) == (golden.CONFIG, golden.ATTRS)
    assert planned.complete
    assert planned.groups == ("speaker",)
    sites = {s.name: (s.dtype, s.layers, s.stream) for s in planned.sites.values()}
    assert sites == golden.ROW_SITES
    assert list(planned.pooled) == [golden.POOLED[0]]


@pytest.mark.parametrize("site", golden.ROW_SITES)
def test_rows(planned, site):
    dtype, layers, stream = golden.ROW_SITES[site]
    column = ("encoder", "decoder").index(stream)
    counts = [rows[column] for rows in golden.ROWS.values()]
    assert planned.row_counts(stream).tolist() == counts
    for layer in layers or (None,):
        stored = planned.read_stored(site, layer)
        assert stored.dtype == DTYPES.get(dtype, dtype)
        position = -1 if layer is None else layer
        wanted = [golden.values(n, position, count) for n, count in enumerate(counts)]
        np.testing.assert_array_equal(stored.astype("float64"), np.concatenate(wanted))
    frames = [golden.positions(number, count) for number, count in enumerate(counts)]
    assert planned.read_positions(stream).tolist() == np.concatenate(frames).tolist()


def test_pooled_values_and_outputs(planned):
    name, _, layers = golden.POOLED
    for layer in layers:
        wanted = np.stack([golden.pooled(number, layer) for number in range(len(IDS))])
        np.testing.assert_array_equal(planned.read_pooled(name, layer), wanted)
    types = {"loss": "float32", "logits": "float64", "map": "int32", "right": "bool"}
    for output, dtype in types.items():
        wanted = np.stack([golden.outputs(number)[output] for number in range(len(IDS))])
        stored = planned.read_output(output)
        assert stored.dtype == dtype
        np.testing.assert_array_equal(stored, wanted)


def test_the_table_of_samples(planned):
    table = planned.samples
    assert table["id"].tolist() == IDS
    assert table["exposed"].tolist() == [number == 1 for number in range(len(IDS))]
    for number, row in enumerate(table.to_dict("records")):
        wanted = golden.facts(number) | golden.groups(number) | {"label": golden.label(number)}
        assert {name: row[name] for name in wanted} == wanted
        assert (row["n_rows.encoder"], row["n_rows.decoder"]) == golden.ROWS[row["id"]]
    assert table["segment"].tolist() == [0, 0, 0, 1, 1]


def test_parameters(planned):
    assert set(planned.parameters) == set(golden.PARAMETERS)
    assert planned.parameter_attrs == golden.PARAMETER_ATTRS
    for name, wanted in golden.PARAMETERS.items():
        stored = planned.parameters[name]
        assert (stored.dtype, stored.shape) == (wanted.dtype, wanted.shape)
        assert stored.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("name", ["v1.zarr", "v1-sealed.zarr"])
def test_an_unplanned_capture(name):
    capture = open_store(HERE / name).capture("unplanned")
    assert capture.samples["id"].tolist() == ["u0", "u1", "u2"]
    assert capture.samples["speaker"].tolist() == ["00", "01", "00"]
    wanted = [golden.values(number, 2, number + 1) for number in range(3)]
    np.testing.assert_array_equal(capture.read_rows("x", 2), np.concatenate(wanted))


def test_the_open_one_was_repaired_once(store):
    """Record 3 was withdrawn; the segment is there again, under record 7."""
    names = sorted(p.name for p in (HERE / "v1.zarr/__commits__").glob("*.json"))
    assert "repair-000000.json" in names
    assert "w0-000003.json" not in names
    segments = [r for r in store.log.records if r.kind == "segment" and r.capture == "planned"]
    assert sorted((r.segment, r.number) for r in segments) == [(0, 2), (1, 7)]


def test_their_digests(store):
    assert store.content_digest() == CONTENT_DIGEST
    sealed = open_store(HERE / "v1-sealed.zarr")
    assert sealed.state == "sealed"
    assert sealed.content_digest() == SEALED_CONTENT_DIGEST
    assert sealed.manifest_digest == SEALED_MANIFEST_DIGEST


def test_plain_zarr_reads_the_sealed_one_from_its_root():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*onsolidated.*|.*string.*|.*vlen.*")
        root = zarr.open_consolidated(HERE / "v1-sealed.zarr", mode="r")
        x = np.asarray(root["captures/unplanned/sites/x/values"][:])
        used = np.asarray(root["captures/unplanned/rows/tokens/sample"][:]) >= 0
    wanted = [golden.values(number, 2, number + 1) for number in range(3)]
    np.testing.assert_array_equal(x[0, used], np.concatenate(wanted))
    assert np.isnan(x[0, ~used]).all()


def test_the_open_one_can_be_gone_on_with_and_sealed(store, tmp_path):
    path = tmp_path / "v1.zarr"
    shutil.copytree(HERE / "v1.zarr", path)
    assert not repair_store(path).changed
    site = next(s for s in store.capture("unplanned").definition.sites)
    with create_store(path, capture="unplanned", sites=[site]) as writer:
        assert writer.committed == {"u0", "u1", "u2"}
        writer.append("u3", {"x": golden.values(3, 2, 4)[None]}, groups=golden.groups(3))
    grown = open_store(path).capture("unplanned").read_rows("x", 2)
    np.testing.assert_array_equal(grown[-4:], golden.values(3, 2, 4))
    assert seal_store(path).changed
    assert verify_store(path, "full").ok
