"""Wrong input is refused before anything is written, with what is there and what to do."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from lorascope.store import (
    ConfigMismatchError,
    InvalidStoreError,
    LockedStoreError,
    MissingCaptureError,
    MissingSiteError,
    SampleError,
    SampleRows,
    Site,
    StoreSpaceError,
    create_store,
    open_store,
)

from .conftest import make_samples, plan_of

X = [Site("x", [0, 1], 3)]


def test_another_configuration_is_refused_by_field(write_store):
    write_store()
    with pytest.raises(ConfigMismatchError, match=r"model\.base is 'tiny' there and 'large' now"):
        write_store(config={"seed": 0, "model": {"base": "large"}})
    with pytest.raises(ConfigMismatchError, match="epochs is absent"):
        write_store(config={"seed": 0, "model": {"base": "tiny"}, "epochs": 3}.copy())


def test_another_plan_sites_or_segments_are_refused(tmp_path):
    samples = plan_of(make_samples(5))
    create_store(tmp_path / "s", capture="a", sites=X, plan=samples).__exit__(None, None, None)
    for change, match in [
        ({"plan": samples[::-1]}, "samples"),
        ({"plan": samples, "sites": [Site("y", [0], 3)]}, "sites is 'x' there and 'y' now"),
        ({"plan": samples, "sites": [Site("x", [0, 1], 4)]}, "site x is"),
        ({"plan": samples, "segment_samples": 2}, "segment_samples"),
    ]:
        with pytest.raises(ConfigMismatchError, match=match):
            create_store(tmp_path / "s", **({"capture": "a", "sites": X} | change))


def test_a_second_capture_is_added(write_store):
    write_store()
    path = write_store(capture="lora")
    store = open_store(path)
    assert store.captures == ["base", "lora"]
    assert store.samples.groupby("capture").size().tolist() == [23, 23]
    with pytest.raises(SampleError, match="by case only"):
        write_store(capture="Lora")


def test_only_one_writer(tmp_path):
    script = f"""
import sys, time
from lorascope.store import Site, create_store
with create_store({str(tmp_path / "s")!r}, capture="a", sites=[Site("x", [0, 1], 3)]):
    print("locked", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "locked\n"
        with pytest.raises(LockedStoreError, match=f"process {child.pid} since"):
            create_store(tmp_path / "s", capture="a", sites=X)
        child.kill()
    create_store(tmp_path / "s", capture="a", sites=X).__exit__(None, None, None)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({}, "missing: x"),
        ({"x": np.zeros((2, 4, 3)), "y": np.zeros(1)}, "not declared: y"),
        ({"x": np.zeros((2, 4, 5))}, "3 features"),
        ({"x": np.zeros((4, 3))}, "2 layers"),
        ({"x": np.full((2, 4, 3), "a")}, "not a number"),
        ({"x": np.zeros((2, 100_000, 3))}, "larger segment_rows"),
    ],
)
def test_samples_that_do_not_fit(tmp_path, values, match):
    with create_store(tmp_path / "s", capture="a", sites=X) as writer:
        with pytest.raises(SampleError, match=match):
            writer.append("one", values)
        writer.append("one", {"x": np.zeros((2, 4, 3))}, columns={"take": 1})
        with pytest.raises(SampleError, match="already"):
            writer.append("one", {"x": np.zeros((2, 4, 3))})
        with pytest.raises(SampleError, match="always the same"):
            writer.append("two", {"x": np.zeros((2, 4, 3))}, columns={"take": "first"})
        with pytest.raises(SampleError, match="taken"):
            writer.append("two", {"x": np.zeros((2, 4, 3))}, groups={"segment": "1"})
    assert open_store(tmp_path / "s").samples["id"].tolist() == ["one"]


def test_a_plan_is_kept(tmp_path):
    plan = [SampleRows("a", {"tokens": 2}), SampleRows("b", {"tokens": 1})]
    x = np.zeros((2, 2, 3))
    with create_store(tmp_path / "s", capture="a", sites=X, plan=plan) as writer:
        with pytest.raises(SampleError, match="expects 'a'"):
            writer.append("b", {"x": x[:, :1]})
        with pytest.raises(SampleError, match="rows"):
            writer.append("a", {"x": x[:, :1]})
        writer.append("a", {"x": x})
        writer.append("b", {"x": x[:, :1]})
        with pytest.raises(SampleError, match="expects nothing"):
            writer.append("c", {"x": x})
    with (
        pytest.raises(SampleError, match="in the middle of planned segment 0"),
        create_store(tmp_path / "t", capture="a", sites=X, plan=plan) as writer,
    ):
        writer.append("a", {"x": x})
    assert len(open_store(tmp_path / "t").capture("a")) == 0


def test_names_and_paths(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InvalidStoreError, match=r"notes\.txt"):
        create_store(tmp_path, capture="a", sites=X)
    with pytest.raises(InvalidStoreError, match="is a file"):
        create_store(tmp_path / "notes.txt", capture="a", sites=X)
    for name in ["../up", ".hidden", "-dash", "", "a/b", "x" * 129]:
        with pytest.raises(SampleError, match="not allowed"):
            create_store(tmp_path / "s", capture=name, sites=X)
        with pytest.raises(SampleError, match="not allowed"):
            Site(name, [0], 3)
    with pytest.raises(SampleError, match="twice"):
        create_store(tmp_path / "s", capture="a", sites=[*X, *X])
    assert not (tmp_path / "s").exists()


def test_a_disk_that_is_too_small_is_refused_before_anything_is_computed(tmp_path):
    plan = [SampleRows("a", {"tokens": 5 * 10**6})]
    with pytest.raises(StoreSpaceError, match=r"needs up to .* GiB"):
        create_store(tmp_path / "s", capture="a", sites=[Site("x", range(100), 4096)], plan=plan)


def test_absent_names_list_what_is_there(write_store):
    store = open_store(write_store())
    capture = store.capture("base")
    for call, match in [
        (lambda: store.capture("lora"), "Present: base"),
        (lambda: capture.read_rows("mlp_out", 0), "Present: resid_post, embed"),
        (lambda: capture.read_rows("resid_post", 7), "Present: 0, 1"),
        (lambda: capture.read_rows("embed", 0), r"none \(no layers\)"),
        (lambda: capture.read_pooled("embed.mean_valid", None), "resid_post.mean_valid"),
        (lambda: capture.read_output("hidden"), "logits, loss"),
        (lambda: capture.row_counts("decoder"), "Present: tokens"),
        (lambda: capture.parameters["w"], "Present: none"),
        (lambda: store.dataset(capture="base", site="nope"), "Present: resid_post"),
    ]:
        with pytest.raises((MissingCaptureError, MissingSiteError), match=match):
            call()
