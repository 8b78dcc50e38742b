"""P-values of CKA by permutation: samples of one side exchanged, within their groups only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

type Mapper = Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]]

PERMUTATIONS = 1000
"""Drawn where that is cheap."""
FEWEST = 199
"""Where a thousand are too dear, at least so many are drawn, or none."""
CHEAP = 5e10
"""Multiplications that are spent without having been asked for; a core does them in 1 to 2 s."""
_BATCH = 4
"""Permutations whose products are taken together."""
_CHUNK = 1024
"""Pairs of samples of each that are moved before they are multiplied, still in the cache."""
_TIE = 1e-6
"""Statistics closer than this part of the self-similarities are the same: float32 sums."""


def pack(u_nn: NDArray[np.float64], out_m: NDArray[np.float32]) -> None:
    """Write the upper triangle of one U-centred Gram matrix, without its diagonal, into `out_m`."""
    out_m[:] = u_nn[np.triu_indices(len(u_nn), 1)]


def count_work(n: int, n_arrays: int, permutations: int) -> float:
    """Return the multiplications of so many permutations of all pairs of arrays."""
    return float(permutations) * n_arrays**2 * (n * (n - 1) / 2)


def count_bytes(n: int, n_arrays: int, permutations: int, workers: int) -> int:
    """Return the memory that `permute` and what it is given take."""
    pairs = n * (n - 1) // 2
    moved = _BATCH * min(_CHUNK, -(-pairs // _BATCH))
    each = moved * (4 * n_arrays + 24) + (13 * _BATCH + 8) * n_arrays**2
    return 4 * pairs * n_arrays + 16 * pairs + 4 * n * n + 4 * permutations * n + workers * each


def draw_permutations(
    group_n: NDArray[np.int64], count: int, seed: int
) -> NDArray[np.int32] | None:
    """Return orders of the samples that leave each in its group, [permutations, samples].

    None where every group has one sample, so that nothing can be exchanged.
    """
    members = [np.flatnonzero(group_n == g) for g in np.unique(group_n)]
    if max((m.size for m in members), default=0) < 2:
        return None
    rng = np.random.default_rng(seed)
    orders_bn = np.empty((count, group_n.size), dtype=np.int32)
    for some in members:
        orders_bn[:, some] = rng.permuted(np.tile(some, (count, 1)), axis=1)
    return orders_bn


@dataclass(frozen=True, slots=True)
class _Work:
    u_ml: NDArray[np.float32]
    rows_m: NDArray[np.int32]
    columns_m: NDArray[np.int32]
    place_nn: NDArray[np.int32]
    least_ll: NDArray[np.floating]
    """What counts as at least as large as observed."""

    def count(self, orders_bn: NDArray[np.int32]) -> NDArray[np.int64]:
        """Return how often each pair's statistic was reached, [arrays, arrays]."""
        n_arrays = len(self.least_ll)
        reached_ll = np.zeros(self.least_ll.shape, dtype=np.int64)
        for first in range(0, len(orders_bn), _BATCH):
            orders_nb = np.ascontiguousarray(orders_bn[first : first + _BATCH].T)
            sums = np.zeros((n_arrays, orders_nb.shape[1] * n_arrays))
            chunk = min(_CHUNK, -(-len(self.u_ml) // _BATCH))  # small ones take no more than one
            for start in range(0, len(self.u_ml), chunk):
                part = slice(start, start + chunk)
                rows_mb, columns_mb = orders_nb[self.rows_m[part]], orders_nb[self.columns_m[part]]
                moved_mbl = self.u_ml.take(self.place_nn[rows_mb, columns_mb], axis=0)
                sums += self.u_ml[part].T @ moved_mbl.reshape(len(moved_mbl), -1)
            sums_lbl = sums.reshape(n_arrays, -1, n_arrays)
            reached_ll += (sums_lbl >= self.least_ll[:, None]).sum(axis=1)
        return reached_ll


def permute(
    u_ml: NDArray[np.float32], orders_bn: NDArray[np.int32], *, mapper: Mapper, workers: int
) -> NDArray[np.float64]:
    """Return the p-value of every pair of arrays, [arrays, arrays].

    Parameters
    ----------
    u_ml
        U-centred Gram matrices of all arrays, one packed column each, [pairs of samples, arrays].
    orders_bn
        What `draw_permutations` gave.
    mapper, workers
        What runs parts of the permutations, and how many at a time.

    Notes
    -----
    The statistic is ⟨U(K), P U(L) P'⟩: the denominators of CKA are the same for every P, and so is
    its value when the samples of a group are exchangeable on one side. p = (1 + #≥) / (1 + B) [1]_,
    one-sided, exact for any number of samples and groups. permutations · arrays² · samples² / 2
    multiplications in float32; every permutation moves all arrays.

    References
    ----------
    .. [1] Phipson & Smyth, Permutation p-values should never be zero, 2010.
    """
    n = orders_bn.shape[1]
    rows_m, columns_m = (at.astype(np.int32) for at in np.triu_indices(n, 1))
    place_nn = np.zeros((n, n), dtype=np.int32)
    place_nn[rows_m, columns_m] = np.arange(rows_m.size, dtype=np.int32)
    place_nn[columns_m, rows_m] = place_nn[rows_m, columns_m]
    observed_ll = u_ml.T @ u_ml
    root_l = np.sqrt(np.diagonal(observed_ll))
    work = _Work(u_ml, rows_m, columns_m, place_nn, observed_ll - _TIE * np.outer(root_l, root_l))
    batches = np.split(orders_bn, range(_BATCH, len(orders_bn), _BATCH))  # whatever the workers
    shares = np.array_split(np.arange(len(batches)), workers)
    parts = [np.concatenate([batches[i] for i in share]) for share in shares if share.size]
    reached_ll = np.sum(mapper(work.count, parts), axis=0)
    upper = np.triu(np.ones(reached_ll.shape, dtype=bool))
    reached_ll = np.where(upper, reached_ll, reached_ll.T)  # one side of a pair is permuted: b
    return (1 + reached_ll) / (1 + len(orders_bn))
