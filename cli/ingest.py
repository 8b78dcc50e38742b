"""``lorascope ingest``: what others know of a store's rows, such as the phones of an alignment."""

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from .options import check_loudness, common_options, split_names
from .output import clean, count, print_json
from .progress import ProgressReporter

if TYPE_CHECKING:
    from ..store import RowColumnReport


@click.command("ingest")
@click.argument("path")
@click.option(
    "--rows",
    "file",
    required=True,
    metavar="FILE",
    help="A .csv, .tsv or .parquet file: sample, and either position or start_s and end_s; every "
    "other column is added.",
)
@click.option("--columns", callback=split_names, metavar="A,B", help="Only these columns of it.")
@click.option("--stream", metavar="NAME", help="Whose rows, where the store has several streams.")
@click.option(
    "--frame",
    "frame_s",
    type=float,
    default=0.02,
    show_default=True,
    metavar="SECONDS",
    help="Seconds from one frame to the next, for start_s and end_s.",
)
@click.option("--ignore-unknown", is_flag=True, help="Leave out samples that are not in the store.")
@common_options
def ingest(  # noqa: PLR0913 - one a command-line option
    *,
    path: str,
    file: str,
    columns: list[str] | None,
    stream: str | None,
    frame_s: float,
    ignore_unknown: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    debug: bool,
) -> None:
    """Add row columns (phones, words, times) to the open store at PATH.

    A frame has the value of the interval that holds its middle; an empty cell means none. Texts
    are names of classes. Nothing is written where anything does not fit; the same command once
    more changes nothing. Of a sealed store, add to a copy (lorascope cp) and seal that.

    \b
    Example:
      lorascope ingest study.zarr --rows phones.csv
      analyze --store study.zarr row_probe
    """  # noqa: D301  (click reads \b as "keep these lines")
    check_loudness(quiet=quiet, verbose=verbose)
    from ..store import add_row_table

    with ProgressReporter(quiet=quiet, verbose=verbose) as reporter:
        reporter.stage(f"adding {file} to {path}")
        report = add_row_table(
            path,
            file,
            columns=columns,
            stream=stream,
            frame_s=frame_s,
            ignore_unknown=ignore_unknown,
        )
    if as_json:
        for column in report.columns:
            print_json({"type": "row_column", **asdict(column)})
        told = {"entries": report.entries, "outside": report.outside, "ignored": report.ignored}
        print_json({"type": "ingest", "path": path, **told})
        return
    for column in report.columns:
        click.echo(f"{clean(path, lines=False)}: {_describe(column)}")
    if report.outside:
        click.echo(f"{count(report.outside, 'interval')} without a recorded frame")
    if report.ignored:
        click.echo(f"{count(report.ignored, 'line')} of samples that the store does not hold")


def _describe(column: "RowColumnReport") -> str:
    classes = len(column.names)
    kind = f"{classes} {'class' if classes == 1 else 'classes'}" if classes else "numbers"
    there = "" if column.changed else ", there already"
    return (
        f"row column {column.name} of stream {column.stream}, {kind}: {column.labelled} of "
        f"{column.rows} rows, {count(column.samples, 'sample')}{there}"
    )
