"""Table `erasure` against differences computed by hand, and what belongs to an intervention."""

import json

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, recall_score

from lorascope.analyses import MissingSitesError, analyze, to_tables, write_outputs
from lorascope.analyses.tables import COLUMNS
from lorascope.store import Output, Site, create_store, open_store

LABELS = ["a", "b", "c"]
N = 40


def intervention(**attrs):
    return {"of": "lora", "intervention": attrs}


def write(path, capture, logits, *, sites=(), labels=LABELS, **attrs) -> None:
    """Write a capture of outputs: eight speakers, of whom the first two shaped the head."""
    true = np.arange(N) % 3
    with create_store(
        path,
        capture=capture,
        sites=list(sites),
        outputs=[Output("logits", (logits.shape[1],))],
        attrs={"labels": labels, "trained": ["head", "adapter"], **attrs},
    ) as writer:
        for i, row in enumerate(logits):
            writer.append(
                f"u{i:02d}",
                {site.name: np.ones((2, 3), np.float32) * i for site in sites},
                label=LABELS[true[i]],
                groups={"speaker": f"{i // 5}"},
                exposed=i < 10,
                outputs={"logits": row.astype(np.float32)},
            )


@pytest.fixture(scope="module")
def logits() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    base = 2 * np.eye(3)[np.arange(N) % 3] + rng.normal(0, 1, (N, 3))
    return {
        "lora": base,
        "lora.erase1-mean": base + rng.normal(0, 1.5, (N, 3)),
        "lora.nothing": base,
        "lora.lora_off": rng.normal(0, 1, (N, 3)),
    }


@pytest.fixture(scope="module")
def path(tmp_path_factory, logits):
    path = tmp_path_factory.mktemp("erasure") / "s.zarr"
    write(path, "lora", logits["lora"], sites=[Site("embed", None, 3)])
    erased = intervention(name="erase1-mean", kind="erase", layer=1, layers=[1], how="mean")
    write(path, "lora.erase1-mean", logits["lora.erase1-mean"], **erased)
    nothing = intervention(name="nothing", kind="scale_lora", layers=[0, 1], by=1.0)
    write(path, "lora.nothing", logits["lora.nothing"], **nothing)
    off = intervention(name="lora_off", kind="lora_off", layers=[0, 1])
    write(path, "lora.lora_off", logits["lora.lora_off"], **off)
    return path


@pytest.fixture(scope="module")
def table(path):
    return to_tables(analyze(path, ["erasure"]))["erasure"]


def softmax(x):
    p = np.exp(x.astype(np.float32).astype(np.float64))
    return p / p.sum(1, keepdims=True)


@pytest.mark.parametrize("name", ["erase1-mean", "lora_off", "nothing"])
def test_differences_are_those_computed_by_hand(table, one, logits, name) -> None:
    row = one(table, intervention=name)
    true = (np.arange(N) % 3)[10:]
    p, q = (softmax(logits[key][10:]) for key in ("lora", f"lora.{name}"))
    at = np.arange(N - 10), true

    def recalls(x):
        guess = x.argmax(1)
        return recall_score(true, guess, average="macro"), accuracy_score(true, guess)

    (uar, war), (uar_q, war_q) = recalls(p), recalls(q)
    expected = {
        "delta_uar": uar_q - uar,
        "delta_war": war_q - war,
        "delta_nll": (np.log(p[at]) - np.log(q[at])).mean(),
        "delta_p_true": (q[at] - p[at]).mean(),
        "kl": (p * np.log(p / q)).sum(1).mean(),
    }
    for column, value in expected.items():
        assert row[column] == pytest.approx(value, abs=1e-12), column
        low, high = row[f"{column}_low"], row[f"{column}_high"]
        if name == "nothing":
            assert low == high == 0 == row[column]
        else:
            assert low < high
            assert low <= row[column] <= high
    assert (row["n"], row["exposed"], row["reason"]) == (N - 10, "none", "")


def test_each_row_says_what_was_changed(table, one) -> None:
    assert list(table.columns) == list(COLUMNS["erasure"])
    assert set(table["capture"]) == {"lora"}
    erased = one(table, intervention="erase1-mean")
    assert (erased["change"], erased["layer"]) == ("erase, mean", 1)
    assert one(table, change="LoRA off (layers 0, 1)", layer=None)["intervention"] == "lora_off"
    assert one(table, change="LoRA times 1.0 (layers 0, 1)")["intervention"] == "nothing"


