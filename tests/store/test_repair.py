"""A repaired store is sound, has lost only what was damaged, and the same run makes it whole."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from lorascope.store import (
    DamagedStoreError,
    InvalidStoreError,
    LockedStoreError,
    RepairReport,
    StoreError,
    create_store,
    open_store,
    repair_store,
    seal_store,
    verify_store,
)
from lorascope.store.layout import canonical, to_json

from .dying_disk import count_operations, crash_points, die_at
from .two_captures import SITES, write

# Records of the store: w0-0 defines p, 1 its parameters, 2 to 4 its segments; 5 to 9 the same of u.


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("sound") / "s.zarr")


@pytest.fixture(scope="module")
def digest(sound) -> str:
    return open_store(sound).content_digest()


@pytest.fixture
def copy(sound, tmp_path) -> Path:
    path = tmp_path / "s.zarr"
    shutil.copytree(sound, path)
    return path


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def link(path: Path) -> None:
    elsewhere = path.parents[-2] / "tmp"
    path.unlink()
    path.symlink_to(elsewhere)


def replace_by_folder(path: Path) -> None:
    path.unlink()
    (path / "deep").mkdir(parents=True)
    (path / "deep/file").write_text("x")


HARM: dict[str, Callable[[Path], None]] = {
    "flip": flip,
    "truncate": truncate,
    "delete": Path.unlink,
    "link": link,
    "folder": replace_by_folder,
}


def with_harm(*cases: tuple) -> list[tuple]:
    """Return every case with a flipped bit, and in turn with one of the other kinds of harm."""
    others = [name for name in HARM if name != "flip"]
    doubled = [(*case, "flip") for case in cases]
    return doubled + [(*case, others[n % len(others)]) for n, case in enumerate(cases)]


def ids(*numbers: int) -> list[str]:
    return [f"s{number}" for number in numbers]


def assert_whole_again(path: Path, digest: str) -> None:
    """The store is sound as it is, a second repair finds nothing, the same run completes it."""
    report = verify_store(path)
    assert report.ok, report.damages
    assert report.leftovers == []
    open_store(path).content_digest()
    assert not repair_store(path).changed
    write(path)
    report = verify_store(path)
    assert (report.damages, report.leftovers) == ([], [])
    assert open_store(path).content_digest() == digest


@pytest.mark.parametrize(
    ("victim", "lost", "harm"),
    with_harm(
        ("captures/p/sites/x/values/c.1.1.0", {"p": ids(2, 3)}),
        ("captures/u/pooled/x.mean/values/c.0.0.0", {"u": ids(0, 1)}),
        ("captures/u/samples/label/c.2", {"u": ids(4)}),
        ("captures/p/outputs/loss/c.0", {"p": ids(0, 1)}),
        ("captures/p/parameters/w/c.0", {}),
        ("captures/p/zarr.json", {"p": ids(0, 1, 2, 3, 4)}),
    ),
)
def test_damaged_data_cost_their_segment(copy, digest, victim, lost, harm):
    HARM[harm](copy / victim)
    report = repair_store(copy)
    assert report.samples == lost
    assert {w.capture for w in report.withdrawn} == {victim.split("/")[1]}
    left = {
        name: [i for i in ids(0, 1, 2, 3, 4) if i not in lost.get(name, [])] for name in ("p", "u")
    }
    store = open_store(copy)
    if victim != "captures/p/zarr.json":
        assert {n: store.capture(n).samples["id"].tolist() for n in store.captures} == left
    else:
        assert store.captures == ["u"]
    assert_whole_again(copy, digest)


@pytest.mark.parametrize(
    ("number", "adopted", "n_samples", "harm"),
    with_harm((0, ("p",), 10), (1, (), 10), (3, (), 8), (5, ("u",), 10), (9, (), 9)),
)
def test_a_damaged_record_costs_what_it_committed(copy, digest, number, adopted, n_samples, harm):
    """A lost definition's record costs nothing; a lost last record is found by its files only."""
    name = f"w0-{number:06d}.json"
    HARM[harm](copy / "__commits__" / name)
    report = repair_store(copy)
    if (number, harm) != (9, "delete"):
        assert [w.record for w in report.withdrawn] == [name]
    assert report.adopted == adopted
    assert len(open_store(copy).samples) == n_samples
    assert_whole_again(copy, digest)


@pytest.mark.parametrize(
    ("victim", "harm"),
    with_harm(
        ("zarr.json",),
        ("captures/zarr.json",),
        ("captures/p/sites/zarr.json",),
        ("captures/p/sites/x/values/zarr.json",),
        ("captures/u/samples/take/zarr.json",),
        ("captures/u/sites/x/layer/c.0",),
        ("captures/u/parameters/w/zarr.json",),
    ),
)
def test_what_follows_from_a_definition_costs_nothing(copy, digest, victim, harm):
    uuid = open_store(copy).uuid
    HARM[harm](copy / victim)
    report = repair_store(copy)
    assert report.rewritten == (victim,)
    assert report.withdrawn == ()
    store = open_store(copy)
    assert (store.content_digest(), store.uuid) == (digest, uuid)
    assert_whole_again(copy, digest)


