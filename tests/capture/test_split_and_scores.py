"""The split by speaker never leaks, and scores are what they are called."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix

from lorascope.capture import DataError, load_corpus
from lorascope.capture.config_models import SplitConfig
from lorascope.capture.families import WHISPER
from lorascope.capture.metrics import score
from lorascope.capture.samples import corpus_digest, make_table, too_long
from lorascope.capture.split import check_training_part, make_split


@pytest.fixture(scope="module")
def corpus():
    return load_corpus("demo")


@given(st.sets(st.sampled_from([f"{i:02d}" for i in range(1, 9)]), min_size=1))
def test_no_speaker_is_on_both_sides(test):
    corpus = load_corpus("demo")
    split = make_split(corpus, SplitConfig(test=tuple(sorted(test))))
    speaker = {u.id: u.speaker for u in corpus.utterances}
    assert {speaker[i] for i in split.test_ids} == test
    assert {speaker[i] for i in split.train_ids}.isdisjoint(test)
    assert len(split.train_ids) + len(split.test_ids) == len(corpus.utterances)


def test_folds_leave_each_speaker_out_once(corpus):
    left = [make_split(corpus, SplitConfig(fold=k)).test for k in range(1, 9)]
    assert [speaker for (speaker,) in left] == list(corpus.speakers)


def test_without_a_split_nothing_is_seen_by_training(corpus):
    split = make_split(corpus, None)
    assert not split.train_ids
    assert len(split.test_ids) == len(corpus.utterances)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"test": ("09",)}, r"no speaker '09'.*\n?there are: 01, 02"),
        ({"fold": 9}, "split.fold is 9, but there are only 8 speakers"),
    ],
)
def test_unknown_speakers_are_told(corpus, split, message):
    with pytest.raises(DataError, match=message):
        make_split(corpus, SplitConfig(**split))


def test_a_training_part_that_cannot_train_is_refused(corpus):
    everyone = make_split(corpus, SplitConfig(test=corpus.speakers))
    with pytest.raises(DataError, match="training part is empty"):
        check_training_part(corpus, everyone)
    from dataclasses import replace

    some = [u for u in corpus.utterances if u.label != "anger" or u.speaker == "01"]
    poor = replace(corpus, utterances=tuple(some))
    with pytest.raises(DataError, match="label 'anger' does not occur in the training part"):
        check_training_part(poor, make_split(poor, SplitConfig(test=("01",))))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
def test_scores_against_scikit_learn(pairs):
    true, predicted = np.array(pairs).T
    scores = score(np.eye(4)[predicted], true)
    recalls = [np.mean(predicted[true == class_] == class_) for class_ in np.unique(true)]
    assert scores.uar == pytest.approx(np.mean(recalls), abs=1e-12)
    assert scores.war == pytest.approx(accuracy_score(true, predicted), abs=1e-12)
    expected = confusion_matrix(true, predicted, labels=range(4))
    np.testing.assert_array_equal(scores.confusion, expected)


def test_no_samples_give_nan():
    scores = score(np.zeros((0, 4)), np.zeros(0, int))
    assert scores.n == 0
    assert np.isnan([scores.uar, scores.war]).all()


def test_lengths_of_the_table(corpus):
    table = make_table(corpus, WHISPER, 50)
    for sample in table.samples[:3]:
        wave = table.waveform(sample, rate=16_000)
        assert len(wave) == sample.n_samples
        assert sample.valid_frames == min(50, -(-len(wave) // 320))
    assert too_long(table.samples, 16_000) == sum(s.n_samples > 16_000 for s in table.samples)
    plan = table.rows("encoder", "every:3")
    assert plan[0].rows == {"encoder": -(-table.samples[0].valid_frames // 3)}
    assert table.rows("encoder", "none")[0].rows == {}


def test_a_file_shorter_than_its_header_is_told(corpus):
    from dataclasses import replace

    cut = replace(corpus, reader=lambda u: corpus.reader(u)[:8000])
    table = make_table(cut, WHISPER, 50)
    with pytest.raises(DataError, match=r"holds 0.50 s of audio, its header says"):
        table.waveform(table.samples[0], rate=16_000)


def test_an_empty_corpus_is_told(corpus):
    from dataclasses import replace

    with pytest.raises(DataError, match="no utterance"):
        make_table(replace(corpus, utterances=()), WHISPER, 50)


def test_the_digest_of_a_corpus_sees_bytes_and_not_places(tmp_path):
    import soundfile

    def build(name, gain):
        folder = tmp_path / name
        folder.mkdir()
        rng = np.random.default_rng(0)
        lines = ["path,label,speaker"]
        for i in range(4):
            wave = gain * rng.normal(0, 0.1, 8000)
            soundfile.write(folder / f"{i}.wav", wave, 16_000)
            lines.append(f"{i}.wav,{'anger' if i % 2 else 'sadness'},s{i}")
        (folder / "list.csv").write_text("\n".join(lines) + "\n")
        return corpus_digest(load_corpus("manifest", folder, manifest=folder / "list.csv"))

    assert build("here", 1.0) == build("there", 1.0)
    assert build("louder", 1.5)["audio_sha256"] != build("again", 1.0)["audio_sha256"]
