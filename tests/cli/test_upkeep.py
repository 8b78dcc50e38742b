"""lorascope seal and repair, and verify of what they leave."""

import json
from pathlib import Path

import numpy as np
import pytest

from lorascope.cli.lorascope import lorascope
from lorascope.store import SampleRows, Site, create_store, open_store
from lorascope.store.layout import to_json

PLAN = [SampleRows(f"u{i}", {"tokens": 3}) for i in range(6)]


def write(path: Path, stop: int = 6) -> Path:
    with create_store(
        path, capture="a", sites=[Site("x", [2, 5], 4)], plan=PLAN, segment_samples=2
    ) as writer:
        for number, sample in enumerate(PLAN[:stop]):
            if sample.id not in writer.committed:
                writer.append(sample.id, {"x": np.full((2, 3, 4), number, "float32")})
    return path


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return write(tmp_path / "s.zarr")


def json_lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[7] ^= 16
    path.write_bytes(content)


def test_seal_tells_the_digests_and_verify_full_checks_them(run, store: Path):
    ran = run(lorascope, "verify", store, "--full")
    assert ran.code == 2
    assert "Seal it first" in ran.err
    ran = run(lorascope, "seal", store, "-q")
    assert (ran.code, ran.err) == (0, "")
    opened = open_store(store)
    assert f"content_digest   {opened.content_digest()}" in ran.out
    assert f"manifest_digest  {opened.manifest_digest}" in ran.out
    assert ": sealed; " in ran.out
    (line,) = json_lines(run(lorascope, "seal", store, "--json", "-q").out)
    assert line["changed"] is False
    assert line["manifest_digest"] == opened.manifest_digest
    (line,) = json_lines(run(lorascope, "verify", store, "--full", "--json", "-q").out)
    assert (line["level"], line["state"], line["ok"]) == ("full", "sealed", True)
    assert ", sealed\n" in run(lorascope, "info", store).out
    described = json_lines(run(lorascope, "info", store, "--json").out)[0]
    assert (described["state"], described["manifest_digest"]) == ("sealed", opened.manifest_digest)


def test_seal_refuses_an_unfinished_run(run, tmp_path: Path):
    path = write(tmp_path / "s.zarr", stop=4)
    ran = run(lorascope, "seal", path, "--json")
    assert ran.code == 2
    assert json_lines(ran.out)[0]["class"] == "IncompleteCaptureError"
    assert "4 of 6 planned samples" in ran.err
    ran = run(lorascope, "seal", path, "--incomplete")
    assert ran.code == 0
    assert "incomplete: a" in ran.out


def test_verify_names_file_capture_site_layer_and_samples(run, store: Path):
    flip(store / "captures/a/sites/x/values/c.1.1.0")
    (store / "captures/a/sites/x/values/c.0.9.0").write_bytes(b"half")
    ran = run(lorascope, "verify", store, "--json", "-q")
    assert ran.code == 3
    damage, leftover, verdict = json_lines(ran.out)
    assert (damage["type"], damage["class"]) == ("damage", "checksum")
    assert damage["file"] == "captures/a/sites/x/values/c.1.1.0"
    assert (damage["capture"], damage["site"], damage["layer"]) == ("a", "x", 5)
    assert damage["samples"] == ["u2", "u3"]
    assert leftover == {"type": "leftover", "file": "captures/a/sites/x/values/c.0.9.0"}
    assert (verdict["damages"], verdict["leftovers"], verdict["unsettled"]) == (1, 1, 0)


def test_leftovers_alone_are_no_damage(run, store: Path):
    (store / "captures/a/sites/x/values/c.0.9.0").write_bytes(b"half")
    ran = run(lorascope, "verify", store)
    assert ran.code == 0
    assert "leftover: captures/a/sites/x/values/c.0.9.0\n" in ran.out
    assert ": sound; " in ran.out


def test_an_unsettled_length_is_told_and_no_damage(run, tmp_path: Path):
    """A plan of six of which four are there: as long as an interrupted seal would make it."""
    store = write(tmp_path / "s.zarr", stop=4)
    metadata = store / "captures/a/samples/label/zarr.json"
    content = json.loads(metadata.read_text())
    content["shape"] = [4]
    metadata.write_bytes(to_json(content))
    ran = run(lorascope, "verify", store)
    assert ran.code == 0
    assert "unsettled length: captures/a/samples/label/zarr.json\n" in ran.out
    lines = json_lines(run(lorascope, "verify", store, "--json", "-q").out)
    assert lines[0] == {"type": "unsettled", "file": "captures/a/samples/label/zarr.json"}
    assert (lines[1]["ok"], lines[1]["unsettled"]) == (True, 1)
    run(lorascope, "repair", store)
    assert "unsettled length" not in run(lorascope, "verify", store).out


def test_repair_says_what_it_will_do_and_does_it(run, store: Path):
    expected = open_store(store).content_digest()
    flip(store / "captures/a/sites/x/values/c.1.1.0")
    ran = run(lorascope, "repair", store, "--dry-run")
    assert ran.code == 0
    assert "withdrawn: w0-000002.json (2 samples): captures/a/sites/x/values/c.1.1.0: " in ran.out
    assert "would be repaired; 1 record withdrawn, " in ran.out
    assert run(lorascope, "verify", store).code == 3
    lines = json_lines(run(lorascope, "repair", store, "--json", "-q").out)
    assert lines[0]["samples"] == ["u2", "u3"]
    assert lines[0]["type"] == "withdrawn"
    assert lines[-1]["type"] == "repair"
    assert lines[-1]["samples"] == 2
    assert (
        len([line for line in lines if line["type"] == "quarantined"]) == lines[-1]["quarantined"]
    )
    assert run(lorascope, "verify", store).code == 0
    assert "sound; nothing to repair" in run(lorascope, "repair", store).out
    assert open_store(write(store)).content_digest() == expected


def test_repair_of_a_sealed_store_needs_a_copy(run, store: Path):
    run(lorascope, "seal", store)
    flip(store / "captures/a/sites/x/values/c.1.1.0")
    ran = run(lorascope, "repair", store)
    assert ran.code == 3
    assert "restore the damaged files from a copy" in ran.err


@pytest.mark.parametrize("command", ["repair", "seal"])
def test_a_path_without_a_store(run, tmp_path: Path, command: str):
    ran = run(lorascope, command, tmp_path / "nowhere", "--json")
    assert ran.code == 3
    assert json.loads(ran.out)["class"] == "InvalidStoreError"
    assert not (tmp_path / "nowhere").exists()


def test_contradictory_levels(run, store: Path):
    assert run(lorascope, "verify", store, "--quick", "--full").code == 2


def test_a_writer_at_work(run, store: Path):
    with create_store(store, capture="b", sites=[Site("x", None, 1)]):
        for command in ("repair", "seal"):
            ran = run(lorascope, command, store)
            assert ran.code == 4
            assert "is being written by process" in ran.err
