"""Captures of one or two stores on one sample axis: who has which sample, and reading a run.

Samples are matched by id. A capture that holds them in another order, or only some of them, is read
in runs of its own consecutive samples, so every fold sees the same samples in the same places.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..store import Capture, SiteInfo, Store, look_up_rows, open_store
from .fold import ArrayKey, Block, Piece
from .slab import SlabMemory
from .views import AddedColumn, View, added_columns, base_of, view_of

AGAINST = "against:"
"""Prefix of the captures of the other store."""
_MATCH_BYTES = 32
"""Of each row that is matched by its sample and position, on either side."""


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
        stores = [store] if against is None else [store, against]
        added = [added_columns(one, axis) for one in stores]
        views = {
            name: view_of(number, capture, name, axis, added[number])
            for number, capture, name in wanted
        }
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
        if not key.pool and key.site not in view.sites:
            rows_n = view.rows[info.stream]
            return (rows_n + view.added[key.site].rows_n * (rows_n > 0)) * _MATCH_BYTES
        item = info.width * (8 if info.dtype == "float64" else 4)
        return (view.index_n >= 0) * item if key.pool else view.rows[info.stream] * item

    def read(self, key: ArrayKey, start: int, stop: int, memory: SlabMemory | None = None) -> Piece:
        """Return the values of one array for the samples start … stop - 1 of the axis.

        Where `memory` is given, rows are read into it.
        """
        view = self.views[key.capture]
        info = view.info(key)
        own = view.index_n[start:stop]
        samples = start + np.flatnonzero(own >= 0)
        if not key.pool and key.site not in view.sites:
            return self._read_added(key, samples)
        runs = _slices(own[own >= 0])
        counts = np.ones(samples.size, np.int64) if key.pool else view.rows[info.stream][samples]
        ends = np.concatenate([[0], np.cumsum(counts)])
        if key.pool:
            parts = [self._read_pooled(key, run) for run in runs]
            values = parts[0] if len(parts) == 1 else np.concatenate([*parts, _no_rows(info)])
            return Piece(values, samples, ends)
        shape, dtype = (int(ends[-1]), info.width), _dtype(info)
        values = np.empty(shape, dtype) if memory is None else memory.take(key, shape, dtype)
        self._fill(key, values, runs, ends)
        return Piece(values, samples, ends)

    def _read_added(self, key: ArrayKey, samples: NDArray[np.int64]) -> Piece:
        """Return a row column for the rows of a capture, matched by sample and position."""
        view = self.views[key.capture]
        column = view.added[key.site]
        stream = column.info.stream
        counts = view.rows[stream][samples]
        held = samples[column.index_n[samples] >= 0]
        capture = self._added_capture(view, column)
        runs = _slices(column.index_n[held])
        values = [capture.read_rows(key.site, None, run)[:, 0] for run in runs]
        positions = [capture.read_positions(stream, run) for run in runs]
        found = look_up_rows(
            (np.repeat(samples, counts), self.read_positions(view.name, stream, samples)),
            (np.repeat(held, column.rows_n[held]), np.concatenate([_NO_ROWS, *positions])),
            np.concatenate([np.empty(0, "f4"), *values]),
        )
        return Piece(found[:, None], samples, np.concatenate([[0], np.cumsum(counts)]))

    def _added_capture(self, view: View, column: AddedColumn) -> Capture:
        held = f"{view.store}/{column.capture}"  # no capture's name has a slash
        if held not in self._captures:
            store = open_store(self.paths[view.store])
            self._captures[held] = store.capture(column.capture)
        return self._captures[held]

    def _fill(
        self, key: ArrayKey, values: NDArray, runs: Sequence[slice], ends: NDArray[np.int64]
    ) -> None:
        """Read runs of samples one after the other, each at its place."""
        capture, layer = self.capture(key.capture), None if key.layer < 0 else key.layer
        at = 0
        for run in runs:
            first, at = at, at + run.stop - run.start
            out = values[ends[first] : ends[at]]
            capture.read_rows(key.site, layer, samples=run, out=out)

    def _read_pooled(self, key: ArrayKey, run: slice) -> NDArray:
        layer = None if key.layer < 0 else key.layer
        capture = self.capture(key.capture)
        return capture.read_pooled(f"{key.site}.{key.pool}", layer, samples=run)

    def block(
        self,
        keys: Iterable[ArrayKey],
        start: int,
        stop: int,
        memory: SlabMemory | None = None,
        *,
        readers: int = 1,
    ) -> Block:
        """Return the samples start … stop - 1 of several arrays.

        Pooled arrays alone are read `readers` at a time: they are many and small.
        """
        keys = tuple(keys)
        if readers == 1 or not all(key.pool for key in keys):
            return Block(start, stop, {key: self.read(key, start, stop, memory) for key in keys})
        with ThreadPoolExecutor(readers) as pool:
            pieces = list(pool.map(lambda key: self.read(key, start, stop), keys))
        return Block(start, stop, dict(zip(keys, pieces, strict=True)))

    def expect(self, keys: Iterable[ArrayKey], start: int, stop: int) -> None:
        """Let the system begin to read the rows of several arrays, without waiting for them."""
        for key in keys:
            view = self.views[key.capture]
            if not key.pool and key.site in view.sites:
                own = view.index_n[start:stop]
                layer = None if key.layer < 0 else key.layer
                for run in _slices(own[own >= 0]):
                    self.capture(key.capture).expect_rows(key.site, layer, run)

    def read_output(self, capture: str, name: str, samples: NDArray[np.int64]) -> NDArray:
        """Return one per-sample output (logits) of the given places of the axis."""
        return self.capture(capture).read_output(name)[self.views[capture].index_n[samples]]

    def read_positions(
        self, capture: str, stream: str, samples: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Return the position (frame or token index) of every row of places on the axis."""
        held, runs = self.capture(capture), _slices(self.views[capture].index_n[samples])
        return np.concatenate([_NO_ROWS, *(held.read_positions(stream, run) for run in runs)])

    def borders(self) -> NDArray[np.int64]:
        """Return the places of the axis where the first capture starts a stored segment."""
        name, view = next(iter(self.views.items()))
        segment = self.capture(name).samples["segment"].to_numpy()
        own = view.index_n
        along = np.where(own >= 0, segment[np.maximum(own, 0)], -1)
        return np.flatnonzero(np.diff(along) != 0) + 1


def _dtype(info: SiteInfo) -> np.dtype:
    """Return the type of an array in memory."""
    return np.dtype(np.float64 if info.dtype == "float64" else np.float32)


def _no_rows(info: SiteInfo) -> NDArray:
    return np.empty((0, info.width), np.float32)


_NO_ROWS = np.empty(0, dtype=np.int64)


def _slices(own: NDArray[np.int64]) -> list[slice]:
    """Return runs of consecutive numbers as slices."""
    if not own.size:
        return []
    last = np.flatnonzero(np.diff(own) != 1)
    starts = own[np.concatenate([[0], last + 1])].tolist()
    stops = own[np.concatenate([last, [own.size - 1]])].tolist()
    return [slice(start, stop + 1) for start, stop in zip(starts, stops, strict=True)]
