"""The configuration of a capture: read, changed by ``--set``, checked, and made absolute.

Light on purpose (ruamel.yaml and pydantic, never torch), because a mistake in a configuration
must be told before anything heavy is loaded.

Paths: ``data.root``, ``data.manifest``, ``adapter.path`` and a local ``model.base`` are relative to
the folder of the configuration file (from ``--set``: to the current folder); ``store`` is always
relative to the current folder, because outputs belong where the user is.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from .config_checks import cross_checks
from .config_models import (
    AdapterConfig,
    CaptureConfig,
    CaptureSpec,
    DataConfig,
    HeadConfig,
    ModelConfig,
    RecordConfig,
    RunConfig,
    SiteOptions,
    SplitConfig,
    StepSamplesConfig,
    TrainConfig,
)
from .config_overrides import apply_override
from .config_problems import to_problem
from .config_sites import SITES
from .config_types import parse_size, suggest
from .config_yaml import Document, Problem, read_yaml
from .errors import ConfigError
from .saved_adapter import SavedAdapterError, read_saved_adapter

__all__ = [
    "DEMO_CONFIG_PATH",
    "DEMO_MODELS",
    "SITES",
    "AdapterConfig",
    "CaptureConfig",
    "CaptureSpec",
    "DataConfig",
    "HeadConfig",
    "ModelConfig",
    "RecordConfig",
    "RunConfig",
    "SiteOptions",
    "SplitConfig",
    "StepSamplesConfig",
    "TrainConfig",
    "load_config",
    "parse_size",
]

DEMO_CONFIG_PATH = Path(__file__).with_name("demo.yaml")
"""The embedded default configuration."""

DEMO_MODELS = ("demo:whisper", "demo:wav2vec2")
"""Models that are built from a seed instead of being loaded."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_PATH_KEYS = (("data", "root"), ("data", "manifest"))


