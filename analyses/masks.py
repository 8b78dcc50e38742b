"""Which rows of a site hold audio and which are padding of the window."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .fold import ArrayKey, Piece
from .plan import mask_of
from .selection import Selection
from .source import View

COLUMN = "valid_frames"
"""Column of the table of samples: how many frames, from the first, hold audio."""
_DECODER = ("decoder.", "lora_a.decoder.", "lora_b.decoder.", "base_out.decoder.")
"""First parts of the names of sites whose rows are tokens."""


@dataclass(frozen=True, slots=True)
class Frames:
    """The rows of one capture's sites.

    Where `frames: all` was recorded the first `valid_n` rows of a sample hold audio and the others
    are padding; elsewhere every row holds audio.
    """

    site: str
    mask: str
    """What was recorded: `valid`, `all` or `every:K`."""
    valid_n: NDArray[np.int64] | None = field(default=None, compare=False, repr=False)
    """Rows of each sample of the axis that hold audio; None: all of them, or not known."""
    padded: bool = False
    """Whether a sample has rows after those that hold audio."""

    @property
    def has_padding(self) -> bool:
        """Whether padding was recorded as well."""
        return self.mask == "all"

    @property
    def masks(self) -> tuple[str, ...]:
        """Masks that the rows can be told apart by: `valid`, `pad`, `all`; else what was recorded.

        `pad` only where there is padding; the first is the one to look at.
        """
        if not self.has_padding or self.valid_n is None:
            return (self.mask,)
        return ("valid", "pad", "all") if self.padded else ("valid", "all")

    def lacking(self, *, padded: bool) -> str:
        """Return why all frames (`padded`), or those with audio alone, are not there."""
        if padded and not self.has_padding:
            return (
                f"the rows of {self.site} are those of `frames: {self.mask}`; padding is in "
                "`record.frames: all` alone"
            )
        if not padded and self.has_padding and self.valid_n is None:
            return f"which frames hold audio is not in the store (sample column {COLUMN})"
        return ""

    def mark(self, piece: Piece) -> NDArray[np.bool_]:
        """Return which rows of a piece hold audio, [rows]."""
        if not self.has_padding or self.valid_n is None:
            return np.ones(int(piece.offsets[-1]), dtype=bool)
        counts = np.diff(piece.offsets)
        place = np.arange(int(piece.offsets[-1])) - np.repeat(piece.offsets[:-1], counts)
        return place < np.repeat(self.valid_n[piece.samples], counts)


def pooled_frames(selection: Selection, key: ArrayKey) -> Frames | None:
    """Return which rows the mean behind a pooled array is of; None where the mean was recorded."""
    stored = selection.stored_key(key)
    if stored.pool:
        return None
    return frames_of(selection, selection.source.views[key.capture], key.site)


def frames_of(selection: Selection, view: View, site: str) -> Frames:
    """Return which frames the rows of a site are.

    The sample column counts frames of audio: rows of a decoder are tokens, and a stream with fewer
    rows than that is another one. Which of their rows hold audio is not known.
    """
    mask = mask_of(view, site)
    if mask != "all" or site.removeprefix("grad.").startswith(_DECODER):
        return Frames(site, mask)
    table = selection.source.capture(view.name).samples
    if COLUMN not in table:
        return Frames(site, mask)
    own = table[COLUMN].to_numpy(dtype=np.int64)
    present = view.index_n >= 0
    valid_n = np.zeros(view.index_n.size, dtype=np.int64)
    valid_n[present] = own[view.index_n[present]]
    info = view.sites.get(site)
    rows_n = valid_n if info is None else view.rows[info.stream]
    if (valid_n > rows_n).any():
        return Frames(site, mask)
    return Frames(site, mask, valid_n, bool((rows_n > valid_n).any()))
