"""The report on probes: the logistic one is drawn, the others are tables."""

import pandas as pd
import pytest

pytestmark = pytest.mark.usefixtures("unwritten_pictures")


def test_other_probes_stand_in_a_table_of_their_own(tables, summary, render, tmp_path) -> None:
    known = tables(2)["probe"]
    pooled = known[known["fold"] == "all"]
    ridge = pooled.assign(probe="ridge", uar=0.99, uar_low=0.95, uar_high=1.0, penalty=123.0)
    both = _stack(known, ridge)
    page = render({"probe": both}, summary(), tmp_path)
    assert "The other probes, over all folds" in page.text
    assert "ridge 0.99 [0.95, 1.00]" in page.text
    assert "lora is read best at layer 1: UAR 0.70" in page.text, "the logistic probe is drawn"
    assert "penalty = 123.0" in page.text


def _stack(*parts):
    out = pd.concat(parts, ignore_index=True)
    out.attrs = parts[0].attrs
    return out


def test_weights_code_and_rows_are_shown(tables, summary, render, tmp_path) -> None:
    base = {"capture": "lora", "site": "resid_post", "n": 40, "exposed": "none", "reason": ""}
    layers = pd.DataFrame([base | {"layer": i, "weight": w} for i, w in enumerate((0.21, 0.79))])
    code = pd.DataFrame([base | {"layer": i, "codelength": 50.5 + i} for i in range(2)])
    rows = pd.DataFrame([base | {"layer": i, "rows": "phone", "uar": 0.5 + i / 4} for i in (0, 1)])
    more = {"probe_weights": layers, "mdl": code, "row_probe": rows}
    page = render({"probe": tables(2)["probe"], **more}, summary(), tmp_path)
    for text in ("Weights of the layers", "0.7900", "Codelength of the labels", "51.50"):
        assert text in page.text
    assert "Probes of single rows" in page.text


def test_classes_of_rows_are_shown_where_they_are_read_best(
    tables, summary, render, tmp_path
) -> None:
    base = {"capture": "lora", "site": "resid_post", "rows": "phone", "probe": "lda", "n": 40}
    base |= {"exposed": "none", "reason": ""}
    rows = pd.DataFrame([base | {"layer": i, "uar": uar} for i, uar in enumerate((0.9, 0.4))])
    classes = pd.DataFrame(
        [
            base | {"layer": i, "class": k, "class_name": name, "recall": 0.1234 * (1 + i) + k / 10}
            for i in range(2)
            for k, name in enumerate(("AY", "HH"))
        ]
    )
    more = {"row_probe": rows, "row_probe_classes": classes}
    page = render({"probe": tables(2)["probe"], **more}, summary(), tmp_path)
    for text in ("Classes of single rows", "AY", "HH", "0.1234", "0.2234"):
        assert text in page.text
    assert "0.2468" not in page.text, "layer 1 reads them worse"


def test_a_run_of_weighted_probes_alone_is_a_page(tables, summary, render, tmp_path) -> None:
    known = tables(2)["probe"]
    alone = known[(known["fold"] == "all") & (known["site"] == "resid_post")].head(1)
    alone = alone.assign(probe="weighted", layer=alone["layer"].mask(alone["layer"] >= 0))
    page = render({"probe": alone}, summary(), tmp_path)
    assert "weighted" in page.text
