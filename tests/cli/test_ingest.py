"""lorascope ingest: from a table of an alignment to a row column, and what `info` says of it."""

import json
from pathlib import Path

import numpy as np
import pytest

from lorascope.cli.lorascope import lorascope
from lorascope.store import Site, create_store, open_store, seal_store

ALIGNMENT = "sample,start_s,end_s,phone\nu0,0,0.04,HH\nu0,0.04,0.06,\nu1,0.9,1,AY\nu1,0,1,AY\n"

FIRST = "".join(ALIGNMENT.splitlines(keepends=True)[:2])


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "s.zarr"
    site = Site("resid_post", [0], 2, stream="encoder")
    with create_store(path, capture="lora", sites=[site]) as writer:
        for sample in ("u0", "u1"):
            writer.append(sample, {"resid_post": np.zeros((1, 3, 2))})
    return path


def table(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_an_alignment_becomes_a_row_column(run, store: Path, tmp_path: Path):
    bad = table(tmp_path / "bad.csv", ALIGNMENT)
    ran = run(lorascope, "ingest", store, "--rows", bad)
    assert ran.code == 2
    assert "lines 4 and 5 (sample 'u1') overlap" in ran.err
    assert open_store(store).row_columns == {}
    good = table(tmp_path / "good.csv", ALIGNMENT.replace("u1,0,1,AY\n", "u9,0,1,AY\n"))
    ran = run(lorascope, "ingest", store, "--rows", good, "-q")
    assert (ran.code, ran.out) == (2, "")
    ran = run(lorascope, "ingest", store, "--rows", good, "--ignore-unknown", "-q")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines() == [
        f"{store}: row column phone of stream encoder, 1 class: 2 of 3 rows, 1 sample",
        "1 interval without a recorded frame",
        "1 line of samples that the store does not hold",
    ]
    ran = run(lorascope, "ingest", store, "--rows", good, "--ignore-unknown", "--json", "-q")
    column, told = (json.loads(line) for line in ran.out.splitlines())
    assert (column["changed"], column["names"], column["labelled"]) == (False, ["HH"], 2)
    assert told == {"type": "ingest", "path": str(store), "entries": 4, "outside": 1, "ignored": 1}


def test_info_tells_row_columns_apart(run, store: Path, tmp_path: Path):
    run(lorascope, "ingest", store, "--rows", table(tmp_path / "r.csv", FIRST))
    out = run(lorascope, "info", store).out
    assert "1 capture," in out
    assert out.endswith(
        "\nrow columns\n"
        "column  stream   classes  samples  rows  complete\n"
        "phone   encoder        1        1     3  yes\n"
    )
    lines = [json.loads(x) for x in run(lorascope, "info", store, "--json").out.splitlines()]
    assert [line["type"] for line in lines] == ["store", "capture", "row_column"]


def test_a_sealed_store_says_what_to_do(run, store: Path, tmp_path: Path):
    seal_store(store)
    ran = run(lorascope, "ingest", store, "--rows", table(tmp_path / "r.csv", FIRST))
    assert ran.code == 2
    assert "lorascope cp" in ran.err
