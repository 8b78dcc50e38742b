"""RAVDESS, on a miniature tree of tones that holds its traps."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from lorascope.capture import DataError, load_corpus

TONE = 0.1 * np.sin(np.arange(4_800) / 10)


def put(path: Path, rate: int = 48_000, channels: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.stack([TONE] * channels, axis=1), rate)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "ravdess"
    for actor in ("01", "02"):
        for emotion in ("01", "02", "03", "04", "05", "06", "07", "08"):
            for intensity in ("01", "02") if emotion != "01" else ("01",):
                put(root / f"Actor_{actor}" / f"03-01-{emotion}-{intensity}-02-01-{actor}.wav")
    return root


def test_labels_are_canonical_nouns_and_the_corpus_keeps_its_own(root: Path):
    corpus = load_corpus("ravdess", root)
    assert corpus.labels == (
        *("anger", "calm", "disgust", "fear", "happiness", "neutral", "sadness", "surprise"),
    )
    raw = {item.label: item.raw_label for item in corpus.utterances}
    assert raw == {
        "neutral": "neutral",
        "calm": "calm",
        "happiness": "happy",
        "sadness": "sad",
        "anger": "angry",
        "fear": "fearful",
        "disgust": "disgust",
        "surprise": "surprised",
    }
    assert len(corpus.utterances) == 30
    assert corpus.left_out == ()


def test_the_file_name_says_everything_else(root: Path):
    put(root / "Actor_01" / "03-01-05-02-01-02-01.wav")
    corpus = load_corpus("ravdess", root)
    found = {item.id: item for item in corpus.utterances}
    angry = found["03-01-05-02-01-02-01"]
    assert angry.speaker == "01"
    assert angry.duration_seconds == pytest.approx(0.1)
    assert angry.columns == {
        "sex": "male",  # odd actors are men
        "intensity": "strong",
        "statement": "kids",
        "repetition": "2",
    }
    assert found["03-01-01-01-02-01-02"].columns["sex"] == "female"
    assert found["03-01-01-01-02-01-02"].columns["statement"] == "dogs"


def test_48_khz_and_stereo_become_16_khz_mono(root: Path):
    put(root / "Actor_02" / "03-01-05-01-01-01-02.wav", channels=2)
    corpus = load_corpus("ravdess", root)
    for utterance in corpus.utterances:
        assert corpus.read(utterance).shape == (1_600,)


def test_what_is_no_speech_is_left_out_and_said(root: Path):
    actor = root / "Actor_01"
    put(actor / "03-02-05-01-01-01-01.wav")  # song
    put(actor / "01-01-05-01-01-01-01.wav")  # from the video
    put(actor / "03-01-05-01-01-02-02.wav")  # someone else's folder
    put(actor / "03-01-09-01-01-01-01.wav")  # no such emotion
    put(actor / "noise.wav")
    put(actor / "03-01-05-01-02-01-01.flac")  # there as .wav already
    (actor / "._03-01-05-01-01-01-01.wav").write_bytes(b"\0\5\x16\7")  # a copy made on a Mac
    (actor / "notes.txt").write_text("not audio")
    corpus = load_corpus("ravdess", root)
    assert len(corpus.utterances) == 30
    assert {why for _, why in corpus.left_out} == {
        "song, not speech",
        "not audio-only",
        "the name and the folder disagree about the actor",
        "the name has an unknown code",
        "the name is not MM-CC-EE-II-SS-RR-AA",
        "the same utterance is there in another format",
    }
    assert all(item.path is not None and item.path.suffix == ".wav" for item in corpus.utterances)


def test_flac_will_do(tmp_path: Path):
    put(tmp_path / "Actor_03" / "03-01-04-01-01-01-03.flac", rate=16_000)
    put(tmp_path / "Actor_03" / "03-01-05-01-01-01-03.FLAC", rate=16_000)
    corpus = load_corpus("ravdess", tmp_path)
    assert [item.label for item in corpus.utterances] == ["sadness", "anger"]


def test_the_folder_that_the_archive_makes_is_found_and_nothing_counts_twice(root: Path):
    assert len(load_corpus("ravdess", root.parent).utterances) == 30
    nested = root / "audio_speech_actors_01-24" / "Actor_01" / "03-01-05-01-02-01-01.wav"
    put(nested)
    assert len(load_corpus("ravdess", root).utterances) == 30


def test_the_order_is_by_actor_whatever_the_disk_says(root: Path):
    ids = [item.id for item in load_corpus("ravdess", root).utterances]
    assert ids == sorted(ids, key=lambda key: (key[-2:], key))


def test_wrong_folders_are_named(root: Path, tmp_path: Path):
    with pytest.raises(DataError, match="no folder"):
        load_corpus("ravdess", tmp_path / "nowhere")
    with pytest.raises(DataError, match="takes the folder that holds Actor_01"):
        load_corpus("ravdess")
    (tmp_path / "else" / "things").mkdir(parents=True)
    with pytest.raises(DataError, match=r"no speech in .*; expected Actor_01/.* there is: things"):
        load_corpus("ravdess", tmp_path / "else")


def test_broken_files_stop_the_run_before_it_starts(root: Path):
    for emotion in ("03", "04"):
        (root / "Actor_01" / f"03-01-{emotion}-01-02-01-01.wav").write_bytes(b"RIFFxxxx")
    with pytest.raises(DataError) as caught:
        load_corpus("ravdess", root)
    first, *lines = str(caught.value).splitlines()
    assert first == "corpus ravdess: 2 problems"
    assert len(lines) == 2
    assert all("cannot read audio file" in line and "Actor_01/03-01-0" in line for line in lines)
    # Files of labels that nobody asked for are not looked at.
    assert len(load_corpus("ravdess", root, labels=["anger", "neutral"]).utterances) == 6


@pytest.mark.real
def test_the_real_corpus(real_root: Path):
    corpus = load_corpus("ravdess", real_root / "ravdess")
    assert len(corpus.utterances) == 336
    assert corpus.speakers == tuple(f"{i:02d}" for i in range(1, 13))
    counts = corpus.table()["label"].value_counts().to_dict()
    assert counts == {"anger": 96, "happiness": 96, "sadness": 96, "neutral": 48}
    assert corpus.table()["duration_seconds"].between(2.5, 6).all()
    wave = corpus.read(corpus.utterances[0])
    assert len(wave) == round(corpus.utterances[0].duration_seconds * 16_000)
