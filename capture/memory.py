"""How many samples fit into a device at once: found out by halving when they do not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from .errors import DeviceMemoryError

if TYPE_CHECKING:
    from .reporting import Reporter

_SAID = ("can't allocate memory", "CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""What errors of torch say that are no `OutOfMemoryError`, though memory is what they lack."""


class BatchSizer:
    """Acts on batches, smaller ones once a batch did not fit.

    Parameters
    ----------
    size
        Samples of a batch, as long as they fit.
    reporter
        Hears when they do not.
    """

    def __init__(self, size: int, reporter: Reporter) -> None:
        self.size = size
        self._reporter = reporter

    def attempt[S, T](self, samples: Sequence[S], act: Callable[[Sequence[S]], T]) -> tuple[int, T]:
        """Act on as many of the first samples as fit; return how many, and what that gave.

        What `act` does must not last where it fails: it is called again with half of the samples.

        Raises
        ------
        DeviceMemoryError
            One sample alone does not fit.
        """
        while True:
            part = samples[: self.size]
            given, said = _try(act, part)
            if given is not None:
                return len(part), given[0]
            if len(part) == 1:
                msg = (
                    f"the device has too little memory for a single sample: {said}. What was "
                    "committed is safe; use a larger device, a shorter model.window_seconds, "
                    "fewer layers with gradients, or --device cpu."
                )
                raise DeviceMemoryError(msg)
            self.size = len(part) // 2
            self._reporter.note(
                f"the device has too little memory for {len(part)} samples at once; going on with "
                f"{self.size} (the column batch_size says it of each sample)."
            )

    def act[S](self, samples: Sequence[S], act: Callable[[Sequence[S]], object]) -> None:
        """Act on all samples, in order."""
        done = 0
        while done < len(samples):
            done += self.attempt(samples[done:], act)[0]


def _try[S, T](
    act: Callable[[Sequence[S]], T], samples: Sequence[S]
) -> tuple[tuple[T] | None, str]:
    """Return what `act` gave, or None and what the device said that has too little memory."""
    try:
        return (act(samples),), ""
    except RuntimeError as error:
        said = " ".join(str(error).split())
        known = any(words in said for words in _SAID)
        if not isinstance(error, torch.OutOfMemoryError) and not known:
            raise
    # only now: as long as the error is handled, its traceback holds the tensors of the batch
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None, said[:200]
