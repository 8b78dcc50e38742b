"""Profiles store the same values, smaller or wider, and nothing grows beyond what was declared."""

from __future__ import annotations

import hashlib
import json
import shutil

import ml_dtypes
import numpy as np
import pytest
from numcodecs import blosc

from lorascope.store import (
    ConfigMismatchError,
    DamagedStoreError,
    SampleError,
    Site,
    copy_store,
    create_store,
    open_store,
    verify_store,
)
from lorascope.store.encoded import read_spans
from lorascope.store.files import crc32c
from lorascope.store.inside import opened
from lorascope.store.layout import canonical, to_json
from lorascope.store.profiles import chunk_codec, stored_dtype

from .conftest import make_samples, plan_of

DTYPES = {"float16": "<f2", "bfloat16": ml_dtypes.bfloat16, "float32": "<f4", "float64": "<f8"}
COMPRESSED = ("compact", "archive")


def activations(rows: int, width: int, seed: int = 0) -> np.ndarray:
    """Frames like those of a speech encoder: slow in time, heavy tails, a few large features."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_t(4, (rows, width))
    frames = np.empty((rows, width))
    frames[0] = noise[0]
    for row in range(1, rows):
        frames[row] = 0.95 * frames[row - 1] + 0.31 * noise[row]
    scale = np.exp(rng.normal(0, 1, width))
    return (frames * scale + 2 * rng.standard_t(3, width) * scale).astype(np.float32)


@pytest.mark.parametrize("profile", COMPRESSED)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_chunk_comes_back(profile, dtype):
    values = activations(64, 24).astype(DTYPES[dtype])
    values[3, :4] = [np.nan, np.inf, -np.inf, -0.0]
    codec = chunk_codec(profile, rows=64, width=24, itemsize=values.itemsize)
    assert codec is not None
    raw = values.reshape(-1).view(np.uint8)
    packed = codec.encode(raw)
    assert packed.size <= codec.max_bytes
    out = np.zeros_like(raw)
    codec.decode(packed, out)
    assert out.tobytes() == raw.tobytes()


@pytest.mark.parametrize("profile", COMPRESSED)
def test_noise_that_cannot_be_compressed_stays_within_the_bound(profile):
    codec = chunk_codec(profile, rows=512, width=16, itemsize=4)
    assert codec is not None
    raw = np.frombuffer(np.random.default_rng(0).bytes(codec.chunk_bytes), np.uint8)
    packed = codec.encode(raw)
    assert raw.size < packed.size <= codec.max_bytes
    out = np.zeros_like(raw)
    codec.decode(packed, out)
    assert out.tobytes() == raw.tobytes()


def test_a_chunk_that_would_grow_is_refused_before_it_does(monkeypatch):
    """Two gibibytes of zeros: some kilobytes on disk; the decompressor is never asked."""
    small = blosc.compress(np.zeros(4096, np.uint8), b"zstd", 5, shuffle=2, blocksize=0, typesize=4)
    bomb = np.frombuffer(small, np.uint8).copy()
    bomb[4:8] = np.frombuffer(np.uint32(2**31 - 17).tobytes(), np.uint8)
    codec = chunk_codec("archive", rows=16, width=64, itemsize=4)
    assert codec is not None
    monkeypatch.setattr(blosc, "decompress", lambda *_: pytest.fail("it was decompressed"))
    with pytest.raises(DamagedStoreError, match="would become 2147483631 bytes"):
        codec.decode(bomb, np.empty(4096, np.uint8))


@pytest.mark.parametrize(
    ("at", "value"),
    [(0, 3), (2, 36), (3, 2), (8, 0), (11, 255), (12, 9), (4, 1)],
    ids=["version", "library", "typesize", "block 0", "block", "packed size", "size"],
)
def test_a_changed_header_is_refused(at, value):
    codec = chunk_codec("archive", rows=16, width=64, itemsize=4)
    assert codec is not None
    packed = codec.encode(np.zeros(4096, np.uint8)).copy()
    codec.decode(packed, np.empty(4096, np.uint8))
    if at == 8:
        packed[8:12] = 0
    packed[at] = value
    with pytest.raises(DamagedStoreError, match="chunk"):
        codec.decode(packed, np.empty(4096, np.uint8))


@pytest.mark.parametrize("profile", COMPRESSED)
def test_what_is_no_compressed_chunk_gives_one_kind_of_error(profile):
    """Whatever stands behind a sound header: refused or decoded, never anything else."""
    rng = np.random.default_rng(1)
    codec = chunk_codec(profile, rows=64, width=32, itemsize=2)
    assert codec is not None
    raw = activations(64, 32).astype(ml_dtypes.bfloat16).reshape(-1).view(np.uint8)
    sound = codec.encode(raw)
    out = np.empty_like(raw)
    refused = 0
    for _ in range(1500):
        packed = sound.copy()
        where = rng.integers(16, packed.size, rng.integers(1, 6))
        packed[where] = rng.integers(0, 256, len(where))
        try:
            codec.decode(packed, out)
        except DamagedStoreError:
            refused += 1
    assert refused > 20
    for size in (0, 5, 16, sound.size - 1):
        with pytest.raises(DamagedStoreError):
            codec.decode(sound[:size].copy(), out)


@pytest.mark.parametrize("planned", [True, False])
@pytest.mark.parametrize("profile", ["compact", "portable"])
def test_recording_in_a_profile_records_the_same(write_store, profile, planned):
    samples = make_samples()
    plan = plan_of(samples) if planned else None
    options = {"segment_samples": 5, "plan": plan}
    plain = open_store(write_store("fast.zarr", **options))
    other = open_store(write_store("other.zarr", profile=profile, threads=2, **options))
    assert verify_store(other.path).ok
    if profile == "compact":
        assert other.content_digest() == plain.content_digest()
    one, two = plain.capture("base"), other.capture("base")
    assert two.definition.profile == profile
    for layer in (0, 1):
        wide = two.read_rows("resid_post", layer)
        if profile == "portable":  # the writer was given float32: nothing is rounded any more
            assert two.sites["resid_post"].dtype == "float32"
            wide = wide.astype(ml_dtypes.bfloat16).astype(np.float32)
        np.testing.assert_array_equal(wide, one.read_rows("resid_post", layer))


def test_an_interrupted_compact_run_goes_on(write_store):
    samples = make_samples()
    options = {"segment_samples": 5, "plan": plan_of(samples), "profile": "compact"}
    whole = write_store("whole.zarr", **options)
    broken = [*samples[:12], samples[12] | {"values": {}}]
    with pytest.raises(SampleError, match="missing: "):
        write_store("broken.zarr", samples=broken, **options)
    path = whole.parent / "broken.zarr"
    assert len(open_store(path).samples) == 10
    assert not list((path / "__commits__/staging").iterdir())
    with pytest.raises(ConfigMismatchError, match="profile is 'compact' there and 'fast' now"):
        write_store("broken.zarr", **options | {"profile": "fast"})
    write_store("broken.zarr", **options)
    shards = [p.relative_to(path) for p in path.glob("captures/base/sites/*/values/c.*")]
    assert len(shards) == 5 * 3
    assert all((path / p).read_bytes() == (whole / p).read_bytes() for p in shards)
    assert open_store(path).content_digest() == open_store(whole).content_digest()


def test_profiles_that_do_not_exist_or_are_for_copies(write_store):
    with pytest.raises(SampleError, match="no storage profile 'tiny'"):
        write_store("a.zarr", profile="tiny")
    with pytest.raises(SampleError, match="cp STORE COPY --profile archive"):
        write_store("a.zarr", profile="archive")
    assert stored_dtype("portable", "float64") == "float64"


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    """A store of activation-like frames with several chunks a shard, in every profile."""
    folder = tmp_path_factory.mktemp("frames")
    sites = [Site(f"x.{dtype}", [0, 1], 48, dtype) for dtype in DTYPES]
    with create_store(folder / "fast", capture="a", sites=sites, segment_rows=4096) as writer:
        for number in range(9):
            x = activations(700, 48, number)
            writer.append(f"s{number}", {f"x.{d}": np.stack([x, x[::-1]]) for d in DTYPES})
    for profile in ("compact", "archive", "portable"):
        copy_store(folder / "fast", folder / profile, profile=profile)
    return folder


@pytest.mark.parametrize("profile", ["compact", "archive", "portable"])
def test_windows_of_samples_are_those_of_the_source(frames, profile):
    one = open_store(frames / "fast").capture("a")
    two = open_store(frames / profile).capture("a")
    rng = np.random.default_rng(2)
    for dtype in DTYPES:
        for _ in range(6):
            start, stop = sorted(rng.integers(0, 10, 2).tolist())
            layer = int(rng.integers(2))
            window = slice(start, stop)
            np.testing.assert_array_equal(
                two.read_rows(f"x.{dtype}", layer, window),
                one.read_rows(f"x.{dtype}", layer, window),
            )
            if profile != "portable":
                there = two.read_stored(f"x.{dtype}", layer, window)
                here = one.read_stored(f"x.{dtype}", layer, window)
                assert there.dtype == here.dtype
                assert there.tobytes() == here.tobytes()


def test_sizes_are_in_order(frames):
    """On frames like those of a speech encoder; FORMAT.md has the ratios."""

    def size(profile: str, dtype: str) -> int:
        shards = frames.glob(f"{profile}/captures/a/sites/x.{dtype}/values/c.*")
        return sum(path.stat().st_size for path in shards)

    assert size("archive", "bfloat16") < size("compact", "bfloat16") < size("fast", "bfloat16")
    assert size("portable", "bfloat16") > 1.9 * size("fast", "bfloat16")
    for dtype in DTYPES:
        assert size("archive", dtype) <= size("compact", dtype) <= 1.01 * size("fast", dtype)


def shard_of(path):
    """Return the last commit, its body, and its entry of the first bfloat16 shard."""
    record = sorted((path / "__commits__").glob("*.json"))[-1]
    body = json.loads(record.read_text())["body"]
    entry = next(f for f in body["files"] if "x.bfloat16/values/c.0." in f["path"])
    return record, body, entry


def forge(record, body) -> None:
    """Write a record whose own checksum is right."""
    digest = hashlib.sha256(canonical(body)).hexdigest()
    record.write_bytes(to_json({"body": body, "sha256": digest}))


@pytest.mark.parametrize("profile", COMPRESSED)
@pytest.mark.parametrize("where", ["chunk", "checksum", "index"])
def test_damage_in_a_compressed_shard_is_found(frames, tmp_path, profile, where):
    copy = tmp_path / "s.zarr"
    shutil.copytree(frames / profile, copy)
    _, _, entry = shard_of(copy)
    shard = copy / entry["path"]
    content = bytearray(shard.read_bytes())
    log = open_store(copy).log
    stored = next(e for r in log.records for e in r.files if e.path == entry["path"])
    with opened(copy, stored.path) as (descriptor, _):
        offset, length = read_spans(descriptor, stored)[-1]
    at = {"chunk": offset + 40, "checksum": offset + length - 1, "index": len(content) - 9}[where]
    content[at] ^= 8
    shard.write_bytes(content)
    damages = verify_store(copy).damages
    assert [d.path for d in damages] == [entry["path"]]
    assert damages[0].samples
    capture = open_store(copy).capture("a")
    if where == "checksum":  # the copy of the checksum in the file: the record's is what counts
        return
    with pytest.raises(DamagedStoreError, match=r"x\.bfloat16/values/c\.0\.1\.0: the checksum of"):
        capture.read_rows("x.bfloat16", 0)


def test_a_forged_index_is_refused(frames, tmp_path):
    """With right checksums everywhere: overlaps, gaps, and places outside the file."""
    for number, change in enumerate(
        [
            lambda i: i.__setitem__((1, 0), i[0, 0]),
            lambda i: i.__setitem__((0, 1), i[0, 1] + 1),
            lambda i: i.__setitem__((0, 0), 2**40),
            lambda i: i.__setitem__((0, 1), 2**62),
            lambda i: i.__setitem__((0, 1), 3),
            lambda i: i.__setitem__(slice(0, 2), i[1::-1].copy()),
            lambda i: i.__setitem__((0,), 2**64 - 1),
        ]
    ):
        copy = tmp_path / f"{number}.zarr"
        shutil.copytree(frames / "compact", copy)
        record, body, entry = shard_of(copy)
        content = bytearray((copy / entry["path"]).read_bytes())
        size = 16 * entry["slots"]
        assert entry["slots"] >= 2
        index = np.frombuffer(bytes(content[-size - 4 : -4]), "<u8").reshape(-1, 2).copy()
        change(index)
        content[-size - 4 :] = index.tobytes() + crc32c(index).to_bytes(4, "little")
        (copy / entry["path"]).write_bytes(content)
        entry["crc32c"] = crc32c(bytes(content))
        forge(record, body)
        with pytest.raises(DamagedStoreError, match="index"):
            open_store(copy).capture("a").read_rows("x.bfloat16", 0)
        assert not verify_store(copy).ok


@pytest.mark.parametrize(
    ("key", "value"),
    [("slots", 0), ("slots", 10**15), ("slots", -1), ("slots", "4"), ("chunk_bytes", 2**40)],
)
def test_a_forged_record_is_refused(frames, tmp_path, key, value):
    copy = tmp_path / "s.zarr"
    shutil.copytree(frames / "compact", copy)
    record, body, entry = shard_of(copy)
    entry[key] = value
    forge(record, body)
    with pytest.raises(DamagedStoreError):
        open_store(copy).capture("a").read_rows("x.bfloat16", 0)


def test_a_bomb_in_a_store_is_refused(frames, tmp_path):
    """A chunk with right checksums in file, index and record that would fill the memory."""
    copy = tmp_path / "s.zarr"
    shutil.copytree(frames / "compact", copy)
    record, body, entry = shard_of(copy)
    shard = copy / entry["path"]
    content = bytearray(shard.read_bytes())
    size = 16 * entry["slots"]
    index = np.frombuffer(bytes(content[-size - 4 : -4]), "<u8").reshape(-1, 2)
    end = int(index[0, 1])
    content[4:8] = np.uint32(2**31 - 17).tobytes()
    crc = crc32c(bytes(content[: end - 4]))
    content[end - 4 : end] = crc.to_bytes(4, "little")
    shard.write_bytes(content)
    entry["chunks"][0] = crc
    entry["crc32c"] = crc32c(bytes(content))
    forge(record, body)
    with pytest.raises(DamagedStoreError, match="would become 2147483631 bytes") as caught:
        open_store(copy).capture("a").read_rows("x.bfloat16", 0)
    assert "chunk 0 of captures/a/sites/x.bfloat16" in caught.value.__notes__[0]
