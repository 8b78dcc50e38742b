"""LoRA A against LoRA B, forward and backward, beside what a B of random orientation would show.

Both similarities are high or low for any B of the same singular values, whatever training did; what
it did is the difference to that null.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd

from ..errors import AnalysisInputError, MissingSitesError
from ..fold import ArrayKey
from ..plan import Outcome, Plan, Table, describe_exposure
from ..selection import Selection
from ..spectra.planned import plan_scatters
from ..spectra.scatter_fold import ScatterFold, Spectra
from .projection import Projection, direction_of, module_of


@dataclass(frozen=True, slots=True)
class Alignment:
    """CKA of LoRA A with LoRA B from the rows of one side, and its structural null.

    Notes
    -----
    Outputs: X of A against X B' of B. Gradients: G at B's output against G B at A's. Both follow
    from one side's rows and the matrix (`Turned`), over all rows of a capture, and over those with
    audio where padding was recorded. O(width³) once, and draws · width · rank² operations.
    """

    draws: int = 499
    """Random orientations."""
    name: str = "alignment"
    description: str = (
        "LoRA A against LoRA B, forward and backward, beside a B of random orientation"
    )

    def plan(self, selection: Selection) -> Plan:
        """Return the scatter of A's outputs and of the gradients at B's."""
        if self.draws < 1:
            msg = f"alignment needs at least 1 draw, not {self.draws}."
            raise AnalysisInputError(msg)
        scatters = plan_scatters(selection)
        folds = {
            (key, mask): scatters.fold(key, mask)
            for key in scatters.frames
            if direction_of(key.site)
            for mask in scatters.masks(key)
        }
        if not folds:
            msg = (
                "alignment needs rows of lora_a, or gradients of lora_b; the store holds none of "
                "those asked for. Record them: `record.sites: [lora_a]`, "
                "`record.gradients: [lora_b]`."
            )
            raise MissingSitesError(msg)
        return Plan(partial(_conclude, self, folds), tuple(folds.values()))


type _Folds = dict[tuple[ArrayKey, str], ScatterFold]
"""By array and mask."""


def _conclude(alignment: Alignment, folds: _Folds, outcome: Outcome) -> dict[str, Table]:
    rows = list(outcome.runner.map(partial(_row, alignment, folds, outcome), list(folds)))
    attrs = {
        "value": "biased CKA of all rows that `mask` names, from their scatter and the matrix B",
        "null": "B with the same singular values, left singular vectors uniform (Haar)",
        "null_draws": alignment.draws,
        "p_value": "two-sided: how rarely a random orientation is as far from the others",
    }
    return {"alignment": Table(pd.DataFrame(rows), attrs)}


def _row(
    alignment: Alignment, folds: _Folds, outcome: Outcome, array: tuple[ArrayKey, str]
) -> dict[str, object]:
    key, mask = array
    view = outcome.selection.source.views[key.capture]
    spectra: Spectra = outcome.folds[folds[array]]
    row: dict[str, object] = {
        "capture": key.capture,
        "module": module_of(key.site),
        "layer": key.layer,
        "direction": direction_of(key.site),
        "mask": mask,
        "n": spectra.n,
        "exposed": describe_exposure(view, view.samples),
        "reason": spectra.reason or _fault(folds[array].projection, spectra),
    }
    if row["reason"] or spectra.turned is None:
        return row
    null = spectra.turned.draw(
        alignment.draws, zlib.crc32(f"{outcome.selection.seed}/{key}".encode())
    )
    value = spectra.turned.cka()
    as_far = min(int(np.sum(null >= value)), int(np.sum(null <= value)))
    low, high = np.percentile(null, [2.5, 97.5])
    return row | {
        "value": value,
        "null_mean": float(null.mean()),
        "null_low": float(low),
        "null_high": float(high),
        "p_value": min(1.0, 2 * (1 + as_far) / (1 + null.size)),
    }


def _fault(projection: Projection | None, spectra: Spectra) -> str:
    """Return why there is no similarity; empty where there is."""
    if projection is None or projection.matrix_dk is None:
        name = "B" if projection is None else projection.parameter
        return f"the store holds no matrix {name} of this width"
    if not np.isfinite(projection.matrix_dk).all():
        return "NaN or infinite values in B"
    if not projection.matrix_dk.any():
        return "B = 0"
    return "" if spectra.centred.any() else "constant features"
