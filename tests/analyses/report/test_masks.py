"""The report on contributions: audio is drawn, padding stands in a table of its own."""

import pandas as pd
import pytest

pytestmark = pytest.mark.usefixtures("unwritten_pictures")


def test_masks_are_never_mixed(tables, summary, render, tmp_path) -> None:
    valid = tables(2)["contribution"]
    lora = valid["capture"] == "lora"
    told = [valid[lora].assign(mask=m, ratio_mean=r) for m, r in (("pad", 77.0), ("all", 55.0))]
    other = valid[~lora].assign(mask="every:4", ratio_mean=0.9)
    both = pd.concat([valid[lora], *told, other], ignore_index=True)
    page = render({"contribution": both}, summary(), tmp_path)
    # the capture with every fourth frame keeps its rows, though it has none of mask valid
    assert "mean over layers: 0.90 in frozen, 0.30 in lora." in page.text
    assert "The same of padding, and of all frames" in page.text
    before, _, after = page.text.partition("The same of padding, and of all frames")
    assert "77.0" in after
    assert "77.0" not in before
