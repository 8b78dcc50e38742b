"""From features to points in the plane: principal components, where points start, t-SNE or UMAP."""

from __future__ import annotations

import importlib.util
import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from ..errors import AnalysisInputError
from ..statistics.draws import seeded

METHODS = ("tsne", "umap")
STEPS = 500
"""Of t-SNE. On 336 digits of scikit-learn its divergence is 0.324 then, and 0.322 after 1,000."""
_TSNE_WIDTH = 1e-4
"""Standard deviation of the first start axis, as scikit-learn scales its own."""
_SMALLEST_VARIANCE = 1e-12
"""Components of less than this part of the first one's variance are rounding."""
_UMAP_WIDTH = 10.0
"""Half width of the start, as umap-learn scales its own."""
_UMAP_NEIGHBOURS = 15
"""Its default; no more than there are."""


@dataclass(frozen=True, slots=True)
class Start:
    """Where the points of one picture start."""

    seed: int
    """Of what is drawn."""
    init: str
    """`pca` or `random`."""


def make_starts(seed: int, count: int) -> list[Start]:
    """Return the starts of several pictures: the first components, then random places.

    From the components, seeds hardly matter. Random places show how much of a picture is due to
    where its points started.
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
    """Return the scores of rows on up to `count` principal components, [samples, <= count]."""
    from sklearn.decomposition import PCA

    model = PCA(min(count, len(x_nd) - 1, x_nd.shape[1]), svd_solver="full")
    score_nc = model.fit_transform(x_nd)
    variance_c = model.explained_variance_
    return score_nc[:, variance_c > _SMALLEST_VARIANCE * variance_c[0]]


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

    Notes
    -----
    t-SNE by scikit-learn's Barnes-Hut trees: its exact method takes as long for 100 samples, and
    four times as long for 336. On one thread, as several pictures are drawn at a time.
    """
    places = [_place(component_nc, ids, start) for start in starts]
    if method == "umap":
        return [_fit_umap(component_nc, y, s.seed) for y, s in zip(places, starts, strict=True)]
    return [_fit_tsne(component_nc, place_nd, perplexity) for place_nd in places]


def _place(
    component_nc: NDArray[np.float64], ids: NDArray[np.object_], start: Start
) -> NDArray[np.float64]:
    """Return start places whose first axis has a deviation of 1, [samples, 2]."""
    random_nd = np.stack([seeded(f"{start.seed}/{name}").standard_normal(2) for name in ids])
    if start.init == "random":
        return random_nd
    first_nd = component_nc[:, :2] / component_nc[:, 0].std()
    # a line has no second component: its points leave it a little, or the picture would be a line
    return first_nd if first_nd.shape[1] == 2 else np.c_[first_nd, 0.01 * random_nd[:, 1]]


def _fit_tsne(
    component_nc: NDArray[np.float64], place_nd: NDArray[np.float64], perplexity: float
) -> NDArray[np.float64]:
    from sklearn.manifold import TSNE

    start_nd = (place_nd * _TSNE_WIDTH).astype(np.float32)
    model = TSNE(
        perplexity=perplexity,
        learning_rate="auto",
        max_iter=STEPS,
        init=start_nd,  # pyright: ignore[reportArgumentType] an array may stand for the name
        random_state=0,  # the start is given: nothing is left to draw
        n_jobs=1,
    )
    # the limit of OpenMP belongs to a thread: that of the runner's own does not hold in its tasks
    with threadpool_limits(1, user_api="openmp"):
        return np.asarray(model.fit_transform(component_nc), dtype=np.float64)


def _fit_umap(
    component_nc: NDArray[np.float64], place_nd: NDArray[np.float64], seed: int
) -> NDArray[np.float64]:
    with warnings.catch_warnings():
        # of a part that is not used here, whose own dependency is not installed
        warnings.filterwarnings("ignore", "Tensorflow not installed", ImportWarning)
        from umap import UMAP

    start_nd = place_nd * (_UMAP_WIDTH / np.abs(place_nd).max())
    model = UMAP(
        n_neighbors=min(_UMAP_NEIGHBOURS, len(component_nc) - 1),
        init=start_nd.astype(np.float32),
        random_state=seed,
        n_jobs=1,
    )
    return np.asarray(model.fit_transform(component_nc), dtype=np.float64)
