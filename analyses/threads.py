"""Limits for the threads of BLAS, without looking for its libraries at every call."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import Any

from threadpoolctl import ThreadpoolController


def threadpool_limits(threads: int) -> AbstractContextManager[Any]:
    """Limit the threads of each BLAS call for as long as the context lasts.

    What threadpoolctl's own does; that looks through all loaded libraries first, which takes 5 ms.
    """
    return _find_libraries(len(sys.modules)).limit(limits=threads)


@lru_cache(maxsize=1)
def _find_libraries(_modules: int) -> ThreadpoolController:
    """Return the libraries that are loaded, once for so many modules: they come with modules."""
    return ThreadpoolController()
