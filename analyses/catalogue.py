"""The analyses by name, and `analyze`, which runs any of them in one pass over a store."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import xarray as xr

from ..store import Store, open_store
from .backend import describe_device
from .behaviour.contribution import Contribution
from .behaviour.erasure import Erasure
from .behaviour.lens import Lens
from .behaviour.scores import Scores
from .behaviour.tuned_lens import TunedLens
from .choose import choose_variant, make_plans, with_exact
from .embedding.embedding import Embedding
from .engine import Progress, open_runner
from .execute import execute
from .fold import Fold
from .gradients.gradients import Gradients
from .lora.alignment import Alignment
from .lora.weights import Weights
from .memory import parse_bytes
from .options import apply_options, changed_options
from .partial import Keeping
from .plan import Analysis
from .probes.code_length import CodeLength
from .probes.layer_weights import LayerWeights
from .probes.probe import Probe
from .probes.row_probe import RowProbe
from .selection import check_captures, select, with_interventions
from .similarity.cka import CKA
from .source import Source, interventions_of
from .spectra.svd import SVD
from .tables import to_dataset

CATALOGUE: dict[str, Analysis] = {
    "cka": CKA(),
    "svd": SVD(),
    "probe": Probe(),
    "lens": Lens(),
    "contribution": Contribution(),
    "outputs": Scores(),
    "erasure": Erasure(),
    "alignment": Alignment(),
    "weights": Weights(),
    "gradients": Gradients(),
    "embedding": Embedding(),
    "row_probe": RowProbe(),
    "layer_weights": LayerWeights(),
    "mdl": CodeLength(),
    "tuned_lens": TunedLens(),
}
"""Every analysis with its default options."""
ANALYSES: dict[str, str] = {name: analysis.description for name, analysis in CATALOGUE.items()}
"""What each analysis gives, by name."""


def analyze(  # noqa: PLR0913 - what the command line offers, all but two of it optional
    store: Store | str | Path,
    names: Sequence[str | Analysis | Fold[Any, Any]] | None = None,
    *,
    against: Store | str | Path | None = None,
    captures: Sequence[str] | None = None,
    sites: Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    memory: str | int = "2GiB",
    workers: int | None = None,
    scheduler: str | None = None,
    device: str = "cpu",
    variant: str = "corrected",
    faults: Sequence[str] = (),
    options: Sequence[str] = (),
    exact: bool = False,
    seed: int = 0,
    resume: str | Path | None = None,
    progress: Progress | None = None,
    notify: Callable[[str], None] | None = None,
) -> dict[str, xr.Dataset]:
    """Return the tables of the analyses of a store, all computed in one pass where they fit.

    Parameters
    ----------
    store
        An open store, or its path.
    names
        Names of the catalogue (`cka`, `svd`, …), analyses with other options
        (`Probe(shuffles=20)`), or folds of your own, whose results come under their `name`. None:
        every analysis that the store can serve within `memory`, but `layer_weights`, `mdl` and
        `tuned_lens`, which take their time; the others are named in the attribute `skipped`.
    against
        Another store whose captures are compared with this one's by `cka`, as `against:<capture>`.
    captures, sites, layers
        What to analyse; None: all. A site also names its parts (`lora_a` for `lora_a.v_proj`).
    memory
        What may be used above what the process uses already: `2GiB`, `500MB` or bytes.
    workers
        Slabs at a time; None: one for each core.
    scheduler
        Address of a dask.distributed scheduler; None: threads.
    device
        Where products of arrays are computed: `cpu`, or `cuda` (needs cupy).
    variant
        `paper` adds the table `paper`: the published quantities of arXiv 2509.08454, of the
        analyses in `names` alone where some are named, beside the corrected ones.
    faults
        Faults of the published code that are shown one by one; none means all (docs/paper.md).
    options
        Options of analyses as text, `cka.permutations=1000`, also where all run.
    exact
        `cka` compares frames from every pair of rows too: `CKA(exact=True)`. Can take hours; a note
        says how many multiplications and passes, before anything is read.
    seed
        Of everything drawn: frames, control shuffles, bootstrap.
    resume
        A folder for partial states: a call that was killed goes on from there when it is made
        again. They stay until `write_outputs` has written to the folder above, or you remove them.
        None: nothing is kept.
    progress
        Called as `progress(done_bytes, total_bytes, text)`.
    notify
        Called with each note: what the store lacks for some values, what `resume` cannot do.

    Returns
    -------
    dict
        Datasets by table name (`tables.COLUMNS` lists them), each of one dimension `entry` with the
        columns as variables. The attributes say seed, memory, passes, bytes read, the store and
        the choices of the estimator. Captures of interventions appear in `erasure` alone.

    Raises
    ------
    AnalysisInputError
        An unknown analysis, option, capture, site or layer; an analysis asked for by name whose
        sites are missing.
    MemoryBudgetError
        Not even one sample fits into `memory`; said before anything is read.
    DeviceError
        `cuda` without cupy or without a device.

    Notes
    -----
    Tables agree for any memory and worker count up to the order of float64 sums, and of float32
    products in the spectra and in exact CKA of frames (1e-6 relative).
    """
    chosen = choose_variant(names, CATALOGUE, variant, faults)
    by_default = names is None and variant == "corrected"
    chosen = with_exact(chosen) if exact else chosen
    chosen = apply_options(chosen, CATALOGUE, options, by_default=by_default)
    memory_bytes = parse_bytes(memory)
    store = store if isinstance(store, Store) else open_store(store)
    against = against if against is None or isinstance(against, Store) else open_store(against)
    asked = check_captures(captures, store.captures)
    asked = with_interventions(asked, interventions_of(store), store.captures)
    source = Source.open(store, asked, against)
    with open_runner(workers, scheduler, device) as runner:
        selection = select(
            source,
            sites=sites,
            layers=layers,
            seed=seed,
            memory_bytes=memory_bytes,
            workers=runner.workers,
            device=device,
        )
        plans, skipped = make_plans(chosen, selection, by_default=by_default)
        for note in (note for plan in plans.values() for note in plan.notes):
            if notify is not None:
                notify(note)
        stores = [one for one in (store, against) if one is not None]
        folder = None if resume is None else Path(resume)
        keeping = Keeping(folder, stores, notify)
        tables, facts = execute(plans, selection, runner, progress, keeping)
    attrs = {
        "store_uuid": store.uuid,
        "seed": seed,
        "memory": str(memory),
        "device": describe_device(device),
        "skipped": json.dumps(skipped),
        "options": json.dumps(changed_options(chosen, CATALOGUE)),
        **facts,
    }
    return {name: to_dataset(name, table, attrs) for name, table in tables.items()}
