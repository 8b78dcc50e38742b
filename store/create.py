"""`create_store`: from what a caller declares to a writer on an ordered, locked store."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from .chunking import plan_segments, unplanned_shape
from .consistency import load_definitions
from .creation import (
    check_same_run,
    make_capture,
    prepare_folder,
    prepare_root,
    sweep,
)
from .definition import CaptureDefinition, plan_digest
from .definition_rules import check_limits
from .errors import ConfigMismatchError, SampleError, StoreSpaceError
from .extents import refuse_lost_records
from .files import disk_errors, exclusive_lock
from .guard import BrokenRule, parse_json
from .layout import COMMITS, Output, SampleRows, Site, check_name
from .products import Product, check_product
from .profiles import ProfileName, check_profile
from .ranks import Rank, join_ranks
from .records import RecordLog
from .root import refuse_sealed, root_attributes
from .writer import Writer, WriterRun

DEFAULT_BUFFER_BYTES = 256 * 2**20


def create_store(  # noqa: PLR0913 - everything after the sites is optional and named
    path: str | Path,
    *,
    capture: str,
    sites: Sequence[Site],
    outputs: Sequence[Output] = (),
    products: Sequence[Product] = (),
    config: Mapping[str, Any] | None = None,
    attrs: Mapping[str, Any] | None = None,
    plan: Sequence[SampleRows] | None = None,
    segment_rows: int | None = None,
    segment_samples: int | None = None,
    batch_size: int = 1,
    buffer_bytes: int = DEFAULT_BUFFER_BYTES,
    threads: int = 1,
    profile: str = "fast",
    rank: int = 0,
    ranks: int = 1,
    wait_seconds: float = 600.0,
) -> Writer:
    """Return a writer for one capture of the store at `path`.

    A path that does not exist becomes a new store; an existing store gets the capture added, or
    the capture is resumed if it is there with the same configuration.

    Parameters
    ----------
    path
        The store's folder.
    capture
        Name of the capture.
    sites
        What will be recorded, row sites and pooled sites. There may be none where there are
        outputs.
    outputs
        Values per sample (logits, loss).
    products
        Row sites that follow from recorded ones and parameters, and are not stored.
    config
        JSON-able: all that determines the values. Another one for an existing capture is refused.
    attrs
        JSON-able provenance that is not compared.
    plan
        All samples in order with their rows per stream. With a plan, arrays have their final shape
        from the start and the same plan gives the same files, interrupted or not.
    segment_rows, segment_samples
        Upper limits for a segment; None chooses.
    batch_size
        With a plan: this many consecutive samples stay in one segment.
    buffer_bytes
        Bound on the bytes that wait for the disk; `append` blocks beyond it.
    threads
        Writer threads.
    profile
        How values are stored: `fast` (raw), `compact` (lz4, about a fifth smaller for bfloat16; one
        inner chunk of memory an array) or `portable` (raw, float16 and bfloat16 widened to
        float32). `archive` is for copies: see `copy_store`.
    rank, ranks
        The place of this process among several that write the capture together, each with the same
        arguments: rank r writes the segments k with k mod ranks = r, rank 0 also the parameters.
        They need a plan.
    wait_seconds
        How long a rank waits for a writer that is not one of them.

    Returns
    -------
    Writer
        A context manager.

    Raises
    ------
    InvalidStoreError
        If the path holds something else.
    ConfigMismatchError
        If the capture is there with another configuration; names the field.
    SealedStoreError
        If the store is sealed.
    DamagedStoreError
        If records are not the ones that were written, or one is known to be lost.
    LockedStoreError
        If another process writes to the store, or has this rank.
    StoreSpaceError
        If the plan needs more bytes than the disk has free.
    """
    root = Path(path)
    check_name("capture", capture)
    _check_sites(sites, outputs)
    chosen = _writable_profile(profile)
    sites = [site.in_profile(chosen) for site in sites]
    segments: list[list[SampleRows]] = []
    if plan is not None:
        _check_plan(plan)
        shape, segments = plan_segments(
            plan,
            sites,
            batch_size=batch_size,
            segment_rows=segment_rows,
            segment_samples=segment_samples,
        )
    else:
        shape = unplanned_shape(sites, segment_rows=segment_rows, segment_samples=segment_samples)
    definition = CaptureDefinition(
        name=capture,
        sites=tuple(sites),
        outputs=tuple(outputs),
        shape=shape,
        config=dict(config or {}),
        attrs=dict(attrs or {}),
        plan=None if plan is None else plan_digest(plan),
        planned_sizes=tuple(map(len, segments)),
        planned_last=_last_used(segments),
        profile=chosen,
        products=tuple(products),
    )
    place = Rank(rank, ranks)
    if place.of > 1 and plan is None:
        msg = f"{ranks} ranks need a plan: without one, nobody knows whose segment comes next"
        raise SampleError(msg)
    explicit = [s for s, v in (("rows", segment_rows), ("samples", segment_samples)) if v]
    _check_definition(definition)
    stack = ExitStack()
    with stack, disk_errors(f"opening {root} for writing"):
        refuse_sealed(root)
        prepare_folder(root)

        prepared: list[tuple[CaptureDefinition, RecordLog]] = []

        def prepare() -> None:
            refuse_sealed(root)
            prepare_root(root)
            prepared.append(_open_capture(root, definition, explicit, place))

        if place.of > 1:
            join_ranks(stack, root, place, prepare, wait_seconds=wait_seconds)
        else:
            stack.enter_context(exclusive_lock(root / COMMITS / "store.lock"))
            prepare()
        definition, log = prepared[0] if prepared else _join(root, definition, explicit, place)
        segments = _cut_as_stored(plan, definition) if plan is not None else []
        raise_open_files(2 * sum(len(site.layer_labels) for site in sites) + 64)
        run = WriterRun(segments, buffer_bytes, threads, place, ExitStack())
        writer = Writer(root, definition, log, run)
        # Only a writer that stands takes the lock over: one that fails to must not keep it.
        run.stack.enter_context(stack.pop_all())
        return writer


def _join(
    root: Path, asked: CaptureDefinition, explicit: Sequence[str], rank: Rank
) -> tuple[CaptureDefinition, RecordLog]:
    """Return the capture that another rank has prepared."""
    log = RecordLog(root, rank.writer)
    known = load_definitions(root, log)
    if asked.name not in known:
        msg = f"the other ranks write another capture than {asked.name!r}: start all ranks alike"
        raise ConfigMismatchError(msg)
    check_same_run(known[asked.name], asked, fixed_shape=explicit)
    return known[asked.name], log


def _open_capture(
    root: Path, asked: CaptureDefinition, explicit: Sequence[str], rank: Rank
) -> tuple[CaptureDefinition, RecordLog]:
    root_attributes(root)
    log = RecordLog(root, rank.writer)
    known = load_definitions(root, log)
    refuse_lost_records(root, known.values(), log.records)
    sweep(root, log, known)
    if asked.name in known:
        stored = known[asked.name]
        check_same_run(stored, asked, fixed_shape=explicit)
        return stored, log
    twins = [name for name in known if name.casefold() == asked.name.casefold()]
    if twins:
        msg = f"capture {asked.name!r} differs from {twins[0]!r} by case only: choose another name"
        raise SampleError(msg)
    _check_space(root, asked)
    make_capture(root, asked, log)
    return asked, log


def _check_space(root: Path, definition: CaptureDefinition) -> None:
    rows = len(definition.planned_sizes) * definition.shape.rows
    samples = len(definition.planned_sizes) * definition.shape.samples
    needed = sum(
        len(site.layer_labels) * site.row_bytes * (rows if site.kind == "row" else samples)
        for site in definition.sites
    )
    free = shutil.disk_usage(root).free
    if needed > free:
        msg = (
            f"capture {definition.name!r} needs up to {needed / 2**30:.1f} GiB, the disk of {root} "
            f"has {free / 2**30:.1f} GiB free: record fewer sites or layers, or pooled values only"
        )
        raise StoreSpaceError(msg)


def _writable_profile(name: str) -> ProfileName:
    profile = check_profile(name)
    if profile == "archive":
        msg = (
            "profile 'archive' is too slow to record in: record in 'fast' or 'compact', then run "
            "`lorascope cp STORE COPY --profile archive`"
        )
        raise SampleError(msg)
    return profile


def _check_sites(sites: Sequence[Site], outputs: Sequence[Output]) -> None:
    names = [(site.kind, site.name.casefold()) for site in sites]
    doubled = sorted({name for kind, name in names if names.count((kind, name)) > 1})
    nothing = not sites and not outputs
    if nothing or doubled:
        msg = f"sites named twice: {', '.join(doubled)}" if doubled else "no sites to record"
        raise SampleError(msg)


def _check_definition(definition: CaptureDefinition) -> None:
    """Refuse to write what no reader would accept."""
    try:
        for product in definition.products:
            check_product(product.to_dict(), [site.to_dict() for site in definition.sites])
        check_limits(definition)
        parse_json(definition.metadata())
    except BrokenRule as error:
        msg = f"capture {definition.name!r} is beyond the limits of a store: {error}"
        raise SampleError(msg) from error


def _check_plan(plan: Sequence[SampleRows]) -> None:
    ids = [sample.id for sample in plan]
    if not ids or len(set(ids)) != len(ids):
        msg = "a plan needs at least one sample, and every id once"
        raise SampleError(msg)


def _last_used(segments: Sequence[Sequence[SampleRows]]) -> dict[str, int] | None:
    if not segments:
        return None
    used = {"sample": len(segments[-1])}
    for sample in segments[-1]:
        for stream, rows in sample.rows.items():
            used[stream] = used.get(stream, 0) + rows
    return used


def _cut_as_stored(
    plan: Sequence[SampleRows], definition: CaptureDefinition
) -> list[list[SampleRows]]:
    bounds = accumulate(definition.planned_sizes, initial=0)
    return [list(plan[start:stop]) for start, stop in pairwise(bounds)]


def raise_open_files(needed: int) -> None:
    """Raise this process's own limit on open files, as far as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = needed + 256
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
