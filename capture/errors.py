"""What can go wrong on the way from a configuration to a captured sample.

::

    LorascopeError
    └── CaptureError            anything expected that stops a capture
        ├── ConfigError         the configuration says something impossible   (ValueError)
        ├── DataError           the corpus or one of its files is not usable  (ValueError)
        ├── ModelError          the model or its adapter is not usable        (ValueError)
        └── DeviceMemoryError   the device ran out of memory                  (MemoryError)
"""

from collections.abc import Sequence

from ..store.errors import LorascopeError


class CaptureError(LorascopeError):
    """Anything expected that stops a capture; catch this one to catch them all."""


class ConfigError(CaptureError, ValueError):
    """The configuration cannot be used.

    Parameters
    ----------
    problems
        Every problem found, one line each, as ``file:line:column: message``.
    """

    def __init__(self, problems: Sequence[str] | str) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class DataError(CaptureError, ValueError):
    """The corpus is missing, incomplete, or holds a file that cannot be read."""


class ModelError(CaptureError, ValueError):
    """The model cannot be loaded, or the adapter does not fit it."""


class DeviceMemoryError(CaptureError, MemoryError):
    """The device has too little memory for the model and one batch."""
