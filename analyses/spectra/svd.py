"""Spectra of the rows of every site and layer: how many directions the activations use."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..errors import MissingSitesError
from ..fold import ArrayKey
from ..plan import Outcome, Plan, Table, describe_exposure
from ..selection import Selection
from ..source import View
from .angles import Leading, compare_directions
from .intervals import bound_measures
from .nulls import compare_with_noise
from .planned import ScatterPlan, plan_scatters
from .scatter_fold import ScatterFold, Spectra
from .spectrum import describe_spectrum
from .tail import Tail, TailFold

_TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True, slots=True)
class Array:
    """One array, some or all of its rows, and how they are summed up."""

    key: ArrayKey
    mask: str
    """Which frames its rows are, as in the tables."""
    fold: ScatterFold
    tail: TailFold | None
    """What gives the small singular values; None: the scatter matrix gives them all."""


@dataclass(frozen=True, slots=True)
class SVD:
    """Singular values, SV90, effective ranks: centred and uncentred; angles between captures.

    Notes
    -----
    From a scatter matrix of float32 products, which resolves singular values above about 2e-4 of
    the largest. `tail=True` streams the rows through a QR decomposition in float64 as well: values
    down to 1e-15 of the largest, at about 6 times the time.
    """

    tail: bool = False
    """Whether singular values come from a QR decomposition."""
    name: str = "svd"
    description: str = (
        "spectra of every site and layer: SV90, effective rank, energy, centred and not; angles"
    )

    def plan(self, selection: Selection) -> Plan:
        """Return a scatter fold for each row array and mask, and a QR fold where asked for."""
        scatters = plan_scatters(selection)
        arrays = [
            _make_array(scatters, key, mask, tail=self.tail)
            for key in scatters.frames
            for mask in scatters.masks(key)
        ]
        if not arrays:
            msg = (
                "svd needs the rows of at least one site; the store holds none of those asked for. "
                "Record them: `record.sites` with `record.frames: valid`."
            )
            raise MissingSitesError(msg)
        tails = [one.tail for one in arrays if one.tail is not None]
        folds = (*(one.fold for one in arrays), *tails)
        return Plan(partial(_conclude, scatters, arrays), folds, notes=scatters.notes)


def _make_array(scatters: ScatterPlan, key: ArrayKey, mask: str, *, tail: bool) -> Array:
    fold = scatters.fold(key, mask)
    qr = TailFold(key, fold.width, fold.rank, fold.mask, fold.frames) if tail else None
    return Array(key, mask, fold, qr)


def _conclude(scatters: ScatterPlan, arrays: list[Array], outcome: Outcome) -> dict[str, Table]:
    rows, spectrum = [], []
    for array in arrays:
        spectra = _spectra(array, outcome)
        view = outcome.selection.source.views[array.key.capture]
        head = {
            "capture": array.key.capture,
            "site": array.key.site,
            "layer": array.key.layer,
            "mask": array.mask,
            "n": spectra.n,
            "exposed": describe_exposure(view, view.samples),
        }
        for centred in (True, False):
            row = {**head, "centred": centred, **_describe(array, view, spectra, centred=centred)}
            rows.append(row)
            sigma = spectra.centred if centred else spectra.uncentred
            ends = {"centred": centred, "reason": row["reason"]}
            spectrum.append(_tabulate(head | ends, sigma))
    attrs = _describe_choices(scatters, tail=any(one.tail is not None for one in arrays))
    tables = {
        "svd": Table(pd.DataFrame(rows), attrs),
        "spectrum": Table(pd.concat(spectrum, ignore_index=True), attrs),
    }
    angles = compare_directions(_leading(arrays, outcome))
    return tables if angles is None else {**tables, "angles": angles}


def _leading(arrays: list[Array], outcome: Outcome) -> dict[tuple[str, str, int], Leading]:
    """Return the arrays whose directions were kept, with the spectra that those belong to."""
    views = outcome.selection.source.views
    return {
        (one.key.capture, one.key.site, one.key.layer): Leading(
            views[one.key.capture],
            one.key.site,
            one.key.layer,
            one.mask,
            one.fold.width,
            one.fold.itemsize,
            outcome.folds[one.fold],
        )
        for one in arrays
        if one.fold.directions
    }


def _spectra(array: Array, outcome: Outcome) -> Spectra:
    """Return the singular values of an array, those of QR where it has run."""
    spectra: Spectra = outcome.folds[array.fold]
    if array.tail is None or spectra.reason:
        return spectra
    found: Tail = outcome.folds[array.tail]
    return replace(spectra, centred=found.centred, uncentred=found.uncentred)


def _describe(
    array: Array, view: View, spectra: Spectra, *, centred: bool
) -> dict[str, float | str]:
    """Return the numbers of one spectrum, their intervals, and why there are none."""
    sigma = spectra.centred if centred else spectra.uncentred
    measures = describe_spectrum(sigma)
    noise = _compare_with_noise(array.fold, view, spectra, sigma, centred=centred)
    spread = None if spectra.spreads is None else spectra.spreads[not centred]
    reason = spectra.reason or ("constant features" if not sigma.any() else "")
    if not reason and noise["independent"] < 2:
        reason = f"noise: {noise['independent']:.0f} samples; at least 2 are needed"
    bounds = bound_measures(measures, spread, sigma.size)
    return {**measures, **bounds, **noise, "reason": reason}


def _describe_choices(scatters: ScatterPlan, *, tail: bool) -> dict[str, str]:
    return {
        "arithmetic": "QR in float64; intervals and angles: as without it"
        if tail
        else "block-centred products in the stored precision, summed in float64",
        "resolution": "1e-15 of the largest"
        if tail
        else (
            "float32 products: singular values below 2e-4 of the largest are rounding; what "
            "cannot be told from 0 is 0"
        ),
        "noise": (
            "eigenvalues above the edges of Marchenko-Pastur and of shuffled columns, for as "
            "many independent rows as there are samples: frames of one sample are dependent; "
            "mp_edge is NaN where more than half of the directions are above it: no bulk of noise"
        ),
        "rank_lora_b": "B outputs have at most r singular values; the rounding beyond is left out",
        "interval": scatters.jackknife.describe(),
        "interval_note": scatters.jackknife.note,
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
    if fold.frames is not None and fold.frames.valid_n is not None:
        counts = np.minimum(counts, fold.frames.valid_n[view.samples])
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