def test_a_folder_behind_a_link_is_not_followed(copy, digest, tmp_path):
    """What lies behind it stays as it is; the store does not reach there."""
    values = copy / "captures/p/sites/x/values"
    values.rename(tmp_path / "outside")
    values.symlink_to(tmp_path / "outside")
    outside = {p: p.read_bytes() for p in (tmp_path / "outside").iterdir()}
    report = repair_store(copy)
    assert report.samples == {"p": ids(0, 1, 2, 3, 4)}
    assert "captures/p/sites/x/values" in report.quarantined
    assert_whole_again(copy, digest)
    assert {p: p.read_bytes() for p in (tmp_path / "outside").iterdir()} == outside


def test_a_folder_of_no_depth_that_a_store_has(copy, digest):
    deep = copy.joinpath("captures", *["d"] * 40)
    deep.mkdir(parents=True)
    (deep / "file").write_text("x")
    assert verify_store(copy).leftovers == ["captures/" + "/".join(["d"] * 16)]
    repair_store(copy)
    assert_whole_again(copy, digest)


def test_neighbours_in_the_chain_and_both_ends(copy, digest):
    """Nobody knows the hash of a record that is followed by another damaged one."""
    for number in (0, 2, 3, 9):
        flip(copy / f"__commits__/w0-{number:06d}.json")
    report = repair_store(copy)
    assert [w.record[3:9] for w in report.withdrawn] == ["000000", "000002", "000003", "000009"]
    assert_whole_again(copy, digest)


def test_a_record_in_the_place_of_another(copy, digest):
    """A forged one is sound in itself; the one after tells. A doubled one has the wrong name."""
    forged, doubled = (copy / f"__commits__/w0-{n:06d}.json" for n in (2, 8))
    body = json.loads(forged.read_text())["body"]
    body["attrs"]["groups"] = []
    sha256 = hashlib.sha256(canonical(body)).hexdigest()
    forged.write_bytes(to_json({"body": body, "sha256": sha256}))
    doubled.write_bytes((copy / "__commits__/w0-000007.json").read_bytes())
    assert [w.record for w in repair_store(copy).withdrawn] == [forged.name, doubled.name]
    assert_whole_again(copy, digest)


def test_a_name_that_no_writer_can_have_reached(copy, digest):
    """It must not make anybody count to it."""
    last = copy / "__commits__/w0-000009.json"
    shutil.copy(last, copy / "__commits__/w0-999999999999999999.json")
    assert verify_store(copy).damages[0].kind == "records"
    repair_store(copy)
    assert_whole_again(copy, digest)


def test_a_repair_of_a_repair(copy, digest):
    """The withdrawal itself is damaged: what it withdrew is found again, or is whole by now."""
    flip(copy / "captures/p/sites/x/values/c.1.1.0")
    repair_store(copy)
    (withdrawal,) = (copy / "__commits__").glob("repair-*.json")
    write(copy)
    flip(withdrawal)
    with pytest.raises(DamagedStoreError, match="repair-000000"):
        open_store(copy)
    repair_store(copy)
    assert_whole_again(copy, digest)
    flip(copy / "captures/u/sites/x/values/c.1.0.0")
    repair_store(copy)
    assert_whole_again(copy, digest)
    assert sorted(p.name for p in (copy / "__quarantine__").iterdir()) == [
        "000000",
        "000001",
        "000002",
    ]


@pytest.mark.parametrize(
    "named",
    [
        {"name": "../w0-000001.json", "sha256": "0" * 64},
        {"name": "w0-000001.json", "sha256": "0" * 63},
        {"name": "w0-000001.json", "sha256": None},
        {"name": 7, "sha256": "0" * 64},
        "w0-000001.json",
    ],
    ids=["name", "short", "null", "number", "text"],
)
def test_a_withdrawal_by_somebody_else_is_checked(copy, digest, named):
    """Its checksum is right; what it names is not what a repair writes."""
    body = {
        "format": "lorascope-commit",
        "version": 1,
        "kind": "withdrawal",
        "capture": "",
        "writer": "repair",
        "number": 0,
        "previous": None,
        "files": [],
        "attrs": {"records": [named]},
    }
    sha256 = hashlib.sha256(canonical(body)).hexdigest()
    record = copy / "__commits__/repair-000000.json"
    record.write_bytes(to_json({"body": body, "sha256": sha256}))
    with pytest.raises(DamagedStoreError, match="cannot be read"):
        open_store(copy)
    assert [w.record for w in repair_store(copy).withdrawn] == [record.name]
    assert_whole_again(copy, digest)


def test_a_sound_store_is_left_alone(copy):
    before = {p: p.read_bytes() for p in copy.rglob("*") if p.is_file() and p.suffix == ".json"}
    report = repair_store(copy)
    assert not report.changed
    assert report == RepairReport(dry_run=False)
    assert {p: p.read_bytes() for p in before} == before
    assert not (copy / "__quarantine__").exists()


