"""What the golden stores hold, as formulas: whoever writes or reads them needs nothing else.

Never change anything here: the stores were written once and are read for ever. Another version of
the format gets files of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

ROWS = {"s0": (3, 1), "s1": (1, 0), "s2": (4, 2), "ä=3": (2, 2), "s4": (0, 1)}
"""Rows of every sample in the streams `encoder` and `decoder`."""
WIDTH = 3
LAYERS = (0, 7)
ROW_SITES = {
    "x.bfloat16": ("bfloat16", LAYERS, "encoder"),
    "x.float16": ("float16", LAYERS, "encoder"),
    "x.float64": ("float64", LAYERS, "decoder"),
    "embed": ("float32", None, "decoder"),
}
"""Data type, layers and stream of the row sites of the planned capture."""
POOLED = ("x.bfloat16.mean", "float32", LAYERS)
PARAMETERS: Mapping[str, np.ndarray] = {
    "scalar": np.array(2.5),
    "matrix": np.arange(6, dtype="<f4").reshape(2, 3) / 4,
    "half": np.arange(4).astype(ml_dtypes.bfloat16),
    "steps": np.arange(3, dtype="<i4"),
    "wide": np.arange(2, dtype="<i8") - 1,
    "mask": np.array([True, False]),
}
PARAMETER_ATTRS = {"from": "formulas", "step": 7}
CONFIG = {"seed": 0, "model": {"base": "none", "é": None}, "list": [1, 2.5, True]}
ATTRS = {"labels": ["calm", "wütend"], "note": "=1+1"}


def values(sample: int, layer: int, rows: int) -> np.ndarray:
    """Return `[row, feature]`: quarters below 64, exact in every data type."""
    row, feature = np.mgrid[:rows, :WIDTH]
    return ((97 * sample + 31 * layer + 7 * row + feature) % 256 / 4).astype("float64")


def pooled(sample: int, layer: int) -> np.ndarray:
    """Return `[feature]`."""
    return values(sample, layer, 1)[0] + 0.5


def facts(sample: int) -> dict[str, Any]:
    """Return the further columns of a sample, one of every type."""
    return {
        "raw_label": f"=wütend {sample}",
        "take": -sample,
        "gain": sample / 8,
        "kept": sample > 2,
    }


def groups(sample: int) -> dict[str, str]:
    """Return the groups of a sample."""
    return {"speaker": f"{sample % 2:02d}"}


def label(sample: int) -> str:
    """Return the label of a sample."""
    return "calm" if sample % 2 else ""


def outputs(sample: int) -> dict[str, Any]:
    """Return the outputs of a sample, one of every shape and of several types."""
    return {
        "loss": sample / 2,
        "logits": np.arange(4) - sample / 4,
        "map": np.full((2, 2), sample),
        "right": sample == 1,
    }


def positions(sample: int, rows: int) -> np.ndarray:
    """Return the frame index of every row."""
    return 10 * sample + 2 * np.arange(rows)
