"""What linear probes read from single rows (frames, tokens): phones and the like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..errors import AnalysisInputError, MemoryBudgetError, MissingSitesError
from ..fold import ArrayKey
from ..memory import format_bytes
from ..plan import Outcome, Plan, Table, mask_of, unexposed_samples
from ..selection import Selection, matches
from ..source import View
from ..statistics.corrected import compare_folds, correct_holm
from ..statistics.metrics import unweighted_recall
from ..statistics.resampling import MIN_GROUPS, REPLICATES
from .row_classes import class_rows
from .row_fold import PROBES, RowFold, count_answers
from .row_labels import MAX_CLASSES, RowLabels, find_classes, name_classes, row_columns
from .scoring import Row

_SHARE = 0.2
"""Part of the memory that the weights of all probes may take until they have been counted."""


@dataclass(frozen=True, slots=True)
class RowProbe:
    """Ridge and LDA of single rows on a row column, leaving one speaker out, out of core.

    Notes
    -----
    A row column holds a class number for every row; rows with NaN or a number below 0 have no
    class. It is a row site without layers and of width 1 (`Site("phone", None, 1,
    stream="encoder")`), or was added to the store later (`add_row_column`, `lorascope ingest`):
    then it goes with every capture that has rows of its stream, by sample and position.
    Sums of every speaker are gathered in one pass; all probes follow from them; the rows are read
    once more to count their answers. Control: classes permuted among the rows of each sample.
    """

    rows: str | None = None
    """Name of the row column; None: every one that the store has."""
    c: float = 0.01
    """Inverse weight of the squared weights of ridge."""
    shrinkage: float | None = None
    """Of LDA, between 0 and 1; None: oracle approximating shrinkage."""
    shuffles: int = 1
    """Control label sets."""
    name: str = "row_probe"
    description: str = "ridge and LDA of single rows (phones, tokens), leaving one speaker out"

    def plan(self, selection: Selection) -> Plan:
        """Return a fold for every array of the stream of every row column."""
        if self.c <= 0 or self.shuffles < 0 or not 0 < (self.shrinkage or 0.5) < 1:
            msg = (
                "row_probe needs C > 0, shuffles >= 0 and a shrinkage between 0 and 1, "
                f"not {self.c}, {self.shuffles}, {self.shrinkage}."
            )
            raise AnalysisInputError(msg)
        columns = [
            (view, column)
            for view in selection.captures
            if view.group_name
            for column in row_columns(view)
            if self.rows in (None, column.site)
        ]
        if not columns:
            raise MissingSitesError(_absent(self.rows, selection))
        folds: list[RowFold] = []
        refused: dict[ArrayKey, str] = {}
        for view, column in columns:
            labels = _label(selection, view, column, self)
            if labels.reason:
                refused[column] = labels.reason
                continue
            folds += [
                RowFold(key, labels, view.info(key).width, 1 / self.c, self.shrinkage)
                for key in _arrays(selection, view, column)
            ]
        if not folds:
            why = "; ".join(f"{key.site} of {key.capture}: {why}" for key, why in refused.items())
            msg = f"no row column can be probed: {why or 'no rows beside them'}."
            raise MissingSitesError(msg)
        held = sum(fold.result_bytes for fold in folds)
        if held > _SHARE * selection.memory_bytes:
            msg = (
                f"memory {format_bytes(selection.memory_bytes)} is too little: the weights of all "
                f"row probes take {format_bytes(held)}, and {_SHARE:.0%} of it is there for them. "
                f"Allow at least {format_bytes(held / _SHARE)} (--memory), or fewer sites, layers."
            )
            raise MemoryBudgetError(msg)
        return Plan(partial(_conclude, self, tuple(folds), refused), tuple(folds))


def _absent(rows: str | None, selection: Selection) -> str:
    present = {key.site for view in selection.captures for key in row_columns(view)}
    asked = f"the row column {rows!r}" if rows else "a row column"
    return (
        f"row_probe needs {asked} and a group (speaker). Present: "
        f"{', '.join(sorted(present)) or 'none'}. `lorascope ingest STORE --rows FILE` adds one: a "
        "class for every row that has one, such as the phones of an alignment."
    )


def _arrays(selection: Selection, view: View, column: ArrayKey) -> list[ArrayKey]:
    """Return the row arrays of the column's stream, row columns and gradients aside."""
    stream = view.info(column).stream
    columns = row_columns(view)
    return [
        key
        for key in selection.row_keys(view)
        if view.info(key).stream == stream and key not in columns and not matches(key.site, "grad")
    ]


def _label(selection: Selection, view: View, column: ArrayKey, analysis: RowProbe) -> RowLabels:
    """Return the classes of a column, and who is left out; with a reason where that fails."""
    samples = unexposed_samples(view, through="adapter")
    kept = samples[view.group_n[samples] != ""]
    groups, number_n = np.unique(view.group_n[kept].astype(str), return_inverse=True)
    group_n = np.full(view.index_n.size, -1, dtype=np.int64)
    group_n[kept] = number_n
    classes = find_classes(selection.source, column, kept)
    reason = ""
    if groups.size < 2:
        reason = f"{groups.size} {view.group_name}; leaving one out needs at least 2"
    elif classes is None:
        reason = "it holds numbers that are not whole, so no classes"
    elif not 2 <= len(classes) <= MAX_CLASSES:
        more = "more than " if len(classes) > MAX_CLASSES else ""
        count = min(len(classes), MAX_CLASSES)
        reason = f"{more}{count} classes; 2 to {MAX_CLASSES} can be probed"
    return RowLabels(
        column,
        classes or (),
        name_classes(selection.source, column, classes or ()),
        group_n,
        tuple(groups.tolist()),
        selection.source.ids,
        analysis.shuffles,
        selection.seed,
        reason,
    )


