"""Spectra of LoRA outputs and gradients as published: SV90 and top-10 energy, uncentred."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from ..fold import ArrayKey
from ..masks import Frames
from ..plan import Outcome, describe_exposure
from ..selection import Selection, matches
from ..source import View
from ..spectra.planned import ScatterPlan, plan_scatters
from ..spectra.scatter_fold import ScatterFold, Spectra
from ..spectra.spectrum import describe_spectrum
from .captures import baseline_of, is_trained_adapter
from .frames import note_padding
from .quantity import NAN, Part, Place, Quantity, Value

SITES = ("lora_a", "lora_b", "grad.lora_a", "grad.lora_b")
"""Sites whose spectra are published."""
_COLUMNS = {"sv90": "sv90", "top10_energy": "top10_energy"}


@dataclass(frozen=True, slots=True)
class _Array:
    """One array and the folds of its rows."""

    frames: Frames
    every: ScatterFold | None
    """All rows; None where padding was not recorded."""
    audio: ScatterFold | None
    """Rows with audio; None where they are not known."""


def plan_spectra(selection: Selection) -> Part:
    """Return the folds of every LoRA output and gradient."""
    scatters = plan_scatters(selection)
    arrays = {
        key: _plan_array(scatters, key)
        for key in scatters.frames
        if any(matches(key.site, site) for site in SITES)
    }
    if not arrays:
        return Part(missing="svd: `record.sites: [lora_a, lora_b]`, `record.gradients` likewise")
    folds = [fold for one in arrays.values() for fold in (one.every, one.audio) if fold is not None]
    notes = note_padding("svd: fault padding", (one.frames for one in arrays.values()))
    return Part(tuple(dict.fromkeys(folds)), quantities=partial(_quantities, arrays), notes=notes)


def _plan_array(scatters: ScatterPlan, key: ArrayKey) -> _Array:
    frames, fold = scatters.frames[key], scatters.fold(key)
    if not frames.has_padding:
        return _Array(frames, None, fold)
    if frames.valid_n is None:
        return _Array(frames, fold, None)
    return _Array(frames, fold, scatters.fold(key, "valid"))


def _faults(key: ArrayKey) -> tuple[str, ...]:
    swapped = ("swapped-gradients",) if matches(key.site, "grad.lora_b") else ()
    return ("padding", "uncentred", *swapped)


def _quantities(arrays: dict[ArrayKey, _Array], outcome: Outcome) -> list[Quantity]:
    quantities = [
        Quantity(
            "svd",
            name,
            Place(key.capture, key.site, key.layer),
            _faults(key),
            partial(_evaluate, arrays, outcome, key, name),
        )
        for name in _COLUMNS
        for key in arrays
    ]
    return quantities + _ratios(arrays, outcome)


def _evaluate(
    arrays: dict[ArrayKey, _Array],
    outcome: Outcome,
    key: ArrayKey,
    name: str,
    faults: frozenset[str],
) -> Value:
    view = outcome.selection.source.views[key.capture]
    exposed = describe_exposure(view, view.samples)
    if "swapped-gradients" in faults and matches(key.site, "grad.lora_b"):
        other = key.site.replace("grad.lora_b", "grad.lora_a", 1)
        key = ArrayKey(key.capture, other, key.layer)
        if key not in arrays:
            return Value(NAN, 0, exposed, f"{other} was not recorded, or not asked for")
    array = arrays[key]
    padded = "padding" in faults
    fold = array.every if padded else array.audio
    if fold is None:
        return Value(NAN, 0, exposed, array.frames.lacking(padded=padded))
    spectra: Spectra = outcome.folds[fold]
    sigma = spectra.uncentred if "uncentred" in faults else spectra.centred
    if spectra.reason or not sigma.any():
        return Value(NAN, spectra.n, exposed, spectra.reason or _why_zero(view, key))
    return Value(describe_spectrum(sigma)[_COLUMNS[name]], spectra.n, exposed)


def _why_zero(view: View, key: ArrayKey) -> str:
    family = "lora_b" if matches(key.site, "lora_b") else "grad.lora_a"
    if matches(key.site, family) and not is_trained_adapter(view):
        return "all values are 0: B = 0"
    return "constant features"


def _ratios(arrays: dict[ArrayKey, _Array], outcome: Outcome) -> list[Quantity]:
    """Return SV90 of the untrained over that of the trained adapter, means over layers."""
    views = outcome.selection.captures
    quantities = []
    for view in filter(is_trained_adapter, views):
        for site in dict.fromkeys(key.site for key in arrays if key.capture == view.name):
            faults = ("random-baseline", *_faults(ArrayKey(view.name, site, -1)))
            place = Place(view.name, site)
            evaluate = partial(_evaluate_ratio, arrays, outcome, view, site)
            quantities.append(Quantity("svd", "sv90_ratio", place, faults, evaluate))
    return quantities


def _evaluate_ratio(
    arrays: dict[ArrayKey, _Array],
    outcome: Outcome,
    view: View,
    site: str,
    faults: frozenset[str],
) -> Value:
    drawn = "random-baseline" in faults
    other = baseline_of(outcome.selection.captures, drawn=drawn)
    exposed = describe_exposure(view, view.samples)
    if other is None:
        kind = "init: normal" if drawn else "PEFT's own initial state"
        return Value(NAN, 0, exposed, f"no untrained capture with {kind} in the store")
    means, n = [], 0
    for one in (other, view):
        keys = [key for key in arrays if key.capture == one.name and key.site == site]
        values = [_evaluate(arrays, outcome, key, "sv90", faults) for key in keys]
        bad = next((value.reason for value in values if np.isnan(value.value)), "")
        if bad or not values:
            return Value(NAN, 0, exposed, f"{one.name}: {bad or f'{site} was not recorded'}")
        means.append(float(np.mean([value.value for value in values])))
        n = values[0].n
    place = Place(view.name, site, capture_b=other.name, site_b=site)
    return Value(means[0] / means[1], n, exposed, place=place)
