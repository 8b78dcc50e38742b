"""A sealed store names all its bytes, never changes, and a crash while sealing costs nothing."""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

from lorascope.store import (
    DamagedStoreError,
    IncompleteCaptureError,
    InvalidStoreError,
    LockedStoreError,
    SealedStoreError,
    UnsealedStoreError,
    create_store,
    open_store,
    repair_store,
    seal_store,
    verify_store,
)

from .dying_disk import count_operations, crash_points, die_at
from .two_captures import COUNTS, SITES, write


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("finished") / "s.zarr")


@pytest.fixture(scope="module")
def sealed(finished, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("sealed") / "s.zarr"
    shutil.copytree(finished, path)
    seal_store(path)
    return path


def content_of(path: Path) -> dict[str, bytes]:
    """Every file of a store but the lock."""
    files = [p for p in path.rglob("*") if p.is_file() and p.name != "store.lock"]
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in files}


def test_the_manifest_names_every_file_and_its_sha256(finished, sealed):
    manifest = json.loads((sealed / "MANIFEST.json").read_text())
    files = content_of(sealed)
    del files["MANIFEST.json"]
    assert [f["path"] for f in manifest["files"]] == sorted(files)
    for entry in manifest["files"]:
        content = files[entry["path"]]
        assert entry["size"] == len(content)
        assert entry["sha256"] == hashlib.sha256(content).hexdigest()
    rows = [[f["path"], f["size"], f["sha256"]] for f in manifest["files"]]
    text = json.dumps(rows, separators=(",", ":"))
    assert manifest["manifest_digest"] == hashlib.sha256(text.encode()).hexdigest()
    store = open_store(sealed)
    assert store.manifest_digest == manifest["manifest_digest"]
    assert manifest["content_digest"] == store.content_digest()
    assert manifest["content_digest"] == open_store(finished).content_digest()
    assert (store.state, open_store(finished).state) == ("sealed", "open")
    assert open_store(finished).manifest_digest is None


def test_sealing_again_changes_nothing_and_says_so(sealed):
    before = content_of(sealed)
    report = seal_store(sealed)
    assert not report.changed
    assert report.files == len(before) - 1
    assert content_of(sealed) == before


def test_the_report_counts_what_the_manifest_names(finished, tmp_path):
    path = tmp_path / "s.zarr"
    shutil.copytree(finished, path)
    (path / "README.md").write_text("A card beside the data belongs to the sealed store.")
    report = seal_store(path)
    files = content_of(path)
    del files["MANIFEST.json"]
    assert report.changed
    assert (report.files, report.bytes) == (len(files), sum(map(len, files.values())))
    assert "README.md" in files
    assert verify_store(path, "full").ok


@pytest.mark.parametrize("capture", ["p", "u"])
def test_zarr_and_xarray_read_the_consolidated_metadata(sealed, capture, tmp_path):
    """From the root alone: the other `zarr.json` are taken away."""
    path = tmp_path / "s.zarr"
    shutil.copytree(sealed, path)
    for other in (path / "captures").rglob("zarr.json"):
        other.unlink()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*onsolidated metadata.*|.*string.*|.*vlen.*")
        root = zarr.open_consolidated(path)
        members = dict(root.members(max_depth=None))
        values = xr.open_zarr(path, group=f"captures/{capture}/sites/x", consolidated=True)
        samples = xr.open_zarr(path, group=f"captures/{capture}/samples", consolidated=True)
        assert samples["id"].to_numpy().tolist() == [f"s{i}" for i in range(5)]
    nodes = {p.parent.relative_to(sealed).as_posix() for p in sealed.rglob("captures/**/zarr.json")}
    assert set(members) == nodes
    used = np.asarray(root[f"captures/{capture}/rows/tokens/sample"][:]) >= 0
    assert used.sum() == sum(COUNTS)
    stored = open_store(sealed).capture(capture).read_rows("x", 3)
    plain = values["values"].isel(layer=1).to_numpy()[used].astype("float32")
    np.testing.assert_array_equal(plain, stored)


def test_a_sealed_store_is_not_written_to(sealed):
    before = content_of(sealed)
    with pytest.raises(SealedStoreError, match="name another path"):
        create_store(sealed, capture="new", sites=SITES)
    with pytest.raises(SealedStoreError):
        write(sealed)
    assert content_of(sealed) == before


def test_an_incomplete_plan_is_refused_or_trimmed(tmp_path):
    path = write(tmp_path / "s.zarr", captures="p", stop=2)
    before = content_of(path)
    with pytest.raises(IncompleteCaptureError, match="2 of 5 planned samples"):
        seal_store(path)
    assert content_of(path) == before
    assert seal_store(path, incomplete=True).incomplete == ("p",)
    assert verify_store(path, "full").ok
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root = zarr.open_consolidated(path)
        assert root["captures/p/sites/x/values"].shape == (2, sum(COUNTS[:2]), 5)
        assert root["captures/p/samples/id"].shape == (2,)