def _conclude(
    analysis: RowProbe,
    folds: Sequence[RowFold],
    refused: Mapping[ArrayKey, str],
    outcome: Outcome,
) -> dict[str, Table]:
    source = outcome.selection.source

    def work(fold: RowFold) -> dict[str, NDArray[np.int64]] | str:
        models = outcome.folds[fold]
        return models if isinstance(models, str) else count_answers(source, fold, models)

    found = dict(zip(folds, outcome.runner.map(work, folds), strict=True))
    rows: list[Row] = []
    classes: list[Row] = []
    for fold in folds:
        counts = found[fold]
        for name in PROBES:
            rows.append(_row(fold, name, counts, outcome))
            if not isinstance(counts, str):
                classes += class_rows(_place(fold, name), fold.labels, counts[name])
    _correct(rows)
    for key, reason in refused.items():
        rows.append({"capture": key.capture, "site": "", "layer": -1, "rows": key.site, "n": 0})
        rows[-1] |= {"exposed": "none", "reason": reason}
    attrs = {
        "ridge": f"least squares to one-hot classes, C = {analysis.c}",
        "lda": f"shared covariance, shrinkage: {analysis.shrinkage or 'oracle approximating'}",
        "control": f"classes permuted within each sample, mean of {analysis.shuffles} sets",
        "interval": "bootstrap over speakers, 95 %; the rows of a speaker stay together",
        "p_value": "corrected t over folds (Nadeau and Bengio): UAR above its control, one-sided",
        "p_holm": "Holm, over the layers of one site, row column and probe",
    }
    of_classes = {name: attrs[name] for name in ("ridge", "lda", "control")}
    tables = {"row_probe": Table(pd.DataFrame(rows), attrs)}
    if classes:
        tables["row_probe_classes"] = Table(pd.DataFrame(classes), of_classes)
    return tables


def _place(fold: RowFold, name: str) -> Row:
    row: Row = {"capture": fold.key.capture, "site": fold.key.site, "layer": fold.key.layer}
    return row | {"rows": fold.labels.key.site, "probe": name}


def _row(
    fold: RowFold, name: str, found: dict[str, NDArray[np.int64]] | str, outcome: Outcome
) -> Row:
    """Return the scores of one probe of one array."""
    view = outcome.selection.source.views[fold.key.capture]
    row = _place(fold, name) | {"exposed": "none", "n": 0}
    row |= {"split": f"leave-one-{view.group_name}-out", "mask": mask_of(view, fold.key.site)}
    row |= {"classes": len(fold.labels.classes), "reason": found if isinstance(found, str) else ""}
    if isinstance(found, str):
        return row
    count_gskk = found[name]
    real_gkk, recall_gs = count_gskk[:, 0], unweighted_recall(count_gskk)
    pooled_s = unweighted_recall(count_gskk.sum(axis=0))
    low, high = _resample(real_gkk, outcome.selection.seed)
    total_kk = real_gkk.sum(axis=0)
    hits_k, occurs = np.diagonal(total_kk), total_kk.sum(axis=1) > 0
    f1_k = 2 * hits_k / np.maximum(total_kk.sum(axis=0) + total_kk.sum(axis=1), 1)
    control = float(pooled_s[1:].mean()) if pooled_s.size > 1 else float("nan")
    base_g = recall_gs[:, 1:].mean(axis=1) if pooled_s.size > 1 else 1 / occurs.sum()
    size_g = real_gkk.sum(axis=(1, 2))
    kept = size_g > 0
    ratio = float(np.mean(size_g / np.maximum(size_g.sum() - size_g, 1)))
    above_g = (recall_gs[:, 0] - base_g)[kept]
    return row | {
        "n": int(total_kk.sum()),
        "uar": float(pooled_s[0]),
        "uar_low": low,
        "uar_high": high,
        "war": float(hits_k.sum() / total_kk.sum()),
        "macro_f1": float(f1_k[occurs].mean()),
        "control_uar": control,
        "selectivity": float(pooled_s[0]) - control,
        "p_value": compare_folds(above_g[:, None], ratio, two_sided=False)[0],
    }


def _resample(count_gkk: NDArray[np.int64], seed: int) -> tuple[float, float]:
    """Return the 2.5 % and 97.5 % points of the UAR when speakers are drawn again."""
    n_groups = len(count_gkk)
    if n_groups < MIN_GROUPS:
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    times_bg = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=REPLICATES)
    low, high = np.percentile(
        unweighted_recall(np.tensordot(times_bg, count_gkk, axes=1)), [2.5, 97.5]
    )
    return float(low), float(high)


def _correct(rows: Sequence[Row]) -> None:
    """Add the p-values corrected over the layers of a site."""
    families: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        if "p_value" in row:
            names = ("capture", "site", "rows", "probe")
            families.setdefault(tuple(row[name] for name in names), []).append(row)
    for family in families.values():
        holm = correct_holm(np.array([row["p_value"] for row in family], dtype=np.float64))
        for row, p in zip(family, holm, strict=True):
            row["p_holm"] = p
