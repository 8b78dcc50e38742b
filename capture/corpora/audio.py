"""Audio files: their headers before anything is computed, their samples when needed."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError

if TYPE_CHECKING:
    from types import ModuleType

SAMPLE_RATE = 16_000
"""Samples per second of every waveform that a corpus gives."""

SHOWN_PROBLEMS = 10
"""Problems that one message lists before it only counts the rest."""


def read_duration(path: Path) -> float:
    """Read the length of an audio file from its header.

    Returns
    -------
    float
        Seconds, more than 0.

    Raises
    ------
    DataError
        The file is missing, not audio, or empty.
    """
    soundfile = _soundfile()
    if not path.is_file():
        msg = f"no audio file {str(path)!r}"
        raise DataError(msg)
    try:
        info = soundfile.info(str(path))
    except (soundfile.SoundFileError, OSError) as error:
        raise DataError(_unreadable(path, error)) from error
    if info.frames <= 0:
        msg = f"audio file {str(path)!r} is empty"
        raise DataError(msg)
    return info.frames / info.samplerate


def read_waveform(path: Path) -> NDArray[np.float32]:
    """Read an audio file as mono at 16 kHz.

    Channels are averaged; another sample rate is converted by a polyphase filter.

    Returns
    -------
    numpy.ndarray
        Waveform [time], within about -1 to 1.

    Raises
    ------
    DataError
        The file is missing, cannot be read to its end, is empty, or holds NaN or infinity.
    """
    soundfile = _soundfile()
    if not path.is_file():
        msg = f"no audio file {str(path)!r}"
        raise DataError(msg)
    try:
        channels, rate = soundfile.read(str(path), dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        raise DataError(_unreadable(path, error)) from error
    if channels.shape[0] == 0:
        msg = f"audio file {str(path)!r} is empty"
        raise DataError(msg)
    if not np.isfinite(channels).all():
        msg = f"audio file {str(path)!r} holds NaN or infinite samples"
        raise DataError(msg)
    waveform = channels[:, 0] if channels.shape[1] == 1 else channels.mean(axis=1)
    return np.ascontiguousarray(resample(waveform, rate), dtype=np.float32)


def resample(waveform: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
    """Convert a waveform [time] from `rate` samples per second to 16 kHz."""
    if rate == SAMPLE_RATE:
        return waveform
    from scipy.signal import resample_poly

    common = math.gcd(rate, SAMPLE_RATE)
    return resample_poly(waveform, SAMPLE_RATE // common, rate // common).astype(np.float32)


def raise_problems(what: str, problems: Sequence[str]) -> None:
    """Raise one error that lists the first problems and counts the rest; none: do nothing.

    Raises
    ------
    DataError
        When there are problems.
    """
    if not problems:
        return
    plural = "problem" if len(problems) == 1 else "problems"
    lines = [f"{what}: {len(problems)} {plural}", *problems[:SHOWN_PROBLEMS]]
    if len(problems) > SHOWN_PROBLEMS:
        lines.append(f"... and {len(problems) - SHOWN_PROBLEMS} more")
    raise DataError("\n".join(lines))


def _soundfile() -> "ModuleType":
    try:
        import soundfile
    except ImportError as error:
        msg = 'reading audio needs soundfile: pip install "lorascope[capture]"'
        raise DataError(msg) from error
    return soundfile


def _unreadable(path: Path, error: Exception) -> str:
    reason = str(error).replace(repr(str(path)), "").removeprefix("Error opening").strip(" :.")
    return f"cannot read audio file {str(path)!r}: {reason or type(error).__name__}"