def test_what_nobody_committed_is_swept(finished, tmp_path):
    path = tmp_path / "s.zarr"
    shutil.copytree(finished, path)
    strays = ["captures/p/sites/x/values/c.0.7.0", "captures/stray/zarr.json", "__commits__/note"]
    for stray in [*strays, "__commits__/staging/half"]:
        (path / stray).parent.mkdir(parents=True, exist_ok=True)
        (path / stray).write_bytes(b"x")
    assert verify_store(path).ok
    assert verify_store(path).leftovers == sorted([*strays, "__commits__/staging/half"])
    seal_store(path)
    assert not any((path / stray).exists() for stray in strays)
    assert not (path / "captures/stray").exists()
    assert verify_store(path, "full").ok


def test_damage_is_not_sealed(finished, tmp_path):
    path = tmp_path / "s.zarr"
    shutil.copytree(finished, path)
    shard = path / "captures/u/sites/x/values/c.1.1.0"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\0")
    with pytest.raises(DamagedStoreError, match=r"c\.1\.1\.0.*lorascope repair"):
        seal_store(path)
    assert open_store(path).state == "open"
    assert not (path / "MANIFEST.json").exists()


def test_a_writer_keeps_the_seal_out(finished, tmp_path):
    path = tmp_path / "s.zarr"
    shutil.copytree(finished, path)
    with (
        create_store(path, capture="live", sites=SITES),
        pytest.raises(LockedStoreError, match="being written by process"),
    ):
        seal_store(path)


def test_every_file_of_a_sealed_store_is_checked_by_full(sealed, tmp_path):
    """One bit of each file, a file too many, a file too few."""
    path = tmp_path / "s.zarr"
    shutil.copytree(sealed, path)
    for name in content_of(sealed):
        target = path / name
        content = bytearray(target.read_bytes())
        content[len(content) // 3] ^= 1
        target.write_bytes(content)
        try:
            assert not verify_store(path, "full").ok, f"{name} was not noticed"
        except InvalidStoreError:
            assert name == "zarr.json"
        content[len(content) // 3] ^= 1
        target.write_bytes(content)
    assert verify_store(path, "full").ok
    (path / "notes.txt").write_text("not named")
    assert [d.kind for d in verify_store(path, "full").damages] == ["unnamed"]
    assert verify_store(path).ok
    (path / "notes.txt").unlink()
    (path / "MANIFEST.json").unlink()
    assert [d.kind for d in verify_store(path, "quick").damages] == ["manifest"]
    with pytest.raises(DamagedStoreError, match=r"MANIFEST\.json"):
        _ = open_store(path).manifest_digest


def test_a_manifest_with_another_content_digest_is_found(sealed, tmp_path):
    path = tmp_path / "s.zarr"
    shutil.copytree(sealed, path)
    target = path / "MANIFEST.json"
    body = json.loads(target.read_text())
    text = target.read_text().replace(body["content_digest"], "0" * 64)
    target.write_text(text)
    assert verify_store(path).ok
    assert [d.kind for d in verify_store(path, "full").damages] == ["digest"]


def test_full_of_an_open_store_says_seal_first(finished):
    with pytest.raises(UnsealedStoreError, match="Seal it first"):
        verify_store(finished, "full")


def test_metadata_of_a_sealed_store_are_repaired_data_are_not(sealed, tmp_path):
    path = tmp_path / "s.zarr"
    shutil.copytree(sealed, path)
    for name in (
        "zarr.json",
        "captures/p/sites/x/values/zarr.json",
        "captures/u/sites/x/layer/c.0",
    ):
        (path / name).write_bytes(b"?")
    assert len(repair_store(path).rewritten) == 3
    assert content_of(path) == content_of(sealed)
    (path / "captures/u/sites/x/values/c.0.0.0").unlink()
    before = content_of(path)
    with pytest.raises(DamagedStoreError, match="sealed and lost data"):
        repair_store(path)
    assert content_of(path) == before


@pytest.mark.parametrize("then", ["seal", "write"])
def test_a_crash_at_every_operation(tmp_path, then):
    """Trimming included: the planned capture is incomplete, the unplanned one lags by a crash."""
    start = write(tmp_path / "start.zarr", stop=2)
    lagging = start / "captures/u/samples/id/zarr.json"
    text = lagging.read_text()
    lagging.write_text(text.replace('"shape": [\n  2\n ]', '"shape": [\n  0\n ]'))
    assert lagging.read_text() != text
    assert verify_store(start).ok
    expected = open_store(start).content_digest()
    whole = open_store(write(tmp_path / "whole.zarr")).content_digest()
    path = tmp_path / "s.zarr"
    shutil.copytree(start, path)
    total = count_operations(lambda: seal_store(path, incomplete=True))
    assert total > 50
    for number in crash_points(total, first=1 + 2 * (then == "write"), step=5):
        shutil.rmtree(path)
        shutil.copytree(start, path)
        die_at(number, lambda: seal_store(path, incomplete=True))
        assert verify_store(path).ok, number
        store = open_store(path)
        assert store.content_digest() == expected
        if then == "seal":
            seal_store(path, incomplete=True)
            assert verify_store(path, "full").ok
        elif store.state == "open":
            write(path)
            report = verify_store(path)
            assert (report.ok, report.leftovers) == (True, []), number
            assert open_store(path).content_digest() == whole
            wanted = json.loads((path / "captures/p/samples/id/zarr.json").read_text())["shape"]
            assert wanted == [5]
