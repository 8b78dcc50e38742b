"""Permutation p-values of pooled features: whether they are worth their cost, and from what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..memory import format_bytes
from .gaussian import Gaussian
from .hsic import u_centre
from .permutation import (
    CHEAP,
    FEWEST,
    PERMUTATIONS,
    count_bytes,
    count_work,
    draw_permutations,
    pack,
    permute,
)

if TYPE_CHECKING:
    from .cka_pooled import Work


def count_permutations(
    work: Work, n_kernels: int, asked: int | None, attrs: dict[str, object]
) -> int:
    """Return how many permutations are drawn, and say in `attrs` why so many.

    Parameters
    ----------
    work
        Arrays and samples.
    n_kernels
        Kernels that each of them is drawn for.
    asked
        What the user wants; None: as many as are cheap.
    """
    n, n_arrays, workers = work.samples.size, len(work.arrays), work.outcome.runner.workers
    wanted = PERMUTATIONS if asked is None else asked
    dear = asked is None
    if dear:
        cheap = int(CHEAP // (n_kernels * count_work(n, n_arrays, 1)))
        wanted = min(wanted, cheap) if cheap >= FEWEST else 0
    need = count_bytes(n, n_arrays, wanted, workers) + 3 * 8 * n * n
    why = ""
    if not _can_exchange(work):
        why = "every speaker has one sample, so that none can be exchanged"
    elif not wanted:
        why = f"they are dear for so many arrays; ask for them: CKA(permutations={PERMUTATIONS})"
        why += f", or -o cka.permutations={PERMUTATIONS}"
    elif need > work.room:
        why = (
            f"{wanted} take {format_bytes(need)} and {format_bytes(work.room)} are left (--memory)"
        )
    if asked != 0:
        attrs["permutations"] = 0 if why else wanted
        how = "debiased: samples exchanged within their speaker, one-sided"
        attrs["p_permutation"] = f"none: {why}" if why else how
    return 0 if why else wanted


def _can_exchange(work: Work) -> bool:
    """Return whether any speaker has two samples."""
    view = work.outcome.selection.source.views[work.arrays[0].capture]
    return np.unique(view.group_n[work.samples].astype(str)).size < work.samples.size


def permuted_p(
    work: Work,
    gaussian: Gaussian | None,
    faults: Sequence[str],
    names_n: NDArray[np.object_],
    count: int,
) -> NDArray[np.float64] | None:
    """Return the permutation p-value of every pair of arrays, None where none was drawn.

    Parameters
    ----------
    work
        Arrays and samples.
    gaussian
        Kernel; None: the linear one.
    faults
        What is wrong with each array.
    names_n
        Speaker of every sample.
    count
        Permutations.
    """
    if not count:
        return None
    selection, runner = work.outcome.selection, work.outcome.runner
    ids = np.asarray([str(i) for i in selection.source.ids[work.samples]])
    order = np.argsort(ids)  # which sample meets which depends on ids, not on their order
    groups = np.unique(names_n[order].astype(str), return_inverse=True)[1]
    orders_bn = draw_permutations(groups, count, selection.seed)
    nothing = np.full((len(work.arrays),) * 2, np.nan)
    if orders_bn is None:
        return nothing
    n = order.size
    u_ml = np.zeros((n * (n - 1) // 2, len(work.arrays)), dtype=np.float32)
    for a, fault in enumerate(faults):
        if not fault:
            pack(_centre(work, a, order, gaussian), u_ml[:, a])
    p_ll = permute(u_ml, orders_bn, mapper=runner.map, workers=runner.workers)
    bad = np.asarray([bool(fault) for fault in faults])
    return np.where(np.logical_or.outer(bad, bad), nothing, p_ll)


def _centre(
    work: Work, a: int, order: NDArray[np.int64], gaussian: Gaussian | None
) -> NDArray[np.float64]:
    """Return the U-centred Gram matrix of one array, [samples, samples]."""
    x_nd = work.moments.centre(a, work.read(a, order))
    k_nn = x_nd @ x_nd.T
    if gaussian is not None:
        norms_1n = np.diagonal(k_nn)[None].copy()
        Gaussian(gaussian.sigmas_l[[a]]).apply(k_nn[None], norms_1n, norms_1n)
    return u_centre(k_nn)
