"""The registered Zarr v3 data type `bfloat16`, which zarr-python does not ship.

The package's entry point (group `zarr.data_type`) makes zarr load this class by itself, so that
`zarr.open_group` and `xarray.open_zarr` read bfloat16 stores wherever lorascope is installed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeGuard

import ml_dtypes
import numpy as np
from zarr.core.dtype.common import HasEndianness, HasItemSize
from zarr.core.dtype.wrapper import ZDType
from zarr.errors import DataTypeValidationError

NATIVE_DTYPE = np.dtype(ml_dtypes.bfloat16)
_SPECIAL = {"NaN": np.nan, "Infinity": np.inf, "-Infinity": -np.inf}


@dataclass(frozen=True, kw_only=True)
class BFloat16(ZDType[Any, Any], HasEndianness, HasItemSize):
    """Sixteen-bit brain floating point: the upper half of a float32.

    Notes
    -----
    `HasEndianness` matters beyond typing: with it zarr writes `{"name": "bytes", "configuration":
    {"endian": "little"}}`, without it TensorStore refuses the array.
    """

    dtype_cls: ClassVar[type[np.dtype]] = type(NATIVE_DTYPE)  # pyright: ignore[reportIncompatibleVariableOverride]
    _zarr_v3_name: ClassVar[str] = "bfloat16"

    @property
    def item_size(self) -> int:
        """Bytes of one value."""
        return 2

    @classmethod
    def from_native_dtype(cls, dtype: np.dtype) -> Self:
        """Return the Zarr type of `ml_dtypes.bfloat16`."""
        if dtype == NATIVE_DTYPE:
            return cls()
        msg = f"not a bfloat16 data type: {dtype}"
        raise DataTypeValidationError(msg)

    def to_native_dtype(self) -> np.dtype:
        """Return `numpy.dtype(ml_dtypes.bfloat16)`."""
        return NATIVE_DTYPE

    @classmethod
    def _check_json_v2(cls, data: object) -> TypeGuard[Any]:
        return False

    @classmethod
    def _check_json_v3(cls, data: object) -> TypeGuard[Any]:
        return data == cls._zarr_v3_name

    @classmethod
    def _from_json_v2(cls, data: object) -> Self:
        msg = f"bfloat16 exists in Zarr v3 only, got {data!r}"
        raise DataTypeValidationError(msg)

    @classmethod
    def _from_json_v3(cls, data: object) -> Self:
        if data == cls._zarr_v3_name:
            return cls()
        msg = f"not the data type bfloat16: {data!r}"
        raise DataTypeValidationError(msg)

    def to_json(self, zarr_format: int) -> Any:  # noqa: ANN401 - zarr's own return type differs by format
        """Return the name in Zarr v3 metadata."""
        if zarr_format == 3:
            return self._zarr_v3_name
        msg = "bfloat16 exists in Zarr v3 only"
        raise ValueError(msg)

    def _check_scalar(self, data: object) -> bool:
        return isinstance(data, (int, float, np.floating, np.integer, ml_dtypes.bfloat16))

    def cast_scalar(self, data: object) -> Any:  # noqa: ANN401 - an ml_dtypes scalar
        """Return `data` as a bfloat16 scalar."""
        if self._check_scalar(data):
            return NATIVE_DTYPE.type(data)
        msg = f"cannot make a bfloat16 of {data!r}"
        raise TypeError(msg)

    def default_scalar(self) -> Any:  # noqa: ANN401 - an ml_dtypes scalar
        """Return zero."""
        return NATIVE_DTYPE.type(0)

    def from_json_scalar(self, data: object, *, zarr_format: int) -> Any:  # noqa: ANN401
        """Return a fill value from JSON: a number, `"NaN"`, `"Infinity"` or bits (`"0x7fc0"`)."""
        if isinstance(data, str) and data.startswith("0x"):
            return np.uint16(int(data, 16)).view(NATIVE_DTYPE)
        value = _SPECIAL.get(data, data) if isinstance(data, str) else data
        return self.cast_scalar(value)

    def to_json_scalar(self, data: object, *, zarr_format: int) -> float | str:
        """Return the JSON form of a fill value."""
        value = float(self.cast_scalar(data))
        if np.isnan(value):
            return "NaN"
        if np.isinf(value):
            return "Infinity" if value > 0 else "-Infinity"
        return value
