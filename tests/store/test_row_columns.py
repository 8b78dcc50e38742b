"""Row columns: added to a store that is there, they are data of it like any other."""

from __future__ import annotations

import shutil
from functools import partial

import numpy as np
import pytest

from lorascope.store import (
    ConfigMismatchError,
    LockedStoreError,
    SampleError,
    SampleRows,
    SealedStoreError,
    Site,
    add_row_column,
    copy_store,
    create_store,
    open_store,
    repair_store,
    seal_store,
    verify_store,
)

from .dying_disk import count_operations, crash_points, die_at

ROWS = {"u0": 4, "u1": 6, "u2": 5}
PHONES = {"u0": ["", "HH", "AY", "AY"], "u2": ["AY", "", "", "HH", "T"]}
NUMBERS = [-1, 1, 0, 0, *[np.nan] * 6, 0, -1, -1, 1, 2]
"""What a reader gets: names in alphabetical order, NaN for a sample without any."""


def write(path, *, captures=("frozen", "lora"), stream="encoder", step=1):
    """Write captures with positions 0, step, 2 step, …"""
    rng = np.random.default_rng(0)
    for capture in captures:
        sites = [Site("resid_post", [0], 3, stream=stream)]
        with create_store(path, capture=capture, sites=sites) as writer:
            for sample, n in ROWS.items():
                values = {"resid_post": rng.normal(size=(1, n, 3))}
                writer.append(sample, values, positions={stream: np.arange(n) * step})
    return path


def files(root):
    """Return every committed byte: locks and staging aside."""
    found = [p for p in root.rglob("*") if p.is_file() and p.suffix != ".lock"]
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in found}


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "s.zarr")


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory):
    """A store for what must not change it."""
    return write(tmp_path_factory.mktemp("rows") / "s.zarr")


@pytest.fixture
def labelled(path):
    add_row_column(path, "phone", PHONES)
    return path


def test_texts_become_classes_beside_every_capture(labelled):
    store = open_store(labelled)
    assert store.captures == ["frozen", "lora"], "what was recorded; the column is none of them"
    assert store.row_columns["phone"].names == ("AY", "HH", "T")
    assert set(store.samples["capture"]) == {"frozen", "lora"}
    for capture in store.captures:
        np.testing.assert_array_equal(store.read_row_column("phone", capture=capture), NUMBERS)
    some = store.read_row_column("phone", capture="lora", samples=slice(1, 3))
    np.testing.assert_array_equal(some, NUMBERS[4:])


def test_rows_are_matched_by_sample_and_position(tmp_path):
    """One capture has every second frame in another order of samples; the column has a few."""
    path = write(tmp_path / "s.zarr", captures=("every",))
    with create_store(path, capture="half", sites=[Site("x", None, 2, stream="encoder")]) as writer:
        for sample, n in reversed(ROWS.items()):
            half = np.arange(0, n, 2)
            writer.append(sample, {"x": np.zeros((half.size, 2))}, positions={"encoder": half})
    report = add_row_column(path, "word", {"u1": ([5, 2], [7, 3]), "u0": ([1], [9])})
    assert (report.samples, report.rows, report.labelled) == (2, 10, 3)
    store = open_store(path)
    every = store.read_row_column("word", capture="every")
    np.testing.assert_array_equal(every, [-1, 9, -1, -1, -1, -1, 3, -1, -1, 7, *[np.nan] * 5])
    half = store.read_row_column("word", capture="half")
    np.testing.assert_array_equal(half, [*[np.nan] * 3, -1, 3, -1, -1, -1])


def test_numbers_keep_their_values(path):
    times = {sample: 0.1 + np.arange(n) / 3 for sample, n in ROWS.items()}
    assert add_row_column(path, "time", times).names == ()
    stored = open_store(path).read_row_column("time", capture="lora")
    np.testing.assert_array_equal(stored, np.concatenate(list(times.values())))


def test_names_may_be_given_for_numbers_and_texts(path):
    add_row_column(path, "a", {"u0": [1, 0, -1, 1]}, names=["no", "yes"])
    add_row_column(path, "b", {"u0": ["yes", "no", "", "yes"]}, names=["no", "yes"])
    store = open_store(path)
    assert store.row_columns["a"].names == store.row_columns["b"].names == ("no", "yes")
    for name in "ab":
        found = store.read_row_column(name, capture="lora", samples=slice(0, 1))
        assert found.tolist() == [1, 0, -1, 1]


