"""`--device cuda`: the same numbers; checked without hardware too, by arrays that refuse to mix."""

import importlib
import importlib.util
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lorascope.analyses import CKA, AnalysisInputError, MemoryBudgetError, analyze, to_tables
from lorascope.analyses.errors import DeviceError

from .fake_cupy import make_module

SHARED = ["cka", "svd", "alignment", "contribution"]
"""What computes on the device, and one that stays on the host."""


def cupy_sees_a_device() -> bool:
    if importlib.util.find_spec("cupy") is None:
        return False
    cupy = importlib.import_module("cupy")
    try:
        return cupy.cuda.runtime.getDeviceCount() > 0
    except cupy.cuda.runtime.CUDARuntimeError:
        return False


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Any:
    module = make_module()
    monkeypatch.setitem(sys.modules, "cupy", module)
    return module


def tables(path: Any, device: str, **choices: Any) -> dict[str, pd.DataFrame]:
    return to_tables(analyze(path, SHARED, device=device, workers=2, **choices))


def assert_equal(found: dict[str, pd.DataFrame], expected: dict[str, pd.DataFrame]) -> None:
    """Float32 products in another order: 1e-5 of the largest value; p-values follow."""
    assert found.keys() == expected.keys()
    for name, frame in expected.items():
        for column in frame:
            got, want = found[name][column], frame[column]
            if want.dtype != np.float64:
                pd.testing.assert_series_equal(got, want, check_dtype=False)
                continue
            scale = max(want[np.isfinite(want)].abs().tolist(), default=0.0)
            np.testing.assert_allclose(
                got, want, rtol=2e-4, atol=1e-5 * scale, err_msg=f"{name}.{column}"
            )


def test_arrays_of_host_and_device_never_mix(study, fake) -> None:
    expected = tables(study.path, "cpu")
    found = tables(study.path, "cuda")
    assert_equal(found, expected)
    assert found["svd"].attrs["device"] == "cuda: a fake device"
    assert expected["svd"].attrs["device"] == "cpu"


def test_a_run_in_small_blocks_and_panels(study, fake) -> None:
    assert_equal(
        tables(study.path, "cuda", memory="6MiB"), tables(study.path, "cpu", memory="6MiB")
    )


def compare_on_request(path: Any) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return table `cka` of both: frames from every pair, whole samples, and a tail of spectra."""
    wanted: dict[str, Any] = {"exact": True, "options": ["cka.flattened=true", "svd.tail=true"]}
    cpu, cuda = (
        to_tables(analyze(path, ["cka", "svd"], device=device, workers=2, **wanted))
        for device in ("cpu", "cuda")
    )
    assert {"flattened", "frame", "pooled"} == set(cuda["cka"]["granularity"])
    assert {"debiased", "minibatch"} <= set(cuda["cka"]["estimator"])
    assert_equal(cuda, cpu)
    return cuda["cka"], cpu["cka"]


@pytest.fixture
def frames_of_speakers(tmp_path, make_store) -> Any:
    rng = np.random.default_rng(3)
    layers = [rng.normal(size=(24, 4, 6)).astype(np.float32) for _ in range(2)]
    return make_store(tmp_path / "s", layers, speakers=[f"s{i % 6}" for i in range(24)])


def test_whole_samples_and_all_frames(frames_of_speakers, fake) -> None:
    found, expected = compare_on_request(frames_of_speakers)
    for column in ("value", "value_low", "p_value"):  # the same products, by numpy in both
        np.testing.assert_allclose(found[column], expected[column], atol=1e-10)


@pytest.mark.gpu
@pytest.mark.skipif(not cupy_sees_a_device(), reason="cupy is not installed or sees no device")
def test_cupy_gives_whole_samples_and_all_frames(frames_of_speakers) -> None:
    compare_on_request(frames_of_speakers)


def test_an_unknown_device(study) -> None:
    with pytest.raises(AnalysisInputError, match="unknown device 'gpu'; known: cpu, cuda"):
        analyze(study.path, ["svd"], device="gpu")


def test_cupy_is_not_installed(study, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(DeviceError, match=r"pip install 'lorascope\[gpu\]'"):
        analyze(study.path, ["svd"], device="cuda")


def test_cupy_sees_no_device(study, fake) -> None:
    fake.cuda.runtime.getDeviceCount = lambda: 0
    with pytest.raises(DeviceError, match="cupy sees no CUDA device"):
        analyze(study.path, ["svd"], device="cuda")


def test_a_device_out_of_memory_says_what_to_do(study, fake) -> None:
    def refuse(*_: object, **__: object) -> None:
        msg = "asked for 1 byte"
        raise fake.cuda.memory.OutOfMemoryError(msg)

    fake.asarray = refuse
    freed = []
    fake.get_default_memory_pool = lambda: SimpleNamespace(free_all_blocks=lambda: freed.append(1))
    with pytest.raises(MemoryBudgetError, match=r"out of memory .asked for 1 byte.*--workers 1"):
        analyze(study.path, ["svd"], device="cuda")
    assert freed


@pytest.mark.gpu
@pytest.mark.skipif(not cupy_sees_a_device(), reason="cupy is not installed or sees no device")
@pytest.mark.parametrize("memory", ["2GiB", "6MiB"])
def test_cupy_gives_what_numpy_gives(study, memory) -> None:
    assert_equal(
        tables(study.path, "cuda", memory=memory), tables(study.path, "cpu", memory=memory)
    )


@pytest.mark.gpu
@pytest.mark.skipif(not cupy_sees_a_device(), reason="cupy is not installed or sees no device")
def test_cka_of_an_offset_of_1000_on_the_device(tmp_path) -> None:
    from lorascope.store import Site, create_store

    rng = np.random.default_rng(1337)
    x_nd = rng.normal(size=(100, 10)).astype(np.float32)
    y_nd = (rng.normal(size=(100, 10)) + x_nd).astype(np.float32)
    sites = [Site(f"{s}.mean_valid", None, 10, kind="sample") for s in ("x", "y", "far")]
    path = tmp_path / "s.zarr"
    with create_store(path, capture="a", sites=sites) as writer:
        for i in range(100):
            pooled = {"x": x_nd[i], "y": y_nd[i], "far": x_nd[i] + np.float32(1000)}
            writer.append(f"u{i:03d}", {f"{k}.mean_valid": v for k, v in pooled.items()})
    table = to_tables(analyze(path, [CKA(frames=False)], device="cuda"))["cka"]
    debiased = table[table["estimator"] == "debiased"].set_index(["site_a", "site_b"])["value"]
    # float32 features near 1000 carry 6e-5 of noise each, whatever is computed with them
    near, far = debiased["x", "y"], debiased["far", "y"]
    assert near == pytest.approx(far, abs=1e-5)
