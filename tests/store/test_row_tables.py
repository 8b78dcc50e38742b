"""Row columns from tables: alignments in seconds, and values at positions."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from lorascope.store import SampleError, add_row_table, open_store

from .test_row_columns import files, write

ALIGNMENT = """sample,start_s,end_s,phone,pitch
u1,0.00,0.03,HH,
u1,0.03,0.06,AY,120.5
u1,0.06,0.2,,99
u0,0.01,0.07,T,1
"""


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "s.zarr", captures=("c",))


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory):
    """A store for what must not change it."""
    return write(tmp_path_factory.mktemp("rows") / "s.zarr", captures=("c",))


def table(tmp_path, text, name="rows.csv"):
    (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path / name


def read(path, name):
    return open_store(path).read_row_column(name, capture="c").tolist()


def test_a_frame_has_what_holds_its_middle(path, tmp_path):
    """Middles of frames of 20 ms: .01 .03 .05 .07 .09 .11; a start belongs to its interval."""
    report = add_row_table(path, table(tmp_path, ALIGNMENT))
    assert (report.entries, report.outside, report.ignored) == (4, 0, 0)
    assert open_store(path).row_columns["phone"].names == ("AY", "HH", "T")
    np.testing.assert_array_equal(
        read(path, "phone"), [2, 2, 2, -1, 1, 0, 0, -1, -1, -1, *[np.nan] * 5]
    )
    assert next(iter(open_store(path).batches("resid_post", 0, 9))).shape == (9, 3), "one capture"
    pitch = [1, 1, 1, np.nan, np.nan, 120.5, 120.5, 99, 99, 99, *[np.nan] * 5]
    np.testing.assert_array_equal(read(path, "pitch"), pitch)


def test_neighbours_leave_no_frame_out_and_share_none(path, tmp_path):
    """Boundaries in the middle of frames, spelled with their rounding errors."""
    bounds = [k * 0.02 - 0.01 for k in range(8)]
    bounds[0] = 0.0
    lines = [f"u1,{a!r},{b!r},{i}" for i, (a, b) in enumerate(pairwise(bounds))]
    text = "\n".join(["sample,start_s,end_s,n", *lines])
    report = add_row_table(path, table(tmp_path, text))
    assert report.outside == 1, "the first ends where the first middle is"
    assert read(path, "n")[4:10] == [1, 2, 3, 4, 5, 6]


def test_other_frames_and_rows_that_are_left_out(tmp_path):
    """Every third frame of 10 ms was recorded; one interval falls between them."""
    path = write(tmp_path / "s.zarr", captures=("c",), step=3)
    text = "sample,start_s,end_s,w\nu0,0,0.034,a\nu0,0.04,0.06,b\nu0,0.06,9,c\n"
    report = add_row_table(path, table(tmp_path, text), frame_s=0.01)
    assert report.outside == 1
    assert read(path, "w")[:4] == [0, -1, 1, 1]  # b has no row, so no number


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
def test_values_at_positions_of_every_kind_of_file(path, tmp_path, kind):
    frame = pd.DataFrame(
        {"sample": ["u2", "u2", "u0"], "position": [4, 0, 3], "word": ["is", None, "dogs"]}
    )
    file = tmp_path / f"rows.{kind}"
    if kind == "parquet":
        frame.to_parquet(file)
    else:
        frame.to_csv(file, sep="," if kind == "csv" else "\t", index=False)
    add_row_table(path, file)
    none = [np.nan] * 6
    np.testing.assert_array_equal(read(path, "word"), [-1, -1, -1, 0, *none, -1, -1, -1, -1, 1])


def test_columns_may_be_chosen_and_unknown_samples_ignored(path, tmp_path):
    file = table(tmp_path, ALIGNMENT + "u9,0,1,AA,1\n")
    report = add_row_table(path, file, columns=["pitch"], ignore_unknown=True)
    assert [column.name for column in report.columns] == ["pitch"]
    assert report.ignored == 1
    assert list(open_store(path).row_columns) == ["pitch"]


BAD = {
    "unknown": (ALIGNMENT + "u9,0,1,AA,1\n", "1 samples that .* 'u9'.*--ignore-unknown"),
    "overlap": (ALIGNMENT + "u0,0.05,0.09,S,1\n", r"lines 5 and 6 \(sample 'u0'\) overlap"),
    "same": ("sample,position,p\nu0,1,a\nu1,1,a\nu0,1,b\n", "lines 2 and 4 .* same position"),
    "empty interval": ("sample,start_s,end_s,p\nu0,1,1,a\n", "line 2 .*longer than 0"),
    "negative": ("sample,position,p\nu0,-1,a\n", "line 2 .*whole number from 0"),
    "huge": ("sample,start_s,end_s,p\nu0,1,1e308,a\n", "line 2"),
    "no number": ("sample,start_s,end_s,p\nu0,0,1,a\nu0,x,2,b\n", "line 3 .*start_s is 'x'"),
    "nan time": ("sample,start_s,end_s,p\nu0,nan,1,a\n", "line 2 .*finite"),
    "nan value": ("sample,position,p\nu0,0,1\nu0,1,nan\n", "line 3 .*p is 'nan'.*empty"),
    "absent row": ("sample,position,p\nu0,99,1\n", "no row at position 99"),
    "no interval": ("sample,start_s,p\nu0,1,a\n", "needed are sample and either"),
    "both": ("sample,start_s,end_s,position,p\nu0,0,1,1,a\n", "needed are sample and either"),
    "no column": ("sample,position\nu0,1\n", "nothing to add"),
    "no lines": ("sample,position,p\n", "nothing to add"),
    "no bytes": ("", "cannot be read as a table"),
    "ragged": ("sample,position,p\nu0,1,a,b\n", "cannot be read as a table"),
    "second column": ("sample,position,p,resid_post\nu0,1,a,b\n", "a site 'resid_post'"),
    "far away": ("sample,start_s,end_s,p\nu0,50,60,a\n", "a value for no row"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_does_not_fit_is_refused_and_changes_nothing(unchanged, tmp_path, what):
    text, message = BAD[what]
    before = files(unchanged)
    with pytest.raises(SampleError, match=message):
        add_row_table(unchanged, table(tmp_path, text))
    assert files(unchanged) == before


def test_options_that_do_not_fit_are_refused(unchanged, tmp_path):
    file = table(tmp_path, ALIGNMENT)
    with pytest.raises(SampleError, match="no column 'word'"):
        add_row_table(unchanged, file, columns=["word"])
    with pytest.raises(SampleError, match="positive"):
        add_row_table(unchanged, file, frame_s=0.0)
    with pytest.raises(SampleError, match=r"\.csv, \.tsv or \.parquet"):
        add_row_table(unchanged, table(tmp_path, ALIGNMENT, "rows.txt"))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no table")
    with pytest.raises(SampleError, match="cannot be read as a table"):
        add_row_table(unchanged, tmp_path / "broken.parquet")
