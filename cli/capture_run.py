"""``capture-run``: train and capture what a configuration says."""

import importlib.util
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .errors import run_command
from .fidelity import spell_certificate
from .options import check_loudness, common_options
from .output import command_line, format_bytes, format_number, print_json, print_table, public_words
from .progress import ProgressReporter

if TYPE_CHECKING:
    from ..capture import CaptureConfig, RunPlan, RunSummary
    from ..capture.planning import SitePlan

_NEEDED = ("torch", "transformers", "peft", "accelerate", "soundfile")


@click.command("capture-run", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("config", metavar="CONFIG.yaml")
@click.option("--store", metavar="PATH", help="Write to this store instead of the file's `store`.")
@click.option(
    "--set",
    "overrides",
    metavar="KEY.PATH=VALUE",
    multiple=True,
    help="Change a value of the configuration (read as YAML); may be repeated.",
)
@click.option("--plan", is_flag=True, help="Show what would be done and written, and stop.")
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="Where to compute.",
)
@click.option("--workers", type=click.IntRange(min=1), help="CPU threads that compute.")
@common_options
def capture_run(  # noqa: PLR0913  (one parameter an option)
    *,
    config: str,
    store: str | None,
    overrides: tuple[str, ...],
    plan: bool,
    device: str,
    workers: int | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    debug: bool,
) -> None:
    """Train and capture the conditions of CONFIG.yaml into a store.

    CONFIG.yaml says which model, corpus and conditions; `demo` runs the embedded example. The same
    command resumes a run that was stopped. Relative paths in the file start from its folder, the
    store's from the current one.

    \b
    Examples:
      capture-run demo
      capture-run study.yaml --plan
      capture-run study.yaml --store study.zarr --set captures.lora.train.epochs=10
      torchrun --nproc-per-node 4 --no-python capture-run study.yaml --device cuda
    """  # noqa: D301  (click reads \b as "keep these lines")
    check_loudness(quiet=quiet, verbose=verbose)
    if workers is not None:
        # Read by the numeric libraries when they are loaded, which is still to come.
        os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(workers)
    _silence_libraries(debug=debug)
    settings = _load(config, overrides, store)
    _check_extra()
    from ..capture import Place, run_capture

    place = Place.from_environment()
    leads = place.rank == 0  # several processes do the work, one speaks
    if plan:
        if leads:
            _show_plan(settings, as_json=as_json)
        return
    with ProgressReporter(quiet=quiet or not leads, verbose=verbose and leads) as reporter:
        summary = run_capture(
            settings,
            store_path=settings.store,
            device=device,
            reporter=reporter,
            command=public_words("capture-run", sys.argv[1:]),
            place=place,
        )
    if leads:
        _show_summary(summary, as_json=as_json)


def _load(config: str, overrides: tuple[str, ...], store: str | None) -> "CaptureConfig":
    from ..capture.config import DEMO_CONFIG_PATH, load_config
    from ..capture.errors import ConfigError

    settings = load_config(DEMO_CONFIG_PATH if config == "demo" else config, overrides)
    if store is not None:
        settings = settings.model_copy(update={"store": store})
    if settings.store is None:
        msg = "no store: give `store:` in the configuration, or --store PATH"
        raise ConfigError(msg)
    return settings


def _check_extra() -> None:
    from ..capture.errors import CaptureError

    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        msg = f'capture-run needs {", ".join(missing)}: pip install "lorascope[capture]"'
        raise CaptureError(msg)


def _silence_libraries(*, debug: bool) -> None:
    """Keep the chatter of other libraries out of the output, unless someone is looking for it."""
    if debug:
        return
    warnings.simplefilter("ignore")
    for name, value in (
        ("TRANSFORMERS_VERBOSITY", "error"),
        ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
        ("TOKENIZERS_PARALLELISM", "false"),
    ):
        os.environ.setdefault(name, value)


def _show_plan(settings: "CaptureConfig", *, as_json: bool) -> None:
    from ..capture.planning import plan_run
    from ..capture.preparing import prepare_run
    from ..capture.space import check_space

    run = prepare_run(settings)
    plan = plan_run(settings, run)
    _print_plan(settings, plan, as_json=as_json)
    check_space(settings, run, Path(str(settings.store)), plan)


