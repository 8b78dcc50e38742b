"""One capture of a store, read and checked against the commit records."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .definition import CaptureDefinition
from .errors import DamagedStoreError, MissingSiteError
from .filling import widen
from .layout import Output, Site
from .parameters import Parameters
from .products import Product, product_site
from .records import RecordLog
from .row_columns import class_names
from .segments import SegmentIndex, SegmentReader

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class SiteInfo:
    """What a capture holds at one site."""

    name: str
    """`resid_post`; for pooled values `resid_post.mean_valid`."""
    layers: tuple[int, ...] | None
    """Layer numbers; None for a site without layers."""
    width: int
    """Number of features."""
    dtype: str
    """Storage type."""
    kind: str
    """`row` or `sample`."""
    stream: str
    """The row space."""


class Capture:
    """One condition of one run: its samples, activations, outputs and parameters.

    Notes
    -----
    Samples are numbered 0, 1, 2, … in the order in which they were recorded; every `samples=`
    argument is a slice of these numbers. Rows of consecutive samples come without gaps. Values are
    float32, or float64 where float64 was stored.
    """

    def __init__(self, root: Path, definition: CaptureDefinition, log: RecordLog) -> None:
        self.name = definition.name
        self._root = root
        self._log = log
        self.definition = definition
        self.segments = SegmentIndex(definition, log)
        self._reader = SegmentReader(root, definition)
        self._sites = {(site.kind, site.name): site for site in definition.sites}
        self._products = {product.name: product for product in definition.products}

    @property
    def attrs(self) -> dict[str, Any]:
        """Provenance: model, adapter, labels, split, versions."""
        return dict(self.definition.attrs)

    @property
    def config(self) -> dict[str, Any]:
        """All that determined the values."""
        return dict(self.definition.config)

    @property
    def profile(self) -> str:
        """How the values are stored: `fast`, `compact`, `archive` or `portable`."""
        return self.definition.profile

    @property
    def sites(self) -> dict[str, SiteInfo]:
        """Row sites by name, those that follow from others (`Product`) included."""
        made = [self._made(product) for product in self._products.values()]
        return self.stored_sites | {site.name: _info(site) for site in made}

    @property
    def stored_sites(self) -> dict[str, SiteInfo]:
        """Row sites whose rows are on the disk, by name."""
        return {s.name: _info(s) for s in self.definition.sites if s.kind == "row"}

    @property
    def pooled(self) -> dict[str, SiteInfo]:
        """Pooled sites by `<site>.<pool>`."""
        return {s.name: _info(s) for s in self.definition.sites if s.kind == "sample"}

    @property
    def outputs(self) -> dict[str, Output]:
        """Outputs per sample by name."""
        return {output.name: output for output in self.definition.outputs}

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of those columns of `samples` that are groups, such as speaker."""
        return self.segments.groups

    def class_names(self, site: str) -> tuple[str, ...]:
        """Return the names of the classes 0, 1, 2, … that a row site of width 1 holds, if known."""
        return class_names(self.definition, site)

    @property
    def parameters(self) -> Parameters:
        """Head, norm and adapter weights by name, read on access."""
        return Parameters(self._root, self.definition, self._log)

    @property
    def parameter_attrs(self) -> dict[str, Any]:
        """Facts that were stored with the parameters."""
        return self.parameters.attrs

    @property
    def complete(self) -> bool:
        """Whether every planned segment is there (always true without a plan)."""
        planned = len(self.definition.planned_sizes)
        return planned == 0 or len(self.segments) == planned

    @cached_property
    def samples(self) -> pd.DataFrame:
        """The table of samples, in the order of recording."""
        import pandas as pd

        return pd.DataFrame(self.sample_columns)

    @cached_property
    def sample_columns(self) -> dict[str, np.ndarray | list[str]]:
        """The columns of `samples` by name."""
        columns = self.definition.fixed_columns() | self.segments.columns
        data = {name: self._column(name, dtype) for name, dtype in columns.items()}
        for name, committed in self.segments.derived_columns().items():
            if list(data[name]) != committed:
                msg = f"column {name!r} of capture {self.name!r} is not what was committed"
                raise DamagedStoreError(msg)
        return data

    def __len__(self) -> int:
        """Return the number of samples."""
        return self.segments.n_samples

    def row_counts(self, stream: str) -> np.ndarray:
        """Return the number of rows of every sample in a stream: int64 `[sample]`."""
        return self.segments.row_counts(self._known_stream(stream))

    def read_rows(
        self,
        site: str,
        layer: int | None,
        samples: slice = slice(None),
        *,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return the rows of consecutive samples at one site and layer.

        Parameters
        ----------
        site
            Name of a row site.
        layer
            Layer number; None for a site without layers.
        samples
            A slice of sample numbers with step 1.
        out
            A C-contiguous array of that shape and type, which then holds the rows: to read into the
            same memory again and again is faster.

        Returns
        -------
        numpy.ndarray
            `[row, feature]`, float32 or float64.

        Raises
        ------
        MissingSiteError
            If the site or the layer was not captured; says which were.
        DamagedStoreError
            If a checksum differs from the commit record.
        """
        product = self._products.get(site)
        if product is None:
            spec = self._site("row", site)
            window = self.segments.window(samples, spec.stream)
            position = self._position(spec, layer)
            return self._reader.sharded(spec, position, window, wide=True, out=out)
        position = self._position(self._made(product), layer)
        rows = self.read_rows(product.source, layer, samples)
        return np.matmul(rows, self._matrix(product, position, rows.shape[1]).T, out=out)

    def read_stored(
        self,
        site: str,
        layer: int | None,
        samples: slice = slice(None),
        *,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return what `read_rows` returns, in the storage type (bfloat16, float16, …).

        Of a product, which is stored nowhere, the float32 values. `out` may be an array of that
        type and of as many rows, which then holds them.
        """
        if site in self._products:
            rows = self.read_rows(site, layer, samples)
            if out is None:
                return rows
            out[...] = rows
            return out
        spec = self._site("row", site)
        window = self.segments.window(samples, spec.stream)
        return self._reader.sharded(spec, self._position(spec, layer), window, out=out)

    def read_pooled(self, name: str, layer: int | None, samples: slice = slice(None)) -> np.ndarray:
        """Return the pooled values `<site>.<pool>` of consecutive samples: `[sample, feature]`."""
        spec = self._site("sample", name)
        window = self.segments.window(samples)
        return self._reader.sharded(spec, self._position(spec, layer), window, wide=True)

    def expect_rows(self, site: str, layer: int | None, samples: slice = slice(None)) -> None:
        """Let the system begin to read rows that `read_rows` will ask for, without waiting.

        They come into its own cache, where it has one; a hint, which it need not follow.
        """
        product = self._products.get(site)
        spec = self._site("row", site if product is None else product.source)
        window = self.segments.window(samples, spec.stream)
        self._reader.expect(spec, self._position(spec, layer), window)

    def read_output(self, name: str, samples: slice = slice(None)) -> np.ndarray:
        """Return an output of consecutive samples: `[sample, …]`."""
        if name not in self.outputs:
            raise MissingSiteError(self._absent("output", name, self.outputs))
        spec = self.definition.output_spec(self.outputs[name])
        return self._reader.plain(spec, self.segments.window(samples))

    def read_positions(self, stream: str, samples: slice = slice(None)) -> np.ndarray:
        """Return the frame or token index of every row of consecutive samples: `[row]`."""
        spec = self.definition.row_column_spec(self._known_stream(stream), "position")
        return self._reader.plain(spec, self.segments.window(samples, stream)).astype(np.int64)

    def _column(self, name: str, dtype: str) -> np.ndarray | list[str]:
        spec = self.definition.column_spec(name, dtype)
        window = self.segments.window(slice(None))
        holders = self.segments.holding(spec)
        if dtype == "string":
            return self._reader.strings(spec, window, holders)
        return self._reader.plain(spec, window, holders)

    def _site(self, kind: str, name: str) -> Site:
        site = self._sites.get((kind, name))
        if site is None:
            known = list(self.sites if kind == "row" else self.pooled)
            what = "site" if kind == "row" else "pooled site"
            raise MissingSiteError(self._absent(what, name, known))
        return site

    def _made(self, product: Product) -> Site:
        return product_site(product, self._site("row", product.source))

    def _matrix(self, product: Product, position: int, rank: int) -> np.ndarray:
        name = product.parameters[position]
        matrix = widen(self.parameters[name])
        if matrix.shape != (product.width, rank):
            msg = (
                f"parameter {name!r} of capture {self.name!r} has shape {matrix.shape}, but "
                f"{product.name} needs [{product.width}, {rank}]"
            )
            raise DamagedStoreError(msg)
        return matrix

    def _position(self, site: Site, layer: int | None) -> int:
        label = -1 if layer is None else layer
        if label not in site.layer_labels:
            layers = "none (no layers)" if site.layers is None else ", ".join(map(str, site.layers))
            msg = (
                f"capture {self.name!r} holds no layer {layer} of site {site.name!r}. "
                f"Present: {layers}."
            )
            raise MissingSiteError(msg)
        return site.layer_labels.index(label)

    def _known_stream(self, stream: str) -> str:
        if stream not in self.definition.streams:
            raise MissingSiteError(self._absent("stream", stream, self.definition.streams))
        return stream

    def _absent(self, kind: str, name: str, known: Iterable[str]) -> str:
        present = ", ".join(known) or "none"
        return f"capture {self.name!r} holds no {kind} {name!r}. Present: {present}."


def _info(site: Site) -> SiteInfo:
    layers = None if site.layers is None else tuple(site.layers)
    return SiteInfo(site.name, layers, site.width, site.dtype, site.kind, site.stream)
