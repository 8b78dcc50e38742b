"""The example notebooks run from top to bottom, and what they say of their models is so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorascope.store import open_store

FOLDER = Path(__file__).parents[2] / "examples/notebooks"

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")


def run(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run the code of a notebook in a folder of its own; return its variables."""
    cells = json.loads((FOLDER / f"{name}.ipynb").read_text())["cells"]
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    for cell in cells:
        assert not cell.get("outputs"), "outputs are not committed: they would go stale"
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    return names


def test_every_notebook_has_a_test_here():
    names = {path.stem for path in FOLDER.glob("*.ipynb")}
    assert names == {"llama-lora", "vit-attention", "whisper-encoder-decoder"}


def test_llama(tmp_path, monkeypatch, capsys):
    names = run("llama-lora", tmp_path, monkeypatch)
    capture = open_store(tmp_path / "llama.zarr").capture("capture")
    assert list(capture.samples["id"]) == names["texts"]
    assert list(capture.samples["n_rows.tokens"]) == [len(text) for text in names["texts"]]
    assert "grad.lora_b.down_proj" in capture.sites
    assert "erank" in capsys.readouterr().out


def test_vit(tmp_path, monkeypatch, capsys):
    names = run("vit-attention", tmp_path, monkeypatch)
    # bfloat16 rows: 17 weights, each off by 2^-9 of itself
    np.testing.assert_allclose(names["by_head"].sum(-1), 1, atol=2**-8)
    assert set(open_store(tmp_path / "vit-early.zarr").capture("capture").sites) == {"embed"}


def test_whisper(tmp_path, monkeypatch):
    run("whisper-encoder-decoder", tmp_path, monkeypatch)
    table = open_store(tmp_path / "whisper.zarr").capture("capture").samples
    assert list(table["n_rows.encoder"]) == [150, 60, 100, 40]
    assert list(table["n_rows.decoder"]) == [9, 9, 9, 9]
