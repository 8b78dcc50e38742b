"""A power cut after any operation: what was committed is there, whole and right."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lorascope.store import open_store, repair_store, seal_store, verify_store
from lorascope.store.disk import use_disk

from .crash import Shown, SimulatedDisk, freeze, put_tree
from .disks import Operation, RecordingDisk
from .small_run import Run

RUNS = {
    "planned": Run(n_samples=4),
    "unplanned": Run(n_samples=3, planned=False, threads=2, parameters=False),
    "compressed": Run(n_samples=3, profile="compact", parameters=False),
}


def record(base: Path, action: Callable[[Path], object]) -> list[Operation]:
    """Carry out an action on the store in `base`; return its operations as if in `before`."""
    disk = RecordingDisk()
    with use_disk(disk):
        action(base / "store")
    before = base.with_name("before")

    def moved(path: Path | None) -> Path | None:
        return None if path is None else before / path.relative_to(base)

    return [
        replace(op, path=before / op.path.relative_to(base), target=moved(op.target))
        for op in disk.trace
    ]


class Promise:
    """The samples that were committed: their record is named and its directory synced."""

    def __init__(self) -> None:
        self.samples: set[str] = set()
        self._content: dict[Path, bytes] = {}
        self._renamed: list[bytes] = []

    def see(self, operation: Operation) -> None:
        """Follow one operation."""
        path, target = operation.path, operation.target
        if operation.kind == "write":
            self._content[path] = self._content.get(path, b"") + operation.data
        elif target is not None and target.parent.name == "__commits__":
            self._renamed.append(self._content[path])
        elif operation.kind == "sync_directory" and path.name == "__commits__":
            for record in self._renamed:
                body = json.loads(record)["body"]
                self.samples |= {sample["id"] for sample in body.get("samples", ())}
            self._renamed.clear()


def prove(run: Run, folder: Path, *, seed: int, drawn: int) -> dict[str, int]:
    """Check every state after every operation; continue the run from some of them."""
    (folder / "run").mkdir()
    trace = record(folder / "run", run.write)
    expected = run.digest(folder / "undisturbed")
    (folder / "before").mkdir()
    disk, promise, rng = SimulatedDisk(folder / "before"), Promise(), random.Random(seed)
    seen: set[object] = set()
    resumed, state = 0, Shown(folder / "state")
    for number, operation in enumerate(trace):
        disk.replay(operation)
        promise.see(operation)
        for tree in disk.states(rng, drawn=drawn):
            key = hash((freeze(tree), frozenset(promise.samples)))
            if key in seen:
                continue
            seen.add(key)
            state.show(tree)
            where = f"after operation {number}: {operation.kind} {operation.path.name}"
            try:
                run.check(state.folder / "store", promise.samples)
                if len(seen) % 10 == 0:
                    run.write(state.folder / "store")
                    assert open_store(state.folder / "store").content_digest() == expected
                    resumed += 1
                    state.forget()
            except Exception as error:
                error.add_note(where)
                raise
    assert promise.samples == {f"s{n}" for n in range(run.n_samples)}
    return {"operations": len(trace), "states": len(seen), "resumed": resumed}


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_every_crash_state(ram, run, seed, amount, note):
    drawn = amount("draws", change=1, release=6)
    counts = prove(run, ram, seed=seed, drawn=drawn)
    assert counts["states"] > counts["operations"], "the simulated power cuts are all the same"
    note(
        "power cut in every state that POSIX allows: committed samples lost, wrong values", **counts
    )


def test_configurations(ram, seed, amount, note):
    rng = random.Random(seed)
    counts = {"operations": 0, "states": 0, "resumed": 0}
    configurations = amount("configurations", change=0, release=20)
    if not configurations:
        pytest.skip("drawn configurations belong to `make proof`")
    for number in range(configurations):
        folder = ram / str(number)
        folder.mkdir()
        for name, count in prove(Run.draw(rng), folder, seed=number, drawn=1).items():
            counts[name] += count
        shutil.rmtree(folder)
    note("the same for drawn configurations", configurations=configurations, **counts)


def test_the_simulation_finds_a_missing_fsync(ram, seed):
    """A writer that does not sync its data, or a directory, is caught: the proof can fail."""
    run = Run()
    (ram / "run").mkdir()
    (ram / "before").mkdir()
    trace = record(ram / "run", run.write)
    caught = []
    for kind in ("sync", "sync_directory"):
        lacking = [op for op in trace if op.kind != kind or op.path.name == "__commits__"]
        disk, promise, rng = SimulatedDisk(ram / "before"), Promise(), random.Random(seed)
        for operation in lacking:
            disk.replay(operation)
            promise.see(operation)
        for number, tree in enumerate(disk.states(rng, drawn=0)):
            state = ram / f"{kind}-{number}"
            put_tree(tree, state)
            try:
                run.check(state / "store", promise.samples)
            except Exception:  # any way of noticing it will do
                caught.append(kind)
    assert set(caught) == {"sync", "sync_directory"}


def damage(store: Path) -> None:
    """Flip a bit of a segment and remove metadata that a repair can write again."""
    shard = store / "captures/a/sites/x/values/c.0.1.0"
    data = bytearray(shard.read_bytes())
    data[3] ^= 16
    shard.write_bytes(data)
    (store / "captures/a/rows/zarr.json").unlink()


def finish_repair(run: Run, store: Path, expected: str) -> None:
    """Whatever a crashed repair left: repair again, write again, all is there."""
    repair_store(store)
    assert verify_store(store).ok
    run.write(store)
    run.check_whole(store, expected)


def finish_seal(run: Run, store: Path, expected: str) -> None:
    """Whatever a crashed seal left is a sound store, open or sealed; sealing again ends it."""
    run.check(store, {f"s{n}" for n in range(run.n_samples)})
    seal_store(store)
    assert verify_store(store, "full").ok
    assert open_store(store).content_digest() == expected


ACTIONS = {"seal": (seal_store, finish_seal), "repair": (repair_store, finish_repair)}


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("kind", ["planned", "unplanned"])
def test_every_crash_state_of_seal_and_repair(ram, kind, action, seed, amount, note):
    run, (act, finish) = RUNS[kind], ACTIONS[action]
    (ram / "before").mkdir()
    expected = run.digest(ram / "before/store")
    if action == "repair":
        damage(ram / "before/store")
    shutil.copytree(ram / "before", ram / "run")
    disk, rng = SimulatedDisk(ram / "before"), random.Random(seed)
    seen: set[int] = set()
    operations = record(ram / "run", act)
    for number, operation in enumerate(operations):
        disk.replay(operation)
        for tree in disk.states(rng, drawn=amount("draws", change=1, release=6)):
            key = hash(freeze(tree))
            if key in seen:
                continue
            seen.add(key)
            put_tree(tree, ram / "state")
            try:
                finish(run, ram / "state/store", expected)
            except Exception as error:
                where = f"{operation.kind} {operation.path.name}"
                error.add_note(f"after operation {number}: {where}")
                raise
            shutil.rmtree(ram / "state")
    assert len(seen) > 5
    counts = {"operations": len(operations), "states": len(seen)}
    note(f"power cut in every state of a {action}, then the same command", **counts)
