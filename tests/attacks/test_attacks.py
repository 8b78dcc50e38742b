"""Hostile stores, made by hand: a typed error, a report of damages, or the same content; no more.

Every case runs in a child with little address space, ten seconds, and an audit hook that lets it
change nothing outside the store, start nothing and import nothing new (`harness.py`).
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

GROUPS = ("tree", "records", "definitions", "data", "results")
TESTS = Path(__file__).parents[1]
ATTACKS = [
    (group, attack)
    for group in GROUPS
    for attack in importlib.import_module(f".cases_{group}", __package__).ATTACKS
]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the outcomes of all cases by name, and the sound digest under no name."""
    child = subprocess.run(
        [sys.executable, "-m", "attacks.harness", tmp_path_factory.mktemp("attacks"), *GROUPS],
        env=os.environ
        | {
            "PYTHONPATH": f"{TESTS}{os.pathsep}{os.pathsep.join(sys.path)}",
            "MALLOC_ARENA_MAX": "1",
            "OPENBLAS_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [json.loads(line) for line in child.stdout.splitlines()]
    assert lines, child.stderr[-3000:]
    ended = f"BAD the child ended: {child.stderr[-2000:]}"
    begun = {line["begin"]: {"died": ended} for line in lines if "begin" in line}
    done = {line["name"]: line for line in lines if "name" in line}
    return {**begun, **done, "": lines[0]["sound"]}


@pytest.mark.parametrize(
    ("group", "attack"), ATTACKS, ids=[f"{group}-{attack.name}" for group, attack in ATTACKS]
)
def test_a_hostile_store_is_refused(outcomes, group, attack):
    assert attack.name in outcomes, f"group {group} ended before"
    stages = {k: v for k, v in outcomes[attack.name].items() if k not in ("name", "seconds")}
    assert not [v for v in stages.values() if v.startswith("BAD")], stages
    if attack.stage == "ignored":
        assert stages["read"] == f"fine {outcomes['']}", stages
        assert stages["verify"] == stages["write"] == "fine", stages
        return
    must = ["open", "read", "verify", "write"] if attack.stage == "open" else [attack.stage]
    passed = [stage for stage in must if stages[stage].startswith("fine")]
    assert not passed, f"{attack.rule}: not noticed by {passed}: {stages}"


def test_there_are_enough_of_them_and_each_has_its_name():
    names = [attack.name for _, attack in ATTACKS]
    assert len(names) == len(set(names))
    assert len(names) >= 120
