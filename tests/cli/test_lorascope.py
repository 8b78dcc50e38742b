"""lorascope info and verify, on small stores."""

import json
from pathlib import Path

import numpy as np
import pytest

from lorascope.cli.lorascope import lorascope
from lorascope.store import Site, create_store, open_store


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "s.zarr"
    rng = np.random.default_rng(0)
    sites = [Site("resid_post", [0, 1, 2], 4), Site("embed", None, 4, dtype="float16")]
    with create_store(path, capture="a", sites=sites) as writer:
        for i in range(6):
            rows = rng.normal(size=(3, 5, 4)).astype("float32")
            writer.append(
                f"u{i}",
                {"resid_post": rows, "embed": rows[0].astype("float16")},
                label="ab"[i % 2],
                groups={"speaker": "s"},
                exposed=i < 2,
            )
    return path


def test_info_says_what_is_there(run, store: Path):
    ran = run(lorascope, "info", store)
    assert ran.code == 0, ran.err
    lines = ran.out.splitlines()
    assert lines[0].startswith(f"{store}: 1 capture, ")
    assert lines[3].split() == ["a", "6", "2", "a,", "b", "yes", "-"]
    assert "resid_post  row   0-2         4  float32" in ran.out
    assert "embed       row   -           4  float16" in ran.out


def test_info_as_json(run, store: Path):
    lines = [json.loads(line) for line in run(lorascope, "info", store, "--json").out.splitlines()]
    assert [line["type"] for line in lines] == ["store", "capture"]
    assert lines[0]["bytes"] == sum(p.stat().st_size for p in store.rglob("*") if p.is_file())
    assert lines[1]["labels"] == ["a", "b"]
    assert lines[1]["sites"][0]["layers"] == [0, 1, 2]


def test_names_from_a_store_cannot_command_the_terminal(run, tmp_path: Path):
    path = tmp_path / "s.zarr"
    with create_store(path, capture="a", sites=[Site("x", None, 1)]) as writer:
        writer.append("u", {"x": np.zeros((1, 1), "float32")}, label="\x1b[2J\u202eevil")
    ran = run(lorascope, "info", path)
    assert "?[2J?evil" in ran.out
    assert "\x1b" not in ran.out
    assert "\u202e" not in ran.out


@pytest.mark.parametrize("arguments", [[], ["--quick"]])
def test_a_sound_store(run, store: Path, arguments: list[str]):
    ran = run(lorascope, "verify", store, "-q", *arguments)
    assert ran.code == 0, ran.err
    assert ran.err == ""
    assert ": sound; 6 samples, " in ran.out


def largest_file(store: Path) -> Path:
    return max((p for p in store.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def test_a_flipped_bit_is_found_and_named(run, store: Path):
    path = largest_file(store / "captures")
    content = bytearray(path.read_bytes())
    content[10] ^= 1
    path.write_bytes(content)
    ran = run(lorascope, "verify", store)
    assert ran.code == 3
    assert f"checksum: {path.relative_to(store)}: " in ran.out
    assert "1 damage;" in ran.out
    assert run(lorascope, "verify", store, "--quick").code == 0  # sizes only
    lines = run(lorascope, "verify", store, "--json", "-q").out.splitlines()
    damage, verdict = (json.loads(line) for line in lines)
    assert damage["class"] == "checksum"
    assert damage["capture"] == "a"
    assert verdict["ok"] is False
    assert verdict["damages"] == 1


def test_a_missing_file_is_found_by_quick(run, store: Path):
    largest_file(store / "captures").unlink()
    ran = run(lorascope, "verify", store, "--quick")
    assert ran.code == 3
    assert "missing: " in ran.out


def test_cp_copies_and_says_so(run, store: Path, tmp_path: Path):
    target = tmp_path / "copy.zarr"
    ran = run(lorascope, "cp", store, target, "-q", "--profile", "compact", "--captures", "a")
    assert ran.code == 0, ran.err
    assert ran.out.startswith(f"{target}: 2 commits copied, ")
    assert open_store(target).content_digest() == open_store(store).content_digest()
    described = run(lorascope, "info", target, "--json").out.splitlines()[1]
    assert json.loads(described)["profile"] == "compact"
    again = run(lorascope, "cp", store, target, "--json", "--profile", "compact", "--captures", "a")
    line = json.loads(again.out)
    assert (line["type"], line["commits"], line["skipped"]) == ("copy", 0, 2)


@pytest.mark.parametrize("place", ["s3://bucket/s.zarr", "s.zip", "hf://me/data"])
def test_cp_goes_to_folders_only(run, store: Path, tmp_path: Path, place: str):
    ran = run(lorascope, "cp", store, place if "://" in place else tmp_path / place)
    assert ran.code == 2
    assert "folder" in ran.err
    assert run(lorascope, "cp", store, tmp_path / "c.zarr", "--profile", "tiny").code == 2
    assert run(lorascope, "cp", store, tmp_path / "c.zarr", "--captures", "b").code == 2
    assert not (tmp_path / "c.zarr").exists()


@pytest.mark.parametrize("command", ["info", "verify"])
def test_a_path_without_a_store(run, tmp_path: Path, command: str):
    ran = run(lorascope, command, tmp_path / "nowhere")
    assert ran.code == 3
    assert "does not exist" in ran.err
    assert ran.out == ""
    ran = run(lorascope, command, tmp_path, "--json")
    assert ran.code == 3
    assert json.loads(ran.out)["class"] == "InvalidStoreError"


def test_usage(run):
    assert run(lorascope, "info").code == 2
    ran = run(lorascope, "inof", "x")
    assert ran.code == 2
    assert "No such command 'inof'" in ran.err
    assert "Did you mean 'info'?" in ran.err
