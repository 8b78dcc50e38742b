"""Mutated stores: whatever is changed, a typed error or a sound answer, and nothing outside."""

from __future__ import annotations

import json

from .child import run_child


def test_mutants_raise_nothing_but_our_errors(tmp_path, amount, seed, note):
    total = amount("mutants", change=1000, release=100_000)
    child = run_child("mutants", tmp_path, str(total), str(seed))
    assert child.returncode == 0, child.stderr[-3000:]
    *bad, last = [json.loads(line) for line in child.stdout.splitlines()]
    assert not bad, json.dumps(bad[:5], indent=1)
    tally = last["tally"]
    assert sum(tally.values()) == total
    refused = sum(count for key, count in tally.items() if key.endswith("refused"))
    assert refused > total / 2, f"mutants that change nothing prove nothing: {tally}"
    note("mutated stores: a crash, a hang, another error, a write outside", mutants=total)
