"""Which folds share a reading of the store, so that few bytes are read more than once.

Accumulators that do not fit together are fed in several readings, and an array whose folds are in
two of them is read twice. Choosing groups of least bytes is a set partition (NP-hard), and the
sets are regular: the folds of one array, of one site in all captures, of one layer. So each group
is grown by the fold that shares most with it, and folds are then moved where that saves bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .fold import ArrayKey, Fold

STATE_SHARE = 0.5
"""Part of the usable memory that accumulators of one pass may take when they could be split."""
_MOST_ROUNDS = 5
"""Of moving folds between groups; the first two find nearly all that there is."""

type Sizes = Callable[[ArrayKey], NDArray[np.int64]]
"""Bytes of every sample of one array, [samples]."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be used, and by how many workers."""

    usable_bytes: int
    workers: int

    def room(self, folds: Sequence[Fold[Any, Any]]) -> int:
        """Return what is left for the slab of one worker, in bytes (negative: does not fit)."""
        states = sum(fold.state_bytes(self.workers) for fold in folds)
        scratch = max((fold.scratch_bytes for fold in folds), default=0)
        return self.room_beside(states, scratch)

    def room_beside(self, states: int, scratch: int) -> int:
        """Return the same for accumulators of `states` bytes and `scratch` bytes of one `add`."""
        return (self.usable_bytes - states) // self.workers - scratch


def needs_of(folds: Iterable[Fold[Any, Any]]) -> tuple[ArrayKey, ...]:
    """Return the arrays that any of the folds needs."""
    return tuple(sorted({key for fold in folds for key in fold.needs}))


def block_bytes(keys: Iterable[ArrayKey], sizes: Sizes) -> NDArray[np.int64]:
    """Return the bytes of a block of each single sample: all arrays, and the largest once more.

    The second copy is the stored form of the array that is being read.
    """
    total, largest = np.int64(0), np.int64(0)
    for key in keys:
        size = sizes(key)
        total, largest = total + size, np.maximum(largest, size)
    return np.asarray(total + largest)


def fits(folds: Sequence[Fold[Any, Any]], sizes: Sizes, budget: Budget) -> bool:
    """Return whether one sample of all folds together fits beside their accumulators."""
    return budget.room(folds) >= int(block_bytes(needs_of(folds), sizes).max(initial=0))


def pack(
    folds: Sequence[Fold[Any, Any]], sizes: Sizes, budget: Budget
) -> list[list[Fold[Any, Any]]] | None:
    """Return groups of folds that fit together, or None when one alone does not fit.

    Parameters
    ----------
    folds
        Distinct folds.
    sizes
        Bytes of every sample of one array.
    budget
        Accumulators of a group take at most half of it, or belong to a single fold.

    Returns
    -------
    list
        Groups, each in the order of `folds`: one where all fit together, none without folds.

    Notes
    -----
    Two plans are made, one that takes folds of many bytes first and one that takes those of few,
    and the one that reads less is returned. Which is better depends on where groups end.
    O(folds²) small vector operations and O(arrays · samples · groups): 50 ms for 330 folds.
    """
    if not folds:
        return []
    states = sum(fold.state_bytes(budget.workers) for fold in folds)
    if states <= STATE_SHARE * budget.usable_bytes and fits(folds, sizes, budget):
        return [[*folds]]
    keys = needs_of(folds)
    bytes_k = np.array([int(sizes(key).sum()) for key in keys])
    places = {key: place for place, key in enumerate(keys)}
    items = [_describe(fold, places, bytes_k, budget) for fold in folds]
    plans: list[list[_Group]] = []
    for sign in (-1, 1):
        ordered = sorted(items, key=lambda item, sign=sign: sign * item.bytes)  # stable
        groups = _grow(ordered, _Arrays(keys, bytes_k, sizes), budget)
        if groups is None:
            return None
        _move(ordered, groups)
        plans.append([group for group in groups if group.items])
    best = min(plans, key=lambda groups: (sum(group.read for group in groups), len(groups)))
    number = {fold: n for n, fold in enumerate(folds)}
    return [sorted((i.fold for i in group.items), key=number.__getitem__) for group in best]


@dataclass(frozen=True, slots=True)
class _Arrays:
    """What there is to read."""

    keys: tuple[ArrayKey, ...]
    bytes_k: NDArray[np.int64]
    """Of each array, all samples."""
    sizes: Sizes


@dataclass(frozen=True, slots=True, eq=False)
class _Item:
    """A fold, and what packing has to know about it."""

    fold: Fold[Any, Any]
    arrays: NDArray[np.intp]
    """Places of the arrays that it needs."""
    bytes: int
    """Of all of them."""
    states: int
    scratch: int


