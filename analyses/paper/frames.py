"""What is said where padding of the window was not recorded."""

from __future__ import annotations

from collections.abc import Iterable

from ..masks import Frames


def note_padding(faults: str, frames: Iterable[Frames]) -> tuple[str, ...]:
    """Return one note for all sites whose padding was not recorded; none where it was."""
    masks = sorted({one.mask for one in frames if not one.has_padding})
    if not masks:
        return ()
    recorded = ", ".join(f"`frames: {mask}`" for mask in masks)
    return (f"{faults} need rows of `record.frames: all`; recorded are {recorded}.",)
