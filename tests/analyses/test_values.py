"""The values of summary.json: the right rows of each table, and masks that never mix."""

import json

import numpy as np
import pandas as pd

from lorascope.analyses.values import collect_values


def table(*rows: dict) -> pd.DataFrame:
    return pd.DataFrame(rows)


def test_the_heaviest_layer_the_shortest_code_and_the_best_rows() -> None:
    place = {"capture": "lora", "site": "resid_post", "n": 40}
    weights = [
        {**place, "layer": i, "weight": w, "weight_low": w - 0.1, "weight_high": w + 0.1}
        for i, w in enumerate((0.2, 0.5, 0.3))
    ]
    code = {"uniform_codelength": 80.0, "control_compression": 1.0, "probe": "logistic"}
    codes = [
        {**place, **code, "layer": i, "codelength": 80 / c, "compression": c}
        for i, c in enumerate((np.nan, 2.0, 1.5))
    ]
    row = {"uar_low": 0.1, "uar_high": 0.9, "control_uar": 0.25, "selectivity": 0.1}
    rows = [
        {**place, **row, "layer": i, "rows": name, "probe": probe, "uar": uar}
        for i, (name, probe, uar) in enumerate(
            [("phone", "ridge", 0.4), ("phone", "lda", 0.6), ("word", "ridge", np.nan)]
        )
    ]
    values = collect_values(
        {"probe_weights": table(*weights), "mdl": table(*codes), "row_probe": table(*rows)}
    )
    json.dumps(values, allow_nan=False)
    heaviest = values["probe_weights"]["lora"]["resid_post"]
    assert (heaviest["layer"], heaviest["weight"], heaviest["weight_low"]) == (1, 0.5, 0.4)
    assert values["mdl"]["lora"]["logistic"]["layer"] == 1
    assert values["mdl"]["lora"]["logistic"]["codelength"] == 40
    assert set(values["row_probe"]["lora"]) == {"phone"}  # of the words there is no number
    assert values["row_probe"]["lora"]["phone"]["probe"] == "lda"


def test_means_are_of_one_mask() -> None:
    base = {"capture": "a", "component": "mlp", "cosine_mean": 0.5}
    told = [
        {**base, "layer": i, "mask": mask, "ratio_mean": ratio}
        for i in range(2)
        for mask, ratio in (("all", 9.0), ("valid", 1.0 + i), ("pad", 99.0))
    ]
    other = {**base, "component": "lora", "layer": 0, "mask": "every:4", "ratio_mean": 7.0}
    found = collect_values({"contribution": table(*told, other)})["contribution"]["a"]
    assert found["mlp"]["ratio_mean"] == 1.5
    assert found["lora"]["ratio_mean"] == 7.0


def test_the_tuned_lens_stands_beside_the_lens() -> None:
    rows = [
        {"capture": "a", "site": "resid_post", "layer": i, "kl_final_layer": 0.1 * i}
        | {"lens_kl_final_layer": 1.0, "delta_kl_final_layer": 0.1 * i - 1, "chance_kl": 0.8}
        for i in (1, 3)
    ]
    found = collect_values({"tuned_lens": table(*rows)})["tuned_lens"]["a"]["resid_post"]
    assert found["kl_final_layer"] == 0.2
    assert found["lens_kl_final_layer"] == 1.0
    assert found["delta_kl_final_layer"] == -0.8
