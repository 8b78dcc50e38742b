"""Writing everything that an analysis gives into one folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import xarray as xr

from ..store import Store, open_store, write_results
from .partial import FOLDER, remove_partial
from .report import render_report
from .summary import summarise
from .tables import to_tables

_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def write_outputs(
    results: Mapping[str, xr.Dataset],
    store: Store | str | Path,
    out_path: str | Path,
    *,
    command: str = "",
    seed: int = 0,
) -> dict[str, Any]:
    """Write tables, results.zarr, summary.json, figures and report.html; return the summary.

    Parameters
    ----------
    results
        What `analyze` gave.
    store
        The store that was analysed.
    out_path
        Folder, made if absent; files of an earlier analysis of the same name are replaced, partial
        states of a run that is over are removed.
    command
        The command line that is written down.
    seed
        The seed that is written down.

    Notes
    -----
    `tables/<name>.csv` and `.parquet` hold one table each; text cells that a spreadsheet would take
    for a formula are prefixed by an apostrophe in the CSV files only.
    """
    store = store if isinstance(store, Store) else open_store(store)
    folder = Path(out_path)
    folder.mkdir(parents=True, exist_ok=True)
    tables = to_tables(results)
    summary = summarise(results, tables, store, command=command, seed=seed)
    write_tables(tables, folder / "tables")
    digest = summary["store"]["content_digest"] or ""
    stamped = {name: dataset.assign_attrs(store_digest=digest) for name, dataset in results.items()}
    write_results(
        folder / "results.zarr",
        stamped,
        attrs={"command": command, "seed": seed, "store_digest": digest},
    )
    text = json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / "summary.json").write_text(text + "\n", encoding="utf-8")
    render_report(tables, summary, folder)
    remove_partial(folder / FOLDER)
    return summary


def write_tables(tables: Mapping[str, pd.DataFrame], folder: Path) -> None:
    """Write each table as CSV and Parquet."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        plain = table.copy()
        plain.attrs = {}  # they stand in summary.json and results.zarr
        plain.to_parquet(folder / f"{name}.parquet", index=False)
        guard_cells(plain).to_csv(folder / f"{name}.csv", index=False)


def guard_cells(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with an apostrophe before text that a spreadsheet would run as a formula."""
    guarded = table.copy()
    for column in table.columns:
        if pd.api.types.is_object_dtype(table[column]) or pd.api.types.is_string_dtype(
            table[column]
        ):
            cells = table[column].map(_guard)
            guarded[column] = cells
    return guarded.rename(columns=_guard)


def _guard(cell: object) -> object:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA_STARTS) else cell
