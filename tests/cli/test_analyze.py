"""analyze: refusals in one message each, and what a good run leaves behind."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lorascope.cli.analyze import analyze
from lorascope.store import Site, create_store


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store of 24 samples by 3 speakers: one site with two layers, pooled too, no adapter."""
    path = tmp_path / "s.zarr"
    rng = np.random.default_rng(0)
    sites = [
        Site("resid_post", [0, 1], 6),
        Site("resid_post.mean_valid", [0, 1], 6, kind="sample"),
    ]
    with create_store(path, capture="base", sites=sites) as writer:
        for i in range(24):
            rows = rng.normal(size=(2, 9, 6)).astype("float32") + i % 2
            arrays = {"resid_post": rows, "resid_post.mean_valid": rows.mean(axis=1)}
            groups = {"speaker": f"s{i // 2 % 3}"}
            writer.append(f"u{i:02d}", arrays, label="ab"[i % 2], groups=groups)
    return path


def test_a_run_leaves_tables_and_a_report(run, store: Path):
    ran = run(analyze, "--store", store, "svd", "cka", "--seed", "3")
    assert ran.code == 0, ran.err
    out = Path(f"{store}-analysis")
    assert ran.out.splitlines()[-1] == f"report: {out}/report.html"
    assert {"report.html", "results.zarr", "summary.json", "tables"} <= {
        path.name for path in out.iterdir()
    }
    assert {"svd.csv", "svd.parquet", "cka.csv"} <= {p.name for p in (out / "tables").iterdir()}
    assert json.loads((out / "summary.json").read_text())["seed"] == 3
    assert "analysing" in ran.err


def test_json_lines_and_out(run, store: Path, tmp_path: Path):
    out = tmp_path / "elsewhere"
    ran = run(analyze, "--store", f"{store}/", "svd", "--out", out, "--json", "-q")
    assert ran.code == 0, ran.err
    assert ran.err == ""
    lines = [json.loads(line) for line in ran.out.splitlines()]
    tables = {line["table"]: line for line in lines if line["type"] == "table"}
    assert set(tables) == {"svd", "spectrum"}
    assert Path(tables["svd"]["path"]).read_text().count("\n") == tables["svd"]["rows"] + 1
    assert lines[-1] == {"type": "report", "path": str(out / "report.html")}


def test_layers_and_sites_choose(run, store: Path):
    arguments = ("--layers", "1-1", "--sites", "resid_post", "--captures", "base", "--json")
    ran = run(analyze, "--store", store, "svd", *arguments)
    assert ran.code == 0, ran.err
    table = (Path(f"{store}-analysis") / "tables" / "svd.csv").read_text().splitlines()
    column = table[0].split(",").index("layer")
    assert {row.split(",")[column] for row in table[1:]} == {"1"}


def test_options_of_an_analysis(run, store: Path):
    """One kernel, whole samples too, some permutations: as the table says, and its attributes."""
    options = ("cka.kernels=linear,rbf", "cka.flattened=true", "cka.permutations=19")
    given = [word for option in options for word in ("-o", option)]
    ran = run(analyze, "--store", store, "cka", *given, "--option", "cka.bandwidths=0.5")
    assert ran.code == 0, ran.err
    table = pd.read_csv(Path(f"{store}-analysis") / "tables" / "cka.csv")
    assert set(table["granularity"]) == {"pooled", "frame", "flattened"}
    assert set(table["kernel"]) == {"linear", "rbf(0.5 median)"}
    assert table["p_permutation"].min() == pytest.approx(1 / 20)


def test_exact_frames_beside_drawn_ones(run, store: Path):
    ran = run(analyze, "--store", store, "cka", "--exact")
    assert ran.code == 0, ran.err
    assert "exact CKA of frames: 1 site, up to 2 arrays of 216 rows, 2.3e+04 mult" in ran.err
    rows = (Path(f"{store}-analysis") / "tables" / "cka.csv").read_text().splitlines()
    column = {name: at for at, name in enumerate(rows[0].split(","))}
    kinds = [(r.split(",")[column["granularity"]], r.split(",")[column["estimator"]]) for r in rows]
    assert kinds.count(("frame", "debiased")) == kinds.count(("frame", "minibatch")) == 3


