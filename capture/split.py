"""The split by speaker: which utterances training may see, and the checks that it can."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .config_types import suggest
from .errors import DataError

if TYPE_CHECKING:
    from .config_models import SplitConfig
    from .corpora import Corpus


@dataclass(frozen=True, slots=True)
class Split:
    """Whole speakers on one side or the other."""

    by: str
    """What is never cut: ``speaker``."""
    test: tuple[str, ...]
    """Speakers that no training sees."""
    train_ids: frozenset[str]
    """Ids of the training part."""
    test_ids: frozenset[str]
    """Ids of the test part."""


def make_split(corpus: Corpus, spec: SplitConfig | None) -> Split:
    """Split a corpus by speaker.

    Parameters
    ----------
    corpus
        What is captured.
    spec
        Speakers held out by name, or the fold-th speaker in sorted order (from 1); None: nothing
        is trained, so every utterance is unseen.

    Raises
    ------
    DataError
        A speaker or fold that does not exist.
    """
    everything = frozenset(utterance.id for utterance in corpus.utterances)
    if spec is None:
        return Split("speaker", corpus.speakers, frozenset(), everything)
    test = spec.test if spec.test is not None else _fold(corpus.speakers, spec.fold or 1)
    unknown = [speaker for speaker in test if speaker not in corpus.speakers]
    if unknown:
        hint = suggest(unknown[0], corpus.speakers) or ""
        msg = (
            f"split.test: corpus {corpus.name} has no speaker {unknown[0]!r}{hint}\n"
            f"there are: {', '.join(corpus.speakers)}"
        )
        raise DataError(msg)
    held_out = frozenset(u.id for u in corpus.utterances if u.speaker in test)
    return Split(spec.by, tuple(test), everything - held_out, held_out)


def _fold(speakers: Sequence[str], fold: int) -> tuple[str, ...]:
    if fold > len(speakers):
        msg = f"split.fold is {fold}, but there are only {len(speakers)} speakers to leave out."
        raise DataError(msg)
    return (speakers[fold - 1],)


def check_training_part(corpus: Corpus, split: Split) -> None:
    """Refuse a training part that cannot train a classifier.

    Raises
    ------
    DataError
        It is empty, or a label does not occur in it.
    """
    held_out = f"the held-out speakers are {', '.join(split.test)}"
    if not split.train_ids:
        msg = f"the training part is empty: {held_out}, and there is no other. Hold out fewer."
        raise DataError(msg)
    there = {u.label for u in corpus.utterances if u.id in split.train_ids}
    lost = [label for label in corpus.labels if label not in there]
    if lost:
        msg = (
            f"label {lost[0]!r} does not occur in the training part ({held_out}). "
            "Hold out other speakers, or leave the label out of data.labels."
        )
        raise DataError(msg)
