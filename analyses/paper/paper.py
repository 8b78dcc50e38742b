"""The analysis behind `--variant paper`: published quantities beside the corrected ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from ..errors import AnalysisInputError, MissingSitesError
from ..plan import Outcome, Plan, Table
from ..selection import Selection
from .contribution import plan_contribution
from .erasure import plan_erasure
from .faults import BY_NAME, FAULTS, PARTS, choose_faults
from .lens import plan_lens
from .quantity import Part, tabulate
from .scores import plan_scores
from .similarity import plan_similarity
from .spectra import plan_spectra

_PLANNERS: dict[str, Callable[[Selection], Part]] = {
    "contribution": plan_contribution,
    "lens": plan_lens,
    "svd": plan_spectra,
    "cka": plan_similarity,
    "erasure": plan_erasure,
    "outputs": plan_scores,
}
CONFIGURATION = """\
record:
  sites: [embed, resid_post, attn_out, mlp_out, lora_a, lora_b]
  gradients: [lora_a, lora_b]
  frames: all
interventions: [{erase: {layer: all, how: zero}}]"""
"""What a configuration needs so that every published quantity is there."""


@dataclass(frozen=True, slots=True)
class Paper:
    """Table `paper`: every published quantity corrected, as published, and fault by fault.

    Notes
    -----
    A quantity is a function of the faults that are on. `none` is corrected, `all` as published,
    and each fault stands alone beside the corrected value, so that its own effect is seen; effects
    do not add up. See docs/paper.md for each.

    References
    ----------
    arXiv 2509.08454, and its published code.
    """

    parts: tuple[str, ...] = PARTS
    """Analyses whose published counterparts are computed."""
    faults: tuple[str, ...] = ()
    """Faults that are shown alone; none means all."""
    name: str = "paper"
    description: str = "what the published code of arXiv 2509.08454 gives, fault by fault"

    @classmethod
    def of(cls, names: Sequence[str] | None, faults: Sequence[str]) -> Paper:
        """Return the analysis of what was asked for.

        Parameters
        ----------
        names
            Names of analyses; those without a published counterpart are passed over. None: all.
        faults
            Names of faults; none means all.

        Raises
        ------
        AnalysisInputError
            An unknown fault, a fault of none of the analyses, or no analysis with a counterpart.
        """
        chosen = choose_faults(faults)
        parts = PARTS if names is None else tuple(part for part in PARTS if part in names)
        if not parts:
            msg = (
                f"nothing was published of {', '.join(names or ())}. "
                f"The paper variant has {', '.join(PARTS)}."
            )
            raise AnalysisInputError(msg)
        for name in chosen:
            if not set(BY_NAME[name].parts) & set(parts):
                msg = (
                    f"fault {name!r} is one of {', '.join(BY_NAME[name].parts)}, "
                    f"which was not asked for: {', '.join(parts)}."
                )
                raise AnalysisInputError(msg)
        if chosen:
            affected = {part for name in chosen for part in BY_NAME[name].parts}
            parts = tuple(part for part in parts if part in affected)
        return cls(parts, chosen)

    def plan(self, selection: Selection) -> Plan:
        """Return everything that the published quantities need."""
        parts = {name: _PLANNERS[name](selection) for name in self.parts}
        if all(part.missing for part in parts.values()):
            wanted = "; ".join(part.missing for part in parts.values())
            msg = (
                f"paper finds none of what it needs in the store. Record it: {wanted}. "
                f"For everything that was published:\n{CONFIGURATION}"
            )
            raise MissingSitesError(msg)
        missing = {name: part.missing for name, part in parts.items() if part.missing}
        notes = [f"not in paper, record it: {what}" for what in missing.values()]
        notes += [note for part in parts.values() for note in part.notes]
        return Plan(
            partial(_conclude, self, parts, missing),
            tuple(dict.fromkeys(fold for part in parts.values() for fold in part.folds)),
            tuple(dict.fromkeys(key for part in parts.values() for key in part.pooled)),
            tuple(notes),
        )


def _conclude(
    paper: Paper, parts: Mapping[str, Part], missing: Mapping[str, str], outcome: Outcome
) -> dict[str, Table]:
    quantities = [one for part in parts.values() for one in part.quantities(outcome)]
    names = [fault.name for fault in FAULTS if set(fault.parts) & set(paper.parts)]
    attrs = {
        "variant": "paper",
        "faults": json.dumps(list(paper.faults or names)),
        "not_there": json.dumps(dict(missing)),
        "fault_none": "corrected",
        "fault_all": "as published: every fault of the quantity is on",
        "permuted": "mean over random pairings of the samples of both sides",
        "items": "cka: the first 10 of each class, as many as the paper has; corrected too",
    }
    return {"paper": Table(tabulate(quantities, paper.faults), attrs)}
