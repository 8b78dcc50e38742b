"""What reaches the terminal: no escapes, aligned tables, JSON that every reader takes."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorascope.cli.output import (
    clean,
    command_line,
    format_bytes,
    format_number,
    print_json,
    print_table,
    public_words,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain é 漢 🎵", "plain é 漢 🎵"),
        ("\x1b[2J\x1b]0;title\x07", "?[2J?]0;title?"),
        ("a\u202eb\u2066c\u200bd", "a?b?c?d"),
        ("one\ntwo\r\n", "one\ntwo?\n"),
        ("\x9b31m", "?31m"),
        ("\ud800", "?"),
    ],
)
def test_clean(text: str, expected: str):
    assert clean(text) == expected


@given(st.text())
def test_clean_leaves_nothing_that_a_terminal_obeys(text: str):
    cleaned = clean(text, lines=False)
    assert len(cleaned) == len(text)
    assert cleaned == clean(cleaned, lines=False)
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in cleaned)
    assert not set(cleaned) & set(
        "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f"
    )


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (3 * 2**29, "1.5 GiB"),
        (2**60, "1048576.0 TiB"),
    ],
)
def test_format_bytes(size: int, expected: str):
    assert format_bytes(size) == expected


def test_format_number():
    assert [format_number(v) for v in (0.5, math.nan, None, 7, "x")] == [
        "0.500",
        "-",
        "-",
        "7",
        "x",
    ]


def test_tables_are_aligned_and_clean(capsys):
    print_table(("name", "n"), [("lora\x1b[1m", 5), ("a", 123)])
    assert capsys.readouterr().out == "name       n\nlora?[1m    5\na         123\n".replace(
        "name       n", "name        n"
    )


def test_a_table_without_rows_is_its_header(capsys):
    print_table(("name", "n"), [])
    assert capsys.readouterr().out == "name  n\n"


def test_json_lines_are_strict(capsys):
    print_json({"a": math.nan, "b": [1, math.inf], "c": {"d": "\u202e"}})
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    assert line.isascii()
    assert json.loads(line) == {"a": None, "b": [1, None], "c": {"d": "\u202e"}}


def test_command_lines():
    assert command_line("analyze", ["--store", "a b.zarr"]) == "analyze --store 'a b.zarr'"
    words = public_words("analyze", ["--store", "/home/ann/x.zarr", "--out=/tmp/o", "rel/y"])
    assert words == ["analyze", "--store", "x.zarr", "--out=o", "rel/y"]
