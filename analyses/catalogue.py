"""The analyses by name, and `analyze`, which runs any of them in one pass over a store."""

from __future__ import annotations

import difflib
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
from .embedding.embedding import Embedding
from .engine import Progress, open_runner
from .errors import AnalysisInputError, MemoryBudgetError, MissingSitesError
from .execute import execute
from .fold import Fold
from .gradients.gradients import Gradients
from .lora.alignment import Alignment
from .lora.weights import Weights
from .memory import check_fits, parse_bytes
from .own import as_analysis
from .paper.paper import Paper
from .partial import Keeping
from .plan import Analysis, Plan
from .probes.code_length import CodeLength
from .probes.layer_weights import LayerWeights
from .probes.probe import Probe
from .probes.row_probe import RowProbe
from .selection import Selection, check_captures, select, with_interventions
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
        every analysis that the store can serve within `memory`, but `layer_weights` and `mdl`,
        which take their time; the others are named in the attribute `skipped`.
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
        An unknown analysis, capture, site or layer; an analysis asked for by name whose sites are
        missing.
    MemoryBudgetError
        Not even one sample fits into `memory`; said before anything is read.
    DeviceError
        `cuda` without cupy or without a device.

    Notes
    -----
    Tables agree for any memory and worker count up to the order of float64 sums, and of float32
    products in the spectra (1e-6 relative).
    """
    chosen = choose_variant(names, variant, faults)
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
        by_default = names is None and variant == "corrected"
        plans, skipped = _plan(chosen, selection, by_default=by_default)
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
        **facts,
    }
    return {name: to_dataset(name, table, attrs) for name, table in tables.items()}


def choose(names: Sequence[str | Analysis | Fold[Any, Any]] | None) -> list[Analysis]:
    """Return the analyses that names and folds stand for, each once.

    Raises
    ------
    AnalysisInputError
        An unknown name (says which ones there are), or two analyses of one name.
    """
    chosen: dict[str, Analysis] = {}
    for name in CATALOGUE if names is None else [names] if isinstance(names, str) else names:
        if not isinstance(name, str):
            analysis = as_analysis(name)
            if analysis.name in chosen:
                msg = f"two analyses are called {analysis.name!r}: give one of them another `name`."
                raise AnalysisInputError(msg)
            chosen[analysis.name] = analysis
        elif name in CATALOGUE:
            chosen[name] = CATALOGUE[name]
        else:
            close = difflib.get_close_matches(name, CATALOGUE, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            msg = f"no analysis {name!r}.{hint} There are: {', '.join(CATALOGUE)}."
            raise AnalysisInputError(msg)
    return list(chosen.values())


def choose_variant(
    names: Sequence[str | Analysis | Fold[Any, Any]] | None, variant: str, faults: Sequence[str]
) -> list[Analysis]:
    """Return the analyses of a variant: those named, for `paper` with its own before them."""
    if variant == "corrected" and not faults:
        return choose(names)
    if variant == "corrected":
        msg = f"faults ({', '.join(faults)}) are those of the variant `paper`: ask for it."
        raise AnalysisInputError(msg)
    if variant != "paper":
        msg = f"no variant {variant!r}. There are: corrected, paper."
        raise AnalysisInputError(msg)
    named = [] if names is None else choose(names)
    return [Paper.of([one.name for one in named] or None, faults), *named]


def _plan(
    chosen: Sequence[Analysis], selection: Selection, *, by_default: bool
) -> tuple[dict[str, Plan], dict[str, str]]:
    """Return the plans, and why analyses that nobody asked for by name are left out."""
    plans: dict[str, Plan] = {}
    skipped: dict[str, str] = {}
    short: MemoryBudgetError | None = None
    for analysis in chosen:
        if by_default and not getattr(analysis, "by_default", True):
            skipped[analysis.name] = "it takes its time and runs where it is asked for by name."
            continue
        try:
            plan = analysis.plan(selection)
            check_fits(plan.folds, selection.source.cost, selection.memory_bytes)
            plans[analysis.name] = plan
        except (MissingSitesError, MemoryBudgetError) as error:
            if not by_default:
                raise
            skipped[analysis.name] = str(error)
            short = error if isinstance(error, MemoryBudgetError) else short
    if not plans and short is not None:
        raise short
    if not plans:
        msg = f"the store serves no analysis. {' '.join(skipped.values())}"
        raise MissingSitesError(msg)
    return plans, skipped
