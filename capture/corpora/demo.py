"""The demo corpus: speech-like utterances made on the spot, for trying everything without data.

Eight speakers say five sentences in four emotions. Pitch, rate, loudness and voice quality carry
the emotion, and they differ as much between speakers, who also act more or less strongly: the
labels can be learned, but not from one speaker for another without error.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .audio import SAMPLE_RATE
from .demo_voice import Manner, Speaker, plan_utterance, synthesise
from .table import Corpus, Utterance

_SEED = 20_250
_N_SENTENCES = 5
_RAW_LABELS = {"anger": "angry", "happiness": "happy", "neutral": "neutral", "sadness": "sad"}

_MANNERS: Mapping[str, Manner] = {
    "anger": Manner(pitch=3.0, span=3.5, slope=-3.0, rate=1.15, loudness=6.0, tilt=3.5, noise=0.0),
    "happiness": Manner(
        pitch=4.0, span=4.5, slope=3.0, rate=1.08, loudness=3.0, tilt=1.0, noise=0.2
    ),
    "neutral": Manner(pitch=0.0, span=1.5, slope=-1.0, rate=1.0, loudness=0.0, tilt=0.0, noise=0.2),
    "sadness": Manner(
        pitch=-1.0, span=0.8, slope=-2.0, rate=0.8, loudness=-4.0, tilt=-3.0, noise=0.8
    ),
}


def load_demo(root: Path | None = None, manifest: Path | None = None) -> Corpus:
    """List the demo corpus: 8 speakers, 4 emotions, 5 sentences; audio is made when it is read.

    Raises
    ------
    DataError
        A root or a manifest was given: this corpus has neither.
    """
    if root is not None or manifest is not None:
        msg = "corpus demo is synthesised: it takes no root and no manifest"
        raise DataError(msg)
    utterances = tuple(
        _utterance(speaker, label, sentence)
        for speaker in sorted(_SPEAKERS)
        for label in _MANNERS
        for sentence in range(1, _N_SENTENCES + 1)
    )
    return Corpus("demo", utterances, tuple(_MANNERS), (), _read)


def _make_speakers() -> dict[str, Speaker]:
    """Spread eight voices so widely that one speaker's anger can sound like another's neutral."""
    rng = np.random.default_rng([_SEED, 1])
    count = 8
    strength = rng.permutation(np.linspace(0.35, 1.25, count))
    loudness = rng.permutation(np.linspace(-4.0, 4.0, count))
    rate = rng.permutation(np.linspace(0.85, 1.15, count))
    tilt = rng.permutation(np.linspace(-3.0, 3.0, count))
    speakers: dict[str, Speaker] = {}
    for i in range(count):
        male = i % 2 == 0
        speakers[f"{i + 1:02d}"] = Speaker(
            sex="male" if male else "female",
            pitch_hertz=float((115 if male else 195) * 2 ** rng.uniform(-0.22, 0.22)),
            tract=float((1.0 if male else 1.15) * rng.uniform(0.95, 1.05)),
            loudness=float(loudness[i]),
            rate=float(rate[i]),
            tilt=float(tilt[i]),
            strength=float(strength[i]),
        )
    return speakers


_SPEAKERS = _make_speakers()


def _rng(speaker: str, label: str, sentence: int) -> np.random.Generator:
    return np.random.default_rng([_SEED, int(speaker), list(_MANNERS).index(label), sentence])


def _utterance(speaker: str, label: str, sentence: int) -> Utterance:
    voice = _SPEAKERS[speaker]
    rng = _rng(speaker, label, sentence)
    plan = plan_utterance(voice, _MANNERS[label], sentence, rng)
    return Utterance(
        id=f"demo-{speaker}-{label}-{sentence}",
        path=None,
        label=label,
        raw_label=_RAW_LABELS[label],
        speaker=speaker,
        duration_seconds=plan.n_samples / SAMPLE_RATE,
        columns={"sex": voice.sex, "sentence": str(sentence)},
    )


def _read(utterance: Utterance) -> NDArray[np.float32]:
    sentence = int(utterance.columns["sentence"])
    rng = _rng(utterance.speaker, utterance.label, sentence)
    voice = _SPEAKERS[utterance.speaker]
    plan = plan_utterance(voice, _MANNERS[utterance.label], sentence, rng)
    return synthesise(plan, rng)