def test_one_is_recorded_with_a_run_as_a_site(tmp_path):
    sites = [Site("x", [0], 2), Site("phone", None, 1)]
    attrs = {"row_names": {"phone": ["a", "b"]}}
    with create_store(tmp_path / "s", capture="c", sites=sites, attrs=attrs) as writer:
        writer.append("u", {"x": np.zeros((1, 3, 2)), "phone": np.array([1, -1, 0])})
    capture = open_store(tmp_path / "s").capture("c")
    assert capture.read_rows("phone", None)[:, 0].tolist() == [1, -1, 0]
    assert capture.class_names("phone") == ("a", "b")
    assert capture.class_names("x") == ()


BAD = {
    "unknown sample": ({"ux": [1]}, {}, "no sample 'ux'.*'u0'"),
    "length": ({"u0": [1, 2]}, {}, r"'u0' has 4 rows .* shape \(2,\)"),
    "position": ({"u0": ([4], [1])}, {}, "no row at position 4"),
    "twice": ({"u0": ([2, 2], [1, 1])}, {}, "two values at position 2"),
    "fraction": ({"u0": ([0.5], [1])}, {}, "whole numbers"),
    "nan": ({"u0": ([2], [np.nan])}, {}, "value nan"),
    "mixed": ({"u0": ["a"] * 4, "u1": [1.0] * 6}, {}, "texts and others numbers"),
    "nothing": ({"u0": [""] * 4}, {}, "a value for no row"),
    "no values": ({}, {}, "a value for no row"),
    "stream": ({"u0": [1] * 4}, {"stream": "tokens"}, "no stream 'tokens'.*encoder"),
    "a name": ({"u0": ["a"] * 4}, {"names": ["b"]}, "'a' is not among its names"),
    "a number": ({"u0": [2] * 4}, {"names": ["a", "b"]}, "those of its 2 names"),
    "long": ({"u0": ["a" * 129] * 4}, {}, "129 characters"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_does_not_fit_is_refused_and_changes_nothing(unchanged, what):
    values, options, message = BAD[what]
    before = files(unchanged)
    with pytest.raises(SampleError, match=message):
        add_row_column(unchanged, "new", values, **options)
    assert files(unchanged) == before


def test_names_that_are_taken_are_refused(labelled):
    before = files(labelled)
    with pytest.raises(SampleError, match="a site 'resid_post'"):
        add_row_column(labelled, "resid_post", PHONES)
    with pytest.raises(SampleError, match="not allowed"):
        add_row_column(labelled, "../phone", PHONES)
    with pytest.raises(ConfigMismatchError, match="with other values already"):
        add_row_column(labelled, "phone", {"u0": [1, 1, 1, 1]})
    assert not add_row_column(labelled, "phone", PHONES).changed
    assert files(labelled) == before


def test_several_streams_must_be_named(tmp_path):
    path = write(tmp_path / "s.zarr", captures=("a",))
    write(path, captures=("b",), stream="tokens")
    with pytest.raises(SampleError, match=r"no stream was named.*encoder, tokens"):
        add_row_column(path, "pos", {"u0": [1] * 4})
    assert add_row_column(path, "pos", {"u0": [1] * 4}, stream="tokens").stream == "tokens"


def test_a_store_that_is_written_to_is_locked(path):
    sites = [Site("resid_post", [0], 3, stream="encoder")]
    with create_store(path, capture="more", sites=sites), pytest.raises(LockedStoreError):
        add_row_column(path, "phone", PHONES)
    assert add_row_column(path, "phone", PHONES).changed


def test_it_is_sealed_verified_and_copied_with_the_rest(labelled, tmp_path):
    digest = open_store(labelled).content_digest()
    sealed = seal_store(labelled)
    assert sealed.content_digest == digest
    assert verify_store(labelled, "full").ok
    with pytest.raises(SealedStoreError, match="lorascope cp"):
        add_row_column(labelled, "more", PHONES)
    copy_store(labelled, tmp_path / "copy.zarr")
    assert add_row_column(tmp_path / "copy.zarr", "more", PHONES).changed
    assert seal_store(tmp_path / "copy.zarr").content_digest != digest
    for profile in ("compact", "archive", "portable"):
        copy_store(labelled, tmp_path / profile, profile=profile)
        found = open_store(tmp_path / profile).read_row_column("phone", capture="lora")
        np.testing.assert_array_equal(found, NUMBERS)


def test_a_copy_of_some_captures_has_the_columns_that_are_named(labelled, tmp_path):
    copy_store(labelled, tmp_path / "without", captures=["lora"])
    copy_store(labelled, tmp_path / "with", captures=["lora", "rows.phone"])
    assert open_store(tmp_path / "without").row_columns == {}
    found = open_store(tmp_path / "with").read_row_column("phone", capture="lora")
    np.testing.assert_array_equal(found, NUMBERS)


def test_a_flipped_bit_is_found_and_repaired_by_the_same_call(labelled):
    digest = open_store(labelled).content_digest()
    shard = next((labelled / "captures/rows.phone/sites/phone/values").glob("c.*"))
    content = bytearray(shard.read_bytes())
    content[1] ^= 4
    shard.write_bytes(content)
    report = verify_store(labelled)
    assert [(d.capture, d.site) for d in report.damages] == [("rows.phone", "phone")]
    assert repair_store(labelled).withdrawn
    assert not open_store(labelled).capture("rows.phone").complete
    assert add_row_column(labelled, "phone", PHONES).changed
    assert open_store(labelled).content_digest() == digest
    assert verify_store(labelled).ok


def test_a_call_that_was_cut_off_goes_on(path, monkeypatch):
    """A plan of many segments, of which a first call commits some."""
    values = {f"v{i}": [i % 3] * 2 for i in range(100)}
    sites = [Site("resid_post", [0], 3, stream="encoder")]
    plan = [SampleRows(sample, {"encoder": 2}) for sample in values]
    with create_store(path, capture="many", sites=sites, plan=plan) as writer:
        for sample in values:
            writer.append(sample, {"resid_post": np.zeros((1, 2, 3))})
    from lorascope.store import add_rows

    calls = []

    def dying(**facts):
        calls.append(facts["id"])
        if len(calls) > 50:
            raise KeyboardInterrupt
        return real(**facts)

    real = add_rows.NewSample
    monkeypatch.setattr(add_rows, "NewSample", dying)
    with pytest.raises(KeyboardInterrupt):
        add_row_column(path, "n", values)
    done = len(open_store(path).capture("rows.n"))
    assert 0 < done < 100
    monkeypatch.setattr(add_rows, "NewSample", real)
    assert add_row_column(path, "n", values).changed
    found = open_store(path).read_row_column("n", capture="many")
    np.testing.assert_array_equal(found, np.concatenate(list(values.values())))


def test_a_call_that_dies_at_any_operation_is_finished_by_the_same_call(path):
    """Nothing that was recorded is lost either; two columns, one of which is there already."""
    add_row_column(path, "time", {"u1": np.linspace(0.0, 1.0, 6)})
    whole, copies = path.with_name("whole.zarr"), path.parent
    shutil.copytree(path, whole)
    total = count_operations(lambda: add_row_column(whole, "phone", PHONES))
    digest = open_store(whole).content_digest()
    for number in crash_points(total, first=3, step=19):
        cut = copies / f"{number}.zarr"
        shutil.copytree(path, cut)
        die_at(number, partial(add_row_column, cut, "phone", PHONES))
        left = open_store(cut)
        assert left.captures == ["frozen", "lora"]
        assert {"time"} <= set(left.row_columns)
        add_row_column(cut, "phone", PHONES)
        assert open_store(cut).content_digest() == digest
        assert verify_store(cut).ok


def test_a_capture_that_only_says_it_is_a_row_column_is_none(path):
    """Attributes may come from anybody."""
    said = {"row_column": {"name": "phone", "stream": "encoder", "names": 3}}
    for name, width in (("rows.phone", 2), ("other", 1)):
        site = Site("phone", None, width, stream="encoder")
        with create_store(path, capture=name, sites=[site], config=said) as writer:
            writer.append("u0", {"phone": np.zeros((2, width))})
    store = open_store(path)
    assert store.captures == ["frozen", "lora", "rows.phone", "other"]
    assert store.row_columns == {}
