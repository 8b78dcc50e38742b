"""Moments of a training as a configuration writes them: ``0``, ``every:50``, ``epochs``, ``final``.

Light, because a configuration is checked before anything heavy is loaded.
"""

from __future__ import annotations

import re

from .config_types import describe

FINAL = "final"
EPOCHS = "epochs"
_EVERY = re.compile(r"every:([1-9]\d*)")


def check_moments(value: object) -> tuple[int | str, ...]:
    """Return the moments of a list, unchanged; raise ValueError that says which one is none.

    Parameters
    ----------
    value
        A list of numbers of steps (0: before the first update), ``every:N`` (steps N, 2 N, ...),
        ``epochs`` (the end of every epoch) and ``final`` (after the last update).
    """
    if not isinstance(value, list | tuple):
        msg = f"expected a list such as [0, every:50, final], got {describe(value)}"
        raise ValueError(msg)  # noqa: TRY004  (pydantic reports ValueError only)
    for i, moment in enumerate(value):
        if not _is_moment(moment):
            msg = (
                f"{describe(moment)} is no moment of a training: give the number of a step (0 or "
                "more), every:N, epochs or final"
            )
            raise ValueError(msg)
        if moment in value[:i]:
            msg = f"{moment!r} is listed twice"
            raise ValueError(msg)
    return tuple(value)


def _is_moment(value: object) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return value >= 0
    return isinstance(value, str) and (
        value in (FINAL, EPOCHS) or _EVERY.fullmatch(value) is not None
    )


def spacing(moment: int | str) -> int | None:
    """Return N of ``every:N``; None of any other moment."""
    match = _EVERY.fullmatch(moment) if isinstance(moment, str) else None
    return int(match[1]) if match else None
