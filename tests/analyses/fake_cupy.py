"""A device without hardware: arrays that refuse to meet numpy's, as cupy's do.

They hold a numpy array and answer operators, ufuncs and numpy functions among themselves only; an
array of the host beside one of them, or one of them turned into an array of the host by anything
but `get`, is a TypeError. What computes right with them mixes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

PASSED = ("T", "dtype", "itemsize", "nbytes", "ndim", "shape", "size")
CALLED = (
    "all",
    "any",
    "astype",
    "copy",
    "diagonal",
    "max",
    "mean",
    "min",
    "reshape",
    "sum",
    "transpose",
)


class DeviceArray(np.lib.mixins.NDArrayOperatorsMixin):
    """One array of the device."""

    __array_priority__ = 100

    def __init__(self, values: np.ndarray) -> None:
        self._values = values

    def get(self) -> np.ndarray:
        """Return a copy on the host."""
        return self._values.copy()

    def __array__(self, *_: object, **__: object) -> np.ndarray:
        msg = "implicit conversion of a device array to one of the host"
        raise TypeError(msg)

    def __bool__(self) -> bool:
        return bool(self._values)

    def __float__(self) -> float:
        return float(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Any:
        return (wrap(x) for x in self._values)

    def __getattr__(self, name: str) -> Any:
        if name in PASSED:
            return wrap(getattr(self._values, name))
        if name in CALLED:
            return lambda *a, **k: wrap(getattr(self._values, name)(*unwrap(a), **unwrap(k)))
        raise AttributeError(name)

    def __getitem__(self, place: Any) -> Any:
        return wrap(self._values[unwrap(place)])

    def __setitem__(self, place: Any, value: Any) -> None:
        self._values[unwrap(place)] = unwrap(value)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        if "out" in options:
            out = options["out"][0]
            getattr(ufunc, method)(*unwrap(inputs), **{**options, "out": (out._values,)})
            return out
        return wrap(getattr(ufunc, method)(*unwrap(inputs), **unwrap(options)))

    def __array_function__(self, function: Any, _: Any, args: Any, kwargs: Any) -> Any:
        return wrap(function(*unwrap(args), **unwrap(kwargs)))


def unwrap(value: Any) -> Any:
    """Return what is inside, in any nesting; an array of the host is refused."""
    if isinstance(value, DeviceArray):
        return value._values
    if isinstance(value, np.ndarray) and value.ndim:
        msg = f"an array of the host, {value.shape}, beside one of the device"
        raise TypeError(msg)
    if isinstance(value, tuple | list):
        return type(value)(unwrap(x) for x in value)
    return {k: unwrap(v) for k, v in value.items()} if isinstance(value, dict) else value


def wrap(value: Any) -> Any:
    """Return arrays as arrays of the device."""
    return DeviceArray(np.asarray(value)) if isinstance(value, np.ndarray | np.generic) else value


def made(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *a, **k: wrap(function(*unwrap(a), **k))


def make_module() -> Any:
    """Return what stands for the module cupy."""
    runtime = SimpleNamespace(
        getDeviceCount=lambda: 1, getDeviceProperties=lambda _: {"name": b"a fake device"}
    )
    memory = SimpleNamespace(OutOfMemoryError=type("OutOfMemoryError", (MemoryError,), {}))
    return SimpleNamespace(
        asarray=lambda x: x if isinstance(x, DeviceArray) else DeviceArray(np.array(x)),
        empty=made(np.empty),
        zeros=made(np.zeros),
        cuda=SimpleNamespace(runtime=runtime, memory=memory, Device=lambda: SimpleNamespace(id=0)),
        get_default_memory_pool=lambda: SimpleNamespace(free_all_blocks=lambda: None),
    )