def test_a_dry_run_changes_nothing_and_foretells(copy):
    flip(copy / "captures/p/sites/x/values/c.1.1.0")
    flip(copy / "__commits__/w0-000007.json")
    flip(copy / "captures/zarr.json")
    (copy / "__commits__/staging/half").write_bytes(b"x")
    before = {p: p.read_bytes() for p in copy.rglob("*") if p.is_file() and p.name != "store.lock"}
    foretold = repair_store(copy, dry_run=True)
    after = {p: p.read_bytes() for p in copy.rglob("*") if p.is_file() and p.name != "store.lock"}
    assert after == before
    done = repair_store(copy)
    assert foretold.dry_run
    assert not done.dry_run
    for fact in ("withdrawn", "adopted", "rewritten", "quarantined", "swept", "quarantine"):
        assert getattr(foretold, fact) == getattr(done, fact)
    assert done.swept == ("__commits__/staging/half",)


def test_the_quarantine_holds_the_bytes_and_says_why(copy):
    victim = "captures/p/sites/x/values/c.1.1.0"
    flip(copy / victim)
    content = (copy / victim).read_bytes()
    record = (copy / "__commits__/w0-000003.json").read_bytes()
    report = repair_store(copy)
    folder = copy / (report.quarantine or "")
    assert (folder / victim).read_bytes() == content
    assert (folder / "__commits__/w0-000003.json").read_bytes() == record
    why = json.loads((folder / "why.json").read_text())
    assert why["withdrawn"][0]["samples"] == ids(2, 3)
    assert victim in why["withdrawn"][0]["reason"]
    present = [p for p in folder.rglob("*") if p.is_file() and p.name != "why.json"]
    assert why["moved"] == list(report.quarantined)
    assert sorted(why["moved"]) == sorted(p.relative_to(folder).as_posix() for p in present)
    seal_store(copy, incomplete=True)
    shutil.rmtree(copy / "__quarantine__")
    assert verify_store(copy, "full").ok, "the quarantine is no part of the sealed store"


def test_what_is_no_store_or_is_in_use_is_refused(copy, tmp_path):
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(InvalidStoreError, match="not a lorascope store"):
            repair_store(path)
    with (
        create_store(copy, capture="live", sites=SITES),
        pytest.raises(LockedStoreError),
    ):
        repair_store(copy)
    text = (copy / "zarr.json").read_text()
    (copy / "zarr.json").write_text(text.replace('"version": 1', '"version": 2'))
    with pytest.raises(InvalidStoreError, match="version 2"):
        repair_store(copy)
    (copy / "zarr.json").write_text(text)
    (copy / "captures").rename(tmp_path / "elsewhere")
    (copy / "captures").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DamagedStoreError, match="is a link"):
        repair_store(copy)


@pytest.mark.parametrize("seed", range(10))
def test_any_damage_to_several_files(copy, digest, seed):
    """Any kind, anywhere: records, data, metadata, all at once."""
    rng = random.Random(seed)
    files = sorted(p for p in copy.rglob("*") if p.is_file() and p.name != "store.lock")
    for victim in rng.sample(files, rng.randint(2, 6)):
        HARM[rng.choice(list(HARM))](victim)
    repair_store(copy)
    assert_whole_again(copy, digest)


def bytes_kept(path: Path) -> set[str]:
    """The content of every file but metadata, which may be written again."""
    files = [p for p in path.rglob("*") if p.is_file() and not p.is_symlink()]
    named = [p for p in files if p.name not in {"zarr.json", "store.lock", "half", "why.json"}]
    return {hashlib.sha256(p.read_bytes()).hexdigest() for p in named}


@pytest.mark.parametrize("then", ["repair", "write"])
def test_a_crash_at_every_operation(copy, digest, tmp_path, then):
    """Of a repair that withdraws, adopts, rewrites and sweeps; no byte of data is ever lost."""
    flip(copy / "captures/p/sites/x/values/c.1.1.0")
    flip(copy / "captures/p/samples/id/zarr.json")
    flip(copy / "captures/u/parameters/w/c.0")
    flip(copy / "__commits__/w0-000005.json")
    flip(copy / "__commits__/w0-000009.json")
    (copy / "zarr.json").unlink()
    (copy / "__commits__/staging/half").write_bytes(b"x")
    kept = bytes_kept(copy)
    path = tmp_path / "crashed.zarr"
    shutil.copytree(copy, path)
    total = count_operations(lambda: repair_store(path))
    assert total > 200
    for number in crash_points(total, first=4 if then == "write" else 1, step=9):
        shutil.rmtree(path)
        shutil.copytree(copy, path)
        die_at(number, lambda: repair_store(path))
        assert kept <= bytes_kept(path), number
        if then == "write":
            with suppress(StoreError):
                write(path)
            assert kept <= bytes_kept(path), number
        repair_store(path)
        assert kept <= bytes_kept(path), number
        report = verify_store(path)
        assert (report.damages, report.leftovers) == ([], []), number
        if number % 4 == 0 or number > total - 12:
            assert_whole_again(path, digest)
