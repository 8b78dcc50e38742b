"""Pictures of pooled features by t-SNE or UMAP, with the numbers of the space they come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..engine import Runner
from ..errors import AnalysisInputError, MemoryBudgetError, MissingSitesError
from ..fold import ArrayKey
from ..memory import USABLE, format_bytes
from ..plan import Outcome, Plan, Table, unexposed_samples
from ..selection import Selection, layers_of, matches
from ..source import View
from .layout import STEPS, Start, check_method, make_starts
from .neighbours import Marks
from .pictures import Style, draw_pictures, find_fault

DEPTHS = {"resid_post": 3, "lora_a": 1}
"""Sites with pictures unless others are asked for, and at how many depths each."""
_BYTES_PER_PAIR = 48
"""Largest memory of distances, orders and ranks of neighbours, for each pair of samples."""
_SHARE = 0.3
"""Part of the memory that one array's pictures may take, beside the pooled features held."""


@dataclass(frozen=True, slots=True)
class Embedding:
    """Tables `embedding` (the points) and `embedding_quality` (what they are worth).

    Notes
    -----
    Pooled features, their principal components, then scikit-learn's t-SNE (or umap-learn's UMAP)
    from several starts. Distances in a picture mean little. So the purity of neighbourhoods and
    the silhouettes are those of the features themselves, and `knn_recall` and `trustworthiness`
    say how much of the features' neighbourhoods a picture keeps. O(samples²) memory; t-SNE takes
    about 0.7 s a picture of 336 samples, 3 s of 1,000.

    References
    ----------
    van der Maaten and Hinton 2008; Kobak and Berens 2019; Belkina et al. 2019; Venna and Kaski
    2001; Rousseeuw 1987.
    """

    method: str = "tsne"
    """`tsne` or `umap` (needs umap-learn)."""
    starts: int = 2
    """Pictures of each array: from the first two components, then from random places."""
    k: int = 10
    """Nearest neighbours behind purity, recall and trustworthiness."""
    most: int = 1000
    """More samples than this are thinned: memory grows with the square of their number."""
    perplexity: float = 30.0
    """Of t-SNE; less where there are fewer than three times as many samples."""
    components: int = 50
    """Principal components that t-SNE and UMAP see at most."""
    name: str = "embedding"
    description: str = (
        "t-SNE or UMAP pictures, and how pure neighbourhoods are by label and speaker"
    )

    def plan(self, selection: Selection) -> Plan:
        """Return the pooled arrays to draw."""
        self._check_options()
        keys = tuple(key for view in selection.captures for key in _choose(view, selection))
        if not keys:
            msg = (
                f"embedding needs pooled features (mean_valid) or rows of one of "
                f"{', '.join(DEPTHS)}, and the store holds none of them. "
                "Record them: `record.pool: [mean_valid]`, or name --sites."
            )
            raise MissingSitesError(msg)
        chosen, _ = choose_samples(self, selection)
        sizes = {name: samples.size for name, samples in chosen.items()}
        if max(sizes.values()) < self.fewest:
            msg = (
                f"embedding needs at least {self.fewest} samples of a capture (4 times k = "
                f"{self.k}) that did not shape its features; there are {max(sizes.values())}."
            )
            raise MissingSitesError(msg)
        for key in keys:
            needed = _count_bytes(key, sizes[key.capture], selection)
            if needed > _SHARE * selection.memory_bytes:
                msg = (
                    f"memory {format_bytes(selection.memory_bytes)} is too little: the pictures of "
                    f"{sizes[key.capture]} samples of {key} take {format_bytes(needed)}, and "
                    f"{_SHARE:.0%} of the memory is there for them. "
                    f"Allow at least {format_bytes(needed / _SHARE)} (--memory)."
                )
                raise MemoryBudgetError(msg)
        return Plan(partial(_conclude, self, keys), (), keys)

    @property
    def fewest(self) -> int:
        """Samples below which nothing is drawn: neighbourhoods would be most of the data."""
        return 4 * self.k

    def _check_options(self) -> None:
        check_method(self.method)
        if min(self.starts, self.k, self.components) < 1 or self.perplexity < 2:
            msg = (
                "embedding needs starts, k and components of at least 1 and a perplexity of at "
                f"least 2, not {self.starts}, {self.k}, {self.components} and {self.perplexity}."
            )
            raise AnalysisInputError(msg)
        if self.most < self.fewest:
            msg = f"embedding needs most >= 4 k = {self.fewest}, not {self.most}."
            raise AnalysisInputError(msg)


def _choose(view: View, selection: Selection) -> list[ArrayKey]:
    """Return the arrays of a capture that are drawn."""
    keys = selection.pooled_keys(view)
    if selection.sites is not None:
        return keys
    chosen = []
    for key in keys:
        depths = next((n for site, n in DEPTHS.items() if matches(key.site, site)), 0)
        layers = [n for n in layers_of(view, key.site, key.pool) if selection.wants_layer(n)]
        shown = layers if selection.layers is not None else spread_layers(layers, depths)
        if depths and key.layer in shown:
            chosen.append(key)
    return chosen


def spread_layers(layers: Sequence[int], count: int) -> list[int]:
    """Return up to `count` layers, evenly spread from the first to the last; of one, the last.

    Five are the first, those at a quarter, the half and three quarters of the depth, and the last.
    """
    last = len(layers) - 1
    places = [last] if count == 1 else [round(i * last / (count - 1)) for i in range(count)]
    return [layers[place] for place in dict.fromkeys(places)]


