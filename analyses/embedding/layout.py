"""From features to points in the plane: principal components, where points start, the method."""

from __future__ import annotations

import hashlib
import importlib.util
import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import AnalysisInputError
from .tsne import fit_tsne, make_affinities

METHODS = ("tsne", "umap")
_TSNE_WIDTH = 1e-4
"""Standard deviation of the first start axis, as in the reference implementations."""
_UMAP_WIDTH = 10.0
"""Half width of the start, as umap-learn scales its own."""


@dataclass(frozen=True, slots=True)
class Start:
    """Where the points of one picture start."""

    seed: int
    """Of what is drawn."""
    init: str
    """`pca` or `random`."""


def make_starts(seed: int, count: int) -> list[Start]:
    """Return the starts of several pictures: the first components, then random places.

    From the components, seeds make hardly a difference; random places show what of the picture is
    the start's.
    """
    return [Start(seed + i, "random" if i else "pca") for i in range(count)]


def check_method(method: str) -> None:
    """Raise AnalysisInputError for an unknown method, or one that is not installed."""
    if method not in METHODS:
        msg = f"no embedding method {method!r}. There are: {', '.join(METHODS)}."
        raise AnalysisInputError(msg)
    if method == "umap" and importlib.util.find_spec("umap") is None:
        msg = (
            "embedding with method 'umap' needs the package umap-learn, which is not installed. "
            "Install it: pip install 'lorascope[umap]'; or use method 'tsne'."
        )
        raise AnalysisInputError(msg)


def principal_components(x_nd: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Return the scores of centred rows on up to `count` principal components, [samples, ≤ count].

    Notes
    -----
    From the eigenvectors of the covariance, or of the Gram matrix where there are more features
    than samples. The largest loading of each component is positive. Components below 1e-12 of the
    first one's variance are left out.
    """
    n, width = x_nd.shape
    value, vector = np.linalg.eigh(x_nd.T @ x_nd if width <= n else x_nd @ x_nd.T)
    kept = np.argsort(value)[::-1][:count]
    kept = kept[value[kept] > 1e-12 * value.max()]
    loading_dc = (
        vector[:, kept] if width <= n else x_nd.T @ (vector[:, kept] / np.sqrt(value[kept]))
    )
    largest = np.abs(loading_dc).argmax(axis=0)
    return x_nd @ (loading_dc * np.sign(loading_dc[largest, np.arange(kept.size)]))


def draw_layouts(
    component_nc: NDArray[np.float64],
    ids: NDArray[np.object_],
    starts: list[Start],
    *,
    method: str,
    perplexity: float,
) -> list[NDArray[np.float64]]:
    """Return one picture for each start, [samples, 2].

    Parameters
    ----------
    component_nc
        Principal components, [samples, components].
    ids
        Sample ids: what is drawn for a sample depends on its id and the seed alone.
    starts
        Seeds and starts.
    method
        `tsne` or `umap`.
    perplexity
        Of t-SNE.
    """
    if method == "umap":
        return [_fit_umap(component_nc, _place(component_nc, ids, s), s.seed) for s in starts]
    affinity_nn = make_affinities(component_nc, perplexity)
    places = [_place(component_nc, ids, start) for start in starts]
    return [fit_tsne(affinity_nn, place * _TSNE_WIDTH) for place in places]


def _place(
    component_nc: NDArray[np.float64], ids: NDArray[np.object_], start: Start
) -> NDArray[np.float64]:
    """Return start places whose first axis has a deviation of 1, [samples, 2]."""
    random_nd = np.stack([_normal(f"{start.seed}/{name}") for name in ids])
    if start.init == "random":
        return random_nd
    first_nd = component_nc[:, :2] / component_nc[:, 0].std()
    # a line has no second component: its points leave it a little, or the picture would be a line
    return first_nd if first_nd.shape[1] == 2 else np.c_[first_nd, 0.01 * random_nd[:, 1]]


def _normal(text: str) -> NDArray[np.float64]:
    """Return two standard normal numbers that depend on a text."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    u, v = (int.from_bytes(part, "little") for part in (digest[:8], digest[8:]))
    radius, angle = np.sqrt(-2 * np.log((u + 1) / (2**64 + 1))), 2 * np.pi * v / 2**64
    return radius * np.array([np.cos(angle), np.sin(angle)])


def _fit_umap(
    component_nc: NDArray[np.float64], place_nd: NDArray[np.float64], seed: int
) -> NDArray[np.float64]:
    from umap import UMAP

    start_nd = place_nd * (_UMAP_WIDTH / np.abs(place_nd).max())
    model = UMAP(init=start_nd.astype(np.float32), random_state=seed, n_jobs=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of numba and its own options, none of them about the data
        return np.asarray(model.fit_transform(component_nc), dtype=np.float64)
