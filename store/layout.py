"""What a store looks like on disk: names, dimensions, paths and the Zarr metadata of every element.

Nothing here touches the disk. `FORMAT.md` says the same in prose, normatively.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import ml_dtypes
import numpy as np

from .errors import SampleError
from .profiles import ChunkCodec, ProfileName, stored_dtype

FORMAT_NAME = "lorascope"
FORMAT_VERSION = 1
COMMITS = "__commits__"
STAGING = f"{COMMITS}/staging"
LOCK = f"{COMMITS}/store.lock"
MANIFEST = "MANIFEST.json"
QUARANTINE = "__quarantine__"
MAX_METADATA_BYTES = 16 * 2**20
"""Largest `zarr.json`."""
NO_LAYER = -1
"""Coordinate of the single layer of a site without layers."""
POOL_SEPARATOR = "."

NAME_PATTERN = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
"""What a name may be: nothing that leaves its folder, hides or starts an option."""
_NAME = re.compile(NAME_PATTERN)
_FLOATS = {
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype("<f4"),
    "float64": np.dtype("<f8"),
}
_DTYPES = _FLOATS | {
    "int32": np.dtype("<i4"),
    "int64": np.dtype("<i8"),
    "bool": np.dtype("bool"),
}
SITE_DTYPES = tuple(_FLOATS)
"""Storage types of activations."""


def numpy_dtype(name: str) -> np.dtype:
    """Return the numpy type of a Zarr data type name (little-endian)."""
    if name not in _DTYPES:
        msg = f"unknown data type {name!r}. Known: {', '.join(_DTYPES)}."
        raise SampleError(msg)
    return _DTYPES[name]


def dtype_name(dtype: np.dtype) -> str:
    """Return the Zarr data type name of a numpy type."""
    little = dtype.newbyteorder("<") if dtype.byteorder == ">" else dtype
    for name, known in _DTYPES.items():
        if little == known:
            return name
    msg = f"data type {dtype} cannot be stored. Known: {', '.join(_DTYPES)}."
    raise SampleError(msg)


def check_name(kind: str, name: str) -> str:
    """Return `name` if it may stand in a path of a store, else raise `SampleError`."""
    if _NAME.fullmatch(name):
        return name
    msg = (
        f"{kind} name {name!r} is not allowed: 1 to 128 of A-Z a-z 0-9 _ . -, "
        "the first a letter, digit or underscore."
    )
    raise SampleError(msg)


@dataclass(frozen=True, slots=True)
class Site:
    """What is recorded at one place of the model."""

    name: str
    """`resid_post`, `lora_a.v_proj`; of kind `sample`: `resid_post.mean_valid`."""
    layers: Sequence[int] | None
    """Layer numbers; None for a site without layers (`embed`)."""
    width: int
    """Number of features."""
    dtype: str = "float32"
    """Storage type: float32, float64, float16 or bfloat16."""
    kind: Literal["row", "sample"] = "row"
    """`row`: one vector per kept frame or token; `sample`: one (pooled) vector per sample."""
    stream: str = "tokens"
    """The row space: sites of one stream have the same rows for a sample."""
    source_dtype: str | None = None
    """The data type that was recorded, where the profile `portable` widened it; else None."""

    def __post_init__(self) -> None:
        check_name("site", self.name)
        check_name("stream", self.stream)
        if self.layers is not None:
            object.__setattr__(self, "layers", tuple(int(layer) for layer in self.layers))
            if not self.layers or len(set(self.layers)) != len(self.layers):
                msg = f"site {self.name!r}: layers must be a non-empty list without repetition"
                raise SampleError(msg)
        if self.width < 1:
            msg = f"site {self.name!r}: width must be at least 1, got {self.width}"
            raise SampleError(msg)
        if self.dtype not in SITE_DTYPES:
            msg = f"site {self.name!r}: dtype {self.dtype!r} is not one of {', '.join(SITE_DTYPES)}"
            raise SampleError(msg)
        if self.source_dtype is not None and self.source_dtype not in SITE_DTYPES:
            msg = f"site {self.name!r}: source_dtype {self.source_dtype!r} is no storage type"
            raise SampleError(msg)

    @property
    def layer_labels(self) -> tuple[int, ...]:
        """Layer coordinates on disk; `(-1,)` for a site without layers."""
        return (NO_LAYER,) if self.layers is None else tuple(self.layers)

    @property
    def group(self) -> str:
        """Path of the site's Zarr group below its capture."""
        return f"{'sites' if self.kind == 'row' else 'pooled'}/{self.name}"

    @property
    def row_bytes(self) -> int:
        """Bytes of one vector as stored."""
        return self.width * numpy_dtype(self.dtype).itemsize

    def in_profile(self, profile: ProfileName) -> Site:
        """Return the site as a profile stores it: `portable` widens to float32."""
        dtype = stored_dtype(profile, self.dtype)
        return self if dtype == self.dtype else replace(self, dtype=dtype, source_dtype=self.dtype)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        source = {} if self.source_dtype is None else {"source_dtype": self.source_dtype}
        return source | {
            "name": self.name,
            "layers": None if self.layers is None else list(self.layers),
            "width": self.width,
            "dtype": self.dtype,
            "kind": self.kind,
            "stream": self.stream,
        }


