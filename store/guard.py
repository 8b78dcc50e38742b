"""The rules for the JSON of a store, checked before anything else uses it: it may be hostile.

Rules raise `BrokenRule`; who reads a file turns that into the store's own error and names the file.
What JSON must say is in `node_rules.py` (Zarr metadata), `definition_rules.py` (captures),
`record_rules.py` and `consistency.py` (commit records) and `results_rules.py`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any

from .layout import NAME_PATTERN

MAX_RANK = 8
MAX_CHUNK_BYTES = 512 * 2**20
"""Uncompressed; of a shard this holds for its inner chunks."""
MAX_CHUNKS = 10**7
"""Of one array; of a sharded one its inner chunks."""
MAX_ARRAYS = 10**5
MAX_METADATA_BYTES = 16 * 2**20
"""Of one file of JSON, a commit record included."""
MAX_JSON_DEPTH = 64
MAX_JSON_VALUES = 2**19
"""Values in one file: `[[],[],…]` takes twenty times the memory of its text."""
INT64 = 2**63 - 1

_NAME = re.compile(NAME_PATTERN)
_ONE_DIGIT = bytes.maketrans(b"123456789", b"000000000")
_LONG_NUMBER = b"0" * 19
"""What 19 digits are after that translation: a search that no digest in hexadecimal slows down."""
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_DIGEST = re.compile(r"[0-9a-f]{64}")
ITEM_BYTES = {
    "bool": 1,
    **{f"{kind}{bits}": bits // 8 for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
    "float16": 2,
    "bfloat16": 2,
    "float32": 4,
    "float64": 8,
    "string": 8,
}
"""The data types that may stand in a store, with the bytes of a value (of `string`: a pointer)."""


class BrokenRule(ValueError):
    """JSON of a store that no writer of ours makes; the message says which rule it breaks."""


def require(holds: object, message: str) -> None:
    """Raise `BrokenRule` with the message unless the rule holds."""
    if not holds:
        raise BrokenRule(message)


def whole(value: object, what: str, low: int = 0, high: int = INT64) -> int:
    """Return a whole number within limits; `true` is none."""
    if type(value) is not int or not low <= value <= high:
        msg = f"{what} is not a whole number from {low} to {high}"
        raise BrokenRule(msg)
    return value


def text(value: object, what: str) -> str:
    """Return a string."""
    if type(value) is not str:
        msg = f"{what} is not a string"
        raise BrokenRule(msg)
    return value


def name(value: object, what: str) -> str:
    """Return a string that may be a name in a path."""
    known = text(value, what)
    require(_NAME.fullmatch(known), f"{what} is not an allowed name")
    return known


def digest(value: object, what: str) -> str:
    """Return a SHA-256 in hexadecimal."""
    known = text(value, what)
    require(_DIGEST.fullmatch(known), f"{what} is not a SHA-256")
    return known


def table(value: object, what: str) -> dict[str, Any]:
    """Return an object."""
    if type(value) is not dict:
        msg = f"{what} is not an object"
        raise BrokenRule(msg)
    return value


def items(value: object, what: str, most: int = MAX_JSON_VALUES) -> list[Any]:
    """Return a list of at most `most` items."""
    if type(value) is not list or len(value) > most:
        msg = f"{what} is not a list of at most {most} items"
        raise BrokenRule(msg)
    return value


def no_twins(names: Sequence[str], what: str) -> None:
    """Refuse names that are the same, or would be on a disk that does not tell case."""
    require(len({n.casefold() for n in names}) == len(names), f"two {what} differ by case at most")


def parse_json(data: bytes) -> Any:  # noqa: ANN401 - JSON
    """Return strictly read JSON.

    Parameters
    ----------
    data
        UTF-8.

    Raises
    ------
    BrokenRule
        If it is none, or is too large, too deep, says a key twice, or holds a NaN or infinite
        literal, a whole number beyond int64, or half of a surrogate pair.
    """
    require(len(data) <= MAX_METADATA_BYTES, f"it has more than {MAX_METADATA_BYTES} bytes")
    values = data.count(b",") + data.count(b"[") + data.count(b"{")
    require(values <= MAX_JSON_VALUES, f"it has more than {MAX_JSON_VALUES} values")
    try:
        value = json.loads(
            data.decode(),
            object_pairs_hook=_object,
            parse_constant=_no_constant,
            parse_float=_finite,
            # The built-in parser is several times faster, and most files hold no long number.
            parse_int=_int64 if _LONG_NUMBER in data.translate(_ONE_DIGIT) else None,
        )
        if _SURROGATE.search(data):
            json.dumps(value, ensure_ascii=False).encode()
    except BrokenRule:
        raise
    except (ValueError, RecursionError) as error:
        msg = f"it is not JSON ({type(error).__name__})"
        raise BrokenRule(msg) from error
    _check_depth(value)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    require(len(made) == len(pairs), "it says a key twice")
    return made


def _no_constant(literal: str) -> float:
    msg = f"it holds the literal {literal}"
    raise BrokenRule(msg)


def _finite(literal: str) -> float:
    value = float(literal)
    require(math.isfinite(value), "it holds a number beyond float64")
    return value


def _int64(literal: str) -> int:
    require(len(literal) <= 20, "it holds a number beyond int64")
    value = int(literal)
    require(-INT64 - 1 <= value <= INT64, "it holds a number beyond int64")
    return value


def _check_depth(value: object) -> None:
    level = [value]
    for _ in range(MAX_JSON_DEPTH):
        level = [
            child
            for node in level
            for child in (
                node.values() if type(node) is dict else node if type(node) is list else ()
            )
            if type(child) is dict or type(child) is list
        ]
        if not level:
            return
    msg = f"it is nested deeper than {MAX_JSON_DEPTH}"
    raise BrokenRule(msg)
