"""``lorascope verify``, ``repair`` and ``seal``: keeping a store sound, and finishing it."""

from typing import TYPE_CHECKING, Any

import click

from .errors import STORE
from .options import check_loudness, common_options
from .output import clean, count, format_bytes, print_json
from .progress import ProgressReporter

if TYPE_CHECKING:
    from ..store import RepairReport, SealReport, VerifyReport

_SHOWN = 10
"""Lines of one kind before the rest is only counted; ``--json`` has them all."""


@click.command("verify")
@click.argument("path")
@click.option("--quick", is_flag=True, help="Records, metadata and sizes only, no checksums.")
@click.option("--full", is_flag=True, help="Of a sealed store: also every SHA-256 and the digests.")
@common_options
@click.pass_context
def verify(
    context: click.Context,
    *,
    path: str,
    quick: bool,
    full: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    debug: bool,
) -> None:
    """Check that the store at PATH holds, byte for byte, what was committed.

    Never changes anything. Exit code 0: sound; 3: damaged (with --json, one line for every damage
    says its class: missing, size, checksum, metadata, records, manifest, unnamed or digest).
    Told, and no damage: leftovers, files that a crash left and nothing names; and unsettled
    lengths of an open store, which a crash or a change left; the next capture-run or repair
    settles them.

    \b
    Example:
      lorascope verify study.zarr --quick
    """  # noqa: D301  (click reads \b as "keep these lines")
    check_loudness(quiet=quiet, verbose=verbose)
    if quick and full:
        msg = "--quick and --full contradict each other; give one."
        raise click.UsageError(msg)
    from ..store import verify_store

    level = "quick" if quick else "full" if full else "default"
    with ProgressReporter(quiet=quiet, verbose=verbose, in_bytes=True) as reporter:
        reporter.stage(f"verifying {path}")
        report = verify_store(path, level, progress=reporter.progress)
    if as_json:
        _print_verify_lines(report, path)
    else:
        _print_verify(report, path)
    context.exit(0 if report.ok else STORE)


def _print_verify_lines(report: "VerifyReport", path: str) -> None:
    for damage in report.damages:
        line = {
            "type": "damage",
            "class": damage.kind,
            "path": damage.path,
            "file": damage.path,
            "message": damage.message,
            "capture": damage.capture,
            "site": damage.site,
            "layer": damage.layer,
            "samples": list(damage.samples),
        }
        print_json(line)
    for leftover in report.leftovers:
        print_json({"type": "leftover", "file": leftover})
    for file in report.unsettled:
        print_json({"type": "unsettled", "file": file})
    verdict = {
        "type": "verify",
        "path": path,
        "level": report.level,
        "state": report.state,
        "ok": report.ok,
        "damages": len(report.damages),
        "leftovers": len(report.leftovers),
        "unsettled": len(report.unsettled),
        "files": report.files,
        "bytes": report.bytes,
        "samples": report.samples,
    }
    print_json(verdict)


def _print_verify(report: "VerifyReport", path: str) -> None:
    damages = []
    for damage in report.damages:
        affected = f" ({count(len(damage.samples), 'sample')})" if damage.samples else ""
        damages.append(f"{damage.kind}: {clean(damage.message, lines=False)}{affected}")
    _print_some(damages)
    _print_some([f"leftover: {clean(path, lines=False)}" for path in report.leftovers])
    _print_some([f"unsettled length: {clean(file, lines=False)}" for file in report.unsettled])
    checked = count(report.files, "file")
    if report.level != "quick":
        checked += f", {format_bytes(report.bytes)}"
    verdict = "sound" if report.ok else count(len(report.damages), "damage")
    click.echo(
        f"{clean(path, lines=False)}: {verdict}; {count(report.samples, 'sample')}, {checked}"
    )


@click.command("repair")
@click.argument("path")
@click.option("--dry-run", is_flag=True, help="Say what would be done, change nothing.")
@common_options
def repair(
    *, path: str, dry_run: bool, as_json: bool, quiet: bool, verbose: bool, debug: bool
) -> None:
    """Make the damaged store at PATH sound again, losing only what is damaged.

    Damaged segments are withdrawn and their files moved to __quarantine__/ in the store; the same
    capture-run then records just those. Exit code 0: the store is sound now (or was); 3: it is
    no store, or a sealed one that lost data, which only a copy has; 4: a writer is at work.

    \b
    Example:
      lorascope repair study.zarr --dry-run
    """  # noqa: D301  (click reads \b as "keep these lines")
    check_loudness(quiet=quiet, verbose=verbose)
    from ..store import repair_store

    with ProgressReporter(quiet=quiet, verbose=verbose, in_bytes=True) as reporter:
        reporter.stage(f"repairing {path}")
        report = repair_store(path, dry_run=dry_run)
    if as_json:
        _print_repair_lines(report, path)
    else:
        _print_repair(report, path)