def test_sites_that_were_not_captured(run, store: Path):
    ran = run(analyze, "--store", store, "lens")
    assert ran.code == 2
    assert ran.out == ""
    assert "lens" in ran.err
    assert "Traceback" not in ran.err
    assert not Path(f"{store}-analysis").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["cak"], "'cka'"),
        (["--captures", "lora"], "base"),
        (["--sites", "lora_a"], "resid_post"),
        (["--layers", "7"], "7"),
        (["--memory", "lots"], "lots"),
        (["--layers", "a"], "expected layer numbers such as 0,3 or 0-5, got 'a'"),
        (["--layers", "3-1"], "names no layer"),
        (["--captures", ","], "expected names separated by commas"),
        (["--device", "tpu"], "'tpu' is not one of 'cpu', 'cuda'"),
        (["--variant", "papr"], "'papr' is not one of 'corrected', 'paper'"),
        (["--fault", "padding"], "--fault padding needs --variant paper"),
        (
            ["--variant", "paper", "--fault", "paddin"],
            "no fault 'paddin'. Did you mean 'padding'? There are: padding, micro-average",
        ),
        (
            ["--variant", "paper", "probe"],
            "nothing was published of probe. The paper variant has contribution",
        ),
        (
            ["--variant", "paper", "svd", "--fault", "biased"],
            "fault 'biased' is one of cka, which was not asked for: svd",
        ),
        (["-o", "cka.kernel=rbf"], "no option 'kernel' of cka. Did you mean 'kernels'?"),
        (["svd", "-o", "cka.kernels=rbf"], "is of cka, which was not asked for: svd"),
        (["-o", "cka.permutations=lots"], "cka.permutations=lots is not a whole number or none"),
        (["svd", "--exact"], "exact is of cka, which was not asked for: svd. Add cka, or leave"),
        (["--variant", "paper", "--exact"], "exact is of cka, which was not asked for: paper"),
        (["-q", "-v"], "contradict"),
    ],
)
def test_requests_that_cannot_be_served(run, store: Path, arguments: list[str], expected: str):
    ran = run(analyze, "--store", store, *arguments)
    assert ran.code == 2
    assert expected in ran.err
    assert ran.out == ""
    assert "Traceback" not in ran.err
    assert not Path(f"{store}-analysis").exists()


def test_a_device_that_is_not_there(run, store: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "cupy", None)  # as where it is not installed
    ran = run(analyze, "--store", store, "--device", "cuda")
    assert ran.code == 4
    assert ran.err.strip().endswith("Install it: pip install 'lorascope[gpu]'.")
    assert not Path(f"{store}-analysis").exists()


def test_memory_that_holds_not_one_sample(run, store: Path):
    ran = run(analyze, "--store", store, "svd", "--memory", "1kB")
    assert ran.code == 4
    assert "Traceback" not in ran.err


def test_results_do_not_go_into_the_store(run, store: Path, tmp_path: Path):
    ran = run(analyze, "--store", store, "svd", "--out", store / "captures" / "x")
    assert ran.code == 2
    assert "lies inside the store" in ran.err
    (tmp_path / "file").write_text("mine")
    ran = run(analyze, "--store", store, "svd", "--out", tmp_path / "file")
    assert ran.code == 2
    assert "is a file; name a folder" in ran.err


def test_a_store_that_is_not_there(run, tmp_path: Path):
    ran = run(analyze, "--store", tmp_path / "nowhere.zarr")
    assert ran.code == 3
    assert "does not exist" in ran.err
    assert run(analyze).code == 2


def test_a_damaged_store(run, store: Path):
    """A flipped bit in the rows is found while they are read; nothing half-right is written."""
    shard = max((store / "captures").rglob("*"), key=lambda p: p.stat().st_size)
    content = bytearray(shard.read_bytes())
    content[8] ^= 1
    shard.write_bytes(content)
    ran = run(analyze, "--store", store, "svd", "--json")
    assert ran.code == 3
    assert json.loads(ran.out)["class"] == "DamagedStoreError"
    assert "Traceback" not in ran.err
    assert not Path(f"{store}-analysis").exists()
