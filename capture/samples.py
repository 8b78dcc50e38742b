"""The samples of a run: every utterance with its length in frames, before audio is read."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import batched, groupby
from typing import TYPE_CHECKING

import numpy as np

from ..store import SampleRows
from .errors import DataError
from .pooling import count_rows, prefix_mask

if TYPE_CHECKING:
    from .corpora import Corpus, Utterance
    from .families import SpeechFamily

UNKNOWN = -1
"""Class of a sample without a known label."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One utterance as it is captured."""

    utterance: Utterance
    """What the corpus says of it."""
    class_: int
    """Index into the labels; `UNKNOWN` without one."""
    n_samples: int
    """Length at the family's sampling rate, in audio samples."""
    valid_frames: int
    """Frames of the window that hold audio."""


@dataclass(frozen=True, slots=True)
class SampleTable:
    """All samples of a run: in the order of the corpus, or the longest first (`make_table`)."""

    corpus: Corpus
    """Where they come from."""
    samples: tuple[Sample, ...]
    """The samples."""
    frames: int
    """Frames of the window; without padding, those of the longest sample."""
    padded: bool = True
    """Whether every sample has all frames of the window, as silence where it is shorter."""
    equal_lengths: int | None = None
    """Where only samples of one length may share a forward: the audio samples of the window, beyond
    which lengths are cut and so the same."""

    def __post_init__(self) -> None:
        if not self.samples:
            msg = f"corpus {self.corpus.name} has no utterance to capture."
            raise DataError(msg)

    def rows(self, stream: str, frames: str) -> list[SampleRows]:
        """Return the plan of a store: ids with their rows.

        Parameters
        ----------
        stream
            The row space.
        frames
            Which frames are kept; see `kept_positions`.
        """
        return [
            SampleRows(
                sample.utterance.id,
                {stream: count_rows(sample.valid_frames, self.frames, frames)}
                if frames != "none"
                else {},
            )
            for sample in self.samples
        ]

    def by_id(self) -> dict[str, Sample]:
        """Return the samples by id."""
        return {sample.utterance.id: sample for sample in self.samples}

    def batches(self, samples: Iterable[Sample], size: int) -> Iterator[list[Sample]]:
        """Yield the samples in order, in batches that may share a forward, of at most `size`."""
        limit = self.equal_lengths
        for batch in batched(samples, size):
            if limit is None:
                yield list(batch)
                continue
            for _, run in groupby(batch, key=lambda sample: min(sample.n_samples, limit)):
                yield list(run)

    def mask(self, samples: Sequence[Sample]) -> np.ndarray:
        """Return which frames of a batch hold audio, bool [sample, frame]."""
        counts = [sample.valid_frames for sample in samples]
        return prefix_mask(counts, self.frames if self.padded else max(counts))

    def waveform(self, sample: Sample, *, rate: int) -> np.ndarray:
        """Read one waveform; DataError if the file is not as long as its header says."""
        waveform = self.corpus.read(sample.utterance)
        # one frame of slack: a resampled length is rounded
        if abs(len(waveform) - sample.n_samples) > rate // 50:
            msg = (
                f"utterance {sample.utterance.id!r} holds {len(waveform) / rate:.2f} s of audio, "
                f"its header says {sample.n_samples / rate:.2f} s: the file is damaged."
            )
            raise DataError(msg)
        if self.padded or len(waveform) == sample.n_samples:
            return waveform
        # without padding the number of frames follows from the length: it has to be the planned one
        missing = max(0, sample.n_samples - len(waveform))
        return np.pad(waveform[: sample.n_samples], (0, missing))


def make_table(
    corpus: Corpus, family: SpeechFamily, frames: int, *, window_samples: int | None = None
) -> SampleTable:
    """Return the samples of `corpus` with their lengths in frames of `family`.

    Where audio is padded to a window they keep the order of the corpus. Else the longest come
    first: a batch then holds samples of about one length, and little of what is computed is
    padding; and a batch that does not fit into memory is the first one.

    Parameters
    ----------
    corpus
        The utterances.
    family
        The table of the model.
    frames
        Frames of its window.
    window_samples
        Audio samples of its window; None: audio is never cut.
    """
    classes = {label: i for i, label in enumerate(corpus.labels)}
    samples = []
    for utterance in corpus.utterances:
        length = round(utterance.duration_seconds * family.sampling_rate)
        valid = family.valid_frames(length, frames)
        if valid < 1:
            msg = f"utterance {utterance.id!r} is shorter than one frame of {family.name}."
            raise DataError(msg)
        samples.append(Sample(utterance, classes.get(utterance.label, UNKNOWN), length, valid))
    limit = sys.maxsize if window_samples is None else window_samples
    if not family.padded:
        frames = max((sample.valid_frames for sample in samples), default=frames)
        samples.sort(key=lambda sample: -min(sample.n_samples, limit))
    return SampleTable(
        corpus,
        tuple(samples),
        frames,
        padded=family.padded,
        equal_lengths=limit if family.equal_lengths else None,
    )


def too_long(samples: Sequence[Sample], window_samples: int) -> int:
    """Return how many samples are longer than the window, and so will be cut."""
    return sum(sample.n_samples > window_samples for sample in samples)


def corpus_digest(corpus: Corpus) -> dict[str, object]:
    """Return what identifies the audio of a corpus, wherever it lies (JSON).

    One read of every file: ids and labels in order, and the sha256 of the bytes of all files.
    """
    table, audio = hashlib.sha256(), hashlib.sha256()
    for utterance in corpus.utterances:
        table.update(f"{utterance.id}\0{utterance.label}\0{utterance.speaker}\n".encode())
        if utterance.path is not None:
            with utterance.path.open("rb") as file:
                audio.update(hashlib.file_digest(file, "sha256").digest())
    return {
        "corpus": corpus.name,
        "labels": list(corpus.labels),
        "samples": len(corpus.utterances),
        "table_sha256": table.hexdigest(),
        "audio_sha256": audio.hexdigest(),
    }
