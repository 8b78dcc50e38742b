"""Partial states: a killed run goes on and ends in the same bits; a file runs no foreign code."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorascope.analyses import CKA, ArrayKey, Block, analyze, identity, partial, write_outputs
from lorascope.analyses.fold import Piece
from lorascope.analyses.identity import NotKnownError, identify_run
from lorascope.analyses.memory import Pass
from lorascope.analyses.source import Source
from lorascope.analyses.spectra.scatter import Scatter
from lorascope.analyses.state_file import (
    UnusableStateError,
    read_done,
    read_state,
    write_state,
)
from lorascope.store import open_store

NAMES = ["svd", "contribution", CKA(permutations=0)]
MODULE = frozenset({__name__})


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep a state after every slab."""
    monkeypatch.setattr(partial, "INTERVAL_SECONDS", 0.0)
    monkeypatch.setattr(partial, "REST", 0.0)


def bits(results: dict[str, Any]) -> dict[tuple[str, str], bytes | list[Any]]:
    """Return every column by its bytes, text as it is."""
    found: dict[tuple[str, str], bytes | list[Any]] = {}
    for name, dataset in results.items():
        for column, values in dataset.items():
            x = values.to_numpy()
            found[name, str(column)] = x.tolist() if x.dtype.kind in "OU" else x.tobytes()
    return found


def break_at(monkeypatch: pytest.MonkeyPatch, number: int) -> list[int]:
    """Let the engine fail at one of the blocks that it reads; return the count of blocks."""
    count = [0]
    original = Source.block

    def block(self: Source, *arguments: Any, **options: Any) -> Block:
        count[0] += 1
        if count[0] == number:
            msg = "pulled out"
            raise OSError(msg)
        return original(self, *arguments, **options)

    monkeypatch.setattr(Source, "block", block)
    return count


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("memory", ["2GiB", "4MiB"])
def test_a_broken_run_goes_on_and_ends_in_the_same_bits(study, tmp_path, memory):
    """In one pass by two workers, and in the last of several passes."""
    options = {"workers": 2, "memory": memory, "captures": ["lora"], "layers": [1]}
    with pytest.MonkeyPatch.context() as patch:
        count = break_at(patch, 10**9)
        whole = analyze(study.path, NAMES, **options)
        blocks = count[0]
    at = blocks - 2
    assert (whole["svd"].attrs["passes"] > 1) == (memory == "4MiB")
    with pytest.MonkeyPatch.context() as patch:
        break_at(patch, at)
        with pytest.raises(OSError, match="pulled out"):
            analyze(study.path, NAMES, **options, resume=tmp_path / "partial")
    told: list[tuple[int, int, str]] = []
    with pytest.MonkeyPatch.context() as patch:
        count = break_at(patch, 10**9)
        progress = lambda *event: told.append(event)  # noqa: E731
        found = analyze(
            study.path, NAMES, **options, resume=tmp_path / "partial", progress=progress
        )
        # a worker loses at most the slab at which it was
        assert blocks - at <= count[0] <= blocks - at + 2
    assert bits(found) == bits(whole)
    assert "before" in told[0][2]
    assert max(done for done, _, _ in told) == told[0][1]
    with pytest.MonkeyPatch.context() as patch:
        count = break_at(patch, 10**9)  # all passes are there already
        assert bits(analyze(study.path, NAMES, **options, resume=tmp_path / "partial")) == bits(
            whole
        )
        assert count[0] == 0


KILLED = """
import os, signal, sys
from lorascope.analyses import analyze, partial
from lorascope.analyses.source import Source
partial.INTERVAL_SECONDS = partial.REST = 0.0
original, count = Source.block, [0]
def block(self, *arguments, **options):
    count[0] += 1
    if count[0] == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, *arguments, **options)
Source.block = block
analyze(sys.argv[1], ["svd"], workers=1, resume=sys.argv[2])
"""


def test_a_killed_process(study, tmp_path):
    command = [sys.executable, "-c", KILLED, str(study.path), str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, check=False)
    assert ran.returncode == -signal.SIGKILL, ran.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["pass-1-part-0.state"]
    with pytest.MonkeyPatch.context() as patch:
        whole = analyze(study.path, ["svd"], workers=1)
        count = break_at(patch, 10**9)
        found = analyze(study.path, ["svd"], workers=1, resume=tmp_path)
    assert count[0] == whole["svd"].attrs["slabs"] - 3
    assert bits(found) == bits(whole)


def test_nothing_is_kept_of_a_short_run(study, tmp_path):
    analyze(study.path, ["svd"], captures=["lora"], resume=tmp_path / "partial")
    assert not (tmp_path / "partial").exists()


