"""Copies: the same bytes, or the same values in another profile; broken copies go on."""

from __future__ import annotations

import shutil
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lorascope.store import (
    ConfigMismatchError,
    DamagedStoreError,
    InvalidStoreError,
    MissingCaptureError,
    Output,
    SampleRows,
    SealedStoreError,
    Site,
    StoreError,
    StoreWriteError,
    copy_store,
    create,
    create_store,
    open_store,
    repair_store,
    seal_store,
    verify_store,
)
from lorascope.store.disk import use_disk
from lorascope.store.record import Record
from lorascope.store.records import RecordLog

from ..proof.disks import QuickDisk
from .conftest import SITES, make_samples, plan_of
from .two_captures import write

PROFILES = ["fast", "compact", "archive", "portable"]


@pytest.fixture(scope="module", params=[True, False], ids=["planned", "unplanned"])
def source(request, tmp_path_factory):
    """Two captures of several segments, one short of a column, with parameters."""
    path = tmp_path_factory.mktemp("source") / "s.zarr"
    samples = make_samples(14)
    for capture in ("base", "lora"):
        with create_store(
            path,
            capture=capture,
            sites=SITES,
            outputs=[Output("logits", (4,)), Output("loss")],
            config={"seed": 0},
            attrs={"model": "tiny"},
            segment_samples=6,
            plan=plan_of(samples) if request.param else None,
        ) as writer:
            writer.write_parameters({"head.weight": np.eye(3), "scale": np.float32(2)})
            writer.write_parameters({"norm": np.arange(4)}, attrs={"eps": 1e-5})
            for sample in samples:
                writer.append(**sample)
    return path


def contents(path) -> dict[str, bytes]:
    return {
        p.relative_to(path).as_posix(): p.read_bytes()
        for p in path.rglob("*")
        if p.is_file() and p.name != "store.lock"
    }


def without_uuid(path) -> tuple[dict[str, bytes], list[Record]]:
    """Return all files but the root and the records, and what the records say besides the uuid."""
    files = {
        name: content
        for name, content in contents(path).items()
        if name != "zarr.json" and not name.startswith("__commits__")
    }
    uuid = open_store(path).uuid
    records = open_store(path).log.records
    assert {r.attrs["store"] for r in records if r.kind == "capture"} == {uuid}
    return files, [
        replace(r, previous=None, attrs={k: v for k, v in r.attrs.items() if k != "store"})
        for r in records
    ]


def test_a_copy_is_the_store_byte_for_byte(source, tmp_path):
    report = copy_store(source, tmp_path / "c.zarr")
    assert contents(tmp_path / "c.zarr") == contents(source)
    assert report.commits == len(open_store(source).log.records)
    assert report.bytes_read == report.bytes_written > 0
    again = copy_store(source, tmp_path / "c.zarr")
    assert (again.commits, again.skipped) == (0, report.commits)


@pytest.mark.parametrize("profile", PROFILES)
def test_a_copy_in_a_profile_holds_the_same(source, tmp_path, profile):
    copy_store(source, tmp_path / "c.zarr", profile=profile)
    old, new = open_store(source), open_store(tmp_path / "c.zarr")
    assert verify_store(new.path).ok
    assert new.uuid != old.uuid
    assert new.captures == old.captures
    same = new.content_digest() == old.content_digest()
    assert same == (profile != "portable")
    assert new.samples.equals(old.samples)
    for name in old.captures:
        one, two = old.capture(name), new.capture(name)
        assert two.attrs == one.attrs
        assert two.definition.config_digest == one.definition.config_digest
        assert two.definition.planned_sizes == one.definition.planned_sizes
        assert two.groups == one.groups == ("speaker",)
        assert two.parameter_attrs == one.parameter_attrs
        assert {k: v.tolist() for k, v in two.parameters.items()} == {
            k: v.tolist() for k, v in one.parameters.items()
        }
        assert [r.samples for r in two.segments.records] == [
            r.samples for r in one.segments.records
        ]
        for site in one.sites.values():
            for layer in site.layers or (None,):
                here = one.read_rows(site.name, layer)
                assert two.read_rows(site.name, layer).tobytes() == here.tobytes()
        for layer in (0, 1):
            here = one.read_pooled("resid_post.mean_valid", layer)
            assert two.read_pooled("resid_post.mean_valid", layer).tobytes() == here.tobytes()
    resid = new.capture("base").definition.sites[0]
    if profile == "portable":
        assert (resid.dtype, resid.source_dtype) == ("float32", "bfloat16")
    else:
        assert (resid.dtype, resid.source_dtype) == ("bfloat16", None)


