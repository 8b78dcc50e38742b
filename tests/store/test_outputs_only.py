"""A capture without sites: outputs of a model in which nothing was recorded."""

import numpy as np
import pytest

from lorascope.store import (
    DamagedStoreError,
    NewSample,
    Output,
    SampleError,
    SampleRows,
    Site,
    copy_store,
    create_store,
    open_store,
    repair_store,
    seal_store,
    verify_store,
)

LOGITS = np.arange(30, dtype=np.float32).reshape(10, 3)


def write(path, *, stop=10, planned=True):
    """Write up to sample `stop` in batches of two, then fail where that is not the end."""
    plan = [SampleRows(f"u{i}", {}) for i in range(10)] if planned else None
    with create_store(
        path,
        capture="lora.off",
        sites=[],
        outputs=[Output("logits", (3,))],
        plan=plan,
        segment_samples=4,
        batch_size=2,
    ) as writer:
        for i in range(0, stop, 2):
            if f"u{i}" not in writer.committed:
                groups = {"speaker": str(i)}
                writer.append_batch(
                    [
                        NewSample(f"u{j}", {}, groups=groups, outputs={"logits": LOGITS[j]})
                        for j in (i, i + 1)
                    ],
                    {},
                )
        if stop < 10:
            raise KeyError(stop)


@pytest.mark.parametrize("planned", [True, False])
def test_it_is_read_as_it_was_written(tmp_path, planned) -> None:
    write(tmp_path / "s.zarr", planned=planned)
    store = open_store(tmp_path / "s.zarr")
    capture = store.capture("lora.off")
    assert (capture.sites, capture.pooled, len(capture), capture.complete) == ({}, {}, 10, True)
    np.testing.assert_array_equal(capture.read_output("logits"), LOGITS)
    np.testing.assert_array_equal(capture.read_output("logits", slice(3, 7)), LOGITS[3:7])
    assert verify_store(store.path).damages == []


def test_it_goes_on_after_an_interruption(tmp_path) -> None:
    write(tmp_path / "whole.zarr")
    digest = open_store(tmp_path / "whole.zarr").content_digest()
    with pytest.raises(KeyError):
        write(tmp_path / "cut.zarr", stop=6)
    assert len(open_store(tmp_path / "cut.zarr").capture("lora.off")) == 4
    write(tmp_path / "cut.zarr")
    assert open_store(tmp_path / "cut.zarr").content_digest() == digest


def test_it_is_copied_sealed_and_mended(tmp_path) -> None:
    path = tmp_path / "s.zarr"
    write(path)
    digest = open_store(path).content_digest()
    copy_store(path, tmp_path / "copy.zarr")
    copy_store(path, tmp_path / "small.zarr", profile="archive")
    assert open_store(tmp_path / "copy.zarr").content_digest() == digest
    assert open_store(tmp_path / "small.zarr").content_digest() == digest
    seal_store(tmp_path / "copy.zarr")
    assert verify_store(tmp_path / "copy.zarr").damages == []
    assert open_store(tmp_path / "copy.zarr").content_digest() == digest

    chunk = path / "captures/lora.off/outputs/logits/c.1.0"
    content = bytearray(chunk.read_bytes())
    content[5] ^= 1
    chunk.write_bytes(content)
    with pytest.raises(DamagedStoreError):
        open_store(path).capture("lora.off").read_output("logits")
    repair_store(path)
    write(path)
    assert open_store(path).content_digest() == digest


def test_nothing_at_all_is_refused(tmp_path) -> None:
    with pytest.raises(SampleError, match="no sites to record"):
        create_store(tmp_path / "s.zarr", capture="a", sites=[])
    with pytest.raises(SampleError, match="sites named twice: embed"):
        create_store(
            tmp_path / "s.zarr",
            capture="a",
            sites=[Site("embed", None, 2), Site("embed", None, 2)],
            outputs=[Output("loss")],
        )
    assert not (tmp_path / "s.zarr").exists()