@pytest.mark.usefixtures("always")
def test_another_run_is_not_taken_for_this_one(study, tmp_path):
    notes: list[str] = []
    options = {"workers": 1, "notify": notes.append, "resume": tmp_path, "captures": ["lora"]}
    analyze(study.path, ["svd"], **options)
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert list(kept) == ["pass-1.state"]
    (tmp_path / "mine.txt").write_text("stays")
    assert not notes
    analyze(study.path, ["svd"], **options, layers=[1])
    assert len(notes) == 1
    assert "another run" in notes[0]
    assert (tmp_path / "pass-1.state").read_bytes() != kept["pass-1.state"]
    partial.remove_partial(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.usefixtures("always")
def test_a_disk_that_refuses_costs_the_states_alone(study, tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        msg = "No space left on device"
        raise OSError(msg)

    monkeypatch.setattr(partial, "write_state", refuse)
    notes: list[str] = []
    options = {"captures": ["lora"], "workers": 1, "resume": tmp_path, "notify": notes.append}
    assert analyze(study.path, ["svd"], **options)["svd"].sizes["entry"] > 0
    assert len(notes) == 1
    assert "No space left" in notes[0]


def test_time_that_writing_may_take(monkeypatch):
    """At most every minute, and after 20 times what the last one took."""
    now = [0.0]
    monkeypatch.setattr(partial.time, "monotonic", lambda: now[0])
    timer = partial.Timer()
    for at, due in ((59.0, False), (60.0, True)):
        now[0] = at
        assert timer.is_due() == due
    now[0] = 70.0
    timer.rest(60.0)  # it took 10 s: at most 5 % of the time until the next
    for at, due in ((269.0, False), (270.0, True)):
        now[0] = at
        assert timer.is_due() == due


@dataclass
class Kept:
    """A state of a user's fold."""

    total: np.ndarray
    seen: list[Any] = field(default_factory=list)


def test_a_state_comes_back_as_it_was(tmp_path):
    x = np.random.default_rng(0).standard_normal((5, 4))
    content = [
        Scatter(3, x[0], x[1:, 1:]),  # a part of an array, in no order that can be written whole
        Kept(np.asfortranarray(x), [np.float32(2), np.arange(0), {"a": (1, None, "é")}, 1 + 2j]),
        [np.array(["a", None, 3], dtype=object), np.array(["ab", "c"]), {4, 5}, b"raw"],
    ]
    path = tmp_path / "a.state"
    write_state(path, "key", 7, content)
    assert [p.name for p in tmp_path.iterdir()] == ["a.state"]
    assert read_done(path, "key") == 7
    assert read_done(path, "other") is None
    scatter, kept, rest = read_state(path, "key", MODULE)
    assert (scatter.n, kept.seen[0], kept.seen[2:]) == (3, 2, content[1].seen[2:])
    assert kept.total.flags.f_contiguous
    np.testing.assert_array_equal(scatter.scatter_dd, x[1:, 1:])
    np.testing.assert_array_equal(kept.total, x)
    assert [list(x) if isinstance(x, np.ndarray) else x for x in rest] == [
        ["a", None, 3],
        ["ab", "c"],
        {4, 5},
        b"raw",
    ]
    kept.total += 1  # folds go on in place
    with pytest.raises(UnusableStateError, match=r"names .*Kept"):
        read_state(path, "key", frozenset())
    with pytest.raises(UnusableStateError, match="another run"):
        read_state(path, "other", MODULE)


def test_a_damaged_state_is_found(tmp_path):
    path = tmp_path / "a.state"
    write_state(path, "key", 1, [np.arange(20.0), "text"])
    data = path.read_bytes()
    for i in range(0, len(data), 3):
        path.write_bytes(data[:i] + bytes([data[i] ^ 4]) + data[i + 1 :])
        try:  # the count of slabs is not what the checksum is of, and decides nothing here
            found = read_state(path, "key", MODULE)
            assert found[1] == "text"
            np.testing.assert_array_equal(found[0], np.arange(20.0))
            assert b'"done"' in data[max(0, i - 12) : i + 12]
        except UnusableStateError:
            pass
    for stop in (0, 10, 60, len(data) - 1):
        path.write_bytes(data[:stop])
        with pytest.raises(UnusableStateError):
            read_state(path, "key", MODULE)
    path.write_bytes(data + b"x")
    with pytest.raises(UnusableStateError, match="length"):
        read_state(path, "key", MODULE)
    with pytest.raises(UnusableStateError, match="No such file"):
        read_state(tmp_path / "absent", "key", MODULE)


@dataclass
class Call:
    """Pickles as a call of something."""

    called: Any
    arguments: tuple[Any, ...]

    def __reduce__(self) -> tuple[Any, ...]:
        return self.called, self.arguments


def run_of_this_module(path: str) -> None:
    Path(path).write_text("ran")


@pytest.mark.parametrize(
    "called",
    [os.system, eval, exec, getattr, __import__, run_of_this_module, write_outputs, Path, open],
)
def test_a_file_that_somebody_sent_runs_nothing(tmp_path, called):
    """Neither functions of anybody, nor those of this package, nor classes that are no states."""
    path, mark = tmp_path / "a.state", tmp_path / "mark"
    write_state(path, "key", 1, [Call(called, (str(mark),))])
    with pytest.raises(UnusableStateError, match="which no partial state may hold"):
        read_state(path, "key", MODULE)
    assert not mark.exists()


def test_names_that_reach_into_classes_or_import_something(tmp_path):
    path = tmp_path / "a.state"
    for module, name in (
        ("lorascope.analyses.spectra.scatter", "Scatter.empty"),
        ("lorascope.analyses.spectra.scatter", "np"),
        ("lorascope.analyses.source", "open_store"),
        ("antigravity", "fly"),
        ("numpy", "load"),
    ):
        stream = (
            pickle.PROTO
            + b"\x05"
            + b"".join(
                pickle.SHORT_BINUNICODE + bytes([len(text)]) + text.encode()
                for text in (module, name)
            )
        )
        stream += pickle.STACK_GLOBAL + pickle.STOP
        write_state(path, "key", 1, None)
        head, header, _ = path.read_bytes().split(b"\n", 2)
        fields = json.loads(header) | {"sizes": [len(stream)], "crc32": zlib.crc32(stream)}
        path.write_bytes(head + b"\n" + json.dumps(fields).encode() + b"\n" + stream)
        with pytest.raises(UnusableStateError, match="which no partial state may hold"):
            read_state(path, "key", MODULE)
    assert "antigravity" not in sys.modules


@dataclass(frozen=True)
class Total:
    """A user's fold: sums, with a state of its own class."""

    needs: tuple[ArrayKey, ...]
    scale: Any = 1.0

    def empty(self) -> Kept:
        return Kept(np.zeros(12))

    def add(self, state: Kept, block: Block) -> Kept:
        piece: Piece = block[self.needs[0]]
        return Kept(state.total + self.scale * piece.values.sum(axis=0, dtype=np.float64), [1])

    def merge(self, left: Kept, right: Kept) -> Kept:
        return Kept(left.total + right.total)

    def finish(self, state: Kept) -> np.ndarray:
        return state.total


@pytest.mark.usefixtures("always")
def test_a_fold_of_a_user_goes_on_too(study, tmp_path):
    fold = Total((ArrayKey("lora", "embed", -1),))
    whole = analyze(study.path, [fold], workers=1)
    with pytest.MonkeyPatch.context() as patch:
        break_at(patch, 3)
        with pytest.raises(OSError, match="pulled out"):
            analyze(study.path, [fold], workers=1, resume=tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        count = break_at(patch, 10**9)
        found = analyze(study.path, [fold], workers=1, resume=tmp_path)
    assert count[0] == whole["total"].attrs["slabs"] - 2
    assert bits(found) == bits(whole)
    notes: list[str] = []
    odd = replace(fold, scale=lambda: 1.0)
    with pytest.raises(TypeError):
        analyze(study.path, [odd], workers=1, resume=tmp_path, notify=notes.append)
    assert notes == ["partial states are not kept: builtins.function is no plain value."]


def test_everything_that_decides_the_states_is_in_the_digest(study, tmp_path, make_study):
    store = open_store(study.path)
    source = Source.open(store, ["lora"])
    key = ArrayKey("lora", "embed", -1)
    fold = Total((key,), np.arange(3.0))
    one = Pass((fold,), (key,), ((0, 20), (20, 40)), 2)

    def digest(stores=(store,), read=source, passes=(one,), seed=0) -> str:
        return identify_run(stores, read, passes, seed)[0]

    other = open_store(make_study(tmp_path / "other.zarr", speakers=1, per_speaker=2).path)
    found = [
        digest(),
        digest(seed=1),
        digest(stores=[store, other]),
        digest(stores=[other]),
        digest(read=Source.open(store, ["lora", "frozen"])),
        digest(passes=[one, one]),
        digest(passes=[replace(one, workers=1)]),
        digest(passes=[replace(one, slabs=((0, 40),))]),
        digest(passes=[replace(one, folds=(replace(fold, scale=np.arange(3.0) + 1e-15),))]),
        digest(passes=[replace(one, folds=(replace(fold, scale=np.arange(3)),))]),
        digest(passes=[replace(one, folds=(replace(fold, scale=[0.0, 1.0, 2.0]),))]),
    ]
    assert len(set(found)) == len(found)
    again = Source.open(open_store(study.path), ["lora"])
    assert digest(read=again) == found[0]
    assert identify_run([store], source, [one], 0)[1] == MODULE
    with pytest.raises(NotKnownError, match="no plain value"):
        digest(passes=[replace(one, folds=(replace(fold, scale=print),))])
    with pytest.MonkeyPatch.context() as patch:
        identity._hash_source.cache_clear()
        patch.delattr(sys.modules[__name__], "__file__")
        with pytest.raises(NotKnownError, match="lie in no file"):
            digest()
