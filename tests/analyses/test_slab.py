"""Memory of slabs: used again unless somebody holds a part of it, and never more than one slab."""

from __future__ import annotations

import numpy as np

from lorascope.analyses import ArrayKey, analyze
from lorascope.analyses.slab import SlabMemory

KEYS = [ArrayKey("a", f"s{i}", 0) for i in range(3)]
FLOAT = np.dtype(np.float32)


def address(x: np.ndarray) -> int:
    return x.__array_interface__["data"][0]


def test_memory_is_used_again_by_slabs_that_fit():
    memory = SlabMemory(10**6)
    x = memory.take(KEYS[0], (20, 3), FLOAT)
    place = address(x)
    del x
    for shape, dtype in (((5, 12), FLOAT), ((10, 3), np.dtype(np.float64)), ((0, 3), FLOAT)):
        x = memory.take(KEYS[0], shape, dtype)
        assert (x.shape, x.dtype) == (shape, dtype)
        assert address(x) == place or not x.size
        del x
    assert memory.take(KEYS[0], (21, 3), FLOAT).shape == (21, 3)


def test_what_somebody_holds_is_left_alone():
    memory = SlabMemory(10**6)
    whole = memory.take(KEYS[0], (20, 3), FLOAT)
    whole[...] = 7
    kept = whole[3:5, 1:].T.view()
    del whole
    memory.take(KEYS[0], (20, 3), FLOAT)[...] = 0
    assert (kept == 7).all()
    place = address(memory.take(KEYS[0], (20, 3), FLOAT))
    assert address(memory.take(KEYS[0], (20, 3), FLOAT)) == place


def test_arrays_that_are_largest_in_different_slabs_share_the_limit():
    memory = SlabMemory(1000)
    for turn in range(6):
        for i, key in enumerate(KEYS):
            memory.take(key, (200 if i == turn % 3 else 10, 1), FLOAT)
            assert sum(held.size for held in memory._held.values()) <= 1000


class Keeper:
    """Keeps a part of every block, as it was given."""

    def __init__(self, key: ArrayKey) -> None:
        self.needs = (key,)

    def empty(self) -> list[np.ndarray]:
        return []

    def add(self, state: list[np.ndarray], block) -> list[np.ndarray]:
        return [*state, block[self.needs[0]].values[:1]]

    def merge(self, left, right):
        return left + right

    def finish(self, state):
        return np.concatenate(state)


def test_a_fold_may_keep_rows_of_its_blocks(study):
    found = analyze(study.path, [Keeper(ArrayKey("lora", "embed", -1))], workers=1, memory="40kB")
    rows = study.rows("lora", "embed", 0)
    values = found["keeper"]["value"].to_numpy().reshape(-1, rows.shape[1])
    assert len(values) > 3
    assert all((value == rows).all(axis=1).any() for value in values)
    assert len(np.unique(values, axis=0)) == len(values)
