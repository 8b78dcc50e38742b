"""Sums over rows from which linear HSIC of pairs of arrays follows exactly, in any order of blocks.

Nothing of the size rows x rows is formed: with C = Σ x y', ‖C‖² is the sum of k(i, j) l(i, j) over
all pairs of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..backend import array_module, to_device, to_host

REDUCED_NUMBERS = 2**14
"""Numbers of a panel that are centred at a time in the end."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Which columns are whose, and which pairs of arrays are formed."""

    widths: tuple[int, ...]
    """Features of every array, whose columns lie beside each other."""
    n_left: int = 0
    """The first so many with all the others; 0: each with itself and those after it."""

    @property
    def starts(self) -> NDArray[np.int64]:
        """First column of every array."""
        return np.cumsum([0, *self.widths[:-1]])

    @property
    def left(self) -> range:
        """Numbers of the arrays whose panels are kept."""
        return range(self.n_left or len(self.widths))

    def own(self, a: int) -> slice:
        """Return the columns of an array."""
        start = int(self.starts[a])
        return slice(start, start + self.widths[a])

    def first(self, a: int) -> int:
        """Return the first partner of an array; all after it are partners, too."""
        return self.n_left or a

    def partners(self, a: int) -> slice:
        """Return the columns of all partners of an array."""
        return slice(int(self.starts[self.first(a)]), sum(self.widths))

    def shape(self, a: int) -> tuple[int, int]:
        """Return the shape of an array's panel, [its features, features of its partners]."""
        return self.widths[a], sum(self.widths[self.first(a) :])

    @property
    def size(self) -> int:
        """Numbers in the sums of one group."""
        panels = sum(rows * columns for rows, columns in map(self.shape, self.left))
        n = len(self.widths)
        return panels + (n + 1) * (sum(self.widths) + n)


@dataclass(slots=True)
class RowSums:
    """Sums over the rows of each group, all but the counts on one device."""

    rows_g: NDArray[np.int64]
    """Rows, [groups], on the host."""
    sum_gd: NDArray[np.float64]
    """Σ x, [groups, columns]."""
    trace_gl: NDArray[np.float64]
    """Σ k with k = |x|², [groups, arrays]."""
    cross_gdl: NDArray[np.float64]
    """Σ x l, [groups, columns, arrays]."""
    square_gll: NDArray[np.float64]
    """Σ k l, [groups, arrays, arrays]."""
    panels: list[NDArray[np.float64]]
    """Σ x y' of an array and all its partners, [groups, features, features of the partners]."""

    @classmethod
    def empty(cls, layout: Layout, groups: int, device: str = "cpu") -> RowSums:
        """Return the sums of no rows, on a device."""
        xp = array_module(device)
        n, columns = len(layout.widths), sum(layout.widths)
        return cls(
            rows_g=np.zeros(groups, dtype=np.int64),
            sum_gd=xp.zeros((groups, columns)),
            trace_gl=xp.zeros((groups, n)),
            cross_gdl=xp.zeros((groups, columns, n)),
            square_gll=xp.zeros((groups, n, n)),
            panels=[xp.zeros((groups, *layout.shape(a))) for a in layout.left],
        )


def add_tile(sums: RowSums, layout: Layout, group: int, x_nd: NDArray) -> None:
    """Add rows of one group.

    Parameters
    ----------
    sums
        What is changed.
    layout
        Whose columns are which.
    group
        Number of the group of all these rows.
    x_nd
        [rows, columns], near 0 and of a size around 1, on the device of `sums`.

    Notes
    -----
    Products are taken in the type of the rows and added in float64; squares of norms in float64.
    rows · (columns)² / 2 multiplications.
    """
    with np.errstate(invalid="ignore", over="ignore"):  # infinite features end as a reason
        norms_nl = _norms(layout, x_nd)
        sums.rows_g[group] += x_nd.shape[0]
        sums.sum_gd[group] += x_nd.sum(axis=0, dtype=np.float64)
        sums.trace_gl[group] += norms_nl.sum(axis=0)
        sums.square_gll[group] += norms_nl.T @ norms_nl
        sums.cross_gdl[group] += x_nd.T @ norms_nl.astype(x_nd.dtype)
        for a, panel in zip(layout.left, sums.panels, strict=True):
            panel[group] += x_nd[:, layout.own(a)].T @ x_nd[:, layout.partners(a)]


def _norms(layout: Layout, x_nd: NDArray) -> NDArray[np.float64]:
    columns = [
        np.square(x_nd[:, layout.own(a)], dtype=np.float64).sum(axis=1)
        for a in range(len(layout.widths))
    ]
    return np.stack(columns, axis=1)


def merge_sums(left: RowSums, right: RowSums) -> RowSums:
    """Return the sums of both sets of rows; `left` is changed, `right` is not."""
    with np.errstate(invalid="ignore", over="ignore"):
        left.rows_g += right.rows_g
        left.sum_gd += right.sum_gd
        left.trace_gl += right.trace_gl
        left.cross_gdl += right.cross_gdl
        left.square_gll += right.square_gll
        for mine, other in zip(left.panels, right.panels, strict=True):
            np.add(mine, other, out=mine)
    return left


