"""Where blocks are computed: numpy on the host, cupy on a CUDA device.

The only module that knows cupy. Folds say on which device they compute (`device`), the engine moves
each block there once, and what is not an array product stays on the host. Kernels are written for
both: methods, operators, and numpy functions that cupy arrays answer themselves.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import AnalysisInputError, DeviceError, MemoryBudgetError

DEVICES = ("cpu", "cuda")


def check_device(device: str) -> str:
    """Return the device, after looking whether it is there.

    Raises
    ------
    AnalysisInputError
        Neither `cpu` nor `cuda`.
    DeviceError
        `cuda`, and cupy is not installed or sees no device.
    """
    if device not in DEVICES:
        msg = f"unknown device {device!r}; known: {', '.join(DEVICES)}."
        raise AnalysisInputError(msg)
    if device == "cuda":
        cupy = _import_cupy()
        try:
            count = cupy.cuda.runtime.getDeviceCount()
        except Exception as error:
            msg = f"device 'cuda' was asked for, but there is no CUDA driver ({error})."
            raise DeviceError(msg) from error
        if not count:
            msg = "device 'cuda' was asked for, but cupy sees no CUDA device."
            raise DeviceError(msg)
    return device


def array_module(device: str) -> ModuleType:
    """Return numpy for `cpu`, cupy for `cuda`."""
    return np if device == "cpu" else _import_cupy()


def to_device(x: NDArray, device: str) -> NDArray:
    """Return an array of the host on a device: itself for `cpu`."""
    return x if device == "cpu" else array_module(device).asarray(x)


def to_host(x: Any) -> NDArray:  # noqa: ANN401 - an array of either kind
    """Return an array of any device as numpy's."""
    return x if isinstance(x, np.ndarray) else x.get()


def describe_device(device: str) -> str:
    """Return the name of the hardware, as it stands in the results."""
    if device == "cpu":
        return "cpu"
    cupy = _import_cupy()
    name = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"]
    return f"cuda: {name.decode() if isinstance(name, bytes) else name}"


@contextmanager
def device_memory(device: str) -> Iterator[None]:
    """Turn a device that is out of memory into an error that says what to do; free its pool."""
    if device == "cpu":
        yield
        return
    cupy = _import_cupy()
    try:
        yield
    except cupy.cuda.memory.OutOfMemoryError as error:
        msg = (
            f"the CUDA device is out of memory ({error}). "
            "Allow fewer workers (--workers 1) or less --memory: blocks become smaller."
        )
        raise MemoryBudgetError(msg) from error
    finally:
        cupy.get_default_memory_pool().free_all_blocks()


def _import_cupy() -> ModuleType:
    try:
        return importlib.import_module("cupy")
    except ImportError as error:
        msg = (
            "device 'cuda' needs cupy, which is not installed (or not for this CUDA). "
            "Install it: pip install 'lorascope[gpu]'."
        )
        raise DeviceError(msg) from error
