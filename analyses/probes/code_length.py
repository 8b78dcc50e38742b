"""The analysis `mdl`: how easily the labels follow from each array, in bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd

from ..errors import AnalysisInputError
from ..fold import ArrayKey
from ..plan import Outcome, Plan, Table
from ..selection import Selection
from .logistic import count_bytes
from .mdl import LEAST_PER_CLASS, Code, block_ends, draw_orders, measure_code
from .probe import check_memory, choose_arrays, count_together, make_tasks, why_unreadable
from .scoring import Row
from .task import Task


@dataclass(frozen=True, slots=True)
class CodeLength:
    """Online codelength of the labels given the features (Voita and Titov 2020), per array.

    Notes
    -----
    Mean over random orders of the samples. A probe that needs few samples to be right takes few
    bits: codelength tells easy from hard reading where accuracy is the same. Blocks share speakers.
    """

    c: float = 0.01
    """Inverse weight of the squared weights, as for the logistic probe."""
    orders: int = 5
    """Random orders."""
    shuffles: int = 2
    """Control label sets, permuted within speaker."""
    name: str = "mdl"
    description: str = "bits that the labels take given each array: codelength and compression"
    by_default: bool = False

    def plan(self, selection: Selection) -> Plan:
        """Return the pooled arrays that `probe` reads."""
        if self.c <= 0 or self.orders < 1 or self.shuffles < 0:
            msg = (
                "mdl needs C > 0, at least one order and shuffles >= 0, "
                f"not {self.c}, {self.orders} and {self.shuffles}."
            )
            raise AnalysisInputError(msg)
        keys = choose_arrays(selection)
        for key in keys:
            check_memory(f"the codelength of {key}", _count(self, key, selection), selection)
        return Plan(partial(_conclude, self, keys), (), keys)


def _count(analysis: CodeLength, key: ArrayKey, selection: Selection) -> int:
    view = selection.source.views[key.capture]
    n, width = view.samples.size, view.info(selection.stored_key(key)).width
    classes = len(set(view.label_n[view.samples].tolist()))
    return 5 * 8 * n * width + count_bytes(n, width, (analysis.shuffles + 1) * classes)


def _conclude(analysis: CodeLength, keys: Sequence[ArrayKey], outcome: Outcome) -> dict[str, Table]:
    selection = outcome.selection
    tasks = make_tasks(selection, shuffles=analysis.shuffles, by=None)
    orders = {
        name: draw_orders(selection.source.ids[task.samples], analysis.orders, selection.seed)
        for name, task in tasks.items()
    }

    def work(key: ArrayKey) -> tuple[Code | None, str]:
        task = tasks[key.capture]
        reason = task.reason or _too_few(task)
        if reason:
            return None, reason
        x_nd = outcome.pooled.matrix(key, task.samples)
        reason = why_unreadable(x_nd)
        if reason:
            return None, reason
        features = x_nd.astype(np.float64)
        return measure_code(features, task, orders[key.capture], 1 / analysis.c), ""

    together = count_together(max(_count(analysis, key, selection) for key in keys), outcome)
    found = outcome.runner.map(work, keys, together)
    rows = [
        _row(key, code, reason, tasks[key.capture])
        for key, (code, reason) in zip(keys, found, strict=True)
    ]
    attrs = {
        "classifier": f"multinomial logistic, L2, C = {analysis.c}, standardised on what is seen",
        "codelength": f"bits, mean of {analysis.orders} random orders; sd over them",
        "blocks": f"fractions 0.001 … 0.5 with {LEAST_PER_CLASS} samples a class or more, then all",
        "control": f"labels permuted within speaker, mean of {analysis.shuffles} sets",
    }
    return {"mdl": Table(pd.DataFrame(rows), attrs)}


def _too_few(task: Task) -> str:
    """Return why there are no two blocks; empty where there are."""
    if len(block_ends(task.samples.size, len(task.classes))) > 1:
        return ""
    needed = 2 * LEAST_PER_CLASS * len(task.classes)
    return f"samples: {task.samples.size}; at least {needed} are needed"


def _row(key: ArrayKey, code: Code | None, reason: str, task: Task) -> Row:
    row: Row = {"capture": key.capture, "site": key.site, "layer": key.layer, "probe": "logistic"}
    row |= {"n": task.samples.size, "exposed": "none", "reason": reason}
    if code is None:
        return row
    bits = float(code.bits_o.mean())
    several = code.bits_o.size > 1
    return row | {
        "codelength": bits,
        "codelength_sd": float(code.bits_o.std(ddof=1)) if several else float("nan"),
        "uniform_codelength": code.uniform,
        "compression": code.uniform / bits,
        "control_compression": code.uniform / float(code.control_o.mean()),
    }
