"""Writers refuse what readers refuse, before anything is computed."""

from __future__ import annotations

import numpy as np
import pytest

from lorascope.store import (
    InvalidStoreError,
    Output,
    SampleError,
    Site,
    create_store,
    write_results,
)
from lorascope.store.guard import MAX_JSON_DEPTH, BrokenRule, parse_json

X = [Site("x", [0], 3)]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"sites": [Site("x", [0], 2**28)]}, "536870912 bytes"),
        ({"sites": [Site("x", [0], 3), Site("X", [0], 3)]}, "named twice"),
        ({"sites": X, "outputs": [Output("a", (1,) * 8)]}, "8 axes"),
        ({"sites": X, "outputs": [Output("a", (2**30,))]}, "536870912 bytes"),
        ({"sites": X, "outputs": [Output("a"), Output("A")]}, "by case"),
        ({"sites": X, "config": {"seed": 2**64}}, "int64"),
        ({"sites": [Site("x", list(range(5000)), 3)]}, "layers"),
    ],
)
def test_what_no_reader_would_accept_is_not_written(tmp_path, options, match):
    with pytest.raises(SampleError, match=match):
        create_store(tmp_path / "s", capture="a", **options)
    assert not (tmp_path / "s").exists()


def test_a_parameter_beyond_the_limits_is_refused(tmp_path):
    with create_store(tmp_path / "s", capture="a", sites=X) as writer:
        with pytest.raises(SampleError, match="536870912 bytes"):
            writer.write_parameters({"w": np.broadcast_to(np.float32(0), (2**14, 2**14))})
        with pytest.raises(SampleError, match="at most 8"):
            writer.write_parameters({"w": np.zeros((1,) * 9)})
        with pytest.raises(SampleError, match=r"length of w is not a whole number from 1"):
            writer.write_parameters({"w": np.zeros((3, 0))})


def test_results_do_not_replace_a_store(tmp_path):
    create_store(tmp_path / "s", capture="a", sites=X).__exit__(None, None, None)
    with pytest.raises(InvalidStoreError, match="store of activations"):
        write_results(tmp_path / "s", {})


def test_the_depth_of_json_is_exact():
    assert parse_json(b"[" * MAX_JSON_DEPTH + b"]" * MAX_JSON_DEPTH) is not None
    with pytest.raises(BrokenRule, match="deeper"):
        parse_json(b"[" * (MAX_JSON_DEPTH + 1) + b"]" * (MAX_JSON_DEPTH + 1))


@pytest.mark.parametrize("number", [2**63 - 1, -(2**63)])
def test_int64_is_exact(number):
    assert parse_json(str(number).encode()) == number
    with pytest.raises(BrokenRule, match="int64"):
        parse_json(str(number + (1 if number > 0 else -1)).encode())
