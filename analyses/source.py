"""Captures of one or two stores on one sample axis: who has which sample, and reading a run.

Samples are matched by id. A capture that holds them in another order, or only some of them, is read
in runs of its own consecutive samples, so every fold sees the same samples in the same places.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..store import Capture, SiteInfo, Store, open_store
from .errors import AnalysisInputError
from .fold import ArrayKey, Block, Piece

AGAINST = "against:"
"""Prefix of the captures of the other store."""
GROUP = "speaker"
"""Group that is left out or resampled, when the store has it; else its first group."""


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
        return self.pooled[f"{key.site}.{key.pool}"] if key.pool else self.sites[key.site]


def base_of(attrs: Mapping[str, Any]) -> str:
    """Return the name of the capture that an intervention changed, from a capture's attributes.

    Empty for a capture that is no intervention's.
    """
    of = attrs.get("of")
    return of if isinstance(attrs.get("intervention"), Mapping) and isinstance(of, str) else ""


def interventions_of(store: Store) -> dict[str, str]:
    """Return the captures of interventions, each with the name of the capture that it changed."""
    bases = {name: base_of(store.capture(name).attrs) for name in store.captures}
    return {name: base for name, base in bases.items() if base}


@dataclass(slots=True)
class Source:
    """Everything that an analysis may read."""

    paths: tuple[str, ...]
    """The store, and the other one where there is one."""
    ids: NDArray[np.object_]
    """Sample ids along the axis."""
    views: dict[str, View]
    _captures: dict[str, Capture] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, store: Store, captures: Sequence[str], against: Store | None = None) -> Source:
        """Return the captures of `store`, and all of `against`, on one axis."""
        wanted = [(0, store.capture(name), name) for name in captures]
        if against is not None:
            names = against.captures
            wanted += [(1, against.capture(name), f"{AGAINST}{name}") for name in names]
        ids = list(dict.fromkeys(i for _, capture, _ in wanted for i in capture.samples["id"]))
        axis = pd.Index(ids, dtype=object)
        views = {name: _view(number, capture, name, axis) for number, capture, name in wanted}
        paths = tuple(str(s.path) for s in (store, against) if s is not None)
        held = {name: capture for _, capture, name in wanted}
        return cls(paths, np.asarray(ids, dtype=object), views, held)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the open stores out: another process opens its own."""
        return {"paths": self.paths, "ids": self.ids, "views": self.views}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.paths, self.ids, self.views = state["paths"], state["ids"], state["views"]
        self._captures = {}

    def capture(self, name: str) -> Capture:
        """Return the stored capture behind a view."""
        if name not in self._captures:
            view = self.views[name]
            self._captures[name] = open_store(self.paths[view.store]).capture(view.own_name)
        return self._captures[name]

    def sizes(self, key: ArrayKey) -> NDArray[np.int64]:
        """Return the bytes in memory of every sample of one array, [samples]."""
        view = self.views[key.capture]
        info = view.info(key)
        item = info.width * (8 if info.dtype == "float64" else 4)
        return (view.index_n >= 0) * item if key.pool else view.rows[info.stream] * item

    def cost(self, keys: Iterable[ArrayKey]) -> NDArray[np.int64]:
        """Return the bytes of a block of each single sample: all arrays, and the largest once more.

        The second copy is the stored form of the array that is being read.
        """
        total, largest = np.zeros((2, self.ids.size), dtype=np.int64)
        for key in keys:
            sizes = self.sizes(key)
            total += sizes
            np.maximum(largest, sizes, out=largest)
        return total + largest

    def read(self, key: ArrayKey, start: int, stop: int) -> Piece:
        """Return the values of one array for the samples start … stop - 1 of the axis."""
        view = self.views[key.capture]
        own = view.index_n[start:stop]
        samples = start + np.flatnonzero(own >= 0)
        own = own[own >= 0]
        breaks = np.flatnonzero(np.diff(own) != 1) + 1
        runs = [slice(int(run[0]), int(run[-1]) + 1) for run in np.split(own, breaks) if run.size]
        parts = [self._read_run(key, run) for run in runs]
        width = view.info(key).width
        values = (
            parts[0] if len(parts) == 1 else np.concatenate([*parts, np.empty((0, width), "f4")])
        )
        counts = (
            np.ones(samples.size, np.int64)
            if key.pool
            else view.rows[view.info(key).stream][samples]
        )
        return Piece(values, samples, np.concatenate([[0], np.cumsum(counts)]))

    def _read_run(self, key: ArrayKey, run: slice) -> NDArray:
        capture = self.capture(key.capture)
        layer = None if key.layer < 0 else key.layer
        if key.pool:
            return capture.read_pooled(f"{key.site}.{key.pool}", layer, samples=run)
        return capture.read_rows(key.site, layer, samples=run)

    def block(self, keys: Iterable[ArrayKey], start: int, stop: int, *, readers: int = 1) -> Block:
        """Return the samples start … stop - 1 of several arrays.

        Pooled arrays alone are read `readers` at a time: they are many and small.
        """
        keys = tuple(keys)
        if readers == 1 or not all(key.pool for key in keys):
            return Block(start, stop, {key: self.read(key, start, stop) for key in keys})
        with ThreadPoolExecutor(readers) as pool:
            pieces = list(pool.map(lambda key: self.read(key, start, stop), keys))
        return Block(start, stop, dict(zip(keys, pieces, strict=True)))

    def read_output(self, capture: str, name: str, samples: NDArray[np.int64]) -> NDArray:
        """Return one per-sample output (logits) of the given places of the axis."""
        return self.capture(capture).read_output(name)[self.views[capture].index_n[samples]]

    def read_positions(
        self, capture: str, stream: str, samples: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Return the position (frame or token index) of every row of places on the axis."""
        own = self.views[capture].index_n[samples]
        runs = np.split(own, np.flatnonzero(np.diff(own) != 1) + 1)
        held = self.capture(capture)
        return np.concatenate(
            [held.read_positions(stream, slice(int(r[0]), int(r[-1]) + 1)) for r in runs if r.size]
        )

    def borders(self) -> NDArray[np.int64]:
        """Return the places of the axis where the first capture starts a stored segment."""
        name, view = next(iter(self.views.items()))
        segment = self.capture(name).samples["segment"].to_numpy()
        own = view.index_n
        along = np.where(own >= 0, segment[np.maximum(own, 0)], -1)
        return np.flatnonzero(np.diff(along) != 0) + 1


def _view(number: int, capture: Capture, name: str, axis: pd.Index) -> View:
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

    streams = {info.stream for info in capture.sites.values()}
    group = GROUP if GROUP in capture.groups else next(iter(capture.groups), "")
    groups = table[group].astype(str).to_numpy(dtype=object) if group else None
    return View(
        name=name,
        store=number,
        own_name=capture.name,
        index_n=index_n,
        rows={s: along(np.asarray(capture.row_counts(s), np.int64), 0) for s in sorted(streams)},
        sites=dict(capture.sites),
        pooled=dict(capture.pooled),
        outputs=tuple(capture.outputs),
        attrs=dict(capture.attrs),
        label_n=along(table["label"].astype(str).to_numpy(dtype=object), ""),
        group_n=np.full(axis.size, "", dtype=object) if groups is None else along(groups, ""),
        group_name=group,
        exposed_n=along(table["exposed"].to_numpy(dtype=bool), absent=False),
    )
