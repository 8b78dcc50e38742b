"""One state of a pass as a file: written without a second copy, read without running foreign code.

Results travel between people, and a pickle can run any program. So what a file may name is a short
list: numpy's arrays, a few containers of Python, and plain data classes of this package and of the
folds of the run that reads it. Nothing is read before the digest of the run was compared.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pickle
import sys
import zlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MAGIC = b"lorascope partial state 1\n"
_MAX_HEADER_BYTES = 2**20
_OWN = __package__ or ""
_NUMPY = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.numeric", "_frombuffer"),
}
_BUILTINS = {"bytearray", "complex", "frozenset", "range", "set", "slice"}


class UnusableStateError(Exception):
    """A file that is not the state that was asked for; says why. Never leaves this package."""


class _Unpickler(pickle.Unpickler):
    """Admits numpy's arrays, plain containers and data classes of some modules."""

    def __init__(
        self, file: io.BytesIO, buffers: Sequence[NDArray[np.uint8]], modules: Collection[str]
    ) -> None:
        super().__init__(file, buffers=buffers)
        self._modules = modules

    def find_class(self, module_name: str, global_name: str) -> Any:  # noqa: ANN401 - a class
        """Return a class that is admitted; a name with dots could reach into one."""
        known = (module_name, global_name) in _NUMPY
        known = known or (module_name == "builtins" and global_name in _BUILTINS)
        if known:
            return super().find_class(module_name, global_name)
        own = module_name.startswith(f"{_OWN}.") or module_name in self._modules
        module = sys.modules.get(module_name)  # nothing is imported for the sake of a file
        found = getattr(module, global_name, None) if own and "." not in global_name else None
        defined_there = getattr(found, "__module__", None) == module_name
        if isinstance(found, type) and dataclasses.is_dataclass(found) and defined_there:
            return found
        msg = f"it names {module_name}.{global_name}, which no partial state may hold"
        raise UnusableStateError(msg)


def write_state(path: Path, key: str, done: int, content: Any) -> int:  # noqa: ANN401
    """Write a state, all of it or nothing; return its bytes.

    Parameters
    ----------
    path
        The file, which is replaced.
    key
        Digest of the run that the state belongs to.
    done
        Slabs that are in it.
    content
        States of folds; arrays in them go to the file from where they lie.
    """
    buffers: list[pickle.PickleBuffer] = []
    stream = io.BytesIO()
    pickle.Pickler(stream, protocol=5, buffer_callback=buffers.append).dump(content)
    parts = [stream.getbuffer(), *(buffer.raw() for buffer in buffers)]
    check = 0
    for part in parts:
        check = zlib.crc32(part, check)
    header = {"key": key, "done": done, "sizes": [len(part) for part in parts], "crc32": check}
    staged = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with staged.open("wb") as file:
            file.write(_MAGIC + json.dumps(header).encode() + b"\n")
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        staged.replace(path)
        _sync_folder(path.parent)
    finally:
        staged.unlink(missing_ok=True)
    return sum(map(len, parts))


def read_done(path: Path, key: str) -> int | None:
    """Return how many slabs are in a state; None where there is none of this run."""
    try:
        with path.open("rb") as file:
            return int(_read_header(file, key)["done"])
    except (OSError, UnusableStateError):
        return None


def read_state(path: Path, key: str, modules: Collection[str]) -> Any:  # noqa: ANN401
    """Return the content of a state.

    Parameters
    ----------
    path, key
        As in `write_state`.
    modules
        Names of modules outside of this package whose data classes may be in it.

    Raises
    ------
    UnusableStateError
        The state of another run, a changed or damaged one, or one that names what it may not.
    """
    try:
        with path.open("rb") as file:
            header = _read_header(file, key)
            sizes = [int(size) for size in header["sizes"]]
            if file.tell() + sum(sizes) != path.stat().st_size or min(sizes, default=-1) < 0:
                msg = "its length is not what it says"
                raise UnusableStateError(msg)
            parts = [np.empty(size, np.uint8) for size in sizes]
            check = 0
            for part in parts:
                file.readinto(part)
                check = zlib.crc32(part, check)
    except OSError as error:
        raise UnusableStateError(str(error)) from error
    if check != header["crc32"]:
        msg = "its checksum is wrong"
        raise UnusableStateError(msg)
    try:
        return _Unpickler(io.BytesIO(parts[0]), parts[1:], modules).load()
    except UnusableStateError:
        raise
    except Exception as error:  # whatever a damaged pickle makes a class raise
        msg = f"it cannot be read ({type(error).__name__}: {error})"
        raise UnusableStateError(msg) from error


def _read_header(file: io.BufferedReader, key: str) -> dict[str, Any]:
    if file.read(len(_MAGIC)) != _MAGIC:
        msg = "it is no partial state"
        raise UnusableStateError(msg)
    try:
        header = json.loads(file.readline(_MAX_HEADER_BYTES))
        if header["key"] != key:
            msg = "it belongs to another run"
            raise UnusableStateError(msg)
        missing = {"done", "sizes", "crc32"} - header.keys()
    except (ValueError, KeyError, TypeError) as error:
        msg = f"its header cannot be read ({error})"
        raise UnusableStateError(msg) from error
    if missing:
        msg = f"its header lacks {', '.join(sorted(missing))}"
        raise UnusableStateError(msg)
    return header


def _sync_folder(folder: Path) -> None:
    """Make a rename durable where folders can be opened (POSIX)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