def choose_samples(
    embedding: Embedding, selection: Selection
) -> tuple[dict[str, NDArray[np.int64]], str]:
    """Return the samples of each capture in the order of their ids, and which ones they are.

    Notes
    -----
    Purities depend on how many samples there are. So captures get the same samples, `shared`: those
    that shaped the features of none of them. A capture that has too few of its own is left aside.
    Where too few are shared (folds, whose captures each leave out other speakers), each capture
    gets its `own`. More than `most` are cut along the ids into `most` runs of about equal length,
    and one sample is drawn from each.
    """
    own = {view.name: unexposed_samples(view, through="adapter") for view in selection.captures}
    able = [samples for samples in own.values() if samples.size >= embedding.fewest]
    shared = able[0] if able else np.empty(0, dtype=np.int64)
    for samples in able[1:]:
        shared = np.intersect1d(shared, samples)
    together = shared.size >= embedding.fewest
    ids = selection.source.ids
    chosen = {}
    for name, samples in own.items():
        kept = shared if together and samples.size >= embedding.fewest else samples
        kept = kept[np.argsort(ids[kept].astype(str), kind="stable")]
        chosen[name] = _thin(kept, embedding.most, selection.seed)
    return chosen, "shared" if together else "own"


def _thin(samples: NDArray[np.int64], most: int, seed: int) -> NDArray[np.int64]:
    if samples.size <= most:
        return samples
    edges = np.linspace(0, samples.size, most + 1)
    return samples[np.random.default_rng(seed).uniform(edges[:-1], edges[1:]).astype(np.int64)]


def _count_bytes(key: ArrayKey, n: int, selection: Selection) -> int:
    """Return the memory that one array takes: features three times, and matrices of pairs."""
    view = selection.source.views[key.capture]
    width = view.info(selection.stored_key(key)).width
    return 3 * 8 * n * width + 8 * min(n, width) ** 2 + _BYTES_PER_PAIR * n * n


def _conclude(embedding: Embedding, keys: Sequence[ArrayKey], outcome: Outcome) -> dict[str, Table]:
    selection = outcome.selection
    samples, which = choose_samples(embedding, selection)
    starts = make_starts(selection.seed, embedding.starts)

    def work(key: ArrayKey) -> tuple[pd.DataFrame, pd.DataFrame]:
        return _draw(embedding, key, samples[key.capture], starts, outcome)

    largest = max(_count_bytes(key, samples[key.capture].size, selection) for key in keys)
    room = int(USABLE * selection.memory_bytes) - outcome.pooled.held_bytes
    at_a_time = max(1, min(outcome.runner.workers, room // max(largest, 1)))
    if embedding.method == "umap":
        at_a_time = 1  # its compiled loops are not safe to run side by side
    # as many threads as tasks: BLAS then has one, and rounding does not depend on the machine
    parts = Runner(at_a_time).map(work, keys)
    attrs = _describe(embedding, which)
    points = pd.concat([part[0] for part in parts], ignore_index=True)
    quality = pd.concat([part[1] for part in parts], ignore_index=True)
    return {"embedding": Table(points, attrs), "embedding_quality": Table(quality, attrs)}


def _describe(embedding: Embedding, which: str) -> dict[str, str]:
    """Return how the pictures were made."""
    same = "samples that shaped the features of no capture, the same for all captures"
    own = "samples that did not shape the capture's own features"
    how = (
        f"scikit-learn, Barnes-Hut, perplexity min({embedding.perplexity:g}, (n - 1) / 3), "
        f"{STEPS} steps, learning rate auto"
    )
    return {
        "method": embedding.method,
        "estimator": how if embedding.method == "tsne" else "umap-learn, its defaults",
        "reduction": f"up to {embedding.components} principal components",
        "starts": "first seed: the first two principal components; others: random",
        "distance": "Euclidean, of the pooled features",
        "k": str(embedding.k),
        "samples": same if which == "shared" else own,
        "thinned": f"to {embedding.most}, one of each run along the ids; the others are left out",
        "interval": "delete-one-speaker jackknife, as sample and as neighbour, 95 %",
    }


def _draw(
    embedding: Embedding,
    key: ArrayKey,
    samples: NDArray[np.int64],
    starts: list[Start],
    outcome: Outcome,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the points and the numbers of one array."""
    head = {"capture": key.capture, "site": key.site, "layer": key.layer, "exposed": "none"}
    head |= {"method": embedding.method, "n": samples.size, "k": embedding.k}
    reason = ""
    x_nd = np.empty((0, 0))
    if samples.size < embedding.fewest:
        all_there = samples.size == outcome.selection.source.views[key.capture].samples.size
        kind = "" if all_there else " that did not shape the features"
        reason = f"{samples.size} samples{kind}; at least {embedding.fewest} are needed"
    else:
        x_nd = outcome.pooled.matrix(key, samples).astype(np.float64)
        reason = find_fault(x_nd)
    if reason:
        empty = pd.DataFrame([{**head, "seed": starts[0].seed, "reason": reason}])
        return empty, empty.assign(init=starts[0].init)
    view = outcome.selection.source.views[key.capture]
    marks = Marks(view.label_n[samples], view.group_n[samples])
    style = Style(embedding.method, embedding.k, embedding.perplexity, embedding.components)
    ids = outcome.selection.source.ids[samples]
    points, quality = draw_pictures(x_nd, ids, marks, starts, style)
    return points.assign(**head), quality.assign(**head)
