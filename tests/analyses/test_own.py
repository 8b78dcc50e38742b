"""Folds of users: the example of the docs, what results become, what is refused."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lorascope.analyses import AnalysisInputError, ArrayKey, MemoryBudgetError, analyze
from lorascope.analyses.own import to_frame

DOCS = Path(__file__).parents[2] / "docs" / "analyses.md"


@dataclass(frozen=True)
class Counted:
    """Rows of each sample, and where they were: `result` says as what."""

    needs: tuple[ArrayKey, ...]
    name: str = "counted"
    state: int = 0

    def state_bytes(self, workers: int) -> int:
        return self.state * workers

    def empty(self):
        return {}

    def add(self, state, block):
        piece = block[self.needs[0]]
        return state | dict(zip(piece.samples.tolist(), np.diff(piece.offsets), strict=True))

    def merge(self, left, right):
        return left | right

    def finish(self, state):
        return np.array([state[i] for i in sorted(state)])


def test_the_example_of_the_docs(study) -> None:
    section = DOCS.read_text().split("\n## A statistic of your own\n")[1]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    code = code.replace('"ravdess.zarr"', "path").replace("results[", "norm = results[")
    scope = {"path": study.path}
    exec(compile(code, str(DOCS), "exec"), scope)
    rows = study.rows("lora", "resid_post", 2)
    assert scope["norm"] == pytest.approx(np.linalg.norm(rows, axis=1).mean(), rel=1e-6)
    assert scope["results"]["mean_norm"]["rows"].item() == len(rows)
    assert scope["results"]["svd"].sizes["entry"]


@pytest.mark.parametrize("workers", [1, 3])
def test_any_cut_gives_the_same(study, workers: int) -> None:
    fold = Counted((ArrayKey("frozen", "embed", -1),))
    found = analyze(study.path, [fold], workers=workers, memory="40MiB")["counted"]
    expected = [len(x[0]) for x in study.arrays["frozen", "embed"]]
    assert found["value"].to_numpy().tolist() == expected
    assert found["index_0"].to_numpy().tolist() == list(range(len(expected)))


def test_results_become_tables() -> None:
    assert to_frame({"a": 1, "b": "x"}).to_dict("list") == {"a": [1], "b": ["x"]}
    assert to_frame({"a": [1, 2], "b": 3}).to_dict("list") == {"a": [1, 2], "b": [3, 3]}
    assert to_frame(2.5).to_dict("list") == {"value": [2.5]}
    frame = to_frame(np.array([[1, 2], [3, 4]]))
    assert frame.to_dict("list") == {
        "index_0": [0, 0, 1, 1],
        "index_1": [0, 1, 0, 1],
        "value": [1, 2, 3, 4],
    }
    table = pd.DataFrame({"a": [1, 2]}, index=[5, 6])
    assert to_frame(table).index.tolist() == [0, 1]


class Half:
    """Lacks two of its parts."""

    needs = ()

    def empty(self):
        return 0

    def add(self, state, block):
        return state


@dataclass(frozen=True)
class Unhashable(Counted):
    """A fold that keeps a list, as users' folds will."""

    seen: list[int] = field(default_factory=list, hash=True)


@pytest.mark.parametrize(
    ("fold", "message"),
    [
        (Half(), "it has no merge, finish"),
        (Half, "Half is a class; give an instance"),
        (3, "3 is neither the name of an analysis"),
        (Counted(()), "fold 'counted' needs no array"),
        (Counted((ArrayKey("none", "embed", -1),)), "no capture 'none'.*Present: frozen"),
        (Counted((ArrayKey("lora", "embedd", -1),)), "no site 'embedd'.*Did you mean 'embed'"),
        (Counted((ArrayKey("lora", "resid_post", 9),)), "no layer 9.*Present: 0, 1, 2"),
        (Counted((ArrayKey("lora", "embed", -1, "mean_none"),)), "no site 'embed.mean_none'"),
    ],
)
def test_what_is_no_fold_is_refused(study, fold, message: str) -> None:
    with pytest.raises(AnalysisInputError, match=message):
        analyze(study.path, [fold])


def test_two_folds_of_one_name_are_refused(study) -> None:
    key = ArrayKey("lora", "embed", -1)
    with pytest.raises(AnalysisInputError, match="two analyses are called 'counted'"):
        analyze(study.path, [Counted((key,)), Counted((key,))])
    both = analyze(study.path, [Counted((key,)), Unhashable((key,), name="other")])
    assert set(both) == {"counted", "other"}


def test_a_state_that_does_not_fit_is_said_before_reading(study) -> None:
    fold = Counted((ArrayKey("lora", "embed", -1),), state=2**30)
    with pytest.raises(MemoryBudgetError, match="is too little"):
        analyze(study.path, [fold], memory="100MiB")


def test_by_default_a_probe_that_does_not_fit_is_left_out(tmp_path, make_store) -> None:
    x = np.random.default_rng(0).standard_normal((2000, 1, 100))
    labels, speakers = ["a", "b"] * 1000, [f"{i // 200}" for i in range(2000)]
    path = make_store(tmp_path / "s", [x], labels=labels, speakers=speakers)
    results = analyze(path, memory="40MiB", sites=["resid_post"])
    assert "probe" not in results
    assert "too little: the probe of resid_post" in results["cka"].attrs["skipped"]
