"""Spectra of rows with audio beside those of all rows, where padding was recorded too."""

import numpy as np
import pytest

from lorascope.analyses import analyze, to_tables
from lorascope.analyses.report.frames import leading_mask
from lorascope.analyses.spectra.svd import SVD
from lorascope.analyses.summary import collect_values
from lorascope.store import Site, create_store

N, FRAMES, WIDTH = 12, 9, 5
VALID = np.array([1, 9, 4, 0, 5, 6, 7, 8, 9, 2, 3, 4])
SPEAKERS = [f"s{i % 4}" for i in range(N)]  # never two samples of one in a row


def rows(seed: int) -> np.ndarray:
    """Return [sample, layer, frame, feature]: padding is the same large row everywhere."""
    x = np.random.default_rng(seed).normal(size=(N, 2, FRAMES, WIDTH)).astype(np.float32)
    for i, valid in enumerate(VALID):
        x[i, :, valid:] = 20 + np.arange(WIDTH)
    return x


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("masks") / "s.zarr"
    for seed, capture in enumerate(("a", "b")):
        with create_store(
            path,
            capture=capture,
            sites=[Site("resid_post", [0, 1], WIDTH, stream="encoder")],
            config={"c": capture},
            attrs={"record": {"frames": "all"}},
            segment_samples=5,
        ) as writer:
            for i, x in enumerate(rows(seed)):
                writer.append(
                    f"u{i}",
                    {"resid_post": x},
                    groups={"speaker": SPEAKERS[i]},
                    columns={"valid_frames": int(VALID[i])},
                )
    return path


@pytest.mark.parametrize("tail", [False, True])
def test_each_mask_is_the_spectrum_of_its_rows(store, one, tail) -> None:
    tables = to_tables(analyze(store, [SVD(tail=tail)]))
    for layer in (0, 1):
        x = rows(1)[:, layer]
        audio = np.concatenate([x[i, :valid] for i, valid in enumerate(VALID)])
        for mask, chosen in (("valid", audio), ("all", x.reshape(-1, WIDTH))):
            exact = chosen.astype(np.float64)
            sigma = np.linalg.svd(exact - exact.mean(axis=0), compute_uv=False)
            where = {"capture": "b", "layer": layer, "centred": True, "mask": mask}
            row = one(tables["svd"], **where)
            assert row["n"] == len(chosen)
            assert row["independent"] == (N - 1 if mask == "valid" else N)
            assert row["stable_rank"] == pytest.approx((sigma**2).sum() / sigma[0] ** 2, rel=1e-5)
            at = tables["spectrum"]
            at = at[(at["capture"] == "b") & (at["layer"] == layer) & at["centred"]]
            np.testing.assert_allclose(at[at["mask"] == mask]["singular_value"], sigma, rtol=1e-4)


def test_masks_are_not_mixed_where_one_number_is_shown(store) -> None:
    tables = to_tables(analyze(store, ["svd"]))
    assert set(tables["angles"]["mask"]) == {"valid"}
    shown = leading_mask(tables["svd"])
    assert set(shown["mask"]) == {"valid"}
    centred = shown[shown["centred"] & (shown["capture"] == "a")]
    value = collect_values(tables)["svd"]["a"]["resid_post"]["erank"]
    assert value == pytest.approx(centred["erank"].mean())
    bare = tables["svd"][tables["svd"]["mask"] == "all"]
    assert len(leading_mask(bare)) == len(bare)


def test_neither_slabs_nor_workers_matter(store) -> None:
    whole = to_tables(analyze(store, ["svd"], workers=1))["svd"]
    cut = to_tables(analyze(store, ["svd"], workers=3))
    assert cut["svd"].attrs["slabs"] > 1
    numbers = whole.select_dtypes("number").columns.drop("layer")
    # float32 products of 8 to 108 rows, cut elsewhere
    np.testing.assert_allclose(cut["svd"][numbers], whole[numbers], rtol=2e-5)
