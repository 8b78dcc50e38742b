"""Spectra of the rows of every site and layer: how many directions the activations use."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..backend import to_host
from ..errors import MissingSitesError
from ..fold import ArrayKey, Block
from ..lora.projection import Projection, Turned, find_projection
from ..plan import Outcome, Plan, Table, describe_exposure, mask_of
from ..selection import Selection, matches
from ..source import View
from .nulls import compare_with_noise
from .scatter import TILE_ROWS, Scatter, add_rows, merge_scatter
from .spectrum import describe_spectrum, singular_values

_TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True, slots=True)
class Spectra:
    """Singular values of one array."""

    n: int
    """Rows."""
    centred: NDArray[np.float64]
    """Of the rows less their mean, largest first."""
    uncentred: NDArray[np.float64]
    """Of the rows as they are."""
    reason: str
    """Why there are none; empty otherwise."""
    squares: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
    """Sums of squares of every column, around its mean and as it is; None with a reason."""
    turned: Turned | None = None
    """What the similarity with a LoRA partner follows from, where the array has one."""


@dataclass(frozen=True, slots=True)
class ScatterFold:
    """Mean and scatter of the rows of one array, then its singular values.

    Notes
    -----
    O(features²) memory, one pass, rows · features² operations and 18 features³ at the end.
    """

    key: ArrayKey
    width: int
    rank: int
    """Singular values that there can be: the width, or the rank of the adapter behind `lora_b`."""
    itemsize: int
    """Bytes of one value in memory."""
    projection: Projection | None = None
    """How the rows of a LoRA partner follow; None for an array without one."""
    device: str = "cpu"
    """Where the products are computed."""

    @property
    def needs(self) -> tuple[ArrayKey, ...]:
        """The one array."""
        return (self.key,)

    @property
    def scratch_bytes(self) -> int:
        """A centred tile, its product and the outer product of means; or copies of `finish`."""
        return TILE_ROWS * self.width * self.itemsize + 3 * 8 * self.width**2

    def state_bytes(self, workers: int) -> int:
        """One float64 matrix for each worker."""
        return 8 * self.width * (self.width + 1) * workers

    def empty(self) -> Scatter:
        """Return the scatter of no rows."""
        return Scatter.empty(self.width, self.device)

    def add(self, state: Scatter, block: Block) -> Scatter:
        """Return the scatter with the rows of the block."""
        return add_rows(state, block[self.key].values)

    def merge(self, left: Scatter, right: Scatter) -> Scatter:
        """Return the scatter of both."""
        return merge_scatter(left, right)

    def finish(self, state: Scatter) -> Spectra:
        """Return the singular values."""
        nothing = np.empty(0)
        if not np.isfinite(state.scatter_dd).all():
            return Spectra(state.n, nothing, nothing, "NaN or infinite features")
        if state.n < 2:
            return Spectra(state.n, nothing, nothing, f"rows: {state.n}; at least 2 are needed")
        centred = singular_values(state.scatter_dd, min(self.rank, state.n - 1))
        uncentred = singular_values(state.uncentred(), min(self.rank, state.n))
        # a mean that is not exact leaves rounding where every row is the same
        floor = 1e-12 * uncentred[0]
        centred = np.where(centred <= floor, 0.0, centred) if centred[0] <= floor else centred
        square_d = to_host(state.scatter_dd.diagonal().copy())
        squares = square_d, square_d + state.n * np.square(to_host(state.mean_d))
        return Spectra(state.n, centred, uncentred, "", squares, self._turned(state))

    def _turned(self, state: Scatter) -> Turned | None:
        matrix_dk = None if self.projection is None else self.projection.matrix_dk
        if matrix_dk is None or not np.isfinite(matrix_dk).all():
            return None
        return Turned.of(to_host(state.scatter_dd), matrix_dk)


@dataclass(frozen=True, slots=True)
class SVD:
    """Singular values, SV90, effective ranks: centred and uncentred."""

    name: str = "svd"
    description: str = (
        "spectra of every site and layer: SV90, effective rank, energy, centred and not"
    )

    def plan(self, selection: Selection) -> Plan:
        """Return one scatter fold for each row array."""
        folds = {
            key: make_scatter_fold(selection, view, key)
            for view in selection.captures
            for key in selection.row_keys(view)
        }
        if not folds:
            msg = (
                "svd needs the rows of at least one site; the store holds none of those asked for. "
                "Record them: `record.sites` with `record.frames: valid`."
            )
            raise MissingSitesError(msg)
        return Plan(partial(_conclude, folds), tuple(folds.values()))


def make_scatter_fold(selection: Selection, view: View, key: ArrayKey) -> ScatterFold:
    """Return the scatter fold of one array; B outputs span no more than the adapter's rank."""
    info = view.info(key)
    rank = info.width
    adapter = view.attrs.get("adapter") or {}
    if matches(key.site, "lora_b") and adapter.get("r"):
        rank = min(rank, int(adapter["r"]))
    itemsize = 8 if info.dtype == "float64" else 4
    partner = find_projection(selection.source, key)
    return ScatterFold(key, info.width, rank, itemsize, partner, selection.device)