def test_intervals_pair_the_samples(table, one, logits) -> None:
    """The interval of a difference is narrower than that of two scores that vary by speaker."""
    row = one(table, intervention="erase1-mean")
    q = softmax(logits["lora.erase1-mean"][10:])
    p = softmax(logits["lora"][10:])
    true = (np.arange(N) % 3)[10:]
    rng = np.random.default_rng(3)
    gaps = []
    for _ in range(2000):  # the plain definition: speakers, then as many of their samples
        drawn = [5 * s + rng.integers(0, 5, 5) for s in rng.integers(0, 6, 6)]
        at = np.concatenate(drawn)
        gaps.append((q[at, true[at]] - p[at, true[at]]).mean())
    low, high = np.percentile(gaps, [2.5, 97.5])
    # two Monte Carlo estimates of the same ends, of 1000 and 2000 draws
    spread = high - low
    assert row["delta_p_true_low"] == pytest.approx(low, abs=0.1 * spread)
    assert row["delta_p_true_high"] == pytest.approx(high, abs=0.1 * spread)


def test_the_same_seed_gives_the_same_intervals(path, table) -> None:
    again = to_tables(analyze(path, ["erasure"]))["erasure"]
    assert again.equals(table)
    other = to_tables(analyze(path, ["erasure"], seed=1))["erasure"]
    assert not other["kl_low"].equals(table["kl_low"])
    assert other["kl"].equals(table["kl"])


def test_filters(path) -> None:
    def names(**options):
        found = to_tables(analyze(path, ["erasure"], **options))["erasure"]
        return set(found["intervention"])

    every = {"erase1-mean", "nothing", "lora_off"}
    assert names(captures=["lora"]) == every
    assert names(captures=["lora.lora_off"]) == {"lora_off"}
    assert names(captures=["lora", "lora.lora_off"]) == every


@pytest.mark.usefixtures("unwritten_pictures")
def test_other_analyses_see_the_captures_alone(path, tmp_path) -> None:
    results = analyze(path)
    tables = to_tables(results)
    assert set(tables["outputs"]["capture"]) == {"lora"}
    assert set(tables["svd"]["capture"]) == {"lora"}
    summary = write_outputs(results, path, tmp_path / "out")
    assert set(summary["captures"]) == {"lora"}
    assert summary["interventions"]["lora.lora_off"]["of"] == "lora"
    assert summary["values"]["erasure"]["lora"]["nothing"]["delta_uar"] == 0
    page = (tmp_path / "out/report.html").read_text()
    assert "lora loses most by" in page
    assert "erase, mean" in page
    json.dumps(summary, allow_nan=False)


def test_without_interventions_it_is_skipped(study) -> None:
    with pytest.raises(MissingSitesError, match=r"interventions: \[\{erase"):
        analyze(study.path, ["erasure"])


def reason_of(path, **where):
    rows = to_tables(analyze(path, ["erasure"]))["erasure"]
    (row,) = rows.to_dict("records")
    assert np.isnan(row["delta_uar"])
    return row


def test_a_missing_partner_is_said(tmp_path, logits) -> None:
    path = tmp_path / "s.zarr"
    write(path, "lora.x", logits["lora"], **intervention(name="x", kind="erase", layer=0))
    assert "'lora', which was changed, is not in the store" in reason_of(path)["reason"]


def test_logits_that_cannot_be_compared_are_said(tmp_path, logits) -> None:
    broken = logits["lora"].copy()
    broken[20, 0] = np.nan
    for number, (changed, why) in enumerate(
        ((broken, "NaN or infinite logits"), (broken[:, :2], "logits of other classes"))
    ):
        path = tmp_path / f"{number}.zarr"
        write(path, "lora", logits["lora"])
        write(path, "lora.x", changed, **intervention(name="x"))
        assert why in reason_of(path)["reason"]


def test_unknown_labels_leave_kl(tmp_path, logits) -> None:
    path = tmp_path / "s.zarr"
    write(path, "lora", logits["lora"], labels=["x", "y", "z"])
    write(path, "lora.x", logits["lora.lora_off"], **intervention(name="x"))
    row = reason_of(path)
    assert "only kl" in row["reason"]
    assert row["kl"] > 0


def test_a_strangers_attributes_may_say_anything(tmp_path, logits) -> None:
    path = tmp_path / "s.zarr"
    write(path, "lora", logits["lora"])
    odd = {"name": 3, "kind": ["erase"], "layer": True, "layers": [{}, None], "how": None}
    write(path, "lora.x", logits["lora.lora_off"], of="lora", intervention=odd)
    row = to_tables(analyze(path, ["erasure"]))["erasure"].iloc[0]
    assert row["intervention"] == "lora.x"
    assert row["kl"] > 0
    write(path, "lora.y", logits["lora"], of=["lora"], intervention={})
    assert "lora.y" in set(to_tables(analyze(path, ["outputs"]))["outputs"]["capture"])
    assert set(open_store(path).captures) == {"lora", "lora.x", "lora.y"}
