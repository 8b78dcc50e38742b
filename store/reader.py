"""Opening a store: what is committed, as captures."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .batches import BUFFER_BYTES, RowBatches
from .capture import Capture
from .consistency import load_definitions
from .dataset import site_dataset
from .digest import content_digest
from .errors import InvalidStoreError, MissingCaptureError, MissingSiteError
from .manifest import Manifest, read_manifest
from .records import RecordLog
from .root import COPY_OF, root_attributes
from .row_columns import RowColumn, look_up_rows, row_column_of

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr


class Store:
    """A store that was opened for reading; made by `open_store`.

    Notes
    -----
    Only what commit records name is visible, so a store that is being written can be read.
    """

    def __init__(self, root: Path) -> None:
        self.path = root
        attributes = root_attributes(root)
        self.uuid: str = attributes["uuid"]
        self.state: str = attributes["state"]
        """`open`, or `sealed`: then nothing in it changes any more."""
        self.origin: dict[str, Any] | None = attributes.get(COPY_OF)
        """What a copy in another profile, or of some captures, was made of."""
        self.log = RecordLog(root)
        definitions = load_definitions(root, self.log)
        self.every_capture = {
            name: Capture(root, definition, self.log) for name, definition in definitions.items()
        }
        """All captures by name, those that hold row columns included."""
        columns = [row_column_of(definition) for definition in definitions.values()]
        self.row_columns: dict[str, RowColumn] = {c.name: c for c in columns if c is not None}
        """Row columns that were added to the store (`add_row_column`), by name."""
        held = {column.capture for column in self.row_columns.values()}
        self._captures = {n: c for n, c in self.every_capture.items() if n not in held}

    @property
    def captures(self) -> list[str]:
        """Names of the captures, in the order in which they were made; row columns aside."""
        return list(self._captures)

    @property
    def samples(self) -> pd.DataFrame:
        """The samples of all captures, with the column `capture` in front."""
        import pandas as pd

        tables = [capture.samples.assign(capture=name) for name, capture in self._captures.items()]
        if not tables:
            return pd.DataFrame(columns=["capture", "id", "label", "exposed", "segment"])
        table = pd.concat(tables, ignore_index=True)
        return table.reindex(columns=["capture", *(c for c in table.columns if c != "capture")])

    def capture(self, name: str) -> Capture:
        """Return a capture by name; `rows.<name>` is the capture of a row column.

        Raises
        ------
        MissingCaptureError
            If there is none; says which there are.
        """
        if name not in self.every_capture:
            msg = (
                f"{self.path} holds no capture {name!r}. "
                f"Present: {', '.join(self.every_capture) or 'none'}."
            )
            raise MissingCaptureError(msg)
        return self.every_capture[name]

    def read_row_column(
        self, name: str, *, capture: str, samples: slice = slice(None)
    ) -> np.ndarray:
        """Return a row column for the rows of consecutive samples of a capture.

        Parameters
        ----------
        name
            Name of a row column.
        capture
            Name of the capture whose rows are meant: row for row those of its `read_rows`.
        samples
            A slice of sample numbers with step 1.

        Returns
        -------
        numpy.ndarray
            `[row]`, float32 or float64: class numbers (`row_columns[name].names` has what they
            are called) or numbers; -1 or NaN for a row without a class, NaN without a number.

        Raises
        ------
        MissingSiteError
            If there is no such row column, or the capture has no rows of its stream.
        """
        if name not in self.row_columns:
            known = ", ".join(self.row_columns) or "none"
            msg = f"{self.path} holds no row column {name!r}. Present: {known}."
            raise MissingSiteError(msg)
        column = self.row_columns[name]
        held, rows = self.capture(column.capture), self.capture(capture)
        number = {id: n for n, id in enumerate(held.samples["id"])}
        ids = rows.samples["id"].iloc[samples]
        own_n = np.array([number.get(id, -1) for id in ids], dtype=np.int64)
        sample_n = np.repeat(own_n, rows.row_counts(column.stream)[samples])
        every_n = np.repeat(np.arange(len(held)), held.row_counts(column.stream))
        return look_up_rows(
            (sample_n, rows.read_positions(column.stream, samples)),
            (every_n, held.read_positions(column.stream)),
            held.read_rows(name, None)[:, 0],
        )

    def dataset(self, *, capture: str, site: str, pool: str | None = None) -> xr.Dataset:
        """Return a lazy dataset of one site, with one dask chunk per shard.

        Parameters
        ----------
        capture
            Name of the capture.
        site
            Name of the site.
        pool
            Name of a pool (`mean_valid`); None for rows.

        Returns
        -------
        xarray.Dataset
            `values` `[layer, row, feature]` or `[layer, sample, feature]`, float32 (float64 where
            stored so); coordinates `layer`, and per row `sample` (the sample's number) and
            `position`. Checksums are checked when values are computed.
        """
        return site_dataset(self.capture(capture), site, pool)

    def batches(
        self,
        site: str,
        layer: int | None,
        size: int,
        *,
        capture: str | None = None,
        shuffle: bool = True,
        seed: int = 0,
        buffer_bytes: int = BUFFER_BYTES,
    ) -> RowBatches:
        """Return the rows of one site and layer in random order, to be looped over.

        ::

            for epoch in range(10):
                for x in store.batches("resid_post", 3, 4096, seed=epoch):
                    train(x)

        Parameters
        ----------
        site
            Name of a row site.
        layer
            Layer number; None for a site without layers.
        size
            Rows of a batch; the last one has what is left.
        capture
            Name of the capture; None where the store holds one only.
        shuffle
            Whether in random order; else in the order of recording.
        seed
            Of that order.
        buffer_bytes
            Memory for the rows that are mixed with each other, in the storage type.

        Returns
        -------
        RowBatches
            Yields float32 (or float64) arrays `[row, feature]`; its method `with_samples` also the
            numbers of the samples.

        Raises
        ------
        MissingCaptureError, MissingSiteError
            What is not there; says what is.
        SampleError
            If `size` or `buffer_bytes` is not positive.
        DamagedStoreError
            While looping, if a checksum differs from the commit record.
        """
        if capture is None:
            if len(self._captures) != 1:
                names = ", ".join(self._captures) or "none"
                msg = f"{self.path} does not hold one capture: name one. Present: {names}."
                raise MissingCaptureError(msg)
            capture = next(iter(self._captures))
        order = seed if shuffle else None
        return RowBatches(self.capture(capture), site, layer, size, order, buffer_bytes)

    @cached_property
    def manifest(self) -> Manifest | None:
        """The manifest of a sealed store, None while it is open.

        Raises
        ------
        DamagedStoreError
            If it is missing or was changed.
        """
        return read_manifest(self.path) if self.state == "sealed" else None

    @property
    def manifest_digest(self) -> str | None:
        """Digest of the files of a sealed store as they are, None while it is open."""
        return self.manifest.digest if self.manifest is not None else None

    def content_digest(self) -> str:
        """Return the digest of the values: the same run gives the same one (see `FORMAT.md`)."""
        return content_digest(self.every_capture)


def open_store(path: str | Path) -> Store:
    """Open a store for reading.

    Parameters
    ----------
    path
        The store's folder.

    Returns
    -------
    Store
        Captures and samples that are committed.

    Raises
    ------
    InvalidStoreError
        If there is no lorascope store of this version at the path.
    DamagedStoreError
        If commit records or definitions were changed.
    """
    root = Path(path)
    if not root.exists():
        msg = f"{root} does not exist: name the folder that capture-run or create_store wrote."
        raise InvalidStoreError(msg)
    return Store(root)
