"""What a plan promises is what comes; what does not fit is refused before anything is computed."""

from __future__ import annotations

import os
import shutil
import subprocess
from types import SimpleNamespace

import pytest

from lorascope.capture import CaptureError, load_config, plan_capture, run, run_capture, space
from lorascope.cli.capture_run import capture_run
from lorascope.cli.errors import run_command
from lorascope.store import StoreSpaceError, open_store

CONFIG = """
seed: 0
model: {base: "demo:whisper", window_seconds: 1}
data: {corpus: demo, labels: [anger, sadness], per_class: 12}
captures:
  plain: {adapter: null}
  untrained: {adapter: {type: lora, r: 4, alpha: 8, target_modules: [v_proj]}}
run: {batch_size: 4, segment_samples: 8}
record: {sites: [embed, resid_post, lora_a], gradients: [resid_post]}
"""


@pytest.fixture
def config_of(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    return lambda *overrides: load_config(path, overrides)


def free(monkeypatch, size):
    """Let every disk have so many bytes free, as far as the planner sees."""
    monkeypatch.setattr(space.shutil, "disk_usage", lambda _path: SimpleNamespace(free=size))


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("record.dtype=float32", "record.frames=all"),
        ("record.frames=every:7", "record.pool=[mean_valid]"),
        ("record.frames=none",),
        ("run.segment_samples=auto", "data.per_class=9"),
    ],
    ids=["valid", "all", "every", "pooled", "auto"],
)
def test_the_plan_is_within_a_tenth_of_the_disk(config_of, tmp_path, overrides):
    """Measured with du: blocks, folders, padding, indices, columns, records and all."""
    config = config_of(*overrides)
    plan = plan_capture(config)
    run_capture(config, store_path=tmp_path / "s.zarr")
    du = subprocess.check_output(["du", "-s", "--block-size=1", tmp_path / "s.zarr"], text=True)
    paths = [p for p in (tmp_path / "s.zarr").rglob("*") if p.is_file()]
    assert plan.forecast.disk_bytes == pytest.approx(int(du.split()[0]), rel=0.1)
    assert plan.forecast.bytes == pytest.approx(sum(p.stat().st_size for p in paths), rel=0.1)
    # the root, the folder of captures and the lock belong to no capture
    assert plan.forecast.files == len(paths) - 3 == sum(c.forecast.files for c in plan.conditions)
    store = open_store(tmp_path / "s.zarr")
    for condition in plan.conditions:
        assert condition.segments == len(store.capture(condition.name).segments)


def test_a_store_of_more_rows_is_within_a_tenth(config_of, tmp_path):
    """Here values outweigh the many small files of the others."""
    config = config_of("model.window_seconds=3", "record.dtype=float32", "data.per_class=40")
    plan = plan_capture(config)
    run_capture(config, store_path=tmp_path / "s.zarr")
    du = subprocess.check_output(["du", "-s", "--block-size=1", tmp_path / "s.zarr"], text=True)
    assert plan.forecast.disk_bytes == pytest.approx(int(du.split()[0]), rel=0.1)
    assert plan.bytes > 0.5 * plan.forecast.disk_bytes


def test_the_memory_is_what_its_parts_add_up_to(config_of):
    small, more = config_of("run.buffer=64KiB"), config_of("run.buffer=96KiB")
    memory = [plan_capture(config).memory_bytes for config in (small, more)]
    assert memory[1] - memory[0] == 2**15
    larger = plan_capture(config_of("run.buffer=64KiB", "run.batch_size=8")).memory_bytes
    # 4 more samples: 4 layers with a graph of 24 widths and 12 of a forward, 50 frames of 64 floats
    activations = 4 * 50 * 64 * 4 * (12 + 4 * 24)
    # rows in bfloat16: embed and 4 layers of resid_post and its gradient (64 wide), lora_a (4 wide);
    # pools in float32: two of embed and resid_post, one of the others
    recorded = 4 * (50 * 2 * (9 * 64 + 4 * 4) + 4 * (64 * (2 + 8 + 4) + 4 * 4))
    assert larger - memory[0] == activations + recorded


def test_a_disk_that_is_too_small_is_told_with_what_fits(config_of, tmp_path, monkeypatch):
    config = config_of("record.dtype=float32", "record.frames=all", "model.window_seconds=3")
    needed = plan_capture(config).forecast.disk_bytes
    free(monkeypatch, needed - 1)
    monkeypatch.setattr(run, "_run_conditions", lambda *_: pytest.fail("computed"))
    with pytest.raises(
        StoreSpaceError, match=r"record.frames=every:2 takes .*pooled only\)"
    ) as told:
        run_capture(config, store_path=tmp_path / "s.zarr")
    assert not (tmp_path / "s.zarr").exists()
    halved = plan_capture(
        config_of("record.dtype=float32", "record.frames=every:2", "model.window_seconds=3")
    ).forecast.disk_bytes
    assert f"every:2 takes {halved / 2**20:.1f} MiB" in str(told.value)
    free(monkeypatch, 1000)
    with pytest.raises(StoreSpaceError, match=r"1000 B free. Record fewer sites"):
        run_capture(config, store_path=tmp_path / "s.zarr")


def test_what_is_there_already_needs_no_room(config_of, tmp_path, monkeypatch):
    plain = config_of("captures={plain: {adapter: null}}", "record={sites: [resid_post]}")
    run_capture(plain, store_path=tmp_path / "s.zarr")
    free(monkeypatch, 0)
    run_capture(plain, store_path=tmp_path / "s.zarr")
    both = config_of("record={sites: [resid_post]}")
    only = plan_capture(both).conditions[1].forecast.disk_bytes
    free(monkeypatch, only - 1)
    with pytest.raises(StoreSpaceError, match="Free some space and run the same command again"):
        run_capture(both, store_path=tmp_path / "s.zarr")
    free(monkeypatch, only)
    shutil.copytree(tmp_path / "s.zarr", tmp_path / "more.zarr")
    monkeypatch.setattr(run, "_run_conditions", lambda *_: ((), ()))
    run_capture(both, store_path=tmp_path / "more.zarr")


def test_the_command_shows_the_plan_and_refuses(config_of, tmp_path, monkeypatch, capsys):
    config_of()
    monkeypatch.setattr(os, "environ", dict(os.environ))
    arguments = [str(tmp_path / "config.yaml"), "--store", str(tmp_path / "s.zarr"), "--plan"]
    assert run_command(capture_run, arguments) == 0
    said = capsys.readouterr().out
    assert "on disk in" in said
    assert "of memory at most" in said
    free(monkeypatch, 0)
    assert run_command(capture_run, arguments) == 4
    out, err = capsys.readouterr()
    assert out == said
    assert err.startswith("capture-run: the run needs ")
    assert not (tmp_path / "s.zarr").exists()


def test_an_error_of_room_is_no_error_of_the_capture():
    assert not issubclass(StoreSpaceError, CaptureError)
