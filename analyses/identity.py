"""What decides the states of a run, as one digest: equal digests give equal states, bit by bit."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from ..store import Store
from .memory import Pass
from .source import Source

_OWN = __package__ or ""
_PLAIN = (str, int, bool, type(None))


class NotKnownError(Exception):
    """A value that no digest can be made of; says which. Never leaves this package."""


def identify_run(
    stores: Sequence[Store], source: Source, passes: Sequence[Pass], seed: int
) -> tuple[str, frozenset[str]]:
    """Return the digest of a run, and the modules of folds that are not this package's.

    It is of the versions, every committed file of the stores with its checksum, which samples are
    read, and of each pass its arrays, slabs, workers and folds with all their values.

    Raises
    ------
    NotKnownError
        A fold holds something that cannot be compared, or its class lies in no file.
    """
    modules: set[str] = set()
    body = [
        [metadata.version("lorascope"), np.__version__, sys.version],
        [_describe_store(store) for store in stores],
        _describe([source.ids.tolist(), seed], modules),
        [
            [name, view.store, view.own_name, _describe(view.index_n, modules)]
            for name, view in source.views.items()
        ],
        [
            [
                _describe(one.needs, modules),
                _describe(one.slabs, modules),
                one.workers,
                [_describe(fold, modules) for fold in one.folds],
            ]
            for one in passes
        ],
    ]
    text = json.dumps(body, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest(), frozenset(modules)


def _describe_store(store: Store) -> list[Any]:
    """Return the identity of a store and of all that is committed in it."""
    log = store.log
    records = sorted([*log.records, *log.withdrawals], key=lambda record: record.file_name)
    names = [[r.file_name, [[f.path, f.size, f.crc32c] for f in r.files]] for r in records]
    return [store.uuid, hashlib.sha256(json.dumps(names).encode()).hexdigest()]


def _describe(value: Any, modules: set[str]) -> Any:  # noqa: ANN401, PLR0911 - one line a kind
    """Return a value as JSON that says its type too."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, np.ndarray) and value.dtype != object:
        data = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
        return ["array", str(value.dtype), list(value.shape), data]
    if isinstance(value, (float, complex, bytes, np.generic)):
        return [type(value).__name__, repr(value)]
    if isinstance(value, (list, tuple, np.ndarray)):
        return [type(value).__name__, [_describe(item, modules) for item in value]]
    if isinstance(value, Mapping):
        pairs = [[_describe(k, modules), _describe(v, modules)] for k, v in value.items()]
        return ["mapping", pairs]
    if isinstance(value, (set, frozenset)):
        return ["set", sorted(json.dumps(_describe(item, modules)) for item in value)]
    return _describe_object(value, modules)


def _describe_object(value: Any, modules: set[str]) -> list[Any]:  # noqa: ANN401
    """Return class and fields of a data class or of a plain object, a user's with its source."""
    kind = type(value)
    if dataclasses.is_dataclass(kind):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(kind)}
    elif hasattr(value, "__dict__") and not callable(value):
        fields = dict(vars(value))
    else:
        msg = f"{kind.__module__}.{kind.__qualname__} is no plain value"
        raise NotKnownError(msg)
    source = ""
    if not kind.__module__.startswith(f"{_OWN}."):
        source = _hash_source(kind.__module__)
        modules.add(kind.__module__)
    described = {name: _describe(field, modules) for name, field in fields.items()}
    return [kind.__module__, kind.__qualname__, source, described]


@lru_cache
def _hash_source(module: str) -> str:
    """Return the digest of the file that a class of a user comes from."""
    path = getattr(sys.modules.get(module), "__file__", None)
    if path is None or not Path(path).is_file():
        msg = f"the classes of {module} lie in no file that could be compared"
        raise NotKnownError(msg)
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
