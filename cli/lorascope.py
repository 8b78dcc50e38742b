"""``lorascope``: what one does with a store besides filling and analysing it."""

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .errors import STORE, run_command
from .options import check_loudness, common_options, split_names
from .output import clean, count, format_bytes, print_json, print_table
from .progress import ProgressReporter

if TYPE_CHECKING:
    from ..store import Capture, VerifyReport

_SHOWN_DAMAGES = 10


@click.group("lorascope", context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="lorascope", message="%(package)s %(version)s")
def lorascope() -> None:
    """Look at a store, and check it.

    \b
    Example:
      lorascope info study.zarr
    """  # noqa: D301  (click reads \b as "keep these lines")


@lorascope.command("info")
@click.argument("path")
@common_options
def info(*, path: str, as_json: bool, quiet: bool, verbose: bool, debug: bool) -> None:
    """Say what the store at PATH holds.

    \b
    Example:
      lorascope info study.zarr
    """  # noqa: D301  (click reads \b as "keep these lines")
    check_loudness(quiet=quiet, verbose=verbose)
    from ..store import open_store

    store = open_store(path)
    size = _size_on_disk(store.path)
    captures = [_describe(store.capture(name)) for name in store.captures]
    if as_json:
        print_json({"type": "store", "path": path, "uuid": store.uuid, "bytes": size})
        for described in captures:
            print_json({"type": "capture", **described})
        return
    click.echo(
        f"{clean(path, lines=False)}: {count(len(captures), 'capture')}, {format_bytes(size)}"
    )
    if captures:
        click.echo()
        keys = ("capture", "samples", "exposed", "labels", "complete", "trained")
        print_table(keys, [[_spell(described[key]) for key in keys] for described in captures])
    for described in captures:
        click.echo(f"\n{clean(described['capture'], lines=False)}")
        print_table(
            ("site", "kind", "layers", "width", "dtype"),
            [
                (s["site"], s["kind"], _layers(s["layers"]), s["width"], s["dtype"])
                for s in described["sites"]
            ],
        )


def _describe(capture: "Capture") -> dict[str, Any]:
    samples = capture.samples
    return {
        "capture": capture.name,
        "samples": len(samples),
        "exposed": int(samples["exposed"].to_numpy().sum()),
        "labels": sorted(set(samples["label"])),
        "complete": capture.complete,
        "profile": capture.profile,
        "trained": list(capture.attrs.get("trained", [])),
        "groups": list(capture.groups),
        "outputs": list(capture.outputs),
        "sites": [
            {
                "site": site.name,
                "kind": site.kind,
                "layers": None if site.layers is None else list(site.layers),
                "width": site.width,
                "dtype": site.dtype,
            }
            for site in (*capture.sites.values(), *capture.pooled.values())
        ],
    }


def _spell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    return str(value)


def _layers(layers: list[int] | None) -> str:
    if layers is None:
        return "-"
    if len(layers) > 2 and layers == list(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]}-{layers[-1]}"
    return ",".join(map(str, layers))


def _size_on_disk(root: Path) -> int:
    return sum(
        (Path(folder) / name).lstat().st_size
        for folder, _, names in os.walk(root)
        for name in names
    )


@lorascope.command("verify")
@click.argument("path")
@click.option("--quick", is_flag=True, help="Records, presence and sizes only, no checksums.")
@common_options
@click.pass_context
def verify(
    context: click.Context,
    *,
    path: str,
    quick: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    debug: bool,
) -> None:
    """Check that the store at PATH holds, byte for byte, what was committed.

    \b
    Example:
      lorascope verify study.zarr --quick
    """  # noqa: D301  (click reads \b as "keep these lines")
    check_loudness(quiet=quiet, verbose=verbose)
    from ..store import verify_store

    with ProgressReporter(quiet=quiet, verbose=verbose, in_bytes=True) as reporter:
        reporter.stage(f"verifying {path}")
        report = verify_store(path, "quick" if quick else "default", progress=reporter.progress)
    if as_json:
        _print_report_lines(report, path)
    else:
        _print_report(report, path)
    context.exit(0 if report.ok else STORE)


def _print_report_lines(report: "VerifyReport", path: str) -> None:
    for damage in report.damages:
        print_json(
            {
                "type": "damage",
                "class": damage.kind,
                "path": damage.path,
                "message": damage.message,
                "capture": damage.capture,
                "site": damage.site,
                "layer": damage.layer,
                "samples": list(damage.samples),
            }
        )
    print_json(
        {
            "type": "verify",
            "path": path,
            "level": report.level,
            "ok": report.ok,
            "damages": len(report.damages),
            "files": report.files,
            "bytes": report.bytes,
            "samples": report.samples,
        }
    )


def _print_report(report: "VerifyReport", path: str) -> None:
    for damage in report.damages[:_SHOWN_DAMAGES]:
        affected = f" ({count(len(damage.samples), 'sample')})" if damage.samples else ""
        click.echo(f"{damage.kind}: {clean(damage.message, lines=False)}{affected}")
    more = len(report.damages) - _SHOWN_DAMAGES
    if more > 0:
        click.echo(f"... and {more} more")
    checked = count(report.files, "file")
    if report.level == "default":
        checked += f", {format_bytes(report.bytes)}"
    verdict = "sound" if report.ok else count(len(report.damages), "damage")
    click.echo(
        f"{clean(path, lines=False)}: {verdict}; {count(report.samples, 'sample')}, {checked}"
    )


@lorascope.command("cp")
@click.argument("source")
@click.argument("target")
@click.option(
    "--profile",
    type=click.Choice(["fast", "compact", "archive", "portable"]),
    help="Store the values in another profile; without it every byte stays as it is.",
)
@click.option("--captures", callback=split_names, metavar="A,B", help="Only these captures.")
@common_options
def cp(
    *,
    source: str,
    target: str,
    profile: str | None,
    captures: list[str] | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    debug: bool,
) -> None:
    """Copy the store SOURCE to the folder TARGET, checking every byte.

    The same command goes on with a copy that was broken off.

    \b
    Example:
      lorascope cp study.zarr study-small.zarr --profile archive
    """  # noqa: D301  (click reads \b as "keep these lines")
    check_loudness(quiet=quiet, verbose=verbose)
    from ..store import copy_store

    with ProgressReporter(quiet=quiet, verbose=verbose, in_bytes=True) as reporter:
        reporter.stage(f"copying {source}")
        report = copy_store(
            source, target, profile=profile, captures=captures, progress=reporter.progress
        )
    if as_json:
        print_json({"type": "copy", **asdict(report)})
        return
    there = f", {count(report.skipped, 'commit')} there already" if report.skipped else ""
    click.echo(
        f"{clean(target, lines=False)}: {count(report.commits, 'commit')} copied, "
        f"{format_bytes(report.bytes_read)} read, {format_bytes(report.bytes_written)} written"
        f"{there}"
    )


def main() -> None:
    """Run the command of this process."""
    sys.exit(run_command(lorascope))
