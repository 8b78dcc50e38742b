"""The same tables from the workers of a dask.distributed cluster."""

from __future__ import annotations

import numpy as np
from distributed import LocalCluster

from lorascope.analyses import analyze


def test_a_cluster_gives_the_same_tables(study, results):
    """1e-5 in spectra (float32 products over other slabs), 1e-9 elsewhere (float64 sums)."""
    told = []
    with LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
    ) as cluster:
        again = analyze(
            study.path,
            scheduler=cluster.scheduler_address,
            progress=lambda *args: told.append(args),
        )
    assert set(again) == set(results)
    for name, expected in results.items():
        tolerance = 1e-5 if name in {"svd", "spectrum"} else 1e-9
        for column, values in expected.variables.items():
            found, wanted = again[name][column].to_numpy(), values.to_numpy()
            if wanted.dtype.kind == "f":
                np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance)
            else:
                assert np.array_equal(found, wanted), f"{name}.{column}"
    assert any("read by the cluster" in text for _, _, text in told)