def load_config(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> CaptureConfig:
    """Read, change and check a configuration.

    Parameters
    ----------
    path
        YAML file.
    overrides
        ``key.path=value`` each, applied in order; the value is read as YAML.

    Returns
    -------
    CaptureConfig
        Immutable, every default filled in, paths of inputs absolute.

    Raises
    ------
    ConfigError
        With one line per problem, all of them: ``file:line:column: message``.

    Examples
    --------
    >>> from lorascope.capture.config import DEMO_CONFIG_PATH, load_config
    >>> load_config(DEMO_CONFIG_PATH, ["seed=3"]).seed
    3
    """
    config_path = Path(path)
    document = read_yaml(_read_text(config_path), str(path))
    if _is_hopeless(document):
        raise ConfigError(_lines(document, document.problems))
    for override in overrides:
        apply_override(document, override, CaptureConfig)
    problems = list(document.problems)
    if isinstance(document.value, dict):
        folder = config_path.absolute().parent
        problems += _make_paths_absolute(document, document.value, folder)
        problems += _read_adapters(document, document.value, folder)
        problems += cross_checks(document.value)
    config, found = _validate(document)
    # A value that could not be read was told already; that it is missing now is no news.
    told = {problem.place for problem in document.problems}
    found = [p for p in found if document.place(p.path, at_key=p.at_key) not in told]
    if config is None or problems:
        raise ConfigError(_lines(document, [*problems, *found]))
    return _fill_head(config)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        folder = path.parent
        near = sorted(p.name for p in folder.glob("*.y*ml")) if folder.is_dir() else []
        hint = suggest(path.name, near)
        msg = f"no configuration {str(path)!r}{hint or ': the file does not exist'}"
    except IsADirectoryError:
        msg = f"{str(path)!r} is a folder; a configuration is a YAML file"
    except UnicodeDecodeError as error:
        msg = f"{path}: not UTF-8 text (byte {error.start}); save the file as UTF-8"
    except OSError as error:
        msg = f"cannot read {str(path)!r}: {error.strerror}"
    raise ConfigError(msg)


def _is_hopeless(document: Document) -> bool:
    """Tell whether nothing but the form of the file is worth reporting."""
    if document.problems and document.value is None:
        return True
    if document.value is None:
        document.problems.append(Problem((), "the file is empty; see examples/ for a start"))
    elif not isinstance(document.value, dict):
        message = "expected keys such as model: and data: at the top of the file"
        document.problems.append(Problem((), message))
    else:
        return False
    return True


def _validate(document: Document) -> tuple[CaptureConfig | None, list[Problem]]:
    try:
        return CaptureConfig.model_validate(document.value), []
    except ValidationError as error:
        details = error.errors(include_url=False)
        return None, [to_problem(detail, CaptureConfig, document) for detail in details]


def _lines(document: Document, problems: Sequence[Problem]) -> list[str]:
    """Spell problems with their places: those of the file in its order, then the overrides."""
    placed: dict[str, tuple[bool, int, int]] = {}
    for problem in problems:
        place = problem.place or document.place(problem.path, at_key=problem.at_key)
        _, line, column = place.rsplit(":", 2) if place.count(":") >= 2 else ("", "0", "0")
        in_file = place.startswith(f"{document.source}:")
        order = (not in_file, int(line), int(column)) if in_file else (True, 0, 0)
        placed.setdefault(f"{place}: {problem.message}", order)
    return sorted(placed, key=lambda text: placed[text])


def _make_paths_absolute(document: Document, config: dict[str, Any], folder: Path) -> list[Problem]:
    """Resolve the paths of inputs in place."""
    problems: list[Problem] = []
    for path in _PATH_KEYS:
        section = config.get(path[0])
        value = section.get(path[1]) if isinstance(section, dict) else None
        if isinstance(section, dict) and isinstance(value, str) and value:
            section[path[1]] = str(_absolute(value, _base(document, path, folder)))
    model = config.get("model")
    if isinstance(model, dict) and isinstance(base := model.get("base"), str) and base:
        model["base"], problem = _model_base(base, _base(document, ("model", "base"), folder))
        problems += [Problem(("model", "base"), problem)] if problem else []
    return problems


def _read_adapters(document: Document, config: dict[str, Any], folder: Path) -> list[Problem]:
    """Fill in, in place, what the saved adapters of captures are."""
    problems: list[Problem] = []
    captures = config.get("captures")
    for name, spec in captures.items() if isinstance(captures, dict) else ():
        adapter = spec.get("adapter") if isinstance(spec, dict) else None
        if not isinstance(adapter, dict) or not isinstance(adapter.get("path"), str):
            continue
        place = ("captures", name, "adapter")
        for key in adapter.keys() - {"path", "type"}:
            message = f"captures.{name}.adapter: {key!r} is read from `path`; leave it out"
            problems.append(Problem((*place, key), message, at_key=True))
        path = _absolute(adapter["path"], _base(document, (*place, "path"), folder))
        try:
            adapter |= read_saved_adapter(path)
        except (SavedAdapterError, OSError) as error:
            message = f"captures.{name}.adapter.path: {error}"
            problems.append(Problem((*place, "path"), message))
            # no second complaint about what would have been read
            adapter |= {"r": 1, "alpha": 1, "target_modules": ["unknown"]}
    return problems


def _base(document: Document, path: tuple[str, ...], folder: Path) -> Path:
    return Path.cwd() if document.place(path).startswith("--set ") else folder


def _absolute(value: str, folder: Path) -> Path:
    return Path(os.path.normpath(folder / Path(value).expanduser()))


def _model_base(base: str, folder: Path) -> tuple[str, str | None]:
    """Decide what `base` names: a demo model, a local directory, or a hub id."""
    if base.startswith("demo:"):
        hint = suggest(base, DEMO_MODELS) or f" (known: {', '.join(DEMO_MODELS)})"
        return base, None if base in DEMO_MODELS else f"model.base: no model {base!r}{hint}"
    local = _absolute(base, folder)
    if local.is_dir():
        return str(local), None
    looks_local = base.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(base)
    if looks_local:
        return base, f"model.base: no folder {str(local)!r}, and {base!r} is no hub id either"
    return base, None


def _fill_head(config: CaptureConfig) -> CaptureConfig:
    """Name the capture whose head the untrained ones use."""
    trained = [name for name, spec in config.captures.items() if spec.train is not None]
    if config.head.from_ is not None or not trained:
        return config
    name = "frozen" if "frozen" in trained else trained[0]
    return config.model_copy(update={"head": HeadConfig.model_validate({"from": name})})
