"""A lazy xarray view of one site: dask chunks are the shards, checksums are checked on compute."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from .layout import NO_LAYER

if TYPE_CHECKING:
    import xarray as xr

    from .capture import Capture, SiteInfo


def site_dataset(capture: Capture, site: str, pool: str | None) -> xr.Dataset:
    """Return the dataset that `Store.dataset` describes."""
    import xarray as xr

    known = capture.sites if pool is None else capture.pooled
    name = site if pool is None else f"{site}.{pool}"
    if name not in known:
        if pool is None:
            capture.read_rows(name, None)
        capture.read_pooled(name, None)
    info = known[name]
    axis = info.kind
    layers = (NO_LAYER,) if info.layers is None else info.layers
    coords: dict[str, tuple[str, np.ndarray]] = {"layer": ("layer", np.array(layers))}
    if axis == "row":
        counts = capture.row_counts(info.stream)
        coords["sample"] = ("row", np.repeat(np.arange(len(counts)), counts))
        coords["position"] = ("row", capture.read_positions(info.stream))
    attrs = {"capture": capture.name, "site": site, "stored_dtype": info.dtype}
    values = xr.DataArray(_lazy(capture, info), dims=("layer", axis, "feature"), coords=coords)
    return xr.Dataset({"values": values}, attrs=attrs | ({"pool": pool} if pool else {}))


def _lazy(capture: Capture, info: SiteInfo):  # noqa: ANN202 - dask.array.Array, imported on use
    import dask.array as da

    starts = np.concatenate([[0], np.cumsum([len(r.samples) for r in capture.segments.records])])
    slices = [slice(int(a), int(b)) for a, b in pairwise(starts)]
    layers = (None,) if info.layers is None else info.layers
    if info.kind == "row":
        counts = capture.row_counts(info.stream)
        sizes = tuple(int(counts[part].sum()) for part in slices)
        read = capture.read_rows
    else:
        sizes = tuple(part.stop - part.start for part in slices)
        read = capture.read_pooled
    dtype = np.float64 if info.dtype == "float64" else np.float32
    if not slices:
        return da.zeros((len(layers), 0, info.width), dtype=dtype)

    def block(block_id: tuple[int, ...] = (0, 0, 0)) -> np.ndarray:
        return read(info.name, layers[block_id[0]], slices[block_id[1]])[None]

    chunks = ((1,) * len(layers), sizes, (info.width,))
    return da.map_blocks(block, chunks=chunks, dtype=dtype, meta=np.empty((0, 0, 0), dtype))