def _describe(
    fold: Fold[Any, Any], places: dict[ArrayKey, int], bytes_k: NDArray[np.int64], budget: Budget
) -> _Item:
    arrays = np.array(sorted({places[key] for key in fold.needs}), dtype=np.intp)
    states = fold.state_bytes(budget.workers)
    return _Item(fold, arrays, int(bytes_k[arrays].sum()), states, fold.scratch_bytes)


@dataclass(slots=True, eq=False)
class _Group:
    """Folds of one reading while they are chosen, and the sums that say what else fits."""

    arrays: _Arrays
    budget: Budget
    items: list[_Item] = field(default_factory=list)
    states: int = 0
    scratch: int = 0
    """The largest so far, also of one that was moved away: never too small."""
    total_n: Any = 0
    """Bytes of every sample of all arrays, [samples]."""
    largest_n: Any = 0
    """The same of the largest array, like `scratch` never too small, [samples]."""
    users_k: NDArray[np.int64] = field(init=False)
    """How many of the folds need each array."""

    def __post_init__(self) -> None:
        self.users_k = np.zeros(len(self.arrays.keys), dtype=np.int64)

    @property
    def read(self) -> int:
        """Bytes that the group reads."""
        return int(self.arrays.bytes_k[self.users_k > 0].sum())

    def missing(self, item: _Item) -> NDArray[np.intp]:
        """Return the arrays that a fold would add."""
        return item.arrays[self.users_k[item.arrays] == 0]

    def take(self, item: _Item) -> bool:
        """Take a fold in, or return False: it does not fit."""
        states = self.states + item.states
        if self.items and states > STATE_SHARE * self.budget.usable_bytes:
            return False
        total_n, largest_n = self.total_n, self.largest_n
        for place in self.missing(item):
            size_n = self.arrays.sizes(self.arrays.keys[place])
            total_n, largest_n = total_n + size_n, np.maximum(largest_n, size_n)
        scratch = max(self.scratch, item.scratch)
        sample = int(np.max(total_n + largest_n, initial=0))
        if self.budget.room_beside(states, scratch) < sample:
            return False
        self.items.append(item)
        self.users_k[item.arrays] += 1
        self.states, self.scratch = states, scratch
        self.total_n, self.largest_n = total_n, largest_n
        return True

    def drop(self, item: _Item) -> None:
        """Let a fold go."""
        self.items.remove(item)
        self.users_k[item.arrays] -= 1
        for place in self.missing(item):
            self.total_n = self.total_n - self.arrays.sizes(self.arrays.keys[place])
        self.states -= item.states


def _grow(items: Sequence[_Item], arrays: _Arrays, budget: Budget) -> list[_Group] | None:
    """Return groups that were each grown by what shares most with it, None if one fits nowhere.

    Of folds that share equally, the first is taken.
    """
    users: list[list[int]] = [[] for _ in arrays.keys]
    for number, item in enumerate(items):
        for place in item.arrays:
            users[place].append(number)
    bytes_i = np.array([item.bytes for item in items])
    states_i = np.array([item.states for item in items])
    waiting = np.ones(len(items), dtype=bool)
    groups: list[_Group] = []
    while waiting.any():
        group = _Group(arrays, budget)
        open_i, shared_i = waiting.copy(), np.zeros(len(items))
        while open_i.any():
            number = int(np.argmax(np.where(open_i, shared_i / np.maximum(bytes_i, 1), -1)))
            new = group.missing(items[number])
            open_i[number] = False
            if group.take(items[number]):
                waiting[number] = False
                for place in new:
                    shared_i[users[place]] += arrays.bytes_k[place]
                open_i &= group.states + states_i <= STATE_SHARE * budget.usable_bytes
            elif not group.items:
                return None
        groups.append(group)
    return groups


def _move(items: Sequence[_Item], groups: Sequence[_Group]) -> None:
    """Move folds to groups where they add less than they leave, until nothing is saved."""
    place = {item: group for group in groups for item in group.items}
    bytes_k = groups[0].arrays.bytes_k
    for _ in range(_MOST_ROUNDS):
        moved = False
        for item in items:
            here = place[item]
            saved = int(bytes_k[item.arrays[here.users_k[item.arrays] == 1]].sum())
            added = [
                (int(bytes_k[group.missing(item)].sum()), number)
                for number, group in enumerate(groups)
                if group is not here and group.items
            ]
            for more, number in sorted(added):
                if more >= saved:
                    break
                if groups[number].take(item):
                    here.drop(item)
                    place[item], moved = groups[number], True
                    break
        if not moved:
            return
