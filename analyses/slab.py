"""Memory that one slab after the other is read into.

A system hands out fresh memory page by page, at a cost like that of reading a page from the disk.
So a worker keeps the arrays of a slab for the next one, as long as nobody else holds a part.
"""

from __future__ import annotations

import math
import sys

import numpy as np
from numpy.typing import NDArray

from .fold import ArrayKey


class SlabMemory:
    """One piece of memory for each array of a slab; grows to what the largest slab needs.

    Parameters
    ----------
    limit_bytes
        Bytes of the largest slab. Arrays that are largest in different slabs do not stay at their
        largest together where that would take more.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._held: dict[ArrayKey, NDArray[np.uint8]] = {}
        self._idle: dict[ArrayKey, int] = {}
        """References to an array that nobody else holds."""

    def take(self, key: ArrayKey, shape: tuple[int, ...], dtype: np.dtype) -> NDArray:
        """Return an array with any content; it stays as it is while it, or a part, is held."""
        size = math.prod(shape) * dtype.itemsize
        if key not in self._held or self._held[key].size < size or self._in_use(key):
            self._held.pop(key, None)
            if sum(held.size for held in self._held.values()) + size > self._limit:
                self._held.clear()
            self._held[key] = np.empty(size, np.uint8)
            self._idle[key] = sys.getrefcount(self._held[key])
        return self._held[key][:size].view(dtype).reshape(shape)

    def _in_use(self, key: ArrayKey) -> bool:
        """Return whether a fold kept rows of the slab before: a view refers to what it is of."""
        return sys.getrefcount(self._held[key]) > self._idle[key]
