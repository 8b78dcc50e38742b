"""Options as text: read by the type of their field, refused with what there is, and documented.

`python tests/analyses/test_options.py` writes the table of docs/analyses.md.
"""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from lorascope.analyses import CKA, AnalysisInputError, Probe, analyze, kernel_cka, to_tables
from lorascope.analyses.catalogue import CATALOGUE
from lorascope.analyses.options import (
    apply_options,
    changed_options,
    describe_type,
    list_options,
)


def changed(*texts: str) -> dict[str, dict[str, object]]:
    return changed_options(apply_options([*CATALOGUE.values()], CATALOGUE, texts), CATALOGUE)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("cka.permutations=1000", 1000),
        ("cka.permutations=0", 0),
        ("cka.kernels=linear,rbf", ("linear", "rbf")),
        ("cka.kernels=rbf", ("rbf",)),
        ("cka.bandwidths=0.25, 2", (0.25, 2.0)),
        ("cka.frames=false", False),
        ("probe.c=nested", "nested"),
        ("probe.c=1e-3", 0.001),
        ("probe.by=session", "session"),
        ("probe.shrinkage=0.5", 0.5),
        ("embedding.method=umap", "umap"),
        (" probe.shuffles = 20 ", 20),
    ],
)
def test_a_value_is_read_by_the_type_of_its_field(text, value):
    name, option = text.split("=")[0].strip().split(".")
    found = changed(text)
    assert found == {name: {option: value}}
    assert type(found[name][option]) is type(value)


def test_none_is_a_value_where_an_option_may_be_absent():
    chosen = [CKA(permutations=5), Probe(by="session")]
    found = apply_options(chosen, CATALOGUE, ["cka.permutations=none", "probe.by=None"])
    assert found == [CKA(), Probe()]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["cka.permutation=9"], "no option 'permutation' of cka. Did you mean 'permutations'?"),
        (["cka.description=x"], "no option 'description' of cka. There are: frames, "),
        (["svd.rank=3"], "no option 'rank' of svd."),
        (["cak.frames=true"], "no analysis 'cak'. Did you mean 'cka'? There are: cka, svd"),
        (["cka.permutations"], "is not NAME.OPTION=VALUE, such as cka.permutations=1000"),
        (["permutations=3"], "is not NAME.OPTION=VALUE"),
        (["cka.permutations=many"], "cka.permutations=many is not a whole number or none."),
        (["cka.permutations=1.5"], "is not a whole number or none."),
        (["cka.frames=yes"], "cka.frames=yes is not true or false."),
        (["cka.bandwidths=1,,2"], "is not numbers, separated by commas."),
        (["cka.bandwidths=nan"], "is not numbers, separated by commas."),
        (["probe.c=best"], "probe.c=best is not a number or nested."),
        (["probe.by="], "probe.by= is not a word or none."),
        (["cka.kernels=linear,rbff"], "choose from linear, rbf"),
        (["cka.permutations=-1"], "-1 permutations"),
        (["cka.frames=true", "cka.frames=false"], "cka.frames is given twice"),
    ],
)
def test_what_cannot_be_read_says_what_can(texts, message):
    with pytest.raises(AnalysisInputError) as error:
        changed(*texts)
    assert message in str(error.value)


def test_an_option_of_an_analysis_that_does_not_run(study):
    with pytest.raises(AnalysisInputError, match=r"of probe, which was not asked for: svd, cka\."):
        analyze(study.path, ["svd", "cka"], options=["probe.shuffles=3"])
    with pytest.raises(AnalysisInputError, match=r"of mdl, which was not asked for: cka, svd, "):
        analyze(study.path, options=["mdl.orders=3"])  # it runs by name only


def test_options_reach_the_analysis_and_are_told(study, pick):
    found = analyze(study.path, ["cka"], sites=["embed"], options=["cka.frames=false"])["cka"]
    assert set(found["granularity"].to_numpy()) == {"pooled"}
    assert json.loads(found.attrs["options"]) == {"cka": {"frames": False}}
    same = analyze(study.path, [CKA(frames=False)], sites=["embed"])["cka"]
    assert same.attrs["options"] == found.attrs["options"]