@pytest.mark.parametrize("profile", ["compact", "archive"])
def test_there_and_back_gives_the_same_files(source, tmp_path, profile):
    copy_store(source, tmp_path / "small", profile=profile)
    copy_store(tmp_path / "small", tmp_path / "back", profile="fast")
    assert (tmp_path / "back/zarr.json").read_bytes() != (source / "zarr.json").read_bytes()
    assert without_uuid(tmp_path / "back") == without_uuid(source)


def test_some_captures(source, tmp_path):
    copy_store(source, tmp_path / "c.zarr", captures=["lora"])
    new = open_store(tmp_path / "c.zarr")
    assert new.captures == ["lora"]
    assert verify_store(new.path).ok
    here = open_store(source).capture("lora").read_rows("resid_post", 1)
    np.testing.assert_array_equal(new.capture("lora").read_rows("resid_post", 1), here)
    with pytest.raises(MissingCaptureError, match="no capture 'none'"):
        copy_store(source, tmp_path / "d.zarr", captures=["none"])


class Breaking(QuickDisk):
    """Refuses everything from the N-th changing operation on."""

    def __init__(self, at: int) -> None:
        self.at, self.done = at, 0

    def _count(self) -> None:
        self.done += 1
        if self.done > self.at:
            raise OSError(5, "broken")

    def create(self, path):
        self._count()
        return super().create(path)

    def sync(self, descriptor):
        self._count()
        super().sync(descriptor)

    def rename(self, source, target):
        self._count()
        super().rename(source, target)

    def unlink(self, path):
        self._count()
        super().unlink(path)


