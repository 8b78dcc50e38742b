"""One block of the Gram matrices of all arrays: what is summed from it, by group."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ..backend import to_device, to_host
from .gaussian import Gaussian
from .hsic import HsicSums, u_shifts
from .moments import Mapper

_STRIP = 2**15
"""Numbers of each array that one product sums, at most; the products are added in float64."""


@dataclass(frozen=True, slots=True)
class Features:
    """Centred features of a run of samples."""

    arrays: Sequence[NDArray] | Callable[[int], NDArray]
    """Those of each array, [samples, features], or what gives them."""
    start: int
    """First sample."""

    def of(self, a: int, samples: slice) -> NDArray:
        """Return the features of some of the samples."""
        x_nd = self.arrays(a) if callable(self.arrays) else self.arrays[a]
        return x_nd[samples.start - self.start : samples.stop - self.start]


@dataclass(frozen=True, slots=True)
class _Strip:
    """Rows or columns of a block that are of one group."""

    group: int
    part: slice
    """Their places in the block."""
    by_columns: bool


@dataclass(frozen=True, slots=True)
class _Members:
    """Which groups some samples are of."""

    groups: slice
    """From the first group to the last."""
    member_ng: NDArray
    """1 where a sample is in a group, [samples, groups]."""


@dataclass(frozen=True, slots=True)
class GramBlock:
    """Rows of some samples against columns of others that are not before them.

    Off the diagonal of the whole matrix, a block counts for the one below the diagonal as well.
    """

    x: Features
    """Of the rows."""
    y: Features
    """Of the columns."""
    out: HsicSums
    """What is added to."""
    gaussian: Gaussian | None
    rows: slice
    columns: slice
    memory: NDArray
    """Room for the block, on the device."""
    device: str
    whole: bool
    """Whether the block is all there is, so that its diagonal gives norms and shifts."""

    @property
    def _gram(self) -> NDArray:
        shape = (len(self.out.norms_ln), _length(self.rows), _length(self.columns))
        return self.memory[: shape[0] * shape[1] * shape[2]].reshape(shape)

    @property
    def _diagonal(self) -> bool:
        return self.rows.start == self.columns.start

    def sum_all(self, mapper: Mapper, strip_bytes: int) -> None:
        """Add the sums of the block.

        Parameters
        ----------
        mapper
            What runs arrays, then strips.
        strip_bytes
            What the copy of a strip of columns may take.
        """
        gram_lmn, out = self._gram, self.out
        members = self._members(self.columns), self._members(self.rows)
        mapper(partial(self._fill, members), range(len(gram_lmn)))
        item = gram_lmn.nbytes // gram_lmn.size
        most = min(_STRIP, strip_bytes // (len(gram_lmn) * item))
        strips = list(self._strips(most))
        found = mapper(self._multiply, strips)
        for strip, (products_ll, own_ll) in zip(strips, found, strict=True):
            out.products_gll[strip.group] += products_ll
            if own_ll is not None:
                out.own_gll[strip.group] += own_ll

    def _fill(self, members: tuple[_Members, _Members], a: int) -> None:
        """Compute one Gram matrix and sums of its rows; shift it: then products cancel little."""
        gram_mn, out = self._gram[a], self.out
        x_md = self.x.of(a, self.rows)
        y_nd = x_md if self._diagonal else self.y.of(a, self.columns)
        np.matmul(x_md, y_nd.T, out=gram_mn)  # half of the products where both are the same
        gaussian = self.gaussian.of(a) if self.gaussian else None
        if self.whole:
            norms_1n = to_host(gram_mn.diagonal()).astype(np.float64)[None]
            shift_1n = gaussian.shifts(norms_1n) if gaussian else u_shifts(norms_1n)
            out.norms_ln[a], out.shift_ln[a] = norms_1n[0], shift_1n[0].astype(gram_mn.dtype)
        same = to_device(np.arange(_length(self.rows)), self.device)
        if gaussian:
            norms_1n = to_device(out.norms_ln[[a]], self.device)
            sides = norms_1n[:, self.rows], norms_1n[:, self.columns]
            gaussian.apply(gram_mn[None], *sides, self.device)
            if self._diagonal:
                gram_mn[same, same] = 0
        self._sum_rows(a, gram_mn, *members)
        shift_n = to_device(out.shift_ln[a].astype(gram_mn.dtype), self.device)
        gram_mn += shift_n[self.rows, None]
        gram_mn += shift_n[self.columns]
        if self._diagonal:
            gram_mn[same, same] = 0

    def _sum_rows(self, a: int, gram_mn: NDArray, columns: _Members, rows: _Members) -> None:
        """Add the sums over the columns of each group, and over the rows where they count too."""
        self.out.row_lng[a, self.rows, columns.groups] += to_host(gram_mn @ columns.member_ng)
        if not self._diagonal:
            self.out.row_lng[a, self.columns, rows.groups] += to_host(gram_mn.T @ rows.member_ng)

    def _members(self, samples: slice) -> _Members:
        """Return the groups of some samples."""
        group_n = self.out.group_n[samples]
        groups = np.arange(group_n[0], group_n[-1] + 1)
        member_ng = (group_n[:, None] == groups).astype(self.memory.dtype)
        there = slice(int(group_n[0]), int(group_n[-1]) + 1)
        return _Members(there, to_device(member_ng, self.device))

    def _strips(self, most: int) -> Iterator[_Strip]:
        """Cut the block into strips of at most `most` numbers of each array, or one row of it."""
        sides = [(self.rows, self.columns, False), (self.columns, self.rows, True)]
        for samples, others, by_columns in sides[: 1 if self._diagonal else 2]:
            size = max(1, most // _length(others))
            group_n = self.out.group_n[samples]
            borders = [0, *(np.flatnonzero(np.diff(group_n)) + 1).tolist(), group_n.size]
            for start, stop in pairwise(borders):
                for first in range(start, stop, size):
                    part = slice(first, min(stop, first + size))
                    yield _Strip(int(group_n[start]), part, by_columns)

    def _multiply(self, strip: _Strip) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        """Return the products of all pairs of arrays in a strip, and in its own group alone."""
        gram_lmn = self._gram
        if strip.by_columns:
            return _square(gram_lmn[:, :, strip.part]), None
        rows_lmn = gram_lmn[:, strip.part]
        products_ll = _square(rows_lmn)
        group_n = self.out.group_n[self.columns]
        first, last = np.searchsorted(group_n, [strip.group, strip.group + 1]).tolist()
        if first == last:
            return products_ll, None
        alone = last - first == group_n.size
        own_ll = products_ll if alone else _square(rows_lmn[:, :, first:last])
        return products_ll, own_ll if self._diagonal else 2 * own_ll


def _length(part: slice) -> int:
    return part.stop - part.start


def _square(gram_lmn: NDArray) -> NDArray[np.float64]:
    """Return the inner products of all pairs of arrays, [arrays, arrays]."""
    flat = gram_lmn.reshape(gram_lmn.shape[0], -1)
    return to_host(flat @ flat.T).astype(np.float64)
