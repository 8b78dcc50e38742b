"""A small speech-like synthesiser: pulses of a voice source, each ringing through four formants.

Every glottal pulse adds a sum of damped sinusoids (one a formant), placed between samples exactly;
noise stands for breath and consonants. The result is no language, but has what carries emotion in
speech: pitch and its contour, rate, loudness, spectral tilt, jitter and breathiness.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .audio import SAMPLE_RATE

type _Array = NDArray[np.float64]

_VOWELS = np.array(
    [
        [730, 1090, 2440, 3400],
        [530, 1840, 2480, 3500],
        [270, 2290, 3010, 3700],
        [570, 840, 2410, 3400],
        [300, 870, 2240, 3300],
    ],
    dtype=np.float64,
)
"""Formants [vowel, formant] of a grown man, in hertz: a e i o u."""
_BANDWIDTHS = np.array([60.0, 90.0, 140.0, 200.0])
_RING_SAMPLES = 320
_EDGE_SECONDS = 0.08
_MIN_SECONDS, _MAX_SECONDS = 1.0, 2.8


@dataclass(frozen=True, slots=True)
class Manner:
    """What an emotion does to a voice of average strength."""

    pitch: float
    """Shift of the pitch, in semitones."""
    span: float
    """Size of the accents on syllables, in semitones."""
    slope: float
    """Rise of the pitch from beginning to end, in semitones."""
    rate: float
    """Factor on the speaking rate."""
    loudness: float
    """Change of loudness, in decibels."""
    tilt: float
    """Change of the spectral slope, in decibels per octave; more is brighter."""
    noise: float
    """Breathiness, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Speaker:
    """What distinguishes one voice from another."""

    sex: str
    pitch_hertz: float
    """Pitch at rest."""
    tract: float
    """Factor on the formants: a shorter vocal tract has higher ones."""
    loudness: float
    """Usual loudness, in decibels about the mean speaker."""
    rate: float
    """Factor on the speaking rate."""
    tilt: float
    """Usual spectral slope, in decibels per octave about the mean speaker."""
    strength: float
    """How strongly emotions show: factor on a `Manner`."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One utterance, ready to be synthesised."""

    n_samples: int
    """Length at 16 kHz."""
    centres: _Array
    """Middle of each syllable's vowel [syllable], in seconds."""
    widths: _Array
    """Length of each syllable [syllable], in seconds."""
    vowels: NDArray[np.intp]
    """Vowel of each syllable [syllable]."""
    accents: _Array
    """Size of each syllable's accent [syllable], in semitones."""
    hissing: NDArray[np.bool_]
    """Syllables that begin with a hiss [syllable]."""
    speaker: Speaker
    pitch: float
    """Shift of the pitch, in semitones."""
    slope: float
    """Rise of the pitch over the utterance, in semitones."""
    loudness: float
    """Level, in decibels about -26 dB full scale."""
    tilt: float
    """Spectral slope, in decibels per octave."""
    noise: float
    """Breathiness, 0 to 1."""


def plan_utterance(
    speaker: Speaker, manner: Manner, sentence: int, rng: np.random.Generator
) -> Plan:
    """Decide everything about an utterance but its samples.

    Parameters
    ----------
    speaker, manner
        Who speaks, and how.
    sentence
        Number of the sentence: the same syllables for everyone.
    rng
        Draws what differs between two utterances of one speaker in one emotion; `synthesise`
        goes on with the same generator.
    """
    words = np.random.default_rng([77, sentence])
    count = int(words.integers(6, 9))
    vowels = words.integers(0, len(_VOWELS), count)
    hissing = words.random(count) < 0.4
    strength = speaker.strength * rng.uniform(0.5, 1.3)
    rate = speaker.rate * (1 + strength * (manner.rate - 1)) * rng.uniform(0.92, 1.08)
    widths = 0.21 / rate * rng.uniform(0.8, 1.2, count)
    widths[-1] *= 1.3
    total = float(np.clip(widths.sum() + 2 * _EDGE_SECONDS, _MIN_SECONDS, _MAX_SECONDS))
    widths *= (total - 2 * _EDGE_SECONDS) / widths.sum()
    ends = _EDGE_SECONDS + np.cumsum(widths)
    return Plan(
        n_samples=round(total * SAMPLE_RATE),
        centres=ends - 0.4 * widths,
        widths=widths,
        vowels=vowels,
        accents=(1.0 + strength * (manner.span - 1.0)) * rng.uniform(0.2, 1.4, count),
        hissing=hissing,
        speaker=speaker,
        pitch=strength * manner.pitch + rng.normal(0, 1.0),
        slope=strength * manner.slope + rng.normal(0, 1.5),
        loudness=speaker.loudness + strength * manner.loudness + rng.normal(0, 2.0),
        tilt=speaker.tilt + strength * manner.tilt + rng.normal(0, 1.0) - 7.0,
        noise=float(np.clip(strength * manner.noise + rng.uniform(0, 0.3), 0, 1)),
    )


