"""What every corpus shares: choosing labels and subsets, reading audio, and clear refusals."""

import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from lorascope.capture import DataError, load_corpus
from lorascope.capture.corpora.audio import read_duration, read_waveform, resample


def tone(seconds: float, rate: int, hertz: float = 440.0) -> NDArray[np.float64]:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def test_an_unknown_corpus_is_named_with_what_there_is():
    with pytest.raises(DataError, match=r"unknown corpus 'ravdes'; did you mean 'ravdess'\?"):
        load_corpus("ravdes")
    with pytest.raises(DataError, match="corpus 'iemocap' is not in this version, which offers"):
        load_corpus("iemocap", "/data")


def test_labels_choose_and_order():
    corpus = load_corpus("demo", labels=["sadness", "anger"])
    assert corpus.labels == ("sadness", "anger")
    assert {item.label for item in corpus.utterances} == {"sadness", "anger"}
    assert corpus.left_out == (
        ("40 utterances labelled happiness", "not among the labels asked for"),
        ("40 utterances labelled neutral", "not among the labels asked for"),
    )


def test_an_unknown_label_lists_what_is_there():
    with pytest.raises(DataError) as caught:
        load_corpus("demo", labels=["angr", "sadness"])
    assert str(caught.value) == (
        "corpus demo has no label 'angr'; did you mean 'anger'?\n"
        "there are: anger (40), happiness (40), neutral (40), sadness (40)"
    )


def test_a_subset_is_balanced_over_labels_and_speakers():
    corpus = load_corpus("demo", per_class=16, seed=1)
    pairs = [(item.label, item.speaker) for item in corpus.utterances]
    assert len(pairs) == 64
    # 16 utterances taken in turns from 8 speakers are 2 of each.
    assert {pairs.count(pair) for pair in pairs} == {2}
    assert corpus.left_out == (("96 utterances", "beyond the 16 per class asked for"),)


def test_a_subset_is_seeded_and_keeps_the_order_of_the_corpus():
    def ids(**options) -> list[str]:
        return [item.id for item in load_corpus("demo", **options).utterances]

    everything = ids()
    chosen = ids(per_class=5, seed=3)
    assert chosen == ids(per_class=5, seed=3)
    assert chosen != ids(per_class=5, seed=4)
    assert chosen == [name for name in everything if name in chosen]
    # The subset of one label does not depend on which others are asked for.
    angry = [name for name in chosen if "anger" in name]
    assert ids(labels=["anger", "neutral"], per_class=5, seed=3)[: len(angry)] != []
    both = ids(labels=["anger", "neutral"], per_class=5, seed=3)
    assert [name for name in both if "anger" in name] == angry


def test_a_subset_larger_than_the_corpus_is_refused():
    with pytest.raises(DataError, match=r"asks for 41 utterances .* 'anger' has only 40"):
        load_corpus("demo", per_class=41)


def test_the_table_has_one_row_an_utterance():
    table = load_corpus("demo", per_class=1).table()
    assert len(table) == 4
    assert {"id", "label", "raw_label", "speaker", "duration_seconds", "sex"} <= set(table.columns)


@pytest.mark.parametrize(("suffix", "subtype"), [("wav", "PCM_16"), ("flac", "PCM_24")])
def test_audio_at_16_khz_is_read_as_it_is(tmp_path: Path, suffix: str, subtype: str):
    path = tmp_path / f"a.{suffix}"
    wave = tone(0.5, 16_000)
    soundfile.write(path, wave, 16_000, subtype=subtype)
    read = read_waveform(path)
    assert read.dtype == np.float32
    assert read.shape == (8_000,)
    assert read_duration(path) == 0.5
    # 16 bits round to 2**-16 of full scale at most.
    np.testing.assert_allclose(read, wave, atol=2**-15)


def test_channels_are_averaged(tmp_path: Path):
    left, right = tone(0.2, 16_000, 300), tone(0.2, 16_000, 500)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], 1), 16_000, subtype="FLOAT")
    read = read_waveform(tmp_path / "a.wav")
    np.testing.assert_allclose(read, (left + right) / 2, atol=1e-6)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_other_rates_are_converted(tmp_path: Path, rate: int):
    soundfile.write(tmp_path / "a.wav", tone(1.0, rate), rate, subtype="FLOAT")
    read = read_waveform(tmp_path / "a.wav")
    assert abs(len(read) - 16_000) <= 1
    assert read_duration(tmp_path / "a.wav") == pytest.approx(1.0)
    # Away from the edges the filter keeps a tone far below both Nyquist rates; its pass-band ripple
    # is below 1 %.
    inner = slice(1_000, 15_000)
    np.testing.assert_allclose(read[inner], tone(1.0, 16_000)[inner], atol=5e-3)


def test_converting_removes_what_16_khz_cannot_hold():
    high = tone(1.0, 48_000, 12_000).astype(np.float32)
    # 12 kHz would fold to 4 kHz; the default filter holds it 40 dB down.
    assert np.abs(resample(high, 48_000)[500:-500]).max() < 0.005


def broken_files(folder: Path) -> dict[str, str]:
    """Audio files that cannot be used, and what is said about each."""
    nan = tone(0.1, 16_000)
    nan[5] = math.nan
    soundfile.write(folder / "nan.wav", nan, 16_000, subtype="FLOAT")
    soundfile.write(folder / "empty.wav", np.zeros(0), 16_000)
    (folder / "text.wav").write_text("this is no audio")
    (folder / "zero.wav").write_bytes(b"")
    return {
        "nan.wav": "holds NaN or infinite samples",
        "empty.wav": "is empty",
        "text.wav": "cannot read audio file",
        "zero.wav": "cannot read audio file",
        "missing.wav": "no audio file",
    }


def test_files_that_cannot_be_used_are_named(tmp_path: Path):
    for name, expected in broken_files(tmp_path).items():
        with pytest.raises(DataError, match=expected) as caught:
            read_waveform(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_headers_tell_before_anything_is_computed(tmp_path: Path):
    for name in set(broken_files(tmp_path)) - {"nan.wav"}:  # only the samples tell about NaN
        with pytest.raises(DataError, match=name):
            read_duration(tmp_path / name)
