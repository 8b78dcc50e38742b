"""Write `docs/proof.md` from what the proofs noted: ``python -m tests.proof.report LOG TARGET``."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from pathlib import Path

HEAD = """# What was proved

Written by `tests/proof/report.py`; do not edit. Each line is a test that passed with these numbers, on
{machine}. A figure stands for what was done without one failure: the first failure ends the test,
and the test is then missing here.

| proved | counts | seed | seconds | test |
|---|---|---|---|---|
"""


def render(lines: list[dict[str, object]]) -> str:
    """Return the page."""
    cores = os.cpu_count()
    machine = f"{platform.system()} {platform.machine()}, {cores} cores, Python "
    machine += f"{platform.python_version()}, {time.strftime('%Y-%m-%d')}"
    rows = []
    for line in sorted(lines, key=lambda entry: str(entry["test"])):
        counts = line["counts"]
        assert isinstance(counts, dict)
        figures = ", ".join(
            f"{name.replace('_', ' ')} {value:,}" if isinstance(value, int) else f"{name} {value}"
            for name, value in counts.items()
        )
        seconds = f"{float(str(line['seconds'])):.0f}"
        rows.append(
            f"| {line['proved']} | {figures} | {line['seed']} | {seconds} | `{line['test']}` |"
        )
    return HEAD.format(machine=machine) + "\n".join(rows) + "\n"


def main() -> None:
    """Read the log, write the page."""
    log, target = map(Path, sys.argv[1:])
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    target.write_text(render(lines))


if __name__ == "__main__":
    main()
