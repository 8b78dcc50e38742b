"""`record.base_weights`: what is stored, what is planned for it, and what analyses make of it."""

from __future__ import annotations

import numpy as np
import pytest

from lorascope.analyses import analyze, to_tables
from lorascope.capture import load_config, plan_capture, run_capture
from lorascope.store import open_store

CONFIG = """
seed: 0
model: {base: "demo:whisper", window_seconds: 1}
data: {corpus: demo, labels: [anger, sadness], per_class: 4}
split: {by: speaker, test: ["02", "07", "08"]}
captures:
  lora:
    adapter: {type: lora, r: 4, alpha: 8, target_modules: [v_proj, fc1]}
    train: {epochs: 1, learning_rate: 1.0e-2, batch_size: 4}
    at_steps: [0, final]
run: {batch_size: 4, segment_samples: 4}
record: {sites: [resid_post], layers: [1]}
"""
ON = "record.base_weights=true"


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "config.yaml"
    path.write_text(CONFIG)
    return lambda *overrides: load_config(path, overrides)


@pytest.fixture(scope="module")
def store(load, tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "s.zarr"
    run_capture(load(ON), store_path=path)
    return open_store(path)


def test_they_are_the_models_own(store, make_model) -> None:
    model = make_model().model
    parameters = store.capture("lora").parameters
    names = [name for name in parameters if name.startswith("base.")]
    assert sorted(names) == sorted(f"base.{i}.{m}" for i in range(4) for m in ("fc1", "v_proj"))
    for name, weight in model.named_parameters():
        for i in range(4):
            for module in ("v_proj", "fc1"):
                if f"encoder.layers.{i}." in name and name.endswith(f"{module}.weight"):
                    stored = parameters[f"base.{i}.{module}"]
                    np.testing.assert_array_equal(stored, weight.detach().numpy())
                    names.remove(f"base.{i}.{module}")
    assert not names
    steps = store.capture("lora.step0").parameters
    assert not [name for name in steps if name.startswith("base.")]


def test_the_plan_counts_them(load, store) -> None:
    plan = plan_capture(load(ON))
    paths = [p for p in store.path.rglob("*") if p.is_file()]
    assert plan.forecast.bytes == pytest.approx(sum(p.stat().st_size for p in paths), rel=0.1)
    assert plan.forecast.files == len(paths) - 3


def test_intruders_are_counted_with_them(store) -> None:
    rows = to_tables(analyze(store, ["weights"]))["weights"]
    both = rows[rows["matrix"] == "BA"]
    assert set(both["capture"]) == {"lora.step0", "lora"}
    assert both["intruders"].between(0, 10).all()
    assert (both[both["capture"] == "lora.step0"]["intruders"] == 0).all()


def test_without_it_the_configuration_is_what_it_was(load) -> None:
    assert "base_weights" not in load().resolved()["record"]
    assert load(ON).resolved()["record"]["base_weights"] is True