def _conclude(folds: dict[ArrayKey, ScatterFold], outcome: Outcome) -> dict[str, Table]:
    rows, spectrum = [], []
    for key, fold in folds.items():
        spectra: Spectra = outcome.folds[fold]
        view = outcome.selection.source.views[key.capture]
        place = {"capture": key.capture, "site": key.site, "layer": key.layer}
        for centred, sigma in ((True, spectra.centred), (False, spectra.uncentred)):
            head = {**place, "centred": centred, "mask": mask_of(view, key.site)}
            noise = _compare_with_noise(fold, view, spectra, sigma, centred=centred)
            reason = spectra.reason or ("constant features" if not sigma.any() else "")
            if not reason and noise["independent"] < 2:
                reason = f"noise: {noise['independent']:.0f} samples; at least 2 are needed"
            rows.append(
                {
                    **head,
                    "n": spectra.n,
                    "exposed": describe_exposure(view, view.samples),
                    **describe_spectrum(sigma),
                    **noise,
                    "reason": reason,
                }
            )
            ends = {name: rows[-1][name] for name in ("n", "exposed", "reason")}
            spectrum.append(_tabulate(head | ends, sigma))
    attrs = {
        "arithmetic": "block-centred products in the stored precision, summed in float64",
        "resolution": "float32 products: singular values below 2e-4 of the largest are rounding",
        "noise": (
            "eigenvalues above the edges of Marchenko-Pastur and of shuffled columns, for as "
            "many independent rows as there are samples: frames of one sample are dependent; "
            "mp_edge is NaN where more than half of the directions are above it: no bulk of noise"
        ),
        "rank_lora_b": "B outputs have at most r singular values; the rounding beyond is left out",
    }
    return {
        "svd": Table(pd.DataFrame(rows), attrs),
        "spectrum": Table(pd.concat(spectrum, ignore_index=True), attrs),
    }


def _compare_with_noise(
    fold: ScatterFold,
    view: View,
    spectra: Spectra,
    sigma: NDArray[np.float64],
    *,
    centred: bool,
) -> dict[str, float]:
    counts = view.rows[view.info(fold.key).stream][view.samples]
    return compare_with_noise(
        sigma,
        np.zeros(0) if spectra.squares is None else spectra.squares[not centred],
        rows=spectra.n,
        independent=int(np.count_nonzero(counts)),
        dimension=fold.rank,
    )


def _tabulate(head: dict[str, object], sigma: NDArray[np.float64]) -> pd.DataFrame:
    """Return one row for each singular value, with its part of the energy."""
    energy = np.square(sigma)
    columns: dict[str, object] = {**head, "index": np.arange(1, sigma.size + 1)}
    columns |= {"singular_value": sigma, "energy": energy / max(float(energy.sum()), _TINY)}
    return pd.DataFrame(columns)
