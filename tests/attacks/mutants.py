"""The child that meets mutants: stores in which one value or a few bytes were changed at random.

Run as `python -m tests.attacks.mutants FOLDER COUNT SEED`; prints a line for every mutant that did
something else than work or raise a `StoreError`, then one line of counts. Mutant `n` of a seed is
always the same.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import dask.config

from lorascope.store import read_results, verify_store
from lorascope.store.disk import use_disk

from ..proof.disks import QuickDisk
from .copies import changed, put_back, restore
from .forge import Forge, make_results, make_store
from .harness import Guard, attempt, limit, read_all, say, watched, write

STORES = {"s.zarr": "base", "t.zarr": "live"}
"""Two small stores instead of one, each with one large capture and the compressed one."""
WRITE_EVERY = 10
"""Only so many mutants are written to and read by more than one way: both are slow."""

VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    7,
    2**31,
    2**62,
    2**63 - 1,
    -(2**63),
    2**64,
    10**30,
    0.5,
    -1e300,
    "",
    "x",
    "../x",
    ".",
    "NaN",
    "\x1b[2J\u202e",
    "x" * 300,
    "float32",
    "base",
    [],
    [0],
    [[]],
    {},
    {"a": 1},
    "0" * 64,
]


def mutate(tree: Any, dice: random.Random) -> str:
    """Change one value somewhere in JSON, at every depth with the same chance; say how."""
    node, steps = tree, []
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = dice.choice(keys)
        steps.append(str(key))
        below = node[key]
        if not isinstance(below, dict | list) or not below or dice.random() < 0.25:
            break
        node = below
    how = dice.choice(["delete", "double", "retype", "retype", "retype", "nest", "swap", "near"])
    _change(node, key, how, dice)
    return f"{how} {'.'.join(steps)}"


def _change(node: Any, key: Any, how: str, dice: random.Random) -> None:
    value = node[key]
    if how == "delete":
        del node[key]
    elif how == "double" and isinstance(node, list):
        node.insert(key, value)
    elif how == "double":
        node[f"{key}{dice.choice(['', '2', '.', ' '])}"] = value
    elif how == "nest":
        for _ in range(dice.choice([1, 2, 70])):
            value = [value] if dice.random() < 0.5 else {"a": value}
        node[key] = value
    elif how == "swap":
        other = dice.choice(list(node) if isinstance(node, dict) else list(range(len(node))))
        node[key], node[other] = node[other], node[key]
    elif how == "near" and type(value) in (int, float):
        node[key] = dice.choice([value + 1, value - 1, -value, value * 2, value * 2**40])
    elif how == "near" and isinstance(value, str):
        node[key] = dice.choice([value + "x", value[:-1], value.upper(), value[::-1]])
    else:
        node[key] = dice.choice(VALUES)


def damage(content: bytes, dice: random.Random) -> bytes:
    """Change some bytes."""
    at = dice.randrange(len(content) + 1)
    return dice.choice(
        [
            lambda: content[:at],
            lambda: content[:at] + bytes([dice.randrange(256)]) + content[at + 1 :],
            lambda: content[:at] + dice.randbytes(dice.randrange(1, 9)) + content[at:],
            lambda: content[:at] + content[at + dice.randrange(1, 9) :],
            lambda: content[:at] + b"\xff" * 4 + content[at + 4 :],
            lambda: content + content,
        ]
    )()


def _record(forge: Forge, dice: random.Random) -> str:
    bodies = forge.bodies()
    said = mutate(dice.choice(bodies), dice)
    forge.sign(bodies)
    return said


def _definition(forge: Forge, dice: random.Random) -> str:
    said = []
    capture = dice.choice([STORES[forge.root.name], "packed"])
    whole = dice.random() < 0.1
    forge.definition(
        lambda attributes: None if whole else said.append(mutate(attributes, dice)),
        capture=capture,
        node=lambda body: said.append(mutate(body, dice)) if whole else None,
    )
    return f"{capture} {said[0]}"


def _json(forge: Forge, dice: random.Random, pattern: str) -> str:
    path = dice.choice(_files(forge.root, pattern))
    node = json.loads((forge.root / path).read_bytes())
    said = mutate(node, dice)
    forge.put(path, json.dumps(node).encode())
    return f"{path} {said}"


def _bytes(forge: Forge, dice: random.Random, pattern: str) -> str:
    path = dice.choice(_files(forge.root, pattern))
    forge.put(path, damage((forge.root / path).read_bytes(), dice))
    return path


def _forged_chunk(forge: Forge, dice: random.Random) -> str:
    path = dice.choice(_files(forge.root, "samples/*/c.*", "parameters/*/c.*"))
    forge.chunk(path, damage((forge.root / path).read_bytes()[:-4], dice))
    return path


@cache
def _files(root: Path, *patterns: str) -> list[str]:
    """Return the files of a copy, which is sound whenever a mutator looks at it."""
    found = [path for pattern in patterns for path in root.rglob(pattern) if path.is_file()]
    return sorted(str(p.relative_to(root)) for p in found if p.name != "store.lock")


def _of_results(forge: Forge) -> Forge:
    of_results = Forge(forge.results, forge.results, forge.outside)
    of_results.touched = forge.touched
    return of_results


KINDS: dict[str, tuple[int, Callable[[Forge, random.Random], str]]] = {
    "record": (40, _record),
    "definition": (20, _definition),
    "root": (3, lambda f, d: _json(f, d, "zarr.json") if d.random() < 0.5 else _root(f, d)),
    "metadata": (5, lambda f, d: _json(f, d, "zarr.json")),
    "json_bytes": (8, lambda f, d: _bytes(f, d, "*.json")),
    "bytes": (6, lambda f, d: _bytes(f, d, "c.*")),
    "forged_chunk": (6, _forged_chunk),
    "results": (9, lambda f, d: _json(_of_results(f), d, "zarr.json")),
    "results_bytes": (6, lambda f, d: _bytes(_of_results(f), d, "*")),
}
"""Weight and mutator of every kind."""
SIGNED = {"record", "definition", "forged_chunk"}
"""Kinds in which a stranger may have changed the content rightly."""


def _root(forge: Forge, dice: random.Random) -> str:
    node = json.loads((forge.root / "zarr.json").read_bytes())
    said = mutate(node, dice)
    forge.put("zarr.json", json.dumps(node).encode())
    return said


def use(kind: str, forge: Forge, copy: Path, number: int) -> dict[str, str]:
    """Use a mutant; reading and verifying must leave it as it is."""
    outcomes: dict[str, str] = {}
    if kind.startswith("results"):
        attempt(outcomes, "results", lambda: len(read_results(forge.results)))
        return outcomes
    slowly = number % WRITE_EVERY == 0
    attempt(outcomes, "read", lambda: read_all(forge.root, doubly=slowly))
    attempt(outcomes, "verify", lambda: verify_store(forge.root))
    if slowly:
        if different := changed(copy, forge.touched):
            outcomes["changed"] = f"BAD reading changed {sorted(different)[:3]}"
        attempt(outcomes, "write", lambda: write(forge.root, "extra" if number % 20 else "live"))
    return outcomes


def _warm(sound: Path, warm: Path) -> dict[str, str]:
    """Make what is sound, use a copy in every way, and return the digests by name."""
    for name, capture in STORES.items():
        make_store(sound / name, capture)
    make_results(sound / "r.zarr")
    shutil.copytree(sound, warm)
    digests = {name: read_all(warm / name) for name in STORES}
    for name in STORES:
        assert verify_store(warm / name).ok
        write(warm / name, "live", "extra")
    read_results(warm / "r.zarr")
    return digests


def main(folder: Path, count: int, seed: int) -> None:
    """Meet `count` mutants."""
    sound, copy, outside = folder / "sound", folder / "copy", folder / "outside"
    sound.mkdir()
    outside.mkdir()
    guard = Guard()
    tally: Counter[str] = Counter()
    with use_disk(QuickDisk()), dask.config.set(scheduler="synchronous"):
        digests = _warm(sound, folder / "warm")
        guard.learn()
        limit(cpu_seconds=max(120, count))
        forge = None
        for number in range(count):
            dice = random.Random(f"{seed}-{number}")
            if forge is None or (number - 1) % WRITE_EVERY == 0:
                restore(sound, copy)
            else:
                put_back(sound, copy, forge.touched)
            name = dice.choice(list(STORES))
            forge = Forge(copy / name, copy / "r.zarr", outside)
            (kind,) = dice.choices(list(KINDS), [weight for weight, _ in KINDS.values()])
            said = KINDS[kind][1](forge, dice)
            outcomes = watched(guard, copy, lambda k=kind, f=forge, n=number: use(k, f, copy, n))
            read = outcomes.get("read", outcomes.get("results", ""))
            if kind not in SIGNED and kind[:7] != "results" and read.startswith("fine"):
                same = read == f"fine {digests[name]}"
                outcomes |= {} if same else {"digest": "BAD another content, and no error"}
            bad = [text for text in outcomes.values() if text.startswith("BAD")]
            tally[
                f"{kind} {'bad' if bad else 'fine' if read.startswith('fine') else 'refused'}"
            ] += 1
            if bad or list(outside.iterdir()):
                say({"mutant": number, "kind": kind, "change": said[:300], **outcomes})
    say({"tally": tally})


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
