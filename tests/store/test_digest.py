"""`content_digest` depends on the content and on nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from lorascope.store import open_store

from .conftest import make_samples, plan_of


def digest(path) -> str:
    return open_store(path).content_digest()


def test_segments_threads_plan_and_order_do_not_matter(write_store):
    samples = make_samples()
    reference = digest(write_store("a.zarr"))
    assert digest(write_store("b.zarr", segment_samples=3)) == reference
    assert digest(write_store("c.zarr", plan=plan_of(samples), batch_size=2)) == reference
    assert digest(write_store("d.zarr", threads=2, segment_rows=25)) == reference
    assert digest(write_store("e.zarr", samples=samples[::-1])) == reference


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s["values"]["embed"].__setitem__((0, 0), 9),
        lambda s: s["values"]["resid_post"].__setitem__((1, 0, 0), 9),
        lambda s: s["values"]["resid_post.mean_valid"].__setitem__((1, 0), 9),
        lambda s: s["outputs"].update(loss=0.5),
        lambda s: s.update(label="happiness"),
        lambda s: s.update(exposed=True),
        lambda s: s["groups"].update(speaker="09"),
        lambda s: s["columns"].update(take=-1),
        lambda s: s.update(id="other"),
        lambda s: s.update(positions={"tokens": np.arange(len(s["values"]["embed"])) + 1}),
    ],
    ids=[
        "row",
        "layer",
        "pooled",
        "output",
        "label",
        "exposed",
        "group",
        "column",
        "id",
        "position",
    ],
)
def test_any_change_of_the_content_matters(write_store, change):
    reference = digest(write_store("a.zarr"))
    samples = make_samples()
    change(samples[5])
    assert digest(write_store("b.zarr", samples=samples)) != reference
