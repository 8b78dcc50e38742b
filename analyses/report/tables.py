"""Result tables as the page shows them: short, formatted, with what is left out said."""

from __future__ import annotations

import numpy as np
import pandas as pd

from .frames import MINUS, SMALLEST_GROUP, number, strings, take, values
from .section import TableView

MOST_ROWS = 400
"""More rows than this belong into a file, not onto a page."""


def view(
    table: pd.DataFrame, *, key: str, title: str, columns: list[str] | None = None
) -> TableView:
    """Return a table for the page.

    Columns with one value throughout are said once, empty ones are dropped, per-group rows (single
    folds) with fewer than `SMALLEST_GROUP` samples are left out and counted.

    Parameters
    ----------
    table
        Rows of a result table.
    key
        Name of the table, for the note that says where all rows are; empty if it has no file.
    title
        What the rows are.
    columns
        Which columns to show, in order; all by default.
    """
    single = ~np.isin(strings(table, "fold"), ["all", ""])
    small = single & ~(values(table, "n") >= SMALLEST_GROUP)
    shown = take(table, ~small)
    if columns is not None:
        shown = shown.loc[:, [name for name in columns if name in shown.columns]]
    n_rows = len(shown)
    shown = shown.head(MOST_ROWS)
    constants, varying = [], []
    for name in shown.columns:
        cells = [cell(v) for v in shown[name]]
        if any(cells) and (len(set(cells)) > 1 or len(shown) == 1):
            varying.append((str(name), cells, pd.api.types.is_numeric_dtype(shown[name])))
        elif any(cells):
            constants.append(f"{name} = {cells[0]}")
    return TableView(
        title=title,
        columns=[name for name, _, _ in varying],
        numeric=[numeric for _, _, numeric in varying],
        rows=[list(row) for row in zip(*(cells for _, cells, _ in varying), strict=True)],
        constants="; ".join(constants),
        note=_note(key, n_rows=n_rows, n_small=int(small.sum())),
    )


def cell(value: object) -> str:
    """Return one cell: four significant digits, yes or no, nothing for a missing value."""
    if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
        return ""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return str(int(value)).replace("-", MINUS)
    if isinstance(value, float | np.floating):
        size = abs(float(value))
        if size == 0 or 1e-3 <= size < 1e5:
            digits = max(0, 3 - int(np.floor(np.log10(size)))) if size else 0
            return number(float(value), digits=min(digits, 4))
        return f"{value:.2e}".replace("-", MINUS)
    return str(value)


def _note(key: str, *, n_rows: int, n_small: int) -> str:
    parts = []
    if n_rows > MOST_ROWS:
        parts.append(f"The first {MOST_ROWS} of {n_rows:,} rows.")
    if n_small:
        parts.append(f"{n_small:,} rows about groups of fewer than {SMALLEST_GROUP} left out.")
    if key:
        parts.append(f"Every row is in tables/{key}.csv and .parquet beside this page.")
    return " ".join(parts)
