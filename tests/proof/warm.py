"""A warm Python that a test gives orders to: it forks writers at once, where a fresh one takes a second."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


class Warm:
    """A module of this package that runs as a program and serves orders.

    Parameters
    ----------
    module
        Its name; it calls `serve`.
    """

    def __init__(self, module: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"tests.proof.{module}"],
            cwd=ROOT,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, order: dict[str, Any]) -> None:
        """Give an order."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        """Return what came of the oldest order that is not answered."""
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def ask(self, order: dict[str, Any]) -> Any:
        """Give an order and return what came of it."""
        self.start(order)
        return self.answer()

    def close(self) -> None:
        """End the process."""
        self._process.communicate(timeout=60)


def serve(carry_out: Callable[[dict[str, Any]], object]) -> None:
    """Answer orders, in the process of a `Warm`, until there are no more."""
    for line in sys.stdin:
        sys.stdout.write(json.dumps(carry_out(json.loads(line))) + "\n")
        sys.stdout.flush()