def synthesise(plan: Plan, rng: np.random.Generator) -> NDArray[np.float32]:
    """Make the samples of an utterance.

    Returns
    -------
    numpy.ndarray
        Waveform [time], 16 kHz; the same plan and generator give the same samples.
    """
    clock = np.arange(plan.n_samples) / SAMPLE_RATE
    envelope = _envelope(plan, clock)
    voice = _without_rumble(_voice(plan, clock, envelope, rng))
    breath = np.diff(rng.standard_normal(plan.n_samples + 1)) * envelope
    level = np.sqrt(np.mean(voice**2)) + 1e-12
    voice = voice / level + 0.25 * plan.noise * breath + _hisses(plan, clock, rng)
    voice *= 10 ** ((plan.loudness - 26) / 20) / np.sqrt(np.mean(voice**2))
    room = 10 ** (-62 / 20) * rng.standard_normal(plan.n_samples)
    return np.clip(voice + room, -1, 1).astype(np.float32)


def _envelope(plan: Plan, clock: _Array) -> _Array:
    """Loudness over time [time], 0 to about 1: one bump a syllable."""
    distance = (clock[:, None] - plan.centres) / (0.36 * plan.widths)
    return np.exp(-0.5 * distance**4).sum(axis=1)


def _pitch(plan: Plan, clock: _Array) -> _Array:
    """Pitch over time [time], in hertz."""
    progress = clock / clock[-1] - 0.5
    bumps = np.exp(-0.5 * ((clock[:, None] - plan.centres) / (0.5 * plan.widths)) ** 2)
    semitones = plan.pitch + plan.slope * progress + bumps @ plan.accents
    return plan.speaker.pitch_hertz * 2 ** (semitones / 12)


def _voice(plan: Plan, clock: _Array, envelope: _Array, rng: np.random.Generator) -> _Array:
    """Voiced part [time]: each pulse rings through the formants of its moment."""
    cycles = np.cumsum(_pitch(plan, clock)) / SAMPLE_RATE
    times = np.interp(np.arange(1, int(cycles[-1])), cycles, clock)
    jitter = 0.006 + 0.012 * plan.noise
    times = times + jitter * rng.standard_normal(times.size) * np.gradient(times)
    loud = np.interp(times, clock, envelope) * (1 + 0.08 * rng.standard_normal(times.size))
    formants = np.stack(
        [np.interp(times, plan.centres, track) for track in _VOWELS[plan.vowels].T], axis=1
    )
    formants *= plan.speaker.tract
    gains = 10 ** (plan.tilt * np.log2(formants / 500) / 20) * loud[:, None]
    first = np.ceil(times * SAMPLE_RATE).astype(np.intp)
    # Damped sinusoids as powers of one complex number a formant: z^(n - offset).
    exponent = (-np.pi * _BANDWIDTHS + 2j * np.pi * formants) / SAMPLE_RATE
    start = np.exp(exponent * (first - times * SAMPLE_RATE)[:, None]) * gains
    rings = np.empty((times.size, _RING_SAMPLES))
    step = np.exp(exponent)
    for n in range(_RING_SAMPLES):
        rings[:, n] = start.imag.sum(axis=1)
        start *= step
    rings *= np.hanning(2 * _RING_SAMPLES)[_RING_SAMPLES:]
    places = first[:, None] + np.arange(_RING_SAMPLES)
    wave = np.bincount(places.ravel(), rings.ravel(), minlength=plan.n_samples)
    return wave[: plan.n_samples]


def _without_rumble(wave: _Array) -> _Array:
    """Remove what lies below any voice [time]: pulses all push to one side."""
    spectrum = np.fft.rfft(wave)
    spectrum[: round(60 * wave.size / SAMPLE_RATE)] = 0
    return np.fft.irfft(spectrum, wave.size)


def _hisses(plan: Plan, clock: _Array, rng: np.random.Generator) -> _Array:
    """Noise before the vowels that begin with a hiss [time], about the level of the voice."""
    onsets = (plan.centres - 0.55 * plan.widths)[plan.hissing]
    widths = 0.18 * plan.widths[plan.hissing]
    bumps = np.exp(-0.5 * ((clock[:, None] - onsets) / (0.5 * widths)) ** 2).sum(axis=1)
    return 0.35 * bumps * np.diff(rng.standard_normal(plan.n_samples + 1))