@dataclass(frozen=True, slots=True)
class Output:
    """A value per sample that the model gives: logits, loss."""

    name: str
    """Name below `outputs/`."""
    shape: tuple[int, ...] = ()
    """Shape for one sample."""
    dtype: str = "float32"
    """Storage type."""

    def __post_init__(self) -> None:
        check_name("output", self.name)
        numpy_dtype(self.dtype)
        object.__setattr__(self, "shape", tuple(int(size) for size in self.shape))

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"name": self.name, "shape": list(self.shape), "dtype": self.dtype}


@dataclass(frozen=True, slots=True)
class SampleRows:
    """One planned sample: its id and how many rows it has in each stream."""

    id: str
    """The sample's id, unique in the capture."""
    rows: Mapping[str, int] = field(default_factory=dict)
    """Rows per stream."""


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """Everything that determines an array's `zarr.json`, its shape along the cut axis excepted."""

    path: str
    """Path below the store's root."""
    dims: tuple[str, ...]
    """Dimension names."""
    shape: tuple[int, ...]
    """Shape; the axis `cut_axis` is given when the metadata are made."""
    dtype: str
    """Zarr data type name, or `string`."""
    chunk: tuple[int, ...]
    """Shape of one file (the shard where `inner` is set)."""
    inner: tuple[int, ...] | None = None
    """Shape of an inner chunk of a shard; None for a plain array."""
    cut_axis: int | None = None
    """The axis that is cut into segments; None for an array that is written at once."""
    codec: ChunkCodec | None = None
    """How the inner chunks of a shard are compressed; None where they are raw."""

    def metadata(self, cut_size: int | None = None) -> bytes:
        """Return the bytes of `zarr.json` with `cut_size` as length of the cut axis."""
        shape = list(self.shape)
        if self.cut_axis is not None and cut_size is not None:
            shape[self.cut_axis] = cut_size
        body = {
            "zarr_format": 3,
            "node_type": "array",
            "shape": shape,
            "data_type": self.dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(self.chunk)}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
            "fill_value": fill_json(self.dtype),
            "codecs": self._codecs(),
            "dimension_names": list(self.dims),
            "attributes": {},
        }
        return to_json(body)

    def _codecs(self) -> list[dict[str, Any]]:
        little = {"name": "bytes", "configuration": {"endian": "little"}}
        if self.dtype == "string":
            return [{"name": "vlen-utf8"}, {"name": "crc32c"}]
        plain = {"name": "bytes"} if self.dtype == "bool" else little
        chunk = [plain] if self.codec is None else self.codec.metadata(plain)
        chunk.append({"name": "crc32c"})
        if self.inner is None:
            return chunk
        configuration = {
            "chunk_shape": list(self.inner),
            "codecs": chunk,
            "index_codecs": [little, {"name": "crc32c"}],
            "index_location": "end",
        }
        return [{"name": "sharding_indexed", "configuration": configuration}]

    def chunk_path(self, *index: int) -> str:
        """Return the path of one chunk or shard below the store's root."""
        return f"{self.path}/{'.'.join(['c', *map(str, index)])}"


def fill_json(dtype: str) -> float | int | str | bool:
    """Return the fill value of a data type as JSON: NaN for floats, -1 for integers."""
    if dtype == "string":
        return ""
    if dtype == "bool":
        return False
    return "NaN" if dtype in _FLOATS else -1


def fill_bytes(dtype: str) -> bytes:
    """Return one fill value as stored, for the tail of the last chunk."""
    native = numpy_dtype(dtype)
    if dtype in _FLOATS:
        return np.array(np.nan).astype(native).tobytes()
    return np.array(False if dtype == "bool" else -1).astype(native).tobytes()


def group_metadata(attributes: Mapping[str, Any]) -> bytes:
    """Return the bytes of a Zarr group's `zarr.json`."""
    return to_json({"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)})


def to_json(value: object) -> bytes:
    """Return the one JSON spelling that lorascope writes: sorted keys, no NaN literals."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, indent=1)
    return text.encode() + b"\n"


def canonical(value: object) -> bytes:
    """Return the compact canonical JSON that digests are taken of."""
    return json.dumps(
        value, sort_keys=True, ensure_ascii=True, allow_nan=False, separators=(",", ":")
    ).encode()
