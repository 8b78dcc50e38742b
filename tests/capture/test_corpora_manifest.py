"""The corpus listed in a CSV file, and what is said about a file that does not fit."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from lorascope.capture import DataError, load_corpus


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "audio").mkdir()
    for i in range(4):
        wave = 0.1 * np.sin(np.arange(1_600 * (i + 1)) / 10)
        soundfile.write(tmp_path / "audio" / f"{i}.wav", wave, 16_000)
    return tmp_path


def write(folder: Path, text: str) -> Path:
    path = folder / "list.csv"
    path.write_text(text, encoding="utf-8")
    return path


def message(folder: Path, text: str) -> str:
    with pytest.raises(DataError) as caught:
        load_corpus("manifest", manifest=write(folder, text))
    return str(caught.value).replace(f"{folder}/", "")


def test_paths_start_from_the_folder_of_the_file(folder: Path, monkeypatch):
    monkeypatch.chdir("/")
    text = "path,label,speaker,session,phone\naudio/0.wav,anger,s1,one,x\naudio/1.wav,joy,s2,,\n"
    corpus = load_corpus("manifest", manifest=write(folder, text))
    first, second = corpus.utterances
    assert corpus.labels == ("anger", "joy")
    assert (first.id, first.label, first.speaker, first.session) == (
        *("audio/0.wav", "anger", "s1", "one"),
    )
    assert first.columns == {"phone": "x"}
    assert second.columns == {"phone": ""}
    assert (first.duration_seconds, second.duration_seconds) == (0.1, 0.2)
    assert corpus.read(second).shape == (3_200,)


def test_root_moves_the_start_of_the_paths(folder: Path, tmp_path: Path):
    path = write(folder, "path,label,speaker\n0.wav,a,s\n")
    corpus = load_corpus("manifest", folder / "audio", manifest=path)
    assert corpus.utterances[0].path == folder / "audio" / "0.wav"


def test_absolute_paths_own_ids_quotes_and_a_byte_order_mark(folder: Path):
    text = f'\ufeffid,path,label,speaker\nu1,"{folder}/audio/0.wav","very, very sad",s\n\n'
    corpus = load_corpus("manifest", manifest=write(folder, text))
    assert [(item.id, item.label) for item in corpus.utterances] == [("u1", "very, very sad")]


def test_every_problem_is_named_with_its_line(folder: Path):
    text = """\
id,path,label,speaker
a,audio/0.wav,anger,s1
b,audio/9.wav,anger,s1
a,audio/1.wav,,s1
c,audio/2.wav,joy
d,,joy,
"""
    assert message(folder, text).splitlines() == [
        "list.csv: 6 problems",
        "list.csv:3: no audio file 'audio/9.wav'",
        "list.csv:4: empty label",
        "list.csv:4: id 'a' is used in line 2 already",
        "list.csv:5: 3 fields, but the header has 4",
        "list.csv:6: empty path",
        "list.csv:6: empty speaker",
    ]


def test_many_problems_are_counted(folder: Path):
    rows = "".join(f"audio/x{i}.wav,a,s\n" for i in range(25))
    lines = message(folder, "path,label,speaker\n" + rows).splitlines()
    assert lines[0] == "list.csv: 25 problems"
    assert len(lines) == 12
    assert lines[-1] == "... and 15 more"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "no column 'path' (columns: nothing)"),
        ("file,label,speaker\n", "no column 'path' (columns: file, label, speaker)"),
        ("path,lable,speaker\n", "no column 'label'; did you mean 'lable'?"),
        ("path,label,speaker,x,x\n", "two columns are called 'x'"),
        ("path,label,speaker,exposed\n", "a column cannot be called 'exposed'; rename it"),
        ("path,label,speaker,\n", "a column cannot be called ''"),
        ("path,label,speaker\n", "lists no utterance"),
        ('path,label,speaker\n"audio', "not CSV"),
    ],
)
def test_a_file_that_is_no_list(folder: Path, text: str, expected: str):
    assert expected in message(folder, text)


def test_a_file_that_is_not_there_or_not_text(folder: Path):
    with pytest.raises(DataError, match=r"corpus manifest needs data\.manifest"):
        load_corpus("manifest")
    with pytest.raises(DataError, match="no file"):
        load_corpus("manifest", manifest=folder / "nowhere.csv")
    (folder / "latin.csv").write_bytes("path,label,é\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"not UTF-8 text \(byte 11\)"):
        load_corpus("manifest", manifest=folder / "latin.csv")


def test_broken_audio_stops_the_run_before_it_starts(folder: Path):
    (folder / "audio" / "1.wav").write_bytes(b"no audio")
    lines = message(folder, "path,label,speaker\naudio/0.wav,a,s\naudio/1.wav,b,s\n").splitlines()
    assert lines[0] == "corpus manifest: 1 problem"
    assert lines[1].startswith("cannot read audio file 'audio/1.wav': ")
