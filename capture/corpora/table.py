"""The table of utterances that every corpus loader returns, and how it is narrowed down."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..config_types import suggest
from ..errors import DataError

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class Utterance:
    """One recording of one speaker."""

    id: str
    """Unique within the corpus; the same on every machine."""
    path: Path | None
    """Audio file; None where the corpus makes its audio itself."""
    label: str
    """Canonical label, a lower-case noun (``happiness``)."""
    raw_label: str
    """Label in the corpus's own words (``happy``)."""
    speaker: str
    """Who really speaks."""
    session: str = ""
    """Recording session; empty where the corpus has none."""
    duration_seconds: float = 0.0
    """Length of the audio, in seconds."""
    columns: dict[str, str] = field(default_factory=dict)
    """What else the corpus says about the utterance."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """Utterances of one corpus, in a fixed order."""

    name: str
    """Name in the configuration."""
    utterances: tuple[Utterance, ...]
    """All utterances that are used."""
    labels: tuple[str, ...]
    """Labels in use: in the order that was asked for, else sorted."""
    left_out: tuple[tuple[str, str], ...]
    """What is not used, and why."""
    reader: Callable[[Utterance], NDArray[np.float32]]
    """Gives the waveform of an utterance."""

    @property
    def speakers(self) -> tuple[str, ...]:
        """Speakers in use, sorted."""
        return tuple(sorted({utterance.speaker for utterance in self.utterances}))

    def read(self, utterance: Utterance) -> NDArray[np.float32]:
        """Read the audio of an utterance.

        Returns
        -------
        numpy.ndarray
            Waveform [time], mono, 16 kHz, within about -1 to 1.

        Raises
        ------
        DataError
            The file cannot be read, is empty, or holds NaN.
        """
        return self.reader(utterance)

    def table(self) -> "pd.DataFrame":
        """Return the utterances as a table, one row each, with the corpus's own columns."""
        import pandas as pd

        names = ("id", "path", "label", "raw_label", "speaker", "session", "duration_seconds")
        rows = [
            {**{name: getattr(item, name) for name in names}, **item.columns}
            for item in self.utterances
        ]
        return pd.DataFrame(rows)


def select(
    corpus: Corpus, *, labels: Sequence[str] | None, per_class: int | None, seed: int
) -> Corpus:
    """Keep some labels and, of each, a balanced subset.

    Parameters
    ----------
    corpus
        What there is.
    labels
        Labels to keep; None: all.
    per_class
        Utterances of each label to keep, spread evenly over its speakers; None: all.
    seed
        Seed of the subset. The subset of one label does not depend on the other labels.

    Raises
    ------
    DataError
        A label that the corpus lacks, or too few utterances of one.
    """
    counts = Counter(utterance.label for utterance in corpus.utterances)
    left_out = list(corpus.left_out)
    kept = corpus.utterances
    if labels is not None:
        _check_labels(corpus.name, labels, counts)
        kept = tuple(item for item in kept if item.label in labels)
        left_out += [
            (f"{counts[label]} utterances labelled {label}", "not among the labels asked for")
            for label in sorted(set(counts) - set(labels))
        ]
    order = tuple(labels) if labels is not None else tuple(sorted(counts))
    if per_class is not None:
        chosen = {name for label in order for name in _subset(kept, label, per_class, seed)}
        if len(chosen) < len(kept):
            why = f"beyond the {per_class} per class asked for"
            left_out.append((f"{len(kept) - len(chosen)} utterances", why))
        kept = tuple(item for item in kept if item.id in chosen)
    return replace(corpus, utterances=kept, labels=order, left_out=tuple(left_out))


def _check_labels(name: str, labels: Sequence[str], counts: Counter[str]) -> None:
    unknown = [label for label in labels if label not in counts]
    if unknown:
        there = ", ".join(f"{label} ({n})" for label, n in sorted(counts.items()))
        wanted = ", ".join(repr(label) for label in unknown)
        hint = suggest(unknown[0], counts)
        msg = f"corpus {name} has no label {wanted}{hint}\nthere are: {there}"
        raise DataError(msg)


def _subset(kept: Sequence[Utterance], label: str, per_class: int, seed: int) -> list[str]:
    there = sum(item.label == label for item in kept)
    if there < per_class:
        msg = (
            f"data.per_class asks for {per_class} utterances of each label, but {label!r} has "
            f"only {there}; ask for fewer, or leave the label out"
        )
        raise DataError(msg)
    return choose_evenly(kept, label, per_class, seed)


def choose_evenly(kept: Iterable[Utterance], label: str, count: int, seed: int) -> list[str]:
    """Choose ids of one label, at most `count`, taking turns between its speakers."""
    by_speaker: dict[str, list[str]] = defaultdict(list)
    for item in kept:
        if item.label == label:
            by_speaker[item.speaker].append(item.id)
    rng = np.random.default_rng([seed, *label.encode()])
    turns = [rng.permutation(by_speaker[speaker]).tolist() for speaker in sorted(by_speaker)]
    rng.shuffle(turns)
    most = max(map(len, turns), default=0)
    rounds = [ids[i] for i in range(most) for ids in turns if i < len(ids)]
    return rounds[:count]


def check_unique(name: str, utterances: Sequence[Utterance]) -> None:
    """Refuse two utterances with one id.

    Raises
    ------
    DataError
        Naming the first such id.
    """
    counts = Counter(utterance.id for utterance in utterances)
    twice = [key for key, n in counts.items() if n > 1]
    if twice:
        msg = f"corpus {name}: {len(twice)} ids occur more than once, the first is {twice[0]!r}"
        raise DataError(msg)
