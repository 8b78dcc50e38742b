"""Results of analyses as Zarr: one group a table, replaced as a whole."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import DamagedStoreError, InvalidStoreError
from .files import disk_errors, sync_directory
from .layout import COMMITS
from .results_rules import check_results

if TYPE_CHECKING:
    import xarray as xr


def write_results(
    path: str | Path, tables: Mapping[str, xr.Dataset], *, attrs: Mapping[str, Any] | None = None
) -> Path:
    """Write one Zarr group per table; what was at `path` is replaced when all is written.

    Parameters
    ----------
    path
        Folder of the results, `results.zarr` by convention.
    tables
        Datasets by table name.
    attrs
        JSON-able attributes of the root group.

    Returns
    -------
    pathlib.Path
        The folder.

    Raises
    ------
    InvalidStoreError
        If `path` holds something that is not a result of an earlier analysis.
    """
    import zarr

    target = Path(path)
    if target.exists() and not (target / "zarr.json").is_file():
        msg = f"{target} exists and is not a Zarr group: name another folder for the results."
        raise InvalidStoreError(msg)
    if os.path.lexists(target / COMMITS):
        msg = f"{target} is a store of activations: name another folder for the results."
        raise InvalidStoreError(msg)
    staged = target.with_name(f".{target.name}.new")
    shutil.rmtree(staged, ignore_errors=True)
    with disk_errors(f"writing {target}"), warnings.catch_warnings():
        # The Zarr v3 specification of variable-length strings is young; zarr says so every time.
        warnings.filterwarnings("ignore", category=UserWarning, module="zarr")
        zarr.open_group(staged, mode="w", attributes=dict(attrs or {}))
        for name, table in tables.items():
            table.to_zarr(staged, group=name, mode="a", consolidated=False, zarr_format=3)
        if target.exists():
            shutil.rmtree(target)
        staged.rename(target)
        sync_directory(target.parent)
    return target


def read_results(path: str | Path) -> dict[str, xr.Dataset]:
    """Return the tables that `write_results` wrote, loaded into memory.

    Raises
    ------
    InvalidStoreError
        If there are none at the path.
    DamagedStoreError
        If anything there is not as `write_results` writes it; nothing of it was unpacked then.
    """
    import xarray as xr

    root = Path(path)
    if not (root / "zarr.json").is_file():
        msg = f"{root} holds no results: name a results.zarr that `analyze` wrote."
        raise InvalidStoreError(msg)
    names = check_results(root)
    try:
        return {name: xr.open_zarr(root, group=name, consolidated=False).load() for name in names}
    except Exception as error:  # whatever zarr and xarray say of bytes that anybody may have made
        msg = f"the results in {root} cannot be read: {type(error).__name__}: {error}"
        raise DamagedStoreError(msg) from error
