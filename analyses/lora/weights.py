"""The adapters themselves: spectra of A, B and BA, intruders, drift, and shared directions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..errors import MissingSitesError
from ..memory import format_bytes
from ..plan import Outcome, Plan, Table, comparable
from ..selection import Selection
from ..spectra.spectrum import describe_spectrum
from ..statistics.subspaces import leading_directions, overlap, random_overlap
from .adapters import Adapter, Place, find_places
from .factors import count_intruders, left_vectors

MATRICES = ("A", "B", "BA")
FIRST, SIMILAR = 10, 0.5
"""Vectors looked at for intruders, and the cosine that none of the base's reaches."""
_MEASURES = ("sv90", "sv90_interpolated", "erank", "stable_rank")
_COPIES = 8
"""Float64 matrices of the size of the base weight that its decomposition holds at once."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Tables `weights` and `subspaces`: what the stored A and B are, without a pass over samples.

    Notes
    -----
    Of A [r, inputs], B [outputs, r] and s B A: the spectrum by thin QR and an r x r SVD, the
    Frobenius norm, and for captures of one training ‖M - M₀‖/‖M₀‖ and the cosine of M and M₀, M₀
    being the earliest capture of that training. s is the scaling that the adapter was run with
    (alpha / r, or alpha / √r when rank-stabilised).

    `intruders` counts, among the first 10 left singular vectors of W + s B A, those whose absolute
    cosine with every left singular vector of W is below 0.5 [1]_; it needs the base weight W
    (`record.base_weights`).

    `subspaces` compares the k leading directions of A's row space (inputs) and B's column space
    (outputs) of two captures: ‖U'V‖²/k [2]_, 0 to 1; random directions share k/d.

    Time O(d r²) a module, O(d³) with W; memory of one module of all captures.

    References
    ----------
    .. [1] Shuttleworth et al., LoRA vs full fine-tuning, arXiv 2410.21228.
    .. [2] Hu et al., LoRA, arXiv 2106.09685, section 7.2.
    """

    name: str = "weights"
    description: str = "A, B and BA of every adapter: spectra, intruders, drift, shared directions"

    def plan(self, selection: Selection) -> Plan:
        """Return a plan that reads parameters alone."""
        found = {view.name: find_places(view, selection) for view in selection.captures}
        places = {name: modules for name, modules in found.items() if modules}
        if not places:
            msg = (
                "weights needs the matrices of an adapter (adapter.<layer>.<module>.lora_a and "
                ".lora_b among the parameters of a capture); the store holds none of the captures "
                "and layers asked for. Record a capture with `captures.<name>.adapter`."
            )
            raise MissingSitesError(msg)
        return Plan(partial(_conclude, places))


def _conclude(places: Mapping[str, list[Place]], outcome: Outcome) -> dict[str, Table]:
    rows: list[dict[str, object]] = []
    shared: list[dict[str, object]] = []
    for place in sorted({place for found in places.values() for place in found}):
        views = [v for v in outcome.selection.captures if place in places.get(v.name, ())]
        loaded = {view.name: Adapter.load(view, place, outcome.selection) for view in views}
        rows += _weight_rows(loaded, outcome)
        shared += _subspace_rows(loaded)
    order = {view.name: number for number, view in enumerate(outcome.selection.captures)}
    rows.sort(key=lambda row: order[str(row["capture"])])
    shared.sort(key=lambda row: (order[str(row["capture_a"])], order[str(row["capture_b"])]))
    common = {"n_is": "rank of the adapter", "exposed": "only: made by training samples alone"}
    attrs = {
        **common,
        "intruders": f"of the first {FIRST} left singular vectors, |cosine| below {SIMILAR}",
        "change_from_first": "norm of the difference to the earliest step, by its norm there",
        "scaling": "BA is s B A with the scaling s of the capture",
    }
    tables = {"weights": Table(pd.DataFrame(rows), attrs)}
    if shared:
        note = "squared cosines of the spans over their dimension; random spans share k / features"
        tables["subspaces"] = Table(pd.DataFrame(shared), {**common, "overlap": note})
    return tables


def _first_of(adapters: Mapping[str, Adapter]) -> dict[str, Adapter]:
    """Return for each capture of a training the earliest one, where there are several."""
    trainings: dict[str, list[Adapter]] = {}
    for one in adapters.values():
        of, step = one.view.attrs.get("of"), one.view.attrs.get("step")
        if isinstance(of, str) and isinstance(step, int) and not isinstance(step, bool):
            trainings.setdefault(of, []).append(one)
    return {
        one.view.name: min(moments, key=lambda moment: moment.view.attrs["step"])
        for moments in trainings.values()
        if len(moments) > 1
        for one in moments
    }


