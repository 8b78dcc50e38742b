"""Corpora of speech: from a folder or a list to one table of utterances.

A corpus is one file with one function ``(root, manifest) -> Corpus``, listed in `CORPORA`.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from ..config_models import LATER_CORPORA
from ..config_types import check_choice
from ..errors import DataError
from .audio import SAMPLE_RATE as SAMPLE_RATE
from .audio import raise_problems, read_duration
from .demo import load_demo
from .manifest import load_manifest
from .ravdess import load_ravdess
from .table import Corpus as Corpus
from .table import Utterance as Utterance
from .table import check_unique, select

CORPORA: dict[str, Callable[[Path | None, Path | None], Corpus]] = {
    "demo": load_demo,
    "manifest": load_manifest,
    "ravdess": load_ravdess,
}
"""Name of a corpus -> its loader."""


def load_corpus(
    name: str,
    root: str | os.PathLike[str] | None = None,
    *,
    manifest: str | os.PathLike[str] | None = None,
    labels: Sequence[str] | None = None,
    per_class: int | None = None,
    seed: int = 0,
) -> Corpus:
    """Load the table of utterances of a corpus; no audio is read but the headers of the files.

    Parameters
    ----------
    name
        ``demo``, ``manifest`` or ``ravdess``.
    root
        Folder of the corpus; for ``manifest``, where its relative paths start.
    manifest
        CSV file of the corpus ``manifest``.
    labels
        Labels to keep, in the order wanted; None: all, sorted.
    per_class
        Size of a balanced subset, in utterances per label; None: everything.
    seed
        Seed of the subset.

    Returns
    -------
    Corpus
        Utterances with their durations, and what was left out and why.

    Raises
    ------
    DataError
        A missing folder, an unknown label, or files that are missing, unreadable or empty.

    Examples
    --------
    >>> from lorascope.capture import load_corpus
    >>> corpus = load_corpus("demo", labels=["anger", "sadness"], per_class=8)
    >>> len(corpus.utterances), corpus.labels
    (16, ('anger', 'sadness'))
    """
    try:
        check_choice(name, tuple(CORPORA), what="corpus", later=LATER_CORPORA)
    except ValueError as error:
        raise DataError(str(error)) from None
    loaded = CORPORA[name](_path(root), _path(manifest))
    check_unique(name, loaded.utterances)
    return _measure(select(loaded, labels=labels, per_class=per_class, seed=seed))


def _path(value: str | os.PathLike[str] | None) -> Path | None:
    return None if value is None else Path(value).expanduser()


def _measure(corpus: Corpus) -> Corpus:
    """Read the durations, so that a missing or broken file stops the run before it starts."""
    problems: list[str] = []
    measured: list[Utterance] = []
    for utterance in corpus.utterances:
        if utterance.path is None:
            measured.append(utterance)
            continue
        try:
            seconds = read_duration(utterance.path)
        except DataError as error:
            problems.append(str(error))
        else:
            measured.append(replace(utterance, duration_seconds=seconds))
    raise_problems(f"corpus {corpus.name}", problems)
    return replace(corpus, utterances=tuple(measured))
