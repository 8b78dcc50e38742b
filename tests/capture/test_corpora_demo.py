"""The demo corpus: the same everywhere, speech-like in its numbers, learnable but not trivial."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from numpy.typing import NDArray

from lorascope.capture import Corpus, DataError, load_corpus

DIGEST = """
import hashlib
from lorascope.capture import load_corpus
corpus = load_corpus("demo", per_class=3)
digest = hashlib.sha256()
for utterance in corpus.utterances:
    digest.update(utterance.id.encode())
    digest.update(corpus.read(utterance).tobytes())
print(digest.hexdigest())
"""


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return load_corpus("demo")


@pytest.fixture(scope="module")
def waves(corpus: Corpus) -> list[NDArray[np.float32]]:
    return [corpus.read(utterance) for utterance in corpus.utterances]


def test_eight_speakers_say_five_sentences_in_four_emotions(corpus: Corpus):
    assert len(corpus.utterances) == 8 * 4 * 5
    assert corpus.labels == ("anger", "happiness", "neutral", "sadness")
    assert corpus.speakers == tuple(f"{i:02d}" for i in range(1, 9))
    assert len({item.id for item in corpus.utterances}) == 160
    assert {item.columns["sex"] for item in corpus.utterances} == {"female", "male"}


def test_lengths_are_known_without_making_audio(corpus: Corpus, waves):
    seconds = [item.duration_seconds for item in corpus.utterances]
    assert 1.0 <= min(seconds) < max(seconds) <= 2.8
    assert [len(wave) for wave in waves] == [round(s * 16_000) for s in seconds]


def test_waveforms_are_sane(waves):
    for wave in waves:
        assert wave.dtype == np.float32
        assert np.isfinite(wave).all()
        assert np.abs(wave).max() <= 1.0
        assert abs(wave.mean()) < 0.001
        assert wave.std() > 0.003


def test_the_audio_is_the_same_in_every_process():
    def run() -> str:
        done = subprocess.run(
            [sys.executable, "-c", DIGEST], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    here = load_corpus("demo", per_class=3)
    digest = hashlib.sha256()
    for utterance in reversed(here.utterances):  # the order of reading must not matter
        here.read(utterance)
    for utterance in here.utterances:
        digest.update(utterance.id.encode())
        digest.update(here.read(utterance).tobytes())
    assert run() == digest.hexdigest()


def test_every_utterance_differs(waves):
    assert len({wave.tobytes() for wave in waves}) == len(waves)


def test_pitch_is_that_of_the_speaker(corpus: Corpus, waves):
    """The strongest period of neutral speech lies near the voice's pitch: low for men."""
    found: dict[str, list[float]] = {"male": [], "female": []}
    for utterance, wave in zip(corpus.utterances, waves, strict=True):
        if utterance.label == "neutral":
            spectrum = np.abs(np.fft.rfft(wave, 2 * len(wave))) ** 2
            correlation = np.fft.irfft(spectrum)
            lags = np.arange(16_000 // 350, 16_000 // 80)  # 80 to 350 Hz
            found[utterance.columns["sex"]].append(16_000 / lags[correlation[lags].argmax()])
    assert 90 < np.median(found["male"]) < 150
    assert 150 < np.median(found["female"]) < 260


def mel_filters(count: int = 40, size: int = 512) -> NDArray[np.float64]:
    """Triangles on the mel scale [filter, bin]."""
    mels = np.linspace(0, 2595 * np.log10(1 + 8000 / 700), count + 2)
    edges = 700 * (10 ** (mels / 2595) - 1)
    bins = np.fft.rfftfreq(size, 1 / 16_000)
    rising = (bins - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - bins) / np.diff(edges)[1:, None]
    return np.maximum(0, np.minimum(rising, falling))


def log_mel_statistics(wave: NDArray[np.float32]) -> NDArray[np.float64]:
    """Mean and deviation over time of 40 log-mel bands [80]."""
    frames = np.lib.stride_tricks.sliding_window_view(wave.astype(np.float64), 400)[::160]
    power = np.abs(np.fft.rfft(frames * np.hanning(400), 512)) ** 2
    bands = np.log(power @ mel_filters().T + 1e-6)
    return np.concatenate([bands.mean(0), bands.std(0)])


def uar_over_speakers(features, labels, speakers) -> float:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))
    predicted = cross_val_predict(model, features, labels, groups=speakers, cv=LeaveOneGroupOut())
    return float(balanced_accuracy_score(labels, predicted))


def test_emotions_can_be_learned_across_speakers_but_not_perfectly(corpus: Corpus, waves):
    features = np.array([log_mel_statistics(wave) for wave in waves])
    labels = np.array([item.label for item in corpus.utterances])
    speakers = np.array([item.speaker for item in corpus.utterances])
    # Measured .62; chance is .25, and 160 utterances have a standard error of .04.
    assert 0.50 < uar_over_speakers(features, labels, speakers) < 0.85
    rng = np.random.default_rng(0)
    shuffled = [uar_over_speakers(features, rng.permutation(labels), speakers) for _ in range(10)]
    # The mean of ten shuffles has a standard error of about .012.
    assert abs(np.mean(shuffled) - 0.25) < 0.06


def test_speaker_and_emotion_are_confounded(corpus: Corpus, waves):
    """Loudness tells emotions apart for one speaker, less so over all of them."""
    loud = np.array([20 * np.log10(wave.std()) for wave in waves])
    labels = np.array([item.label for item in corpus.utterances])
    speakers = np.array([item.speaker for item in corpus.utterances])
    means = {s: loud[speakers == s].mean() for s in corpus.speakers}
    centred = loud - np.array([means[s] for s in speakers])
    gap = centred[labels == "anger"].mean() - centred[labels == "sadness"].mean()
    assert gap > 4  # decibels
    assert np.std(list(means.values())) > 2


def test_the_demo_corpus_takes_no_folder():
    with pytest.raises(DataError, match="takes no root"):
        load_corpus("demo", "/data")
