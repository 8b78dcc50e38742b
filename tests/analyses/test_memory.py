"""The memory promise: the plan in numbers, the refusal before reading, and the measured peak."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lorascope.analyses import AnalysisInputError, ArrayKey, MemoryBudgetError, analyze
from lorascope.analyses.memory import USABLE, format_bytes, parse_bytes, plan_passes
from lorascope.analyses.spectra.svd import ScatterFold
from lorascope.store import Capture, Site, create_store


@pytest.mark.parametrize(
    ("text", "count"),
    [("2GiB", 2 * 2**30), ("500MB", 500_000_000), ("1.5 kib", 1536), (77, 77), ("10b", 10)],
)
def test_amounts(text: str | int, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "lots", "2XB", "-1GB", "0", "1e9"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(AnalysisInputError, match="not an amount"):
        parse_bytes(text)


def test_format() -> None:
    assert [format_bytes(n) for n in (5, 2048, 3 * 2**30)] == ["5 B", "2 KiB", "3 GiB"]


class Sum:
    """A fold with round numbers: 100 bytes of state a worker, 10 of scratch."""

    scratch_bytes = 10

    def __init__(self, name: str) -> None:
        self.needs = (ArrayKey("a", name, 0),)

    def state_bytes(self, workers: int) -> int:
        return 100 * workers


def plan(count: int, *, usable: int, workers: int, samples: int = 20, size: int = 50):
    folds = [Sum(f"s{i}") for i in range(count)]

    def sizes(key: ArrayKey) -> np.ndarray:
        return np.full(samples, size, dtype=np.int64)

    memory = int(np.ceil(usable / USABLE))
    borders = np.array([10])
    return plan_passes(folds, sizes, borders, memory_bytes=memory, workers=workers)  # type: ignore[arg-type]


def test_one_pass_when_it_fits() -> None:
    (one,) = plan(2, usable=2000, workers=2)
    assert len(one.folds) == 2
    assert one.workers == 2
    # 2000 - 2 * 2 * 100 of state, halved, less 10 of scratch: 790; a sample costs 100 + 50
    sizes = [150 * (stop - start) for start, stop in one.slabs]
    assert max(sizes) <= 790
    assert [s for a, b in one.slabs for s in range(a, b)] == list(range(20))
    assert 10 in {start for start, _ in one.slabs}  # a slab ends where a segment does


def test_several_passes_when_accumulators_do_not_fit() -> None:
    passes = plan(6, usable=900, workers=1)
    assert len(passes) == 2  # 4 states of 100 are under half of 900, the fifth is not
    assert [len(one.folds) for one in passes] == [4, 2]
    for one in passes:
        slab = max(stop - start for start, stop in one.slabs) * 50 * (len(one.folds) + 1)
        assert slab + 100 * len(one.folds) + 10 <= 900


def test_fewer_workers_when_slabs_do_not_fit() -> None:
    (one,) = plan(1, usable=400, workers=4, size=145)
    assert one.workers == 1  # 100 + 2 * 145 + 10 fits once into 400


def test_refused_when_nothing_fits() -> None:
    with pytest.raises(MemoryBudgetError, match=r"memory 214 B is too little.*Allow at least"):
        plan(1, usable=160, workers=2, size=30)
    # what the message asks for is enough
    plan(1, usable=171, workers=2, size=30)


def test_too_little_memory_is_said_before_anything_is_read(
    study, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        msg = "read before the refusal"
        raise AssertionError(msg)

    monkeypatch.setattr(Capture, "read_rows", refuse)
    monkeypatch.setattr(Capture, "read_pooled", refuse)
    with pytest.raises(MemoryBudgetError, match="too little"):
        analyze(study.path, ["svd"], memory="4kB")


def test_scratch_covers_tiles() -> None:
    fold = ScatterFold(ArrayKey("a", "s", 0), 100, 100, 4)
    assert fold.state_bytes(3) >= 3 * 8 * 100 * 100
    assert fold.scratch_bytes >= 4096 * 100 * 4 + 2 * 8 * 100 * 100


MEASURE = """
import sys, threading, time
import dask.threaded, psutil, scipy.linalg, sklearn, xarray
from lorascope.analyses import analyze
from lorascope.store import open_store

store, process = open_store(sys.argv[1]), psutil.Process()
analyze(store, ["svd", "cka", "contribution"], captures=["warm"], memory="100MB")
base = process.memory_info().rss
peak, running = [0], [True]
def watch():
    while running[0]:
        peak[0] = max(peak[0], process.memory_info().rss - base)
        time.sleep(0.002)
threading.Thread(target=watch, daemon=True).start()
found = analyze(store, ["svd", "cka", "contribution"], captures=["big"], memory=int(sys.argv[2]), workers=2)
running[0] = False
print(peak[0], found["svd"].attrs["passes"], found["svd"].attrs["slabs"])
"""


def test_measured_peak_stays_below_the_promise(tmp_path: Path) -> None:
    """A store of 512 MB in float32 is analysed within 96 MB above what the process uses already."""
    path, memory, width = tmp_path / "big.zarr", 96 * 10**6, 256
    names = ("attn_out", "mlp_out", "resid_post")
    sites = [Site("embed", None, width), *(Site(name, [0, 1], width) for name in names)]
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(2, 800, width)).astype(np.float32)
    for capture, samples in (("warm", 4), ("big", 90)):
        with create_store(path, capture=capture, sites=sites, segment_samples=30) as writer:
            for i in range(samples):
                x = np.roll(noise, i, axis=1)
                arrays = {name: x + 0.1 * j for j, name in enumerate(names)}
                writer.append(f"u{i}", {"embed": x[0], **arrays}, groups={"speaker": str(i % 5)})
    stored = 90 * 800 * 7 * width * 4
    assert stored > 5 * memory
    script = tmp_path / "measure.py"
    script.write_text(MEASURE)
    run = subprocess.run(
        [sys.executable, script, path, str(memory)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    peak, passes, slabs = map(int, run.stdout.split())
    assert slabs > 5
    assert peak < memory, f"{format_bytes(peak)} in {passes} passes"
