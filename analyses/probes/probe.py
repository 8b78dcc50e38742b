"""What linear classifiers read from each layer about speakers they have not heard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..errors import AnalysisInputError, MemoryBudgetError, MissingSitesError
from ..fold import ArrayKey
from ..memory import USABLE, format_bytes
from ..plan import Outcome, Plan, Table
from ..selection import Selection, matches
from . import closed_form, nested
from .left_out import Predicted, predict_closed_form, predict_logistic
from .logistic import count_bytes
from .nested import PENALTIES
from .scoring import Row, score_probe
from .task import Task, check_grouping, find_grouping, make_task

DEFAULT_SITES = ("embed", "resid_post", "encoder_out", "lora_a", "lora_b")
"""Sites that are probed unless others are asked for."""
PROBES = ("logistic", "ridge", "lda")
"""Values of the column `probe`, in the order of the rows."""
_SHARE = 0.3
"""Part of the memory that one array's probe may take, beside the pooled features that are held."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Linear probes of pooled features, leaving one speaker out: logistic, ridge and LDA.

    Notes
    -----
    Features are standardised with the mean and deviation of the training speakers of each fold. C
    is fixed beforehand, or chosen among the training speakers (`c="nested"`), so nothing is chosen
    on the speaker that is left out. The control task permutes labels within each speaker;
    selectivity is UAR minus its mean UAR. `nested` takes ridge one eigendecomposition more a fold;
    it takes the logistic probe speakers · (speakers - 1) / 2 fits for each of 7 penalties.
    """

    c: float | Literal["nested"] = 0.01
    """Inverse weight of the squared weights (logistic: as in scikit-learn; ridge: 1/alpha)."""
    shuffles: int = 10
    """Control label sets."""
    by: str | None = None
    """Group column of which one is left out (`session`); None: the speaker, else the first one."""
    shrinkage: float | None = None
    """Of LDA, between 0 and 1; None: oracle approximating shrinkage of each training part."""
    probes: tuple[str, ...] = PROBES
    """Which probes: of `logistic`, `ridge`, `lda`."""
    name: str = "probe"
    description: str = (
        "logistic, ridge and LDA probes of pooled features, one speaker left out: UAR, selectivity"
    )

    def plan(self, selection: Selection) -> Plan:
        """Return the pooled arrays to probe."""
        _check_options(self)
        keys = choose_arrays(selection)
        check_grouping(selection.source, selection.captures, self.by)
        for key in keys:
            needed = _count_bytes(self, key, selection)
            check_memory(f"the probe of {key}", needed, selection)
        return Plan(partial(_conclude, self, keys), (), keys)


def choose_arrays(selection: Selection) -> tuple[ArrayKey, ...]:
    """Return the pooled arrays to probe.

    Raises
    ------
    MissingSitesError
        No arrays, labels or groups; says what to record.
    """
    chosen = selection.sites is not None
    keys = tuple(
        key
        for view in selection.captures
        for key in selection.pooled_keys(view)
        if chosen or any(matches(key.site, site) for site in DEFAULT_SITES)
    )
    if not keys:
        msg = (
            "probe needs pooled features (mean_valid) or rows of one of "
            f"{', '.join(DEFAULT_SITES)}, and the store holds none of them. "
            "Record them: `record.pool: [mean_valid]`, or name --sites."
        )
        raise MissingSitesError(msg)
    if not any(view.group_name and (view.label_n != "").any() for view in selection.captures):
        msg = (
            "probe needs a label and a group (speaker) for every sample; the store holds none. "
            'Record them: `append(..., label="anger", groups={"speaker": "01"})`.'
        )
        raise MissingSitesError(msg)
    return keys


def check_memory(what: str, needed: int, selection: Selection) -> None:
    """Raise MemoryBudgetError where something takes more than the part that is there for it."""
    if needed > _SHARE * selection.memory_bytes:
        msg = (
            f"memory {format_bytes(selection.memory_bytes)} is too little: {what} takes "
            f"{format_bytes(needed)}, and {_SHARE:.0%} of the memory is there for it. "
            f"Allow at least {format_bytes(needed / _SHARE)} (--memory)."
        )
        raise MemoryBudgetError(msg)


def count_together(largest: int, outcome: Outcome) -> int:
    """Return how many pieces of work of `largest` bytes fit beside the features that are held."""
    room = int(USABLE * outcome.selection.memory_bytes) - outcome.pooled.held_bytes
    return max(1, min(outcome.runner.workers, room // max(largest, 1)))


def make_tasks(selection: Selection, *, shuffles: int, by: str | None) -> dict[str, Task]:
    """Return what is predicted in each capture, by its name."""
    source = selection.source
    return {
        view.name: make_task(
            view,
            source.ids,
            shuffles=shuffles,
            seed=selection.seed,
            grouping=find_grouping(source, view, by),
        )
        for view in selection.captures
    }


def _check_options(probe: Probe) -> None:
    """Raise AnalysisInputError where an option is outside of its range."""
    if (isinstance(probe.c, str) and probe.c != "nested") or probe.shuffles < 0:
        msg = f"probe needs C > 0 or 'nested', and shuffles >= 0: {probe.c!r}, {probe.shuffles}."
        raise AnalysisInputError(msg)
    if not isinstance(probe.c, str) and probe.c <= 0:
        msg = f"probe needs C > 0 and shuffles >= 0, not {probe.c} and {probe.shuffles}."
        raise AnalysisInputError(msg)
    if probe.shrinkage is not None and not 0 < probe.shrinkage < 1:
        msg = f"the shrinkage of LDA lies between 0 and 1, both excluded; got {probe.shrinkage}."
        raise AnalysisInputError(msg)
    unknown = [name for name in probe.probes if name not in PROBES]
    if unknown or not probe.probes:
        msg = f"no probe {', '.join(unknown) or 'at all'}. There are: {', '.join(PROBES)}."
        raise AnalysisInputError(msg)


def _count_bytes(probe: Probe, key: ArrayKey, selection: Selection) -> int:
    """Return the memory that the probe of one array takes: its features five times, and the fit."""
    view = selection.source.views[key.capture]
    n, width = view.samples.size, view.info(selection.stored_key(key)).width
    columns = (probe.shuffles + 1) * len(set(view.label_n[view.samples].tolist()))
    grouping = find_grouping(selection.source, view, probe.by)
    sizes = np.unique(grouping.group_n[view.samples].astype(str), return_counts=True)[1]
    groups = sizes.size
    closed = closed_form.count_bytes(n, width, groups, columns)
    if probe.c == "nested":
        closed += nested.count_bytes(n, width, int(sizes.max(initial=0)))
    fit = max(count_bytes(n, width, columns), closed if set(probe.probes) - {"logistic"} else 0)
    return 5 * 8 * n * width + fit


def _conclude(probe: Probe, keys: Sequence[ArrayKey], outcome: Outcome) -> dict[str, Table]:
    selection = outcome.selection
    tasks = make_tasks(selection, shuffles=probe.shuffles, by=probe.by)

    def work(key: ArrayKey) -> tuple[dict[str, Predicted], str]:
        task = tasks[key.capture]
        if task.reason:
            return {}, task.reason
        x_nd = outcome.pooled.matrix(key, task.samples)
        reason = why_unreadable(x_nd)
        return ({} if reason else predict_all(probe, x_nd, task)), reason

    largest = max(_count_bytes(probe, key, selection) for key in keys)
    together = count_together(largest, outcome)
    found = dict(zip(keys, outcome.runner.map(work, keys, together), strict=True))
    rows: list[Row] = []
    for capture, task in tasks.items():
        mine = [key for key in keys if key.capture == capture]
        for name in probe.probes:
            rows += score_probe(
                name,
                mine,
                {key: found[key][0][name] for key in mine if found[key][0]},
                {key: found[key][1] for key in mine},
                task,
                selection,
                single_folds=name == "logistic" or probe.c == "nested",
            )
    return {"probe": Table(pd.DataFrame(rows), describe_probe(probe))}


def why_unreadable(x_nd: NDArray) -> str:
    """Return why features cannot be probed; empty where they can."""
    if not np.isfinite(x_nd).all():
        return "NaN or infinite features"
    return "constant features" if (x_nd == x_nd[:1]).all() else ""


def predict_all(probe: Probe, x_nd: NDArray, task: Task) -> dict[str, Predicted]:
    """Return what each probe says of every sample, by name."""
    c = None if isinstance(probe.c, str) else probe.c
    found: dict[str, Predicted] = {}
    if "logistic" in probe.probes:
        found["logistic"] = predict_logistic(x_nd, task, c)
    if set(probe.probes) - {"logistic"}:
        penalty = None if c is None else 1 / c
        found |= predict_closed_form(x_nd, task, penalty=penalty, shrinkage=probe.shrinkage)
    return found


def describe_probe(probe: Probe) -> dict[str, object]:
    """Return how the table was made."""
    grid = f"{1 / PENALTIES[0]:g} … {1 / PENALTIES[-1]:g}"
    chosen = (
        f"chosen of {grid} by UAR, leaving one more {probe.by or 'speaker'} of the training out"
    )
    c = f"C {chosen}" if probe.c == "nested" else f"C = {probe.c}"
    shrinkage = "oracle approximating shrinkage" if probe.shrinkage is None else probe.shrinkage
    by = probe.by or "speaker"
    return {
        "classifier": f"multinomial logistic, L2, {c}, standardised on training {by}s",
        "ridge": f"least squares to one-hot labels, {c}; scores are no probabilities: no nll, ece",
        "lda": f"shared covariance, shrunk to a scaled identity: {shrinkage}",
        "penalty": "weight of the squared weights (1/C); of lda the shrinkage; `all`: the median",
        "control": f"labels permuted within speaker, mean of {probe.shuffles} shuffles",
        "interval": f"cluster bootstrap over {by}s of the pooled predictions, 95 %",
        "p_value": "corrected t over folds (Nadeau and Bengio): UAR above its control "
        "(without one: above guessing), one-sided; none where all folds differ by the same",
        "p_first": "the same for the difference to the first layer of the site, two-sided",
        "p_holm": "Holm, over the layers of one site of one capture and probe",
        "ece": "10 equal bins of the top probability",
    }
