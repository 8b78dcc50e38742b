"""Writes the golden stores of format version 1; run once, when the format was settled.

    python -m tests.store.golden.make   # from the root of the repository

The uuids are the only bytes that another run would not give.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from lorascope.store import (
    NewSample,
    Output,
    SampleRows,
    Site,
    create_store,
    repair_store,
    seal_store,
)

from . import closed_form as golden

HERE = Path(__file__).parent
DAMAGED = "captures/planned/sites/x.float16/values/c.1.1.0"


def write_planned(path: Path) -> None:
    """Write every kind of array and data type; what is there already is left alone."""
    plan = [
        SampleRows(name, {"encoder": encoder, "decoder": decoder})
        for name, (encoder, decoder) in golden.ROWS.items()
    ]
    sites = [
        Site(name, layers, golden.WIDTH, dtype, stream=stream)
        for name, (dtype, layers, stream) in golden.ROW_SITES.items()
    ]
    name, dtype, layers = golden.POOLED
    sites.append(Site(name, layers, golden.WIDTH, dtype, kind="sample"))
    outputs = [
        Output("loss"),
        Output("logits", (4,), "float64"),
        Output("map", (2, 2), "int32"),
        Output("right", (), "bool"),
    ]
    with create_store(
        path,
        capture="planned",
        sites=sites,
        outputs=outputs,
        plan=plan,
        segment_samples=3,
        config=golden.CONFIG,
        attrs=golden.ATTRS,
    ) as writer:
        writer.write_parameters(golden.PARAMETERS, attrs=golden.PARAMETER_ATTRS)
        for number, sample in enumerate(plan):
            if sample.id in writer.committed:
                continue
            writer.append_batch([new_sample(number, sample)], arrays(number, sample))


def new_sample(number: int, sample: SampleRows) -> NewSample:
    """Return what is said of a sample besides its activations."""
    return NewSample(
        sample.id,
        sample.rows,
        golden.label(number),
        exposed=number == 1,
        groups=golden.groups(number),
        columns=golden.facts(number),
        outputs=golden.outputs(number),
        positions={stream: golden.positions(number, n) for stream, n in sample.rows.items()},
    )


def arrays(number: int, sample: SampleRows) -> dict[str, np.ndarray]:
    """Return the activations of a sample."""
    found = {
        name: np.stack([golden.values(number, la, sample.rows[stream]) for la in layers or (-1,)])
        for name, (_, layers, stream) in golden.ROW_SITES.items()
    }
    name, _, layers = golden.POOLED
    found[name] = np.stack([golden.pooled(number, layer)[None] for layer in layers])
    return found


def write_unplanned(path: Path) -> None:
    """Write one site in two segments, the second without the columns of the first."""
    with create_store(
        path,
        capture="unplanned",
        sites=[Site("x", (2,), golden.WIDTH)],
        segment_samples=2,
        segment_rows=8,
    ) as writer:
        for number in range(3):
            x = golden.values(number, 2, number + 1)[None]
            writer.append(f"u{number}", {"x": x}, groups=golden.groups(number))


def main() -> None:
    """Write `v1.zarr`, open and once repaired, and `v1-sealed.zarr`."""
    opened, sealed = HERE / "v1.zarr", HERE / "v1-sealed.zarr"
    for path in (opened, sealed):
        shutil.rmtree(path, ignore_errors=True)
    write_planned(opened)
    write_unplanned(opened)
    (opened / DAMAGED).write_bytes(b"damaged")
    repair_store(opened)
    write_planned(opened)
    shutil.rmtree(opened / "__quarantine__")
    write_unplanned(sealed)
    seal_store(sealed)
    for path in (opened, sealed):
        (path / "__commits__/store.lock").unlink()
        (path / "__commits__/staging").rmdir()


if __name__ == "__main__":
    main()
