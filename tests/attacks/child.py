"""Starting a child that attacks: a Python of its own, with one arena and one thread."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run_child(module: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a module of this package as a program; its memory is limited, so arenas must not be."""
    environment = {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "MALLOC_ARENA_MAX": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, "-m", f"tests.attacks.{module}", *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
