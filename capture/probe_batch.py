"""The fixed samples that a running training is looked at with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from ..store import NewSample, Site
from .errors import ConfigError, DataError


@dataclass(frozen=True, slots=True)
class ProbeBatch:
    """Samples that go through the model together; one entry a sample everywhere."""

    ids: Sequence[str]
    """Ids, unique over all batches."""
    inputs: Mapping[str, Any]
    """Arguments of the model's forward by name; tensors are moved to the model's device."""
    labels: Sequence[str] | None = None
    """Labels by name; None: unknown."""
    mask: np.ndarray | torch.Tensor | None = None
    """Whether each frame or token counts, bool [sample, frame]; None: all do."""
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Group name (speaker) to groups: what must not be split between training and test."""
    exposed: Sequence[bool] | None = None
    """Whether the training sees the sample; None: it does not."""

    def __post_init__(self) -> None:
        parts = {"labels": self.labels, "mask": self.mask, "exposed": self.exposed, **self.groups}
        for name, part in parts.items():
            if part is not None and len(part) != len(self.ids):
                msg = f"a ProbeBatch names {len(self.ids)} ids, but {len(part)} {name}."
                raise DataError(msg)

    def inputs_on(self, device: torch.device) -> dict[str, Any]:
        """Return the inputs with their tensors on `device`."""
        return {
            name: value.to(device) if isinstance(value, torch.Tensor) else value
            for name, value in self.inputs.items()
        }


type ProbeBatches = Iterable[ProbeBatch] | Callable[[], Iterable[ProbeBatch]]
"""Batches, or what gives them anew each time."""


def keep_batches(batches: ProbeBatches) -> Callable[[], Iterable[ProbeBatch]]:
    """Return what gives the same batches each time; an iterator is read once and kept."""
    if callable(batches):
        return batches
    kept = tuple(batches) if isinstance(batches, Iterator) else batches
    return lambda: kept


class OnlyNew:
    """A writer that leaves out the samples which the store holds already.

    Segments end where they are full, so a writer that died may have committed a part of a batch.

    Parameters
    ----------
    writer
        The writer of a store.
    sites
        What it writes.
    """

    def __init__(self, writer: Any, sites: Sequence[Site]) -> None:  # noqa: ANN401
        self._writer, self._sites = writer, {site.name: site for site in sites}
        self._there: set[str] = writer.committed

    def append_batch(self, samples: Sequence[NewSample], values: Mapping[str, np.ndarray]) -> None:
        """Append those samples of a batch that are not there."""
        new = np.array([sample.id not in self._there for sample in samples], dtype=bool)
        kept = [sample for sample, wanted in zip(samples, new, strict=True) if wanted]
        if len(kept) < len(samples):
            values = {n: self._part(self._sites[n], samples, new, v) for n, v in values.items()}
        self._writer.append_batch(kept, values)

    @staticmethod
    def _part(
        site: Site, samples: Sequence[NewSample], new: np.ndarray, values: np.ndarray
    ) -> np.ndarray:
        rows = new
        if site.kind == "row":
            rows = np.repeat(new, [sample.n_rows.get(site.stream, 0) for sample in samples])
        return np.compress(rows, values, axis=-2)


def at_step(batch: ProbeBatch, step: int) -> ProbeBatch:
    """Return the batch as it stands at a step: before the first update nothing was exposed."""
    return replace(batch, exposed=None) if step == 0 else batch


def check_ids(ids: Sequence[str]) -> None:
    """Refuse batches without samples, or with one twice.

    Raises
    ------
    ConfigError, DataError
        Naming it.
    """
    if not ids:
        msg = "the probe batches are empty: give at least one ProbeBatch with at least one id."
        raise ConfigError(msg)
    twice = next((name for i, name in enumerate(ids) if name in set(ids[:i])), None)
    if twice is not None:
        msg = f"sample {twice!r} is in the probe batches twice; ids are unique."
        raise DataError(msg)
