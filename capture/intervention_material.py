"""What interventions put in: reference means, other samples' updates, other matrices, stored rows.

Everything drawn is drawn from the run's seed and from names, so that it is the same after a crash,
and whatever batches the samples come in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .adapters import layer_adapters
from .intervention import Intervention
from .intervention_plan import same_shape
from .interventions import (
    adapter_matrices,
    patch_taps,
    put_rows,
    replace_matrices,
    replace_updates,
    scale_adapter,
    watch_updates,
)
from .samples import Sample, SampleTable
from .sites import SiteRequest, resolve_sites

if TYPE_CHECKING:
    from ..store import Capture
    from .models import LoadedModel

FEATURE_CACHE_BYTES = 256 * 2**20
"""Input features that the interventions of a capture keep instead of computing them again."""

type Change = Callable[[Sequence[Sample]], AbstractContextManager[None]]
"""Changes the model for the one batch of samples that will run inside the block."""


class Material:
    """What the interventions of one capture draw on.

    Parameters
    ----------
    loaded
        The model with the weights of the capture.
    table
        All samples.
    reference_ids
        Samples that a mean is taken over.
    seed
        Of everything drawn.
    batch_size
        Samples of a forward.
    open_capture
        Opens a capture of the store, for patches.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        table: SampleTable,
        *,
        reference_ids: frozenset[str],
        seed: int,
        batch_size: int,
        open_capture: Callable[[str], Capture],
    ) -> None:
        self.loaded, self.table, self.seed = loaded, table, seed
        self._reference_ids, self._batch_size = reference_ids, batch_size
        self._open_capture = open_capture
        self._inputs: dict[tuple[str, ...], dict[str, torch.Tensor]] = {}
        self._free = FEATURE_CACHE_BYTES
        self._means: torch.Tensor | None = None
        self._partners: dict[str, Sample] | None = None

    def inputs(self, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        """Return the model's inputs of a batch, kept as far as the budget reaches."""
        key = tuple(sample.utterance.id for sample in samples)
        if key in self._inputs:
            return self.loaded.move(self._inputs[key])
        rate = self.loaded.family.sampling_rate
        made = self.loaded.inputs([self.table.waveform(sample, rate=rate) for sample in samples])
        size = sum(x.nbytes for x in made.values())
        if size <= self._free:
            self._inputs[key] = {name: x.cpu() for name, x in made.items()}
            self._free -= size
        return made

    def partners(self, samples: Sequence[Sample]) -> list[Sample]:
        """Return for each sample the one whose updates it gets: another one, always the same."""
        if self._partners is None:
            by_id = self.table.by_id()
            cycle = draw_cycle(sorted(by_id), self.seed, "erase resample")
            self._partners = {key: by_id[other] for key, other in cycle.items()}
        return [self._partners[sample.utterance.id] for sample in samples]

    def references(self) -> list[Sample]:
        """Return the samples that a mean is taken over, in the order of the corpus."""
        return [s for s in self.table.samples if s.utterance.id in self._reference_ids]

    def mean_updates(self) -> torch.Tensor:
        """Return the mean update of every layer over the valid frames of the reference samples.

        float32 [layer, d] on the CPU, from float64 sums; every frame counts the same.
        """
        if self._means is None:
            self._means = self._measure_means()
        return self._means

    def _measure_means(self) -> torch.Tensor:
        model, family = self.loaded.model, self.loaded.family
        n_layers = int(self.loaded.description["n_layers"])
        sums: dict[int, torch.Tensor] = {}
        frames = 0
        for samples in self.table.batches(self.references(), self._batch_size):
            mask = torch.from_numpy(self.table.mask(samples))

            def add(layer: int, update: torch.Tensor, mask: torch.Tensor = mask) -> None:
                total = update[mask.to(update.device)].double().sum(0).cpu()
                sums[layer] = sums[layer] + total if layer in sums else total

            with torch.no_grad(), watch_updates(model, family, range(n_layers), add):
                model(**self.inputs(samples))
            frames += sum(sample.valid_frames for sample in samples)
        return torch.stack([sums[layer] / frames for layer in range(n_layers)]).float()

    def stored(self, source: str) -> Capture:
        """Open the capture that a patch reads."""
        return self._open_capture(source)


def make_change(
    intervention: Intervention, material: Material, means: Mapping[int, torch.Tensor] | None = None
) -> Change:
    """Return what changes the model of `material` for one batch at a time.

    Parameters
    ----------
    intervention
        What to do.
    material
        The model, and what is put in.
    means
        Of an erasure by means, the update of each layer [d]; None: computed now.
    """
    model, family = material.loaded.model, material.loaded.family
    layers = intervention.layers or ()
    if intervention.kind == "patch":
        return _patch(intervention, material)
    if intervention.kind in ("lora_off", "scale_lora"):
        by = 0.0 if intervention.by is None else intervention.by
        return lambda _: scale_adapter(model, family, layers, by=by)
    if intervention.kind == "ablate":
        values = other_matrices(material.loaded, intervention, material.seed)
        return lambda _: replace_matrices(model, family, intervention.matrix, values)
    if intervention.how == "resample":
        return _resample(intervention, material)
    if intervention.how == "mean":
        known = means or {layer: material.mean_updates()[layer] for layer in layers}
        return lambda _: replace_updates(model, family, known)
    return lambda _: replace_updates(model, family, dict.fromkeys(layers))


def _resample(intervention: Intervention, material: Material) -> Change:
    model, family = material.loaded.model, material.loaded.family
    layers = intervention.layers or ()

    @contextmanager
    def change(samples: Sequence[Sample]) -> Iterator[None]:
        updates: dict[int, torch.Tensor | None] = {}
        # the other samples' updates are those of the unchanged model, also where many are erased
        with torch.no_grad(), watch_updates(model, family, layers, updates.__setitem__):
            model(**material.inputs(material.partners(samples)))
        with replace_updates(model, family, updates):
            yield

    return change


def _patch(intervention: Intervention, material: Material) -> Change:
    loaded = material.loaded
    request = SiteRequest(layers=intervention.layers, frames="all", pool=())
    (site,) = resolve_sites(loaded.model, loaded.family, {intervention.site: request}, {})
    rows = _StoredRows(material.stored(intervention.source), site.name, loaded.family.stream)

    def change(samples: Sequence[Sample]) -> AbstractContextManager[None]:
        numbers = rows.numbers([sample.utterance.id for sample in samples])
        positions = rows.positions(numbers)
        layers = site.layers or (None,)
        patches = {
            tap: put_rows(rows.read(layer, numbers), positions)
            for tap, layer in zip(site.taps, layers, strict=True)
        }
        return patch_taps(loaded.model, patches)

    return change


@dataclass(frozen=True, slots=True)
class _StoredRows:
    """The rows of one site of a stored capture, by sample."""

    capture: Any
    """The capture (a `store.Capture`)."""
    site: str
    stream: str

    def numbers(self, ids: Sequence[str]) -> list[slice]:
        """Return where samples are, consecutive ones together."""
        at = {key: number for number, key in enumerate(self.capture.samples["id"])}
        own = np.asarray([at[key] for key in ids])
        runs = np.split(own, np.flatnonzero(np.diff(own) != 1) + 1)
        return [slice(int(run[0]), int(run[-1]) + 1) for run in runs]

    def positions(self, numbers: Sequence[slice]) -> list[np.ndarray]:
        """Return the frames of the rows of each sample."""
        counts = self.capture.row_counts(self.stream)
        parts: list[np.ndarray] = []
        for run in numbers:
            read = self.capture.read_positions(self.stream, run)
            parts += np.split(read, np.cumsum(counts[run])[:-1])
        return parts

    def read(self, layer: int | None, numbers: Sequence[slice]) -> torch.Tensor:
        """Return the rows, sample after sample, [n, d]."""
        read = [self.capture.read_rows(self.site, layer, run) for run in numbers]
        return torch.from_numpy(np.concatenate(read))


def other_matrices(
    loaded: LoadedModel, intervention: Intervention, seed: int
) -> dict[tuple[int, str], torch.Tensor]:
    """Return what an ablation puts in place of each matrix, by (layer, short name).

    ``zero``: zeros. ``random``: values from N(0, 1), scaled to the Frobenius norm of the matrix.
    ``resample``: the matrix of the same module in another layer; all layers are drawn into one
    cycle and each takes from the next, so none keeps its own.
    """
    matrix, how = intervention.matrix, intervention.how
    weights = adapter_matrices(loaded.model, loaded.family, matrix)
    adapters = layer_adapters(loaded.model, loaded.family)
    values = {}
    for key, weight in weights.items():
        layer, short = key
        if layer not in (intervention.layers or ()):
            continue
        if how == "zero":
            values[key] = torch.zeros_like(weight)
        elif how == "random":
            values[key] = _draw_like(weight, derive_seed(seed, f"ablate {matrix} {layer} {short}"))
        else:
            among = same_shape(adapters, matrix, key)
            cycle = draw_cycle(among, seed, f"ablate {matrix} {short}")
            values[key] = weights[cycle[layer], short].detach().clone()
    return values


def _draw_like(weight: torch.Tensor, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
    norm = weight.detach().double().norm().cpu()
    return (drawn * (norm / drawn.norm())).to(weight.device, weight.dtype)


def draw_cycle[T](items: Sequence[T], seed: int, purpose: str) -> dict[T, T]:
    """Return for each item the next one in a seeded cycle through all: never itself."""
    order = np.random.default_rng(derive_seed(seed, purpose)).permutation(len(items))
    following = np.roll(order, -1)
    return {items[int(i)]: items[int(j)] for i, j in zip(order, following, strict=True)}


def derive_seed(seed: int, purpose: str) -> int:
    """Return a seed of its own for one purpose, below 2^63."""
    digest = hashlib.sha256(f"{seed} {purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
