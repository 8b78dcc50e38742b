"""The room that knows models: trains adapters and records what happens inside them into a store.

Everything here is loaded when it is first used, so that importing the room, and a command's help,
stays fast without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .callback import RecorderCallback as RecorderCallback
    from .config import CaptureConfig as CaptureConfig
    from .config import load_config as load_config
    from .corpora import Corpus as Corpus
    from .corpora import Utterance as Utterance
    from .corpora import load_corpus as load_corpus
    from .errors import CaptureError as CaptureError
    from .errors import ConfigError as ConfigError
    from .errors import DataError as DataError
    from .errors import DeviceMemoryError as DeviceMemoryError
    from .errors import ModelError as ModelError
    from .planning import RunPlan as RunPlan
    from .planning import plan_capture as plan_capture
    from .probe_batch import ProbeBatch as ProbeBatch
    from .ranks import Place as Place
    from .recorder import Recorder as Recorder
    from .recorder import find_sites as find_sites
    from .reporting import Reporter as Reporter
    from .reporting import SilentReporter as SilentReporter
    from .run import RunSummary as RunSummary
    from .run import run_capture as run_capture
    from .sites import SiteRequest as SiteRequest

_WHERE = {
    "callback": ("RecorderCallback",),
    "config": ("CaptureConfig", "load_config"),
    "corpora": ("Corpus", "Utterance", "load_corpus"),
    "errors": ("CaptureError", "ConfigError", "DataError", "DeviceMemoryError", "ModelError"),
    "planning": ("RunPlan", "plan_capture"),
    "probe_batch": ("ProbeBatch",),
    "ranks": ("Place",),
    "recorder": ("Recorder", "find_sites"),
    "reporting": ("Reporter", "SilentReporter"),
    "run": ("RunSummary", "run_capture"),
    "sites": ("SiteRequest",),
}
_MODULE_OF = {name: module for module, names in _WHERE.items() for name in names}


def __getattr__(name: str) -> object:
    """Load a public name from its module on first use."""
    if name not in _MODULE_OF:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    value = getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted(_MODULE_OF)
