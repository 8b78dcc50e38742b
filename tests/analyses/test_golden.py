"""Golden CKA values through a store, and statistics against references written here."""

from __future__ import annotations

import numpy as np
import pytest

from lorascope.analyses import analyze
from lorascope.store import Site, create_store, open_store

BIASED, DEBIASED = 0.5576132566117588, 0.513456489505526
"""Linear CKA of the data below, from the definition in float64 (Kornblith 2019; Song 2012)."""


def golden_data() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.RandomState(1337)
    x = generator.randn(100, 10)
    return x, generator.randn(100, 10) + x


def write(path, arrays, dtype="float64", labels=None):
    """Write 100 samples of one row, one site per array."""
    sites = [Site(name, [0], array.shape[1], dtype) for name, array in arrays.items()]
    with create_store(path, capture="a", sites=sites) as writer:
        for number in range(len(next(iter(arrays.values())))):
            values = {name: array[number][None, None] for name, array in arrays.items()}
            label = labels[number] if labels is not None else "x"
            writer.append(f"s{number}", values, label=label, groups={"speaker": f"{number % 5}"})
    return open_store(path)


def pooled_values(store) -> dict[str, float]:
    """Return biased and debiased CKA between the sites `x` and `y`."""
    table = analyze(store, ["cka"])["cka"].to_dataframe()
    pair = table[
        (table["site_a"] != table["site_b"])
        & (table["granularity"] == "pooled")
        & (table["kernel"] == "linear")
    ]
    return dict(zip(pair["estimator"], pair["value"], strict=False))


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float64", 1e-9), ("float32", 1e-6), ("bfloat16", 2e-4)]
)
def test_golden_values(tmp_path, dtype, tolerance):
    """The tolerance is that of rounding the features to the storage type."""
    x, y = golden_data()
    values = pooled_values(write(tmp_path / "s", {"x": x, "y": y}, dtype))
    assert values["biased"] == pytest.approx(BIASED, abs=tolerance)
    assert values["debiased"] == pytest.approx(DEBIASED, abs=tolerance)


def test_an_offset_changes_nothing(tmp_path):
    """+1000 in float32 leaves 1e-4 relative rounding per value, 1e-5 in the similarity."""
    x, y = golden_data()
    values = pooled_values(write(tmp_path / "s", {"x": x + 1000, "y": y + 1000}, "float32"))
    assert values["biased"] == pytest.approx(BIASED, abs=1e-5)
    assert values["debiased"] == pytest.approx(DEBIASED, abs=1e-5)
