"""The lens: identity at the last layer, divergences against a direct computation, refusals."""

import numpy as np
import pytest
from scipy.special import softmax

from lorascope.analyses import MissingSitesError, analyze, to_tables
from lorascope.analyses.behaviour.lens import apply_head
from lorascope.store import Output, Site, create_store


@pytest.fixture(scope="module")
def lens(study):
    return to_tables(analyze(study.path, ["lens"]))["lens"]


def test_last_layer_is_the_model(lens) -> None:
    last = lens[(lens["site"] == "resid_post") & (lens["layer"] == 2)]
    assert len(last) == 3
    assert last[["kl_final_layer", "kl_layer_final", "js"]].abs().max().max() <= 1e-6
    assert (last["overlap"] == 1).all()


def test_values_equal_a_direct_computation(study, lens) -> None:
    head = {name: x.astype(np.float64) for name, x in study.head.items()}
    for row in lens.to_dict("records"):
        used = ~study.exposed[row["capture"]]  # the head was trained on speakers 01 and 02
        x = np.stack(study.pooled[row["capture"], f"{row['site']}.mean_all_normed"])[used]
        x = x[:, 0 if row["site"] == "embed" else int(row["layer"])].astype(np.float64)
        hidden = x @ head["head.projector.weight"].T + head["head.projector.bias"]
        logits = hidden @ head["head.classifier.weight"].T + head["head.classifier.bias"]
        p, q = softmax(study.logits[row["capture"]][used].astype(float), 1), softmax(logits, 1)
        assert row["n"] == used.sum() == 24
        # differences of float64 logarithms; near 0 the stored float32 logits decide
        assert row["kl_final_layer"] == pytest.approx(
            np.sum(p * np.log(p / q), 1).mean(), rel=1e-9, abs=1e-9
        )
        assert row["kl_layer_final"] == pytest.approx(
            np.sum(q * np.log(q / p), 1).mean(), rel=1e-9, abs=1e-9
        )
        a, b = p.argmax(1), q.argmax(1)
        assert row["overlap"] == pytest.approx(np.mean(a == b))
        chance = sum(np.mean(a == k) * np.mean(b == k) for k in range(4))
        assert row["chance_overlap"] == pytest.approx(chance)
        true = np.array(
            [["anger", "happiness", "neutral", "sadness"].index(t) for t in study.labels]
        )
        recalls = [np.mean(b[true[used] == k] == k) for k in range(4)]
        assert row["uar"] == pytest.approx(np.mean(recalls))
        assert row["overlap_low"] <= row["overlap"] <= row["overlap_high"]


def test_a_head_without_projector_is_applied() -> None:
    weight = np.arange(6.0).reshape(2, 3)
    found = apply_head({"head.classifier.weight": weight}, np.eye(3))
    np.testing.assert_array_equal(found, weight.T)


def test_what_is_missing_is_named(tmp_path, study) -> None:
    with create_store(tmp_path / "s.zarr", capture="a", sites=[Site("embed", None, 3)]) as writer:
        writer.append("u", {"embed": np.zeros((2, 3), np.float32)})
    with pytest.raises(MissingSitesError, match=r"resid_post\.mean_all_normed.*no head"):
        analyze(tmp_path / "s.zarr", ["lens"])


def test_a_capture_without_a_head_gets_a_reason(tmp_path) -> None:
    path = tmp_path / "s.zarr"
    pool = Site("resid_post.mean_all_normed", [0], 3, kind="sample")
    for capture in ("with", "without"):
        outputs = [Output("logits", (2,))] if capture == "with" else []
        attrs = {"labels": ["a", "b"], "trained": []}
        with create_store(
            path, capture=capture, sites=[pool], outputs=outputs, attrs=attrs
        ) as writer:
            for i in range(5):
                x = np.random.default_rng(i).normal(size=(1, 3)).astype(np.float32)
                values = {"logits": x[0, :2]} if capture == "with" else None
                writer.append(f"u{i}", {pool.name: x}, label="ab"[i % 2], outputs=values)
            if capture == "with":
                writer.write_parameters({"head.classifier.weight": np.eye(2, 3, dtype=np.float32)})
    rows = to_tables(analyze(path, ["lens"]))["lens"].set_index("capture")
    assert rows.loc["with", "kl_final_layer"] == pytest.approx(0, abs=1e-12)
    assert np.isnan(rows.loc["without", "uar"])
    assert "head.classifier.weight" in rows.loc["without", "reason"]
