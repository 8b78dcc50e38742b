"""`append_batch`: the same files as sample by sample, and all or nothing."""

from __future__ import annotations

from dataclasses import replace
from itertools import batched

import numpy as np
import pytest

from lorascope.store import NewSample, Output, SampleError, create_store, open_store

from .conftest import SITES, make_samples, plan_of


@pytest.mark.parametrize("planned", [True, False])
@pytest.mark.parametrize("size", [1, 3, 8, 23])
def test_a_batch_writes_what_single_samples_write(tmp_path, write_store, planned, size):
    """Also where segments of four samples cut through the batches."""
    samples = make_samples()
    options = {"segment_samples": 4, "plan": plan_of(samples) if planned else None}
    single = write_store("single", **options)
    with create_store(
        tmp_path / "batches",
        capture="base",
        sites=SITES,
        outputs=[Output("logits", (4,)), Output("loss")],
        config={"seed": 0, "model": {"base": "tiny"}},
        **options,
    ) as writer:
        for batch in batched(samples, size):
            writer.append_batch(*as_batch(batch))
    assert committed_files(tmp_path / "batches") == committed_files(single)


def as_batch(samples):
    """Put the arrays of samples together, as `append_batch` takes them."""
    values = {
        name: np.concatenate([s["values"][name] for s in samples], axis=axis)
        for name, axis in (("resid_post", 1), ("embed", 0))
    }
    pool = "resid_post.mean_valid"
    values[pool] = np.stack([s["values"][pool] for s in samples], axis=1)
    facts = [
        NewSample(
            n_rows={"tokens": len(s["values"]["embed"])}, **{k: s[k] for k in s if k != "values"}
        )
        for s in samples
    ]
    return facts, values


def committed_files(path):
    """Return every data file that a record names, with its checksum."""
    return {
        entry.path: entry.crc32c
        for record in open_store(path).log.records
        for entry in record.files
    }


def test_a_bad_batch_is_refused_whole(tmp_path):
    """An error in the last sample leaves the writer as if the batch had not been given."""
    samples = make_samples(6)
    facts, values = as_batch(samples)
    wrong = [
        ([*facts[:5], replace(facts[5], id=facts[0].id)], "already"),
        ([*facts[:5], replace(facts[5], n_rows={"tokens": 10**4})], "add up to"),
        ([*facts[:5], replace(facts[5], n_rows={"frames": 1})], "add up to|streams"),
        ([*facts[:5], replace(facts[5], columns={"take": "third"})], "always the same"),
        (
            [
                replace(facts[0], columns={"new": 1}),
                *facts[1:5],
                replace(facts[5], columns={"take": "third"}),
            ],
            "always the same",
        ),
        ([*facts[:5], replace(facts[5], outputs={"logits": 1.0})], "shape"),
    ]
    outputs = [Output("logits", (4,)), Output("loss")]
    with create_store(tmp_path / "s", capture="a", sites=SITES, outputs=outputs) as writer:
        for batch, message in wrong:
            with pytest.raises(SampleError, match=message):
                writer.append_batch(batch, values)
        short = {**values, "resid_post.mean_valid": values["resid_post.mean_valid"][:, :5]}
        with pytest.raises(SampleError, match=r"\[layer, 6, feature\]"):
            writer.append_batch(facts, short)
        writer.append_batch(facts, values)
    read = open_store(tmp_path / "s").samples
    assert read["id"].tolist() == [s["id"] for s in samples]
    assert "new" not in read, "a column of a refused batch was kept"


def test_a_batch_out_of_the_planned_order_is_refused_whole(tmp_path):
    samples = make_samples(6)
    facts, values = as_batch(samples)
    outputs = [Output("logits", (4,)), Output("loss")]
    plan = plan_of(samples)
    plan[4], plan[5] = plan[5], plan[4]
    with create_store(
        tmp_path / "s", capture="a", sites=SITES, outputs=outputs, plan=plan, segment_samples=2
    ) as writer:
        with pytest.raises(SampleError, match="segment 2 of the plan expects"):
            writer.append_batch(facts, values)
        writer.append_batch(*as_batch([*samples[:4], samples[5], samples[4]]))
    assert len(open_store(tmp_path / "s").samples) == 6
