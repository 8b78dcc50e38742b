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
from .engine import Progress, Runner, open_runner, run_passes
from .errors import MemoryBudgetError
from .fold import ArrayKey, Fold
from .gradients.gradients import Gradients
from .lora.alignment import Alignment
from .lora.weights import Weights
from .memory import Pass, format_bytes, parse_bytes, plan_passes
from .options import apply_options, changed_options
from .plan import Analysis, Outcome, Plan, Table, join_tables
from .pooled import CollectFold, PooledSource
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
    "tuned_lens": TunedLens(),
}
"""Every analysis with its default options."""
ANALYSES: dict[str, str] = {name: analysis.description for name, analysis in CATALOGUE.items()}
"""What each analysis gives, by name."""
_COLLECT_SHARE = 0.4
"""Part of the memory that pooled features may stay in; more are read again from the store."""


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
    progress
        Called as `progress(done_bytes, total_bytes, text)`.
    notify
        Called with each note, before anything is read: what the store lacks for some values.

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
        tables, facts = _execute(plans, selection, runner, progress)
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


def _execute(
    plans: dict[str, Plan], selection: Selection, runner: Runner, progress: Progress | None
) -> tuple[dict[str, Table], dict[str, Any]]:
    """Run all folds of all plans together, then let each plan conclude."""
    source = selection.source
    pooled = dict.fromkeys(key for plan in plans.values() for key in plan.pooled)
    stored = {key: selection.stored_key(key) for key in pooled}
    wanted = list(dict.fromkeys(f for plan in plans.values() for f in plan.folds))
    collect, passes = _cut_passes(wanted, _collect_folds(stored, selection), selection, runner)
    results: dict[Fold[Any, Any], Any] = run_passes(source, passes, runner, progress)
    collected = {fold.key: results.pop(fold) for fold in collect}
    outcome = Outcome(selection, results, PooledSource(source, collected, stored), runner)
    tables: dict[str, Table] = {}
    read = sum(int(source.sizes(key).sum()) for one in passes for key in one.needs)
    for name, plan in plans.items():
        if progress is not None:
            progress(read, read, f"computing {name}")
        for table, part in plan.conclude(outcome).items():
            tables[table] = join_tables(tables[table], part) if table in tables else part
    facts = {"passes": len(passes), "slabs": sum(len(one.slabs) for one in passes)}
    return tables, {**facts, "bytes_read": format_bytes(read)}


def _cut_passes(
    wanted: list[Fold[Any, Any]],
    collect: list[CollectFold],
    selection: Selection,
    runner: Runner,
) -> tuple[list[CollectFold], list[Pass]]:
    """Return the passes; nothing is collected where a fold fits only without what that holds."""
    source = selection.source
    held = sum(fold.bytes for fold in collect)
    held += sum(getattr(fold, "result_bytes", 0) for fold in wanted)
    try:
        passes = plan_passes(
            [*wanted, *collect],
            source.cost,
            source.borders(),
            memory_bytes=selection.memory_bytes - held,
            workers=runner.workers,
        )
    except MemoryBudgetError:
        if not collect:
            raise
        return _cut_passes(wanted, [], selection, runner)
    return collect, passes


def _collect_folds(stored: dict[ArrayKey, ArrayKey], selection: Selection) -> list[CollectFold]:
    """Return a fold that keeps each pooled array, or none when they do not fit together."""
    source = selection.source
    folds = []
    for key, where in stored.items():
        view = source.views[key.capture]
        info = view.info(where)
        item = 4 if where.pool and info.dtype != "float64" else 8
        folds.append(CollectFold(key, where, view.samples.size * info.width * item))
    fits = sum(fold.bytes for fold in folds) <= _COLLECT_SHARE * selection.memory_bytes
    return folds if fits else []
