"""Options that several commands share, and how their values are read."""

from collections.abc import Callable

import click


def common_options[F: Callable[..., object]](command: F) -> F:
    """Add ``--json``, ``-q``, ``-v``, ``--debug`` and ``--version`` to a command."""
    for option in (
        click.version_option(package_name="lorascope", message="%(package)s %(version)s"),
        click.option("--debug", is_flag=True, help="Show the traceback of an error."),
        click.option("-v", "--verbose", is_flag=True, help="Say more: the time of each stage."),
        click.option("-q", "--quiet", is_flag=True, help="Say nothing but results and errors."),
        click.option("--json", "as_json", is_flag=True, help="Print results as JSON lines."),
    ):
        command = option(command)
    return command


def check_loudness(*, quiet: bool, verbose: bool) -> None:
    """Refuse ``-q`` together with ``-v``.

    Raises
    ------
    click.UsageError
        Both are given.
    """
    if quiet and verbose:
        msg = "-q and -v contradict each other; give one."
        raise click.UsageError(msg)


def split_names(_: click.Context, __: click.Parameter, value: str | None) -> list[str] | None:
    """Read ``A,B`` as a list of names."""
    if value is None:
        return None
    names = [name.strip() for name in value.split(",") if name.strip()]
    if not names:
        msg = "expected names separated by commas, got none"
        raise click.BadParameter(msg)
    return names


def split_layers(_: click.Context, __: click.Parameter, value: str | None) -> list[int] | None:
    """Read ``0,3`` and ``0-5`` as layer numbers; ``all`` as all of them."""
    if value is None or value.strip() == "all":
        return None
    layers: list[int] = []
    for part in value.split(","):
        first, _dash, last = part.strip().partition("-")
        if not first.isdecimal() or not (last or first).isdecimal():
            msg = f"expected layer numbers such as 0,3 or 0-5, got {value!r}"
            raise click.BadParameter(msg)
        layers += range(int(first), int(last or first) + 1)
    if not layers:
        msg = f"{value!r} names no layer"
        raise click.BadParameter(msg)
    return sorted(set(layers))