def _print_repair_lines(report: "RepairReport", path: str) -> None:
    for withdrawn in report.withdrawn:
        line: dict[str, Any] = {
            "type": "withdrawn",
            "record": withdrawn.record,
            "reason": withdrawn.reason,
            "kind": withdrawn.kind,
            "capture": withdrawn.capture,
            "segment": withdrawn.segment,
            "samples": list(withdrawn.samples),
        }
        print_json(line)
    for kind, files in (
        ("quarantined", report.quarantined),
        ("rewritten", report.rewritten),
        ("swept", report.swept),
    ):
        for file in files:
            print_json({"type": kind, "file": file})
    verdict = {
        "type": "repair",
        "path": path,
        "dry_run": report.dry_run,
        "changed": report.changed,
        "withdrawn": len(report.withdrawn),
        "adopted": list(report.adopted),
        "quarantined": len(report.quarantined),
        "rewritten": len(report.rewritten),
        "swept": len(report.swept),
        "samples": sum(map(len, report.samples.values())),
        "quarantine": report.quarantine,
    }
    print_json(verdict)


def _print_repair(report: "RepairReport", path: str) -> None:
    shown = clean(path, lines=False)
    if not report.changed:
        click.echo(f"{shown}: sound; nothing to repair")
        return
    lines = []
    for withdrawn in report.withdrawn:
        lost = f" ({count(len(withdrawn.samples), 'sample')})" if withdrawn.samples else ""
        lines.append(f"withdrawn: {withdrawn.record}{lost}: {clean(withdrawn.reason, lines=False)}")
    _print_some(lines)
    _print_some([f"quarantined: {clean(file, lines=False)}" for file in report.quarantined])
    _print_some([f"rewritten: {clean(file, lines=False)}" for file in report.rewritten])
    lost = sum(map(len, report.samples.values()))
    done = "would be repaired" if report.dry_run else "repaired"
    text = (
        f"{shown}: {done}; {count(len(report.withdrawn), 'record')} withdrawn, "
        f"{count(len(report.quarantined), 'file')} quarantined, {len(report.rewritten)} rewritten, "
        f"{len(report.swept)} swept"
    )
    click.echo(text)
    if report.withdrawn:
        click.echo(f"{count(lost, 'sample')} to record again: run the same capture-run")


@click.command("seal")
@click.argument("path")
@click.option("--incomplete", is_flag=True, help="Seal captures that lack planned samples too.")
@common_options
def seal(
    *, path: str, incomplete: bool, as_json: bool, quiet: bool, verbose: bool, debug: bool
) -> None:
    """Seal the finished store at PATH: nothing in it changes any more.

    Writes MANIFEST.json with the SHA-256 of every file, two digests to cite, and consolidated
    metadata, so that it opens fast from afar. Exit code 2: a capture is incomplete; 3: a byte is
    damaged. Sealing a sealed store checks it in full and changes nothing.

    \b
    Example:
      lorascope seal study.zarr
    """  # noqa: D301  (click reads \b as "keep these lines")
    check_loudness(quiet=quiet, verbose=verbose)
    from ..store import seal_store

    with ProgressReporter(quiet=quiet, verbose=verbose, in_bytes=True) as reporter:
        reporter.stage(f"sealing {path}")
        report = seal_store(path, incomplete=incomplete, progress=reporter.progress)
    if as_json:
        _print_seal_line(report, path)
        return
    how = "sealed" if report.changed else "sealed already, and sound"
    click.echo(
        f"{clean(path, lines=False)}: {how}; {count(report.files, 'file')}, "
        f"{format_bytes(report.bytes)}"
    )
    click.echo(f"content_digest   {report.content_digest}")
    click.echo(f"manifest_digest  {report.manifest_digest}")
    _print_some([f"incomplete: {clean(name, lines=False)}" for name in report.incomplete])


def _print_seal_line(report: "SealReport", path: str) -> None:
    line = {
        "type": "seal",
        "path": path,
        "changed": report.changed,
        "files": report.files,
        "bytes": report.bytes,
        "content_digest": report.content_digest,
        "manifest_digest": report.manifest_digest,
        "incomplete": list(report.incomplete),
    }
    print_json(line)


def _print_some(lines: list[str]) -> None:
    for line in lines[:_SHOWN]:
        click.echo(line)
    if len(lines) > _SHOWN:
        click.echo(f"... and {len(lines) - _SHOWN} more")
