"""How large the recorded values are, and how many are no numbers: seen while they pass.

Each sample has two figures for every recorded array and layer: the largest magnitude of its finite
values, and how many values are NaN or infinite. They are an output of the sample, so they are as
durable as it is, and those of a capture are their maximum and sum, whoever recorded which part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..store import Output

if TYPE_CHECKING:
    from ..store import Capture, NewSample, Site

OUTPUT = "statistics"
FIGURES = ("max_abs", "nonfinite")
_UNSIGNED = {2: np.uint16, 4: np.uint32, 8: np.uint64}


@dataclass(frozen=True, slots=True)
class Extent:
    """What a capture's values at one site and layer are like."""

    site: str
    """Name in the store: a site, or a pool of one."""
    layer: int | None
    """Layer; None for a site without layers."""
    max_abs: float
    """Largest magnitude of the finite values."""
    nonfinite: int
    """How many values are NaN or infinite."""
    samples: int
    """In how many samples."""

    @property
    def place(self) -> str:
        """Site and layer in words."""
        return self.site if self.layer is None else f"{self.site} layer {self.layer}"


def statistics_output(sites: Sequence[Site]) -> Output:
    """Return the output to declare: [place, figure] of each sample, places as `places` has them."""
    return Output(OUTPUT, (len(places(sites)), len(FIGURES)))


def places(sites: Sequence[Site]) -> list[tuple[str, int | None]]:
    """Return site and layer of every figure, in order."""
    return [(site.name, layer) for site in sites for layer in site.layers or (None,)]


class Watcher:
    """Stands before a writer and adds the statistics of each batch to its samples.

    Parameters
    ----------
    writer
        The writer, with `statistics_output(sites)` among its outputs.
    sites
        What is recorded, in the order of `places`.
    """

    def __init__(self, writer: Any, sites: Sequence[Site]) -> None:  # noqa: ANN401
        self._writer = writer
        self._sites = tuple(sites)

    def append_batch(self, samples: Sequence[NewSample], values: Mapping[str, np.ndarray]) -> None:
        """Measure a batch and hand it on."""
        parts = []
        for site in self._sites:
            counts = [s.n_rows.get(site.stream, 0) if site.kind == "row" else 1 for s in samples]
            parts.append(measure(values[site.name], counts))
        figures = np.concatenate(parts)
        self._writer.append_batch(
            [
                replace(sample, outputs={**sample.outputs, OUTPUT: figures[:, i]})
                for i, sample in enumerate(samples)
            ],
            values,
        )


def measure(values: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """Return the figures of every layer and sample.

    Parameters
    ----------
    values
        `[layer, row, feature]`, or `[row, feature]` without layers; floating point.
    counts
        Rows of each sample, one after the other.

    Returns
    -------
    numpy.ndarray
        float32 `[layer, sample, figure]`, figures as in `FIGURES`.

    Notes
    -----
    Without their sign, the bits of floats order like their magnitudes, infinity and NaN on top. So
    integer maxima find both figures where all values are finite, fast and in any float type.
    """
    layered = values if values.ndim == 3 else values[None]
    largest = _largest_bits(layered, counts)
    floats = largest.view(values.dtype).astype(np.float32)
    figures = np.stack([floats, np.zeros_like(floats)], axis=-1)
    ends = np.cumsum(counts)
    for layer, sample in np.argwhere(~np.isfinite(floats)):
        own = layered[layer, ends[sample] - counts[sample] : ends[sample]].astype(np.float32)
        finite = np.isfinite(own)
        figures[layer, sample] = np.abs(own[finite]).max(initial=0), finite.size - finite.sum()
    return figures


def _largest_bits(values: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """Return the largest bit pattern without its sign, [layer, sample]; 0 without rows."""
    bits = values.view(_UNSIGNED[values.itemsize])
    signed = np.dtype(f"i{bits.itemsize}")
    unsigned = np.array(np.iinfo(signed).max, bits.dtype)
    largest = np.zeros((len(bits), len(counts)), bits.dtype)
    ends = np.cumsum(counts)
    for layer, of_layer in enumerate(bits):
        for sample, (end, count) in enumerate(zip(ends, counts, strict=True)):
            if count:
                # positive numbers are the largest as signed bits, negative ones as unsigned bits
                own = of_layer[end - count : end]
                top, positive = own.max(), int(own.view(signed).max())
                largest[layer, sample] = max(positive, int(top & unsigned) if top > unsigned else 0)
    return largest


def summarise(capture: Capture) -> list[Extent]:
    """Return the statistics of a capture, one entry a site and layer."""
    if OUTPUT not in capture.outputs:
        return []
    figures = np.asarray(capture.read_output(OUTPUT))
    if not len(figures):
        return []
    largest, nonfinite = figures[..., 0].max(axis=0), figures[..., 1]
    return [
        Extent(site, layer, float(top), int(lost.sum()), int((lost > 0).sum()))
        for (site, layer), top, lost in zip(
            places(capture.definition.sites), largest, nonfinite.T, strict=True
        )
    ]


def describe_nonfinite(extents: Sequence[Extent]) -> str | None:
    """Say which values are no numbers; None where all are."""
    lost = [extent for extent in extents if extent.nonfinite]
    if not lost:
        return None
    first = "; ".join(
        f"{extent.place}: {extent.nonfinite} in {extent.samples} samples" for extent in lost[:5]
    )
    more = f"; and {len(lost) - 5} more places" if len(lost) > 5 else ""
    return f"values that are NaN or infinite were recorded: {first}{more}."
