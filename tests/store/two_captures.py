"""A small store of a planned and an unplanned capture with parameters, written or gone on with."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lorascope.store import Output, SampleRows, Site, create_store

COUNTS = (3, 1, 4, 2, 6)
SITES = (
    Site("x", [0, 3], 5, "bfloat16"),
    Site("x.mean", [0, 3], 5, kind="sample"),
)


def plan() -> list[SampleRows]:
    """Return the samples in order."""
    return [SampleRows(f"s{i}", {"tokens": n}) for i, n in enumerate(COUNTS)]


def write(path: Path, *, captures: str = "pu", stop: int | None = None) -> Path:
    """Write what is missing of the captures `p` (planned) and `u`, up to a number of samples."""
    for name in captures:
        with create_store(
            path,
            capture=name,
            sites=SITES,
            outputs=[Output("loss")],
            config={"name": name},
            segment_samples=2,
            plan=plan() if name == "p" else None,
        ) as writer:
            writer.write_parameters({"w": np.arange(4.0), "b": np.ones(2, "float32")})
            for number, sample in enumerate(plan()[:stop]):
                if sample.id in writer.committed:
                    continue
                rng = np.random.default_rng(number)
                x = rng.standard_normal((2, sample.rows["tokens"], 5)).astype("float32")
                writer.append(
                    sample.id,
                    {"x": x, "x.mean": x.mean(1)},
                    label="ärger",
                    groups={"speaker": f"{number % 2:02d}"},
                    outputs={"loss": number / 2},
                    columns={"take": number},
                )
    return path
