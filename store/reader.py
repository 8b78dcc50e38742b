"""Opening a store: what is committed, as captures."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .batches import BUFFER_BYTES, RowBatches
from .capture import Capture
from .consistency import load_definitions
from .dataset import site_dataset
from .digest import content_digest
from .errors import InvalidStoreError, MissingCaptureError
from .manifest import Manifest, read_manifest
from .records import RecordLog
from .root import COPY_OF, root_attributes

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
        self._captures = {
            name: Capture(root, definition, self.log)
            for name, definition in load_definitions(root, self.log).items()
        }

    @property
    def captures(self) -> list[str]:
        """Names of the captures, in the order in which they were made."""
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
        """Return a capture by name.

        Raises
        ------
        MissingCaptureError
            If there is none; says which there are.
        """
        if name not in self._captures:
            msg = (
                f"{self.path} holds no capture {name!r}. "
                f"Present: {', '.join(self._captures) or 'none'}."
            )
            raise MissingCaptureError(msg)
        return self._captures[name]

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
        return content_digest(self._captures)


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