@dataclass(frozen=True, slots=True)
class RowHsic:
    """HSIC of pairs of arrays: of all rows first, then without each group in turn."""

    unbiased_sll: NDArray[np.float64]
    """n(n - 3) HSIC₁, [1 + groups, arrays, arrays]; NaN for pairs that are not formed."""
    biased_sll: NDArray[np.float64]
    """(n - 1)² HSIC₀, like it."""
    spread_l: NDArray[np.float64]
    """Σ |x - mean|² of all rows, [arrays]."""
    rows: int

    @classmethod
    def of(cls, sums: RowSums, layout: Layout, device: str = "cpu") -> RowHsic:
        """Return what the sums give; one group is not left out.

        Notes
        -----
        With the centred C̃, k̃ and l̃ [1]_: (n - 1)² HSIC₀ = ‖C̃‖² and n(n - 3) HSIC₁ = ‖C̃‖² -
        n/(n - 2) Σ k̃ l̃ + Σ k̃ Σ l̃ / ((n - 1)(n - 2)). With the mean m of the rows as they are,
        k̃ = k - 2 m·x + |m|², so Σ k̃ l̃ = Q - 2 m_x·U_xl - 2 m_y·U_yk + 4 m_x'C m_y + |m_x|² t_y
        + |m_y|² t_x - 3n |m_x|² |m_y|², where Q = Σ k l, U_xl = Σ x l and t = Σ k.

        References
        ----------
        .. [1] Song et al., Feature selection via dependence maximization, JMLR 2012.
        """
        n_groups = sums.rows_g.size
        parts = [_Part.of(sums, layout, s - 1) for s in range(1 + n_groups * (n_groups > 1))]
        shape = (len(parts), len(layout.widths), len(layout.widths))
        norms, mixed = np.full(shape, np.nan), np.full(shape, np.nan)
        for a, panel in zip(layout.left, sums.panels, strict=True):
            first = layout.first(a)
            edges = layout.starts[first:] - layout.starts[first]
            columns = _reduce(parts, layout, a, panel, device)
            norms[:, a, first:], mixed[:, a, first:] = np.add.reduceat(columns, edges, axis=2)
        unbiased = np.stack([p.debias(c, m) for p, c, m in zip(parts, norms, mixed, strict=True)])
        return cls(unbiased, norms, parts[0].spread_l, parts[0].rows)


def _reduce(
    parts: Sequence[_Part], layout: Layout, a: int, panel_gdd: NDArray[np.float64], device: str
) -> NDArray[np.float64]:
    """Return ‖C̃‖² and m'C m of every part and column of the partners, [2, 1 + groups, columns]."""
    own, start, width = layout.own(a), layout.partners(a).start, panel_gdd.shape[2]
    found = np.empty((2, len(parts), width))
    step = max(1, REDUCED_NUMBERS // panel_gdd.shape[1])
    for at in (slice(i, min(i + step, width)) for i in range(0, width, step)):
        whole_dd = panel_gdd[:, :, at].sum(axis=0)
        for s, part in enumerate(parts):
            own_d = to_device(part.mean_d[own], device)
            mean_d = part.mean_d[start + at.start : start + at.stop]
            with np.errstate(invalid="ignore", over="ignore"):
                c_dd = whole_dd if s == 0 else whole_dd - panel_gdd[s - 1, :, at]
                found[1, s, at] = to_host(own_d @ c_dd) * mean_d
                c_dd = c_dd - (part.rows * own_d)[:, None] * to_device(mean_d, device)
                found[0, s, at] = to_host((c_dd * c_dd).sum(axis=0))
    return found


@dataclass(frozen=True, slots=True)
class _Part:
    """The small sums of all rows, or of those outside one group, on the host."""

    rows: int
    mean_d: NDArray[np.float64]
    square_l: NDArray[np.float64]
    """|m|² of every array."""
    trace_l: NDArray[np.float64]
    bent_ll: NDArray[np.float64]
    """m_a · Σ x_a l_b."""
    square_ll: NDArray[np.float64]

    @classmethod
    def of(cls, sums: RowSums, layout: Layout, without: int) -> _Part:
        """Return the sums without a group; -1: of all."""

        def total(x: NDArray) -> NDArray[np.float64]:
            host = to_host(x.sum(axis=0))
            return host if without < 0 else host - to_host(x[without])

        with np.errstate(invalid="ignore", over="ignore"):
            rows = int(sums.rows_g.sum() - (sums.rows_g[without] if without >= 0 else 0))
            mean_d = total(sums.sum_gd) / max(rows, 1)
            square_l = np.add.reduceat(np.square(mean_d), layout.starts)
            bent_ll = np.add.reduceat(mean_d[:, None] * total(sums.cross_gdl), layout.starts)
            trace_l, square_ll = total(sums.trace_gl), total(sums.square_gll)
        return cls(rows, mean_d, square_l, trace_l, bent_ll, square_ll)

    @property
    def spread_l(self) -> NDArray[np.float64]:
        """Σ |x - m|² of every array."""
        with np.errstate(invalid="ignore"):
            return self.trace_l - self.rows * self.square_l

    def debias(self, norms_ll: NDArray, mixed_ll: NDArray) -> NDArray[np.float64]:
        """Return n(n - 3) HSIC₁ from ‖C̃‖² and m'C m; NaN below 4 rows."""
        n, m, t, spread = self.rows, self.square_l, self.trace_l, self.spread_l
        if n < 4:
            return np.full_like(norms_ll, np.nan)
        with np.errstate(invalid="ignore", over="ignore"):
            squares = self.square_ll - 2 * (self.bent_ll + self.bent_ll.T) + 4 * mixed_ll
            squares = squares + np.outer(m, t) + np.outer(t, m) - 3 * n * np.outer(m, m)
            pairs = np.outer(spread, spread) / ((n - 1) * (n - 2))
            return norms_ll - n / (n - 2) * squares + pairs
