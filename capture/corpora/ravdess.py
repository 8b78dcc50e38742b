"""RAVDESS: ``Actor_NN/MM-CC-EE-II-SS-RR-AA.wav``, everything said by the file name.

Livingstone & Russo (2018), PLoS ONE 13(5): e0196391. Only audio-only speech is used.
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DataError
from .audio import read_waveform
from .table import Corpus, Utterance

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_NAME = re.compile(r"(\d\d)-(\d\d)-(\d\d)-(\d\d)-(\d\d)-(\d\d)-(\d\d)")
_FOLDER = re.compile(r"Actor_(\d\d)")
_SUFFIXES = (".wav", ".flac")
_EMOTIONS = {
    "01": ("neutral", "neutral"),
    "02": ("calm", "calm"),
    "03": ("happiness", "happy"),
    "04": ("sadness", "sad"),
    "05": ("anger", "angry"),
    "06": ("fear", "fearful"),
    "07": ("disgust", "disgust"),
    "08": ("surprise", "surprised"),
}
_INTENSITIES = {"01": "normal", "02": "strong"}
_STATEMENTS = {"01": "kids", "02": "dogs"}


def load_ravdess(root: Path | None, manifest: Path | None = None) -> Corpus:
    """List the speech of RAVDESS.

    Parameters
    ----------
    root
        Folder that holds ``Actor_01``, ``Actor_02``, ..., or whose sub-folders do.
    manifest
        Not used by this corpus.

    Returns
    -------
    Corpus
        Labels are canonical nouns; columns: sex, intensity, statement, repetition.

    Raises
    ------
    DataError
        No root, no such folder, or no utterance in it.
    """
    if root is None or manifest is not None:
        msg = "corpus ravdess takes the folder that holds Actor_01, Actor_02, ..., and no manifest"
        raise DataError(msg)
    if not root.is_dir():
        msg = f"corpus ravdess: no folder {str(root)!r}"
        raise DataError(msg)
    utterances: dict[str, Utterance] = {}
    left_out: Counter[tuple[str, str]] = Counter()
    for path in _audio_files(root):
        why = _reason_to_skip(path)
        if not why and path.stem in utterances:
            why = "the same utterance is there in another format"
        if why:
            left_out[path.name if "name" in why else f"{path.parent.name} files", why] += 1
        else:
            utterances[path.stem] = _utterance(path)
    if not utterances:
        there = ", ".join(sorted(p.name for p in root.iterdir())[:5]) or "nothing"
        msg = (
            f"corpus ravdess: no speech in {str(root)!r}; expected Actor_01/03-01-...-01.wav "
            f"(or .flac), there is: {there}"
        )
        raise DataError(msg)
    found = tuple(utterances[key] for key in sorted(utterances, key=lambda key: (key[-2:], key)))
    skipped = tuple((f"{n} x {what}", why) for (what, why), n in sorted(left_out.items()))
    labels = tuple(sorted({item.label for item in found}))
    return Corpus("ravdess", found, labels, skipped, _read)


def _audio_files(root: Path) -> Iterator[Path]:
    folders = [p for p in sorted(root.glob("Actor_*")) if p.is_dir()]
    # The archive unpacks into one folder more; copies exist that hold everything twice, so the
    # deeper level counts only where the upper one is empty.
    folders = folders or [p for p in sorted(root.glob("*/Actor_*")) if p.is_dir()]
    for folder in folders:
        for path in sorted(folder.iterdir(), key=lambda p: (p.stem, _rank(p))):
            if path.suffix.lower() in _SUFFIXES and not path.name.startswith("."):
                yield path


def _rank(path: Path) -> int:
    suffix = path.suffix.lower()
    return _SUFFIXES.index(suffix) if suffix in _SUFFIXES else len(_SUFFIXES)


def _reason_to_skip(path: Path) -> str:
    match = _NAME.fullmatch(path.stem)
    if not match:
        return "the name is not MM-CC-EE-II-SS-RR-AA"
    modality, channel, emotion, intensity, statement, _, actor = match.groups()
    folder = _FOLDER.fullmatch(path.parent.name)
    reasons = {
        "not audio-only": modality != "03",
        "song, not speech": channel != "01",
        "the name has an unknown code": emotion not in _EMOTIONS
        or intensity not in _INTENSITIES
        or statement not in _STATEMENTS,
        "the name and the folder disagree about the actor": not folder or folder[1] != actor,
    }
    return next((why for why, holds in reasons.items() if holds), "")


def _utterance(path: Path) -> Utterance:
    _, _, emotion, intensity, statement, repetition, actor = path.stem.split("-")
    label, raw_label = _EMOTIONS[emotion]
    columns = {
        "sex": "male" if int(actor) % 2 else "female",
        "intensity": _INTENSITIES[intensity],
        "statement": _STATEMENTS[statement],
        "repetition": str(int(repetition)),
    }
    return Utterance(path.stem, path, label, raw_label, actor, columns=columns)


def _read(utterance: Utterance) -> "NDArray[np.float32]":
    assert utterance.path is not None
    return read_waveform(utterance.path)
