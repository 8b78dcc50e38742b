"""Every change of a committed byte is found, and named."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorascope.store import (
    DamagedStoreError,
    InvalidStoreError,
    Site,
    StoreError,
    create_store,
    open_store,
    repair_store,
    verify_store,
)
from lorascope.store.layout import canonical, to_json

from .conftest import make_samples, plan_of


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A sound store of two segments with parameters."""
    from lorascope.store import Output

    from .conftest import SITES

    samples = make_samples(8)
    path = tmp_path_factory.mktemp("sound") / "s.zarr"
    with create_store(
        path,
        capture="base",
        sites=SITES,
        outputs=[Output("logits", (4,)), Output("loss")],
        segment_samples=4,
        plan=plan_of(samples),
    ) as writer:
        writer.write_parameters({"head.weight": np.arange(12.0).reshape(3, 4)})
        for sample in samples:
            writer.append(**sample)
    return path


def files_of(path):
    """Every file but the lock, whose content is for people."""
    return sorted(p for p in path.rglob("*") if p.is_file() and p.name != "store.lock")


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_flipped_bit_is_found(sound, data):
    """Data, index, metadata and records alike, the root and its uuid too."""
    target = data.draw(st.sampled_from(files_of(sound)))
    content = bytearray(target.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    bit = 1 << data.draw(st.integers(0, 7))
    content[at] ^= bit
    target.write_bytes(content)
    try:
        assert not verify_store(sound).ok, f"bit {bit} of byte {at} of {target} was not noticed"
    finally:
        content[at] ^= bit
        target.write_bytes(content)
    assert verify_store(sound).ok


@pytest.mark.parametrize("change", ["delete", "truncate", "extend", "link"])
def test_any_lost_file_is_found_by_quick(sound, tmp_path, change):
    for number, target in enumerate(files_of(sound)[::7]):
        copy = tmp_path / f"{number}.zarr"
        shutil.copytree(sound, copy)
        victim = copy / target.relative_to(sound)
        content = victim.read_bytes()
        victim.unlink()
        if change == "truncate":
            victim.write_bytes(content[:-1])
        elif change == "extend":
            victim.write_bytes(content + b" ")
        elif change == "link":
            victim.symlink_to(target)
        report = verify_store(copy, "quick")
        assert not report.ok, f"{change} of {victim} was not noticed"


def test_a_lost_last_record_leaves_files_that_nothing_names(sound, tmp_path):
    """The chain cannot miss it; its files are told, and repair keeps them."""
    copy = tmp_path / "s.zarr"
    shutil.copytree(sound, copy)
    last = max((copy / "__commits__").glob("w0-*.json"))
    files = [entry["path"] for entry in json.loads(last.read_text())["body"]["files"]]
    last.unlink()
    report = verify_store(copy)
    assert report.ok
    assert report.leftovers == sorted(files)


def test_a_writer_keeps_what_a_lost_record_named_where_it_can_know(tmp_path):
    """Without a plan lengths follow the records; with one the same run writes the same bytes."""
    path = tmp_path / "s.zarr"

    def write():
        with create_store(path, capture="a", sites=[Site("x", [0], 4)], segment_samples=2) as w:
            for i in range(5):
                if f"u{i}" not in w.committed:
                    w.append(f"u{i}", {"x": np.full((1, 3, 4), i, "float32")})

    write()
    digest = open_store(path).content_digest()
    last = max((path / "__commits__").glob("w0-*.json"))
    named = [entry["path"] for entry in json.loads(last.read_text())["body"]["files"]]
    last.unlink()
    with pytest.raises(DamagedStoreError, match=r"hold 5 samples, its commit records 4: .*repair"):
        write()
    assert all((path / name).exists() for name in named)
    report = repair_store(path)
    assert set(named) <= set(report.quarantined)
    write()
    assert open_store(path).content_digest() == digest
    assert verify_store(path).ok


def publish(path, array, length):
    """Change the published length of an array's sample axis; return the metadata's path."""
    metadata = path / "captures/base" / array / "zarr.json"
    content = json.loads(metadata.read_bytes())
    content["shape"][0] = length
    metadata.write_bytes(to_json(content))
    return metadata.relative_to(path).as_posix()


def write_unplanned(path, samples):
    """Write samples in segments of three, without a plan."""
    from lorascope.store import create_store

    from .conftest import SITES

    with create_store(path, capture="base", sites=SITES, segment_samples=3) as writer:
        for sample in samples:
            writer.append(**{key: value for key, value in sample.items() if key != "outputs"})


def test_only_the_length_of_the_commit_before_is_what_a_crash_leaves(tmp_path):
    """Commits of 3, 3 and 1 samples: a published 6 may be a crash, 5 and 3 cannot."""
    path = tmp_path / "s.zarr"
    samples = make_samples(7)
    write_unplanned(path, samples)
    expected = open_store(path).content_digest()
    for length in (0, 3, 5, 8):
        changed = publish(path, "samples/label", length)
        assert [d.path for d in verify_store(path).damages] == [changed], length
    changed = publish(path, "samples/label", 6)
    report = verify_store(path)
    assert (report.ok, report.unsettled) == (True, [changed])
    assert open_store(path).content_digest() == expected, "readers go by the records"


@pytest.mark.parametrize("settle", ["writer", "repair"])
def test_a_writer_and_a_repair_settle_lengths(tmp_path, settle):
    path = tmp_path / "s.zarr"
    write_unplanned(path, make_samples(7))
    before = {file: file.read_bytes() for file in files_of(path)}
    publish(path, "samples/label", 6)
    if settle == "writer":
        write_unplanned(path, [])
    else:
        repair_store(path)
    assert {file: file.read_bytes() for file in files_of(path)} == before
    assert verify_store(path).unsettled == []


def test_a_seal_that_was_interrupted_leaves_lengths_to_settle(tmp_path):
    """A plan of 8, of which 4 are committed: a seal trims the arrays to 4."""
    from lorascope.store import create_store

    from .conftest import SITES

    path = tmp_path / "s.zarr"
    samples = make_samples(8)
    plan = plan_of(samples)
    with create_store(path, capture="base", sites=SITES, segment_samples=4, plan=plan) as writer:
        for sample in samples[:4]:
            writer.append(**{key: value for key, value in sample.items() if key != "outputs"})
    changed = publish(path, "samples/label", 4)
    report = verify_store(path)
    assert (report.ok, report.unsettled) == (True, [changed])
    changed = publish(path, "samples/label", 5)
    assert [d.path for d in verify_store(path).damages] == [changed]


def test_each_damage_of_the_root_is_named(sound, tmp_path):
    copy = tmp_path / "s.zarr"
    shutil.copytree(sound, copy)
    root = copy / "zarr.json"
    text = root.read_text()
    uuid = json.loads(text)["attributes"]["uuid"]
    for change in (
        text.replace(uuid, uuid[::-1]),
        text.replace('"open"', '"ajar"'),
        text.replace("lorascope", "lorascape"),
        text + " ",
        "{",
    ):
        root.write_text(change)
        assert [(d.kind, d.path) for d in verify_store(copy).damages] == [("metadata", "zarr.json")]
    root.unlink()
    assert [(d.kind, d.path) for d in verify_store(copy).damages] == [("metadata", "zarr.json")]


def test_a_damaged_definition_is_named(sound, tmp_path):
    copy = tmp_path / "s.zarr"
    shutil.copytree(sound, copy)
    definition = copy / "captures/base/zarr.json"
    definition.write_text(definition.read_text().replace('"seed": 0', '"seed": 1') + " ")
    (damage,) = verify_store(copy).damages
    assert (damage.kind, damage.path, damage.capture) == (
        "metadata",
        "captures/base/zarr.json",
        "base",
    )


def test_every_broken_record_is_named(sound, tmp_path):
    copy = tmp_path / "s.zarr"
    shutil.copytree(sound, copy)
    first, second, *_ = sorted((copy / "__commits__").glob("*.json"))
    first.write_bytes(first.read_bytes()[:-1])
    second.unlink()
    damages = verify_store(copy).damages
    assert [(d.kind, d.path) for d in damages] == [
        ("records", f"__commits__/{first.name}"),
        ("records", f"__commits__/{second.name}"),
    ]


def test_what_a_live_writer_has_not_committed_is_not_told(tmp_path):
    from lorascope.store import create_store

    from .conftest import SITES

    path = tmp_path / "s.zarr"
    stray = "captures/live/sites/embed/values/c.0.0.0"
    with create_store(path, capture="live", sites=SITES):
        (path / stray).write_bytes(b"renamed, and its record is still to come")
        assert verify_store(path).leftovers == []
    report = verify_store(path)
    assert (report.ok, report.leftovers) == (True, [stray])
    (path / stray).unlink()
    (path / "captures/live/elsewhere").symlink_to(tmp_path)
    assert verify_store(path).leftovers == ["captures/live/elsewhere"]
    (path / "MANIFEST.json").write_text("of a seal that was interrupted")
    assert verify_store(path).leftovers == ["MANIFEST.json", "captures/live/elsewhere"]


def test_a_folder_behind_a_link_does_not_count(sound, tmp_path):
    copy = tmp_path / "s.zarr"
    shutil.copytree(sound, copy)
    values = copy / "captures/base/sites/embed/values"
    values.rename(tmp_path / "outside")
    values.symlink_to(tmp_path / "outside")
    missing = {d.path for d in verify_store(copy, "quick").damages if d.kind == "missing"}
    assert {f"captures/base/sites/embed/values/c.0.{n}.0" for n in range(2)} <= missing


def test_damage_names_site_layer_and_samples(sound, tmp_path):
    copy = tmp_path / "s.zarr"
    shutil.copytree(sound, copy)
    shard = copy / "captures/base/sites/resid_post/values/c.1.0.0"
    content = bytearray(shard.read_bytes())
    content[3] ^= 4
    shard.write_bytes(content)
    (damage,) = verify_store(copy).damages
    assert (damage.kind, damage.capture, damage.site, damage.layer) == (
        "checksum",
        "base",
        "resid_post",
        1,
    )
    assert damage.samples == tuple(f"utt-{n:03d}" for n in range(4))
    assert verify_store(copy, "quick").ok
    with pytest.raises(DamagedStoreError, match=r"resid_post/values/c\.1\.0\.0: the checksum"):
        open_store(copy).capture("base").read_rows("resid_post", 1)


def test_swapped_shards_are_found_on_reading(sound, tmp_path):
    """Two sound shards of equal size: each checksum inside is right, the place is wrong."""
    copy = tmp_path / "s.zarr"
    shutil.copytree(sound, copy)
    folder = copy / "captures/base/sites/resid_post/values"
    (folder / "c.0.0.0").rename(folder / "x")
    (folder / "c.1.0.0").rename(folder / "c.0.0.0")
    (folder / "x").rename(folder / "c.1.0.0")
    with pytest.raises(DamagedStoreError, match="checksum"):
        open_store(copy).capture("base").read_rows("resid_post", 0)
    assert len(verify_store(copy).damages) == 2


@pytest.mark.parametrize("forge", ["drop", "edit", "rename"])
def test_a_tampered_record_chain_is_refused(sound, tmp_path, forge):
    copy = tmp_path / "s.zarr"
    shutil.copytree(sound, copy)
    records = sorted((copy / "__commits__").glob("*.json"))
    if forge == "drop":
        records[1].unlink()
    elif forge == "rename":
        records[-1].rename(records[-1].with_name("w0-000099.json"))
    else:
        body = json.loads(records[-1].read_text())
        body["body"]["segment"] = 0
        records[-1].write_text(json.dumps(body))
    with pytest.raises(DamagedStoreError, match="record"):
        open_store(copy)
    assert verify_store(copy).damages[0].kind == "records"


@pytest.mark.parametrize(
    "path", ["../../etc/passwd", "/etc/passwd", "captures/../../x", "zarr.json"]
)
def test_a_record_cannot_name_a_file_elsewhere(sound, tmp_path, path):
    """Even with a right checksum of its own."""
    copy = tmp_path / "s.zarr"
    shutil.copytree(sound, copy)
    record = sorted((copy / "__commits__").glob("*.json"))[-1]
    body = json.loads(record.read_text())["body"]
    body["files"][0]["path"] = path
    digest = hashlib.sha256(canonical(body)).hexdigest()
    record.write_bytes(to_json({"body": body, "sha256": digest}))
    with pytest.raises(DamagedStoreError, match="cannot be read"):
        open_store(copy)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda p: None, "does not exist"),
        (lambda p: p.mkdir(), "no zarr.json"),
        (lambda p: (p.mkdir(), (p / "zarr.json").write_text("{")), "cannot be read"),
        (lambda p: (p.mkdir(), (p / "zarr.json").write_text('{"attributes": {}}')), "not a lorasc"),
        (
            lambda p: (
                p.mkdir(),
                (p / "zarr.json").write_text(
                    '{"attributes": {"format": "lorascope", "version": 9}}'
                ),
            ),
            "version 9",
        ),
    ],
)
def test_what_is_no_store_is_said_so(tmp_path, make, match):
    make(tmp_path / "s.zarr")
    with pytest.raises(InvalidStoreError, match=match):
        open_store(tmp_path / "s.zarr")
    with pytest.raises(StoreError):
        verify_store(tmp_path / "s.zarr")