def golden_store(path, make_store):
    """Store the published inputs, 100 samples of one row."""
    rng = np.random.RandomState(1337)
    x = rng.randn(100, 10)
    y = rng.randn(100, 10) + x
    return make_store(path, [x[:, None], y[:, None]]), (x, y)


def test_gaussian_kernels_through_a_store(tmp_path, make_store, one):
    """The published value of the rule of Kornblith et al.; other widths against their matrices."""
    path, arrays = golden_store(tmp_path / "s", make_store)
    options = ["cka.kernels=linear,rbf", "cka.frames=false", "cka.bandwidth_rule=kornblith"]
    table = to_tables(analyze(path, ["cka"], options=[*options, "cka.bandwidths=1"]))["cka"]
    pair = {"layer_a": 0, "layer_b": 1, "estimator": "biased"}
    row = one(table, kernel="rbf(1 median with diagonal)", **pair)
    assert row["value"] == pytest.approx(0.575832, abs=5e-7)  # the digits that were published
    assert one(table, kernel="linear", **pair)["value"] == pytest.approx(0.5576132566117588)
    options[2] = "cka.bandwidths=0.5,3"
    table = to_tables(analyze(path, ["cka"], options=options))["cka"]
    for factor in (0.5, 3.0):
        grams = []
        for x in arrays:
            squares = np.square(x[:, None] - x[None]).sum(axis=2)
            median = np.median(squares[np.triu_indices(100, 1)])
            grams.append(np.exp(-squares / (2 * factor**2 * median)))
        for name in ("debiased", "biased"):
            row = one(table, kernel=f"rbf({factor:g} median)", **(pair | {"estimator": name}))
            expected = kernel_cka(grams)[name].value[0, 1]
            assert row["value"] == pytest.approx(expected, abs=1e-10)


NUMBERS = [
    (analysis, option)
    for analysis in CATALOGUE.values()
    for option, kind in list_options(analysis).items()
    if "number" in describe_type(kind)
]


@pytest.mark.parametrize(
    ("analysis", "option"), NUMBERS, ids=[f"{a.name}.{option}" for a, option in NUMBERS]
)
def test_numbers_below_zero_are_refused(study, analysis, option):
    """Before anything is read, by a sentence and not by a traceback of numpy."""

    def progress(*_):
        pytest.fail("nothing is read")

    text = f"{analysis.name}.{option}=-1"
    extra = ["cka.kernels=rbf"] if option == "bandwidths" else []
    with pytest.raises(AnalysisInputError, match="-1"):
        analyze(study.path, [analysis.name], options=[text, *extra], progress=progress)


def as_text(value: object) -> str:
    """Return a value as it is written on the command line."""
    if isinstance(value, tuple):
        return ",".join(map(as_text, value))
    return str(value).lower() if isinstance(value, bool | None) else str(value)


def test_every_default_can_be_written():
    """Else an option has a type that no text stands for."""
    for analysis in CATALOGUE.values():
        for option in list_options(analysis):
            text = f"{analysis.name}.{option}={as_text(getattr(analysis, option))}"
            assert changed(text) == {}


DOCS = Path(__file__).parents[2] / "docs" / "analyses.md"


def option_table() -> str:
    """Return the table of all options, from the fields and the sentences below them."""
    lines = ["| option | default | value | is |", "|---|---|---|---|"]
    for analysis in CATALOGUE.values():
        body = ast.parse(textwrap.dedent(inspect.getsource(type(analysis)))).body[0].body
        told = {
            field.target.id: " ".join(doc.value.value.split())
            for field, doc in pairwise(body)
            if isinstance(field, ast.AnnAssign) and isinstance(doc, ast.Expr)
        }
        for name, kind in list_options(analysis).items():
            default = as_text(getattr(analysis, name))
            cells = (f"`{analysis.name}.{name}`", f"`{default}`", describe_type(kind), told[name])
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def test_every_option_is_documented():
    assert option_table() in DOCS.read_text(encoding="utf-8"), "run this file: it writes the table"


if __name__ == "__main__":
    before = DOCS.read_text(encoding="utf-8")
    start = before.index("| option | default |")
    DOCS.write_text(before[:start] + option_table() + before[before.index("\n\n", start) :])
