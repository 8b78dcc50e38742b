"""A capture, and the row columns that were added to its store, seen from a common sample axis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..store import Capture, SiteInfo, Store
from .errors import AnalysisInputError
from .fold import ArrayKey

GROUP = "speaker"
"""Group that is left out or resampled, when the store has it; else its first group."""


@dataclass(frozen=True, slots=True)
class AddedColumn:
    """A row column that was added to a store, seen from the common sample axis."""

    capture: str
    """The capture that holds it."""
    index_n: NDArray[np.int64]
    """Its own number of each sample of the axis, -1 where it has none."""
    rows_n: NDArray[np.int64]
    """Row count of each sample of the axis, 0 where it has none."""
    info: SiteInfo
    names: tuple[str, ...]
    """Names of the classes 0, 1, 2, …; empty for numbers."""


@dataclass(frozen=True, slots=True)
class View:
    """One capture, seen from the common sample axis."""

    name: str
    """As in the tables."""
    store: int
    """Number of its store."""
    own_name: str
    """As in its store."""
    index_n: NDArray[np.int64]
    """Its own number of each sample of the axis, -1 where it has none."""
    rows: Mapping[str, NDArray[np.int64]]
    """Row count of each sample of the axis in each stream, 0 where it has none."""
    sites: Mapping[str, SiteInfo]
    pooled: Mapping[str, SiteInfo]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Any]
    label_n: NDArray[np.object_]
    """Label of each sample of the axis, "" where unknown or absent."""
    group_n: NDArray[np.object_]
    """Speaker of each sample of the axis, "" where unknown or absent."""
    group_name: str
    """What `group_n` holds (`speaker`); empty when the store has no groups."""
    exposed_n: NDArray[np.bool_]
    """Whether each sample of the axis was in the training part of the capture."""
    added: Mapping[str, AddedColumn]
    """Row columns of its streams that were added to the store, by name; read as its sites are."""

    @property
    def samples(self) -> NDArray[np.int64]:
        """Places on the axis of the samples that the capture has."""
        return np.flatnonzero(self.index_n >= 0)

    @property
    def base(self) -> str:
        """Name of the capture that an intervention changed; empty for any other capture."""
        return base_of(self.attrs)

    def trained(self, part: str) -> bool:
        """Return whether `head` or `adapter` was trained; true where the capture does not say."""
        return part in self.attrs.get("trained", ("head", "adapter"))

    def info(self, key: ArrayKey) -> SiteInfo:
        """Return what the store says of an array."""
        if key.pool:
            return self.pooled[f"{key.site}.{key.pool}"]
        return self.sites[key.site] if key.site in self.sites else self.added[key.site].info


def base_of(attrs: Mapping[str, Any]) -> str:
    """Return the name of the capture that an intervention changed, from a capture's attributes.

    Empty for a capture that is no intervention's.
    """
    of = attrs.get("of")
    return of if isinstance(attrs.get("intervention"), Mapping) and isinstance(of, str) else ""


def added_columns(store: Store, axis: pd.Index) -> dict[str, AddedColumn]:
    """Return the row columns that were added to a store, by name."""
    added = {}
    for column in store.row_columns.values():
        capture = store.capture(column.capture)
        index_n = pd.Index(capture.samples["id"].to_numpy(dtype=object)).get_indexer(axis)
        counts = np.append(np.asarray(capture.row_counts(column.stream), np.int64), 0)
        added[column.name] = AddedColumn(
            column.capture,
            index_n.astype(np.int64),
            counts[index_n],  # the last is that of samples that it does not have
            capture.sites[column.name],
            column.names,
        )
    return added


def view_of(
    number: int,
    capture: Capture,
    name: str,
    axis: pd.Index,
    added: Mapping[str, AddedColumn],
) -> View:
    """Return a capture seen from the axis; `added` are the row columns of its store."""
    table = capture.samples
    own_ids = pd.Index(table["id"].to_numpy(dtype=object), dtype=object)
    if own_ids.has_duplicates:
        twice = own_ids[own_ids.duplicated()][0]
        msg = f"capture {name!r} holds sample {twice!r} twice; samples are matched by id."
        raise AnalysisInputError(msg)
    index_n = own_ids.get_indexer(axis).astype(np.int64)
    present = index_n >= 0

    def along(values: NDArray, absent: object) -> NDArray:
        out = np.full(axis.size, absent, dtype=values.dtype)
        out[present] = values[index_n[present]]
        return out

    sites = capture.sites
    streams = {info.stream for info in sites.values()}
    group = GROUP if GROUP in capture.groups else next(iter(capture.groups), "")
    groups = table[group].astype(str).to_numpy(dtype=object) if group else None
    return View(
        name=name,
        store=number,
        own_name=capture.name,
        index_n=index_n,
        rows={s: along(np.asarray(capture.row_counts(s), np.int64), 0) for s in sorted(streams)},
        sites=dict(sites),
        pooled=dict(capture.pooled),
        outputs=tuple(capture.outputs),
        attrs=dict(capture.attrs),
        label_n=along(table["label"].astype(str).to_numpy(dtype=object), ""),
        group_n=np.full(axis.size, "", dtype=object) if groups is None else along(groups, ""),
        group_name=group,
        exposed_n=along(table["exposed"].to_numpy(dtype=bool), absent=False),
        added={n: c for n, c in added.items() if c.info.stream in streams and n not in sites},
    )
