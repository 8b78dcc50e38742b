"""Where the report must not break: hostile strings, missing tables, values without a number."""

import re

import numpy as np
import pytest


def test_strings_of_a_store_stay_text(tables, summary, render, tmp_path) -> None:
    evil = [
        "<script>alert(1)</script>",
        "\"'><img src=x onerror=alert(1)>",
        "\u202egnp.exe\u2066",
        "$\\frac{$ \x1b[31m\x00\n </style></svg>",
    ]
    renaming = dict(zip(["frozen", "lora", "anger", "calm"], evil, strict=True))
    bad = {name: table.replace(renaming) for name, table in tables(2).items()}
    bad["lens"]["reason"] = evil[0]
    bad["lens"]["overlap"] = np.nan
    about = summary() | {"command": evil[1], "note": {evil[0]: evil[3]}}
    about["captures"] = {renaming[name]: v for name, v in about["captures"].items()}
    about["captures"][evil[0]]["model"] = {"base": evil[2]}
    page = render(bad, about, tmp_path)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "img"}
    assert not [n for _, attrs in page.elements for n in attrs if n.startswith("on")]
    assert not set(page.source) & {"\u202e", "\u2066", "\x1b", "\x00"}
    assert "\\u202egnp.exe" in page.text
    assert "<script>alert(1)</script>" in page.text
    assert not [p for p in tmp_path.rglob("*") if not re.fullmatch(r"[\w.-]+", p.name)]


NAMES = (
    *("cka", "svd", "probe", "lens", "contribution", "outputs", "erasure", "alignment"),
    *("weights", "gradients", "embedding"),
)


@pytest.mark.parametrize("name", [None, *NAMES])
@pytest.mark.usefixtures("unwritten_pictures")
def test_a_missing_analysis_is_named_with_its_reason(name, tables, render, tmp_path) -> None:
    present = {name: tables(2)[name]} if name else {}
    page = render(present, {"skipped": {"lens": "lens needs a head."}}, tmp_path)
    assert page.text.count("Nothing here: ") == len(NAMES) - bool(name)
    assert ("Nothing here: lens needs a head." in page.text) == (name != "lens")


def test_values_that_could_not_be_computed_are_listed(page, tables, render, tmp_path) -> None:
    assert "SV90, 6 rows (frozen; lora_b.v): constant features" in page.text
    empty = tables(2)
    for table in empty.values():
        numbers = [name for name in table.columns if table[name].dtype == np.float64]
        table[numbers] = np.nan
        table["reason"] = "B = 0"
    blank = render(empty, {}, tmp_path)
    assert "No analysis gave a number" in blank.text
    assert blank.text.count(": B = 0") >= 6
    drawn = {path.name.split("-")[0] for path in tmp_path.glob("figures/*.svg")}
    assert drawn <= {"cka", "outputs"}  # maps with a cross in every empty cell, and counts


def test_sample_ids_never_appear(tables, render, tmp_path) -> None:
    given = {name: tables()[name] for name in ("outputs", "embedding", "embedding_quality")}
    given["outputs"] = given["outputs"].assign(sample="utt-secret", id="utt-secret")
    page = render(given, {}, tmp_path)
    assert "utt-secret" not in page.source
    assert "speaker-3" not in page.source
