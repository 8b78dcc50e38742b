"""Requests that do not fit the store: one message that says what is there and what to do."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lorascope.analyses import (
    ANALYSES,
    AnalysisError,
    AnalysisInputError,
    MemoryBudgetError,
    MissingSitesError,
    Probe,
    analyze,
)
from lorascope.store import LorascopeError, Site, create_store


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": ["ckaa"]}, r"no analysis 'ckaa'\. Did you mean 'cka'\? There are: cka, svd, "),
        ({"names": ["umbrella"]}, r"no analysis 'umbrella'\. There are: cka, svd, probe"),
        ({"captures": ["frosen"]}, r"no capture 'frosen' .* Did you mean 'frozen'\? Present: "),
        ({"sites": ["residpost"]}, r"no site 'residpost' .* Did you mean 'resid_post'\?"),
        ({"sites": ["lora"]}, r"Present: attn_out, embed, lora_a\.v_proj, lora_b\.v_proj, mlp"),
        ({"layers": [1, 7]}, r"no layer 7 in the store\. Present: 0, 1, 2"),
        ({"memory": "two"}, r"memory 'two' is not an amount\. Write it like 2GiB, 500MB"),
        ({"memory": 0}, r"memory 0 is not an amount"),
        ({"workers": 0}, r"0 workers were asked for; at least 1"),
        ({"names": [Probe(c=0)]}, r"probe needs C > 0"),
    ],
)
def test_a_request_that_fits_nothing(study, options, message):
    with pytest.raises(AnalysisInputError, match=message):
        analyze(study.path, **options)


def test_too_little_memory_is_said_before_anything_is_read(study):
    def progress(*_):
        pytest.fail("nothing is read")

    with pytest.raises(
        MemoryBudgetError, match=r"memory 1 KiB is too little: one sample of .*"
    ) as e:
        analyze(study.path, ["svd"], memory="1KiB", progress=progress)
    assert "Allow at least that much (--memory)" in str(e.value)
    needed = str(e.value).split("takes ")[1].split(". Allow")[0].replace(" ", "")
    analyze(study.path, ["svd"], memory=f"{float(needed[:-3]) * 1.01}{needed[-3:]}")


@pytest.fixture
def bare(tmp_path):
    """Return a store that holds one site, no labels, no outputs."""
    with create_store(tmp_path / "bare", capture="a", sites=[Site("mlp_out", [0], 3)]) as writer:
        for i in range(6):
            writer.append(f"u{i}", {"mlp_out": np.random.default_rng(i).normal(size=(1, 2, 3))})
    return tmp_path / "bare"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("probe", r"probe needs pooled features .* rows of one of embed, resid_post"),
        ("lens", r"lens needs resid_post\.mean_all_normed, .* Present: no pooled sites"),
        ("contribution", r"contribution needs the rows of attn_out, mlp_out .* Present: mlp_out"),
        ("outputs", r"outputs needs the logits .* Present outputs: none"),
    ],
)
def test_an_analysis_whose_sites_are_absent_names_them(bare, name, message):
    with pytest.raises(MissingSitesError, match=message):
        analyze(bare, [name])


def test_by_default_what_cannot_be_served_is_skipped_and_named(bare):
    results = analyze(bare)
    assert set(results) == {"cka", "svd", "spectrum"}
    skipped = json.loads(results["cka"].attrs["skipped"])
    assert set(skipped) == set(ANALYSES) - {"cka", "svd"}
    assert "attn_out" in skipped["contribution"]


def test_rows_alone_are_needed_where_only_pools_were_kept(tmp_path):
    site = Site("resid_post.mean_valid", [0], 3, kind="sample")
    with create_store(tmp_path / "s", capture="a", sites=[site]) as writer:
        for i in range(6):
            writer.append(f"u{i}", {site.name: np.random.default_rng(i).normal(size=(1, 3))})
    with pytest.raises(MissingSitesError, match="svd needs the rows of at least one site"):
        analyze(tmp_path / "s", ["svd"])
    assert set(analyze(tmp_path / "s")) == {"cka"}


def test_a_store_without_samples(tmp_path):
    with create_store(tmp_path / "s", capture="a", sites=[Site("embed", None, 3)]):
        pass
    with pytest.raises(AnalysisInputError, match="no sample is committed yet in a"):
        analyze(tmp_path / "s")


def test_a_scheduler_that_does_not_answer(study):
    with pytest.raises(AnalysisInputError, match=r"no dask scheduler at 'nonsense'"):
        analyze(study.path, ["outputs"], scheduler="nonsense")


def test_every_error_of_the_room_is_an_expected_one():
    for error in (AnalysisInputError, MissingSitesError, MemoryBudgetError):
        assert issubclass(error, AnalysisError)
        assert issubclass(error, LorascopeError)


def test_a_probe_that_does_not_fit_is_refused_with_what_it_takes(tmp_path, make_store):
    """60 samples of 3000 features are 1.4 MB in float64, five times over."""
    x = np.random.default_rng(0).standard_normal((60, 1, 3000))
    labels, speakers = ["a", "b"] * 30, [f"{i // 20}" for i in range(60)]
    path = make_store(tmp_path / "s", [x], labels=labels, speakers=speakers)
    with pytest.raises(MemoryBudgetError, match=r"the probe of resid_post.* takes .* MiB") as e:
        analyze(path, ["probe"], memory="10MiB")
    needed = str(e.value).split("Allow at least ")[1].split(" (")[0].replace(" ", "")
    enough = f"{float(needed[:-3]) * 1.01:.2f}{needed[-3:]}"
    found = analyze(path, ["probe"], memory=enough)["probe"]
    assert found.sizes["entry"] == 6  # all folds and each of three, then ridge and LDA
