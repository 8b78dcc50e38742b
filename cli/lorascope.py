"""``lorascope``: what one does with a store besides filling and analysing it."""

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .errors import run_command
from .fidelity import spell_certificate
from .ingest import ingest
from .options import check_loudness, common_options, split_names
from .output import clean, count, format_bytes, print_json, print_table
from .progress import ProgressReporter
from .upkeep import repair, seal, verify

if TYPE_CHECKING:
    from ..store import Capture, RowColumn


@click.group("lorascope", context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="lorascope", message="%(package)s %(version)s")
def lorascope() -> None:
    """Look at a store, add labels of its rows, check it, repair it and seal it.

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
    columns = [_describe_rows(store.capture(c.capture), c) for c in store.row_columns.values()]
    if as_json:
        print_json(
            {
                "type": "store",
                "path": path,
                "uuid": store.uuid,
                "state": store.state,
                "manifest_digest": store.manifest_digest,
                "bytes": size,
            }
        )
        for described in captures:
            print_json({"type": "capture", **described})
        for column in columns:
            print_json({"type": "row_column", **column})
        return
    click.echo(
        f"{clean(path, lines=False)}: {count(len(captures), 'capture')}, {format_bytes(size)}"
        f"{', sealed' if store.state == 'sealed' else ''}"
    )
    if captures:
        click.echo()
        keys = ("capture", "samples", "exposed", "labels", "complete", "trained")
        print_table(keys, [[_spell(described[key]) for key in keys] for described in captures])
    # a capture without sites (of an intervention) has outputs alone: it has no table of them
    for described in (one for one in captures if one["sites"]):
        click.echo(f"\n{clean(described['capture'], lines=False)}")
        if described["certificate"]:
            said = f"fidelity: {spell_certificate(described['certificate'])}"
            click.echo(clean(said, lines=False))
        print_table(
            ("site", "kind", "layers", "width", "dtype"),
            [
                (s["site"], s["kind"], _layers(s["layers"]), s["width"], s["dtype"])
                for s in described["sites"]
            ],
        )
    if columns:
        click.echo("\nrow columns")
        keys = ("column", "stream", "classes", "samples", "rows", "complete")
        print_table(keys, [[_spell(described[key]) for key in keys] for described in columns])


def _describe_rows(capture: "Capture", column: "RowColumn") -> dict[str, Any]:
    return {
        "column": column.name,
        "stream": column.stream,
        "classes": len(column.names),
        "names": list(column.names),
        "samples": len(capture),
        "rows": int(capture.row_counts(column.stream).sum()),
        "complete": capture.complete,
    }


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
        "certificate": _certificate(capture),
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


def _certificate(capture: "Capture") -> dict[str, Any]:
    """Return the certificate of a capture; a store may come from anybody, so it may be anything."""
    certificate = capture.parameter_attrs.get("certificate")
    return certificate if isinstance(certificate, dict) else {}


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


for _command in (ingest, verify, repair, seal):
    lorascope.add_command(_command)


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
