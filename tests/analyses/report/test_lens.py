"""The report on the tuned lens: its curves beside the lens, and what it adds in a sentence."""

import numpy as np
import pandas as pd
import pytest


def tuned_table(reason: str = "") -> pd.DataFrame:
    """Return three layers; the translator helps at the first two, and chance is beaten at 1."""
    rows = []
    for layer, (value, bare) in enumerate(((0.9, 2.0), (0.3, 1.5), (0.2, 0.2))):
        delta = value - bare
        row = {"capture": "lora", "site": "resid_post", "layer": layer, "n": 24}
        row |= {"kl_final_layer": value, "lens_kl_final_layer": bare, "overlap": 0.9}
        row |= {"kl_final_layer_low": value - 0.1, "kl_final_layer_high": value + 0.1}
        row |= {"delta_kl_final_layer": delta, "delta_kl_final_layer_low": delta - 0.1}
        row |= {"delta_kl_final_layer_high": delta + 0.1, "chance_kl": 0.7, "lens_overlap": 0.5}
        rows.append(row | {"chance_overlap": 0.4, "penalty": np.inf, "exposed": "none"})
    table = pd.DataFrame(rows).assign(reason=reason)
    table.attrs = {"interval": "cluster bootstrap over speakers, 95 %"}
    return table


def test_the_tuned_lens_is_drawn_beside_the_lens(tables, summary, render, tmp_path) -> None:
    page = render({"tuned_lens": tuned_table()}, summary(), tmp_path)
    assert "A translator before the head" in page.text
    assert "Dotted: the lens on the same samples." in page.text
    sentence = "nearer to the answer at 2 of 3 layers, interval below 0"
    assert f"lora: a translator brings the lens {sentence}" in page.text
    # 0.3 + 0.1 < 0.7 at layer 1, 0.9 + 0.1 > 0.7 at layer 0
    assert "than the mean answer (KL 0.70) first at layer 1: KL 0.30 [0.20, 0.40]." in page.text
    assert (tmp_path / "figures" / "lens-tuned-kl-final-layer.svg").is_file()


@pytest.mark.usefixtures("unwritten_pictures")
def test_a_tuned_lens_without_values_gives_its_reasons(tables, summary, render, tmp_path) -> None:
    empty = tuned_table(reason="2 speakers")
    numbers = [name for name in empty.columns if empty[name].dtype == np.float64]
    empty[numbers] = np.nan
    page = render({"lens": tables()["lens"], "tuned_lens": empty}, summary(), tmp_path)
    assert "tuned lens, 3 rows (lora; resid_post): 2 speakers" in page.text
    assert "A translator before the head" not in page.text


@pytest.mark.usefixtures("unwritten_pictures")
def test_a_run_without_it_says_nothing_of_it(tables, summary, render, tmp_path) -> None:
    assert "translator" not in render({"lens": tables()["lens"]}, summary(), tmp_path).text
