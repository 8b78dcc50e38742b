"""``analyze``: compute what a store can tell, and write tables, figures and a report."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .errors import run_command
from .options import check_loudness, common_options, split_layers, split_names
from .output import format_number, print_json, print_table, public_words
from .progress import ProgressReporter

if TYPE_CHECKING:
    from ..store import Store


@click.command("analyze", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--store", required=True, metavar="PATH", help="The store to analyse.")
@click.option("--against", metavar="PATH", help="Compare with the captures of another store.")
@click.option("--captures", metavar="A,B", callback=split_names, help="Captures; default: all.")
@click.option("--sites", metavar="S,..", callback=split_names, help="Sites; default: all.")
@click.option(
    "--layers", metavar="L,..", callback=split_layers, help="Layers, as 0,3 or 0-5; default: all."
)
@click.option("--out", metavar="DIR", help="Where results go.  [default: <store>-analysis]")
@click.option(
    "--memory",
    default="2GiB",
    show_default=True,
    metavar="SIZE",
    help="Memory to use beyond the libraries.",
)
@click.option("--workers", type=click.IntRange(min=1), help="Threads; default: one per core.")
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="Where to compute; cuda needs lorascope[gpu].",
)
@click.option("--scheduler", metavar="ADDRESS", help="A dask.distributed scheduler to run on.")
@click.option(
    "--variant",
    type=click.Choice(["corrected", "paper"]),
    default="corrected",
    show_default=True,
    help="paper: what the published code of arXiv 2509.08454 gives, beside the corrected.",
)
@click.option(
    "--fault",
    "faults",
    multiple=True,
    metavar="NAME",
    help="With --variant paper: show this fault alone; may be repeated.  [default: all]",
)
@click.option(
    "--exact", is_flag=True, help="cka: frames from every pair of rows too; can take hours."
)
@click.option(
    "-o",
    "--option",
    "options",
    multiple=True,
    metavar="NAME.OPTION=VALUE",
    help="Option of an analysis, as cka.permutations=1000 (docs/analyses.md); may be repeated.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed.")
@common_options
def analyze(  # noqa: PLR0913  (one parameter an option)
    *,
    names: tuple[str, ...],
    store: str,
    out: str | None,
    variant: str,
    faults: tuple[str, ...],
    seed: int,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    debug: bool,
    **selection: Any,  # noqa: ANN401  (handed to `lorascope.analyses.analyze` as they are)
) -> None:
    """Analyse a store: similarity, spectra, probes, lens, contributions and interventions.

    NAMEs: cka svd probe lens contribution outputs erasure alignment weights gradients embedding
    row_probe layer_weights mdl tuned_lens; none means all that the store can serve but the last
    three.
    Writes report.html, tables/, figures/, results.zarr and summary.json.

    \b
    Examples:
      analyze --store demo.zarr
      analyze --store study.zarr cka svd --captures frozen,lora --layers 0-3 --out cka-study
      analyze --store study.zarr cka -o cka.kernels=linear,rbf -o cka.permutations=1000
      analyze --store study.zarr cka --exact --sites lora_a --memory 8GiB
      analyze --store paper.zarr --variant paper --fault padding --fault biased
    """  # noqa: D301  (click reads \b as "keep these lines")
    check_loudness(quiet=quiet, verbose=verbose)
    if faults and variant != "paper":
        msg = f"--fault {faults[0]} needs --variant paper: faults are those of the published code"
        raise click.UsageError(msg)
    from .. import analyses
    from ..analyses.outputs import write_outputs
    from ..store import open_store

    opened = open_store(store)
    out_path = _check_out(Path(out or f"{store.rstrip('/')}-analysis"), opened)
    with ProgressReporter(quiet=quiet, verbose=verbose, in_bytes=True) as reporter:
        reporter.stage(f"analysing {store}")
        results = analyses.analyze(
            opened,
            list(names) or None,
            variant=variant,
            faults=faults,
            seed=seed,
            progress=reporter.progress,
            notify=reporter.note,
            **selection,
        )
        reporter.stage("writing tables, figures and the report")
        command = shlex.join(public_words("analyze", sys.argv[1:]))
        summary = write_outputs(results, opened, out_path, command=command, seed=seed)
        for name, why in summary["skipped"].items():
            reporter.note(f"{name} left out: {why}")
    _show(summary, out_path, as_json=as_json)


def _check_out(out_path: Path, store: "Store") -> Path:
    """Refuse to write into the store itself."""
    inside = out_path.resolve()
    if inside.is_relative_to(store.path.resolve()):
        msg = f"--out {str(out_path)!r} lies inside the store, which only captures may change"
        raise click.UsageError(msg)
    if inside.exists() and not inside.is_dir():
        msg = f"--out {str(out_path)!r} is a file; name a folder"
        raise click.UsageError(msg)
    return out_path


def _show(summary: dict[str, Any], out_path: Path, *, as_json: bool) -> None:
    values = summary["values"]
    report = out_path / "report.html"
    if as_json:
        for name, table in summary["tables"].items():
            path = str(out_path / "tables" / f"{name}.csv")
            print_json({"type": "table", "table": name, "rows": table["rows"], "path": path})
        print_json({"type": "values", "values": values, "skipped": summary["skipped"]})
        print_json({"type": "report", "path": str(report)})
        return
    outputs, probe = values.get("outputs", {}), values.get("probe", {})
    names = list(dict.fromkeys([*outputs, *probe]))
    if names:
        print_table(
            ("capture", "n", "UAR", "WAR", "best probe at", "probe UAR", "control"),
            [_headline(name, outputs.get(name, {}), probe.get(name, {})) for name in names],
        )
    tables = ", ".join(f"{name} ({t['rows']})" for name, t in summary["tables"].items())
    click.echo(f"tables (rows): {tables}")
    click.echo(f"report: {report}")


def _headline(name: str, outputs: dict[str, Any], probe: dict[str, Any]) -> tuple[str, ...]:
    layer = probe.get("layer")
    where = str(probe.get("site", "-")) + ("" if layer is None else f" {layer}")
    return (
        name,
        format_number(outputs.get("n")),
        format_number(outputs.get("uar")),
        format_number(outputs.get("war")),
        where,
        format_number(probe.get("uar")),
        format_number(probe.get("control_uar")),
    )


def main() -> None:
    """Run the command of this process."""
    sys.exit(run_command(analyze))