@pytest.mark.parametrize("profile", [None, "compact"])
def test_a_broken_copy_goes_on(source, tmp_path, profile):
    whole = tmp_path / "whole"
    counting = Breaking(10**9)
    with use_disk(counting):
        copy_store(source, whole, profile=profile)
    wanted = without_uuid(whole)
    kept = 0
    for number, at in enumerate(range(1, counting.done, counting.done // 12)):
        target = tmp_path / str(number)
        with use_disk(Breaking(at)), pytest.raises(StoreWriteError):
            copy_store(source, target, profile=profile)
        if (target / "zarr.json").exists():
            assert verify_store(target).ok
            kept += len(open_store(target).log.records) > 0
        copy_store(source, target, profile=profile)
        assert without_uuid(target) == wanted
        if profile is None:
            assert contents(target) == contents(source)
    assert kept > 5


def test_a_growing_source_is_followed(tmp_path):
    samples = make_samples()
    options = {"capture": "base", "sites": SITES, "segment_samples": 6}
    outputs = [Output("logits", (4,)), Output("loss")]
    for part in (samples[:12], samples[12:]):
        with create_store(tmp_path / "s", outputs=outputs, **options) as writer:
            for sample in part:
                writer.append(**sample)
        copy_store(tmp_path / "s", tmp_path / "c")
        copy_store(tmp_path / "s", tmp_path / "d", profile="archive")
        assert verify_store(tmp_path / "c").ok
        assert verify_store(tmp_path / "d").ok
    digest = open_store(tmp_path / "s").content_digest()
    assert open_store(tmp_path / "c").content_digest() == digest
    assert open_store(tmp_path / "d").content_digest() == digest


def test_records_keep_their_writers(source, tmp_path, monkeypatch):
    """Two writers, each with a chain of its own."""
    shutil.copytree(source, tmp_path / "s")
    with monkeypatch.context() as patch:
        patch.setattr(create, "RecordLog", lambda root, _writer: RecordLog(root, "w1"))
        with create_store(tmp_path / "s", capture="mine", sites=SITES[1:2]) as writer:
            writer.append("x", {"embed": np.ones((1, 5), np.float32)})
    copy_store(tmp_path / "s", tmp_path / "c")
    names = {record.writer for record in open_store(tmp_path / "c").log.records}
    assert names == {"w0", "w1"}
    assert contents(tmp_path / "c") == contents(tmp_path / "s")


@pytest.mark.parametrize("profile", [None, "compact", "archive", "portable"])
def test_memory_does_not_grow_with_a_shard(tmp_path, profile):
    """One shard of 48 MiB in chunks of 1 MiB: pieces of 8 MiB, as read, as values and widened."""
    site = Site("x", None, 512, dtype="float16")
    with create_store(tmp_path / "s", capture="a", sites=[site], segment_rows=49152) as writer:
        for number in range(6):
            writer.append(str(number), {"x": np.full((8192, 512), number, np.float16)})
    copy_store(write_small(tmp_path / "first"), tmp_path / "warm", profile=profile)
    tracemalloc.start()
    try:
        copy_store(tmp_path / "s", tmp_path / "c", profile=profile)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < (36 if profile == "portable" else 28) * 2**20
    assert open_store(tmp_path / "c").capture("a").read_rows("x", None, slice(5, 6)).mean() == 5


def write_small(path):
    with create_store(path, capture="a", sites=SITES[1:2]) as writer:
        writer.append("x", {"embed": np.ones((1, 5), np.float32)})
    return path


def test_other_targets_are_refused(source, tmp_path, write_store):
    other = write_store("other.zarr")
    before = contents(other)
    for profile in (None, "compact"):
        with pytest.raises(ConfigMismatchError, match="not a started copy"):
            copy_store(source, other, profile=profile)
    assert contents(other) == before
    copy_store(source, tmp_path / "c", profile="compact")
    for options in ({}, {"profile": "archive"}, {"profile": "compact", "captures": ["base"]}):
        with pytest.raises(ConfigMismatchError, match="not a started copy"):
            copy_store(source, tmp_path / "c", **options)
    (tmp_path / "things").mkdir()
    (tmp_path / "things/x").write_text("x")
    with pytest.raises(InvalidStoreError, match="holds other things"):
        copy_store(source, tmp_path / "things")
    for inside in (source, source / "captures", source.parent):
        with pytest.raises(StoreError, match="inside each other"):
            copy_store(source, inside)


def test_a_copy_that_went_on_by_itself_is_refused(source, tmp_path):
    copy_store(source, tmp_path / "c")
    with create_store(tmp_path / "c", capture="mine", sites=SITES[1:2]) as writer:
        writer.append("x", {"embed": np.zeros((1, 5), np.float32)})
    with pytest.raises(ConfigMismatchError, match="went on by itself"):
        copy_store(source, tmp_path / "c")


@pytest.mark.parametrize("profile", [None, "compact"])
def test_a_damaged_source_is_not_copied_on(source, tmp_path, profile):
    damaged = tmp_path / "s"
    shutil.copytree(source, damaged)
    shard = damaged / "captures/lora/sites/resid_post/values/c.1.2.0"
    content = bytearray(shard.read_bytes())
    content[5] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DamagedStoreError, match=r"c\.1\.2\.0: the checksum of chunk 0"):
        copy_store(damaged, tmp_path / "c", profile=profile)
    assert verify_store(tmp_path / "c").ok
    assert len(open_store(tmp_path / "c").capture("lora").segments) == 2
    assert not list((tmp_path / "c/__commits__/staging").iterdir())


def test_the_copy_of_a_sealed_store_is_open_and_seals_to_the_same(tmp_path):
    sealed = write(tmp_path / "s")
    seal = seal_store(sealed)
    copy_store(sealed, tmp_path / "c")
    assert open_store(tmp_path / "c").state == "open"
    assert verify_store(tmp_path / "c").ok
    assert copy_store(sealed, tmp_path / "c").commits == 0
    copy_store(sealed, tmp_path / "small", profile="archive")
    assert seal_store(tmp_path / "small").content_digest == seal.content_digest
    assert verify_store(tmp_path / "small", "full").ok
    assert seal_store(tmp_path / "c").manifest_digest == seal.manifest_digest
    assert verify_store(tmp_path / "c", "full").ok
    assert contents(tmp_path / "c") == contents(sealed)
    with pytest.raises(SealedStoreError):
        copy_store(sealed, tmp_path / "c")


@pytest.fixture
def repaired(tmp_path):
    """A store that lost a segment of each capture, the first of one and the last of the other."""
    path = write(tmp_path / "s")
    for shard in ("p/sites/x/values/c.0.0.0", "u/sites/x/values/c.0.2.0"):
        (path / "captures" / shard).unlink()
    assert len(repair_store(path).withdrawn) == 2
    assert verify_store(path).ok
    return path


def test_a_copy_keeps_withdrawals_and_a_repack_leaves_them_out(repaired, tmp_path):
    copy_store(repaired, tmp_path / "c")
    quarantined = {k for k in contents(repaired) if k.startswith("__quarantine__")}
    kept = {k: v for k, v in contents(repaired).items() if k not in quarantined}
    assert contents(tmp_path / "c") == kept
    assert verify_store(tmp_path / "c").ok
    assert copy_store(repaired, tmp_path / "c").commits == 0
    copy_store(repaired, tmp_path / "small", profile="compact")
    small = open_store(tmp_path / "small")
    assert not small.log.withdrawals
    assert verify_store(small.path).ok
    assert small.content_digest() == open_store(repaired).content_digest()
    whole = write(tmp_path / "whole")
    copy_store(write(repaired), tmp_path / "c")  # the source went on since
    assert verify_store(tmp_path / "c").ok
    assert open_store(write(tmp_path / "c")).content_digest() == open_store(whole).content_digest()


def test_a_broken_copy_of_a_repaired_store_goes_on(repaired, tmp_path):
    """Until its last record is there, it is no store at all."""
    copy_store(repaired, tmp_path / "whole")
    counting = Breaking(10**9)
    with use_disk(counting):
        copy_store(repaired, tmp_path / "counted")
    for at in range(1, counting.done, counting.done // 10):
        target = tmp_path / str(at)
        with use_disk(Breaking(at)), pytest.raises(StoreWriteError):
            copy_store(repaired, target)
        assert not (target / "zarr.json").exists()
        copy_store(repaired, target)
        assert contents(target) == contents(tmp_path / "whole")


def test_a_source_that_was_repaired_since_is_refused(tmp_path):
    path = write(tmp_path / "s")
    copy_store(path, tmp_path / "c")
    (path / "captures/u/sites/x/values/c.0.2.0").unlink()
    repair_store(path)
    with pytest.raises(ConfigMismatchError, match="Name another target"):
        copy_store(path, tmp_path / "c")


def test_what_a_copy_was_made_of_outlives_repair(source, tmp_path):
    copy_store(source, tmp_path / "c", profile="compact")
    origin = open_store(tmp_path / "c").origin
    assert origin == {"uuid": open_store(source).uuid, "profile": "compact", "captures": None}
    (tmp_path / "c/captures/base/sites/zarr.json").unlink()
    assert repair_store(tmp_path / "c").rewritten == ("captures/base/sites/zarr.json",)
    assert open_store(tmp_path / "c").origin == origin
    assert verify_store(tmp_path / "c").ok


def test_ranks_are_copied_in_an_order_in_which_captures_come_first(tmp_path):
    """The rank that is there first makes the capture, and its name may come last."""
    plan = [SampleRows(str(n), {"tokens": 1}) for n in range(4)]
    for rank in (1, 0):
        with create_store(
            tmp_path / "s",
            capture="a",
            sites=SITES[1:2],
            plan=plan,
            segment_samples=1,
            rank=rank,
            ranks=2,
        ) as writer:
            for number in range(rank, 4, 2):
                writer.append(str(number), {"embed": np.ones((1, 5), np.float32)})
    assert [r.writer for r in open_store(tmp_path / "s").log.records if r.kind == "capture"] == [
        "w1"
    ]
    copy_store(tmp_path / "s", tmp_path / "c")
    copy_store(tmp_path / "s", tmp_path / "d", profile="portable")
    assert verify_store(tmp_path / "c").ok
    assert verify_store(tmp_path / "d").ok
    names = {k for k in contents(tmp_path / "s") if not k.endswith(".lock")}
    assert {k: contents(tmp_path / "s")[k] for k in names} == contents(tmp_path / "c")


def test_a_store_of_before_is_copied_as_it_is(tmp_path):
    golden = Path(__file__).parent / "golden/v1.zarr"
    copy_store(golden, tmp_path / "c")
    assert contents(tmp_path / "c") == contents(golden)
    copy_store(golden, tmp_path / "small", profile="compact")
    assert verify_store(tmp_path / "small").ok
    digest = open_store(golden).content_digest()
    assert open_store(tmp_path / "small").content_digest() == digest