def _print_plan(settings: "CaptureConfig", plan: "RunPlan", *, as_json: bool) -> None:
    resolved = settings.resolved()
    if as_json:
        sites = {c.name: [_site_line(site) for site in c.sites] for c in plan.conditions}
        changes = {one.name: {"of": one.of, **one.change} for one in plan.interventions}
        line = {"type": "plan", "config": resolved, **_totals(plan), "sites": sites}
        print_json({**line, "interventions": changes})
        return
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.default_flow_style = None
    yaml.dump(resolved, sys.stdout)
    click.echo()
    print_table(
        ("capture", "site", "kind", "layers", "width", "dtype", "rows", "size"),
        [
            (name, s.name, s.kind, s.layers, s.width, s.dtype, s.rows, format_bytes(s.bytes))
            for name, sites in _grouped(plan)
            for s in sites
        ],
    )
    if plan.interventions:
        click.echo()
        print_table(
            ("intervention", "of", "layers", "forwards"),
            [
                (one.name, one.of, ", ".join(map(str, one.change.get("layers", ()))), one.forwards)
                for one in plan.interventions
            ],
        )
    click.echo()
    click.echo(
        f"{plan.samples} samples ({plan.seconds / 60:.1f} min of audio), {plan.train_samples} for "
        f"training; held out: {', '.join(plan.test_speakers)}"
    )
    forecast = plan.forecast
    at_most = "at most " if settings.run.profile == "compact" else ""
    on_disk = f"{at_most}{format_bytes(forecast.disk_bytes)} on disk"
    click.echo(
        f"{format_bytes(plan.bytes)} of values in all: {on_disk} in {forecast.files} files, "
        f"{forecast.segments} segments, to {settings.store}"
    )
    click.echo(f"about {format_bytes(plan.memory_bytes)} of memory at most, for each process")


def _grouped(plan: "RunPlan") -> list[tuple[str, "tuple[SitePlan, ...]"]]:
    """Return captures with their sites; steps of one training that take the same in one line."""
    runs: list[tuple[list[str], tuple[SitePlan, ...]]] = []
    for capture in plan.conditions:
        steps = f"{capture.name.rpartition('.step')[0]}.step"
        alike = runs and runs[-1][0][-1].startswith(steps) and runs[-1][1] == capture.sites
        if alike and capture.name == f"{steps}{capture.step}":
            runs[-1][0].append(capture.name)
        else:
            runs.append(([capture.name], capture.sites))
    return [
        (names[0] if len(names) == 1 else f"{names[0]} .. {names[-1]} ({len(names)}, each)", sites)
        for names, sites in runs
    ]


def _site_line(site: object) -> dict[str, object]:
    names = ("name", "kind", "layers", "width", "dtype", "rows", "bytes")
    return {name: getattr(site, name) for name in names}


def _totals(plan: "RunPlan") -> dict[str, object]:
    return {
        "samples": plan.samples,
        "train_samples": plan.train_samples,
        "test_speakers": list(plan.test_speakers),
        "seconds": plan.seconds,
        "rows": plan.rows,
        "bytes": plan.bytes,
        "disk_bytes": plan.forecast.disk_bytes,
        "files": plan.forecast.files,
        "segments": plan.forecast.segments,
        "memory_bytes": plan.memory_bytes,
    }


def _show_summary(summary: "RunSummary", *, as_json: bool) -> None:
    if as_json:
        _print_summary_lines(summary)
        return
    print_table(
        ("capture", "samples", "new", "scored", "UAR", "WAR", "seconds"),
        [
            (
                result.name,
                result.samples,
                result.captured,
                result.scores.n,
                format_number(result.scores.uar),
                format_number(result.scores.war),
                format_number(result.seconds, 1),
            )
            for result in summary.conditions
        ],
    )
    if summary.interventions:
        click.echo()
        print_table(
            ("intervention", "new", "scored", "UAR", "WAR", "seconds"),
            [
                (
                    result.name,
                    result.captured,
                    result.scores.n,
                    format_number(result.scores.uar),
                    format_number(result.scores.war),
                    format_number(result.seconds, 1),
                )
                for result in summary.interventions
            ],
        )
    for result in summary.conditions:
        click.echo(f"fidelity of {result.name}: {spell_certificate(result.certificate)}")
    click.echo(f"scored: speakers no training saw ({', '.join(summary.test_speakers)})")
    click.echo(f"next: {command_line('analyze', ['--store', str(summary.store_path)])}")


def _print_summary_lines(summary: "RunSummary") -> None:
    for result in summary.conditions:
        print_json(
            {
                "type": "capture",
                "capture": result.name,
                "samples": result.samples,
                "captured_now": result.captured,
                "trained_now": result.trained,
                "seconds": round(result.seconds, 3),
                "n": result.scores.n,
                "uar": result.scores.uar,
                "war": result.scores.war,
                "confusion": result.scores.confusion.tolist(),
                "certificate": result.certificate,
                "nonfinite": sum(extent.nonfinite for extent in result.extents),
            }
        )
    for result in summary.interventions:
        print_json(
            {
                "type": "intervention",
                "capture": result.name,
                "of": result.of,
                "intervention": result.intervention.describe(),
                "captured_now": result.captured,
                "seconds": round(result.seconds, 3),
                "n": result.scores.n,
                "uar": result.scores.uar,
                "war": result.scores.war,
            }
        )
    print_json(
        {
            "type": "run",
            "store": str(summary.store_path),
            "labels": list(summary.labels),
            "test_speakers": list(summary.test_speakers),
        }
    )


def main() -> None:
    """Run the command of this process."""
    sys.exit(run_command(capture_run, resumes=True))


if __name__ == "__main__":  # `torchrun -m lorascope.cli.capture_run`
    main()