def _weight_rows(adapters: Mapping[str, Adapter], outcome: Outcome) -> Iterator[dict[str, object]]:
    """Give the rows of one module, for all captures and matrices."""
    firsts = _first_of(adapters)
    bases = _Bases(outcome)
    for name, one in adapters.items():
        for matrix in MATRICES:
            row = {**one.head, "matrix": matrix}
            if one.reason:
                yield {**row, "reason": one.reason}
                continue
            product = one.product(matrix)
            known = matrix != "BA" or one.scaling is not None
            norm = product.norm() if known else np.nan
            measures = describe_spectrum(product.singular_values())
            row |= {key: measures[key] for key in _MEASURES} | {"fro_norm": norm}
            reasons = [] if np.isfinite(measures["sv90"]) else [one.why_zero]
            reasons += [] if known else ["the scaling of the adapter is unknown"]
            drift, why = _drift(one, firsts.get(name), matrix)
            row |= drift
            reasons += why
            if matrix == "BA":
                row["intruders"], why = bases.intruders(one)
                reasons += why
            yield {**row, "reason": "; ".join(dict.fromkeys(reasons))}


def _drift(one: Adapter, first: Adapter | None, matrix: str) -> tuple[dict[str, object], list[str]]:
    """Return how far a matrix is from where it was first captured, and why that is not known."""
    if first is None:
        return {}, []
    found: dict[str, object] = {"first_step": first.view.attrs["step"]}
    if first.reason or first.a.shape != one.a.shape or first.b.shape != one.b.shape:
        return found, [first.reason or "the first step has other shapes"]
    now, then = one.product(matrix), first.product(matrix)
    before, norm = then.norm(), now.norm()
    if not before > 0:
        return found, [f"{first.why_zero} at the first step"]
    found["change_from_first"] = now.minus(then).norm() / before
    if norm > 0:
        found["cosine_to_first"] = now.dot(then) / (norm * before)
    return found, []


class _Bases:
    """Base weights of one module, the vectors of the last one kept: captures often share them."""

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome
        self._base: NDArray[np.float64] | None = None
        self._vectors: NDArray[np.float64] | None = None

    def intruders(self, one: Adapter) -> tuple[float, list[str]]:
        """Return the number of intruders, or NaN and why."""
        base = self._find(one)
        if base is None:
            return np.nan, ["intruders: no base weight is stored (`record.base_weights: true`)"]
        if base.shape != (one.b.shape[0], one.a.shape[1]):
            return np.nan, [f"intruders: the base weight has shape {base.shape}"]
        if not np.isfinite(base).all():
            return np.nan, ["intruders: NaN or infinite base weights"]
        needed, memory = 8 * _COPIES * base.size, self._outcome.selection.memory_bytes
        if needed > memory:
            why = f"intruders: about {format_bytes(needed)} of memory are needed"
            return np.nan, [why]
        if one.scaling is None:
            return np.nan, []
        if self._base is None or self._vectors is None or not np.array_equal(self._base, base):
            self._base, self._vectors = base, left_vectors(base)
        after = left_vectors(one.product("BA").added_to(base))
        return float(count_intruders(self._vectors, after, first=FIRST, similar=SIMILAR)), []

    def _find(self, one: Adapter) -> NDArray[np.float64] | None:
        """Return the base weight, from the capture or from the end of its training."""
        source, name = self._outcome.selection.source, f"base.{one.place.stem}"
        for capture in (one.view.name, one.view.attrs.get("of")):
            if isinstance(capture, str) and capture in source.views:
                parameters = source.capture(capture).parameters
                if name in parameters:
                    return np.asarray(parameters[name], dtype=np.float64)
        return None


def _subspace_rows(adapters: Mapping[str, Adapter]) -> Iterator[dict[str, object]]:
    """Give the overlaps of one module between captures."""
    for matrix in ("A", "B"):
        usable = [one for one in adapters.values() if not one.reason]
        spans = [leading_directions(one.a.T if matrix == "A" else one.b) for one in usable]
        for i, left in enumerate(usable):
            for j in range(i + 1, len(usable)):
                if comparable(left.view, usable[j].view):
                    yield from _compare(left, usable[j], matrix, (spans[i], spans[j]))


def _compare(
    left: Adapter,
    right: Adapter,
    matrix: str,
    spans: tuple[NDArray[np.float64], NDArray[np.float64]],
) -> Iterator[dict[str, object]]:
    """Give one row for 1, 2, 4, … directions, and one for all that both have."""
    row: dict[str, object] = {
        "capture_a": left.view.name,
        "capture_b": right.view.name,
        "module": left.place.module,
        "layer": left.place.layer,
        "matrix": matrix,
        "n": min(left.a.shape[0], right.a.shape[0]),
        "exposed": "only" if "only" in (left.head["exposed"], right.head["exposed"]) else "none",
    }
    features = spans[0].shape[0]
    most = min(span.shape[1] for span in spans)
    if features != spans[1].shape[0] or most == 0:
        empty = (left if spans[0].shape[1] == 0 else right).why_zero
        why = empty if most == 0 else "matrices of other sizes"
        yield {**row, "directions": 0, "reason": why}
        return
    for count in sorted({*(2**i for i in range(most.bit_length())), most}):
        yield {
            **row,
            "directions": count,
            "overlap": overlap(*(span[:, :count] for span in spans)),
            "overlap_random": random_overlap(features, count, count),
            "reason": "",
        }
