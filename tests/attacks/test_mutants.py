"""Mutated stores: whatever is changed, a typed error or a sound answer, and nothing outside.

LORASCOPE_PROOF_MUTANTS sets how many (1,000), LORASCOPE_PROOF_SEED another seed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
COUNT = int(os.environ.get("LORASCOPE_PROOF_MUTANTS", "1000"))
SEED = os.environ.get("LORASCOPE_PROOF_SEED", "3")


def test_mutants_raise_nothing_but_our_errors(tmp_path):
    child = subprocess.run(
        [sys.executable, "-m", "attacks.mutants", tmp_path, str(COUNT), SEED],
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
    assert child.returncode == 0, child.stderr[-3000:]
    *bad, last = [json.loads(line) for line in child.stdout.splitlines()]
    assert not bad, json.dumps(bad[:5], indent=1)
    tally = last["tally"]
    assert sum(tally.values()) == COUNT
    refused = sum(count for key, count in tally.items() if key.endswith("refused"))
    assert refused > COUNT / 2, f"mutants that change nothing prove nothing: {tally}"
