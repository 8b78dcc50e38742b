"""The page: complete, self-contained, with captions that say how the numbers came about."""

import base64
import hashlib
import re
from xml.etree import ElementTree as ET

from lorascope.analyses.report.frames import MINUS
from lorascope.analyses.report.svg import THEME


def test_the_page_needs_nothing_but_itself(page) -> None:
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    assert not [
        n for _, attrs in page.elements for n in attrs if n.startswith("on") or n == "style"
    ]
    assert "://" not in page.source
    targets = [*page.attributes("href"), *page.attributes("src")]
    assert all(t.startswith(("#", "figures/", "data:image/png;base64,")) for t in targets)
    policy = next(a["content"] for _, a in page.elements if a.get("http-equiv"))
    style = page.texts["style"][0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert "default-src 'none'" in policy
    assert f"style-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy


def test_ids_are_unique_and_every_reference_leads_somewhere(page) -> None:
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    wanted = {t[1:] for t in page.attributes("href") if t.startswith("#")}
    wanted |= {name for value in page.attributes("aria-labelledby") for name in value.split()}
    wanted |= {
        found for v in page.attributes("clip-path") for found in re.findall(r"#([^)]+)\)", v)
    }
    assert wanted <= set(ids)
    for target in page.attributes("href"):
        assert not target.startswith("figures/") or (page.folder / target).is_file()


def test_every_caption_says_how_the_numbers_came_about(page) -> None:
    captions = page.texts["figcaption"]
    assert len(captions) == 19
    for text in captions:
        assert re.search(r"N = \d", text)
        assert "estimator:" in text
        assert "interval:" in text
    assert sum("mask: valid frames" in text for text in captions) == 13
    # the head reads the mean over all frames, as the model itself does
    assert sum("mask: all frames" in text for text in captions) == 4


def test_shared_directions_are_said_beside_those_of_random_spans(page) -> None:
    text = " ".join(page.text.split())
    shares = "resid_post: lora shares 0.75 of its first 4 directions with frozen"
    assert f"{shares} (mean over layers; random spans: 0.06)." in text


def test_the_summary_gives_the_numbers_of_the_tables(page) -> None:
    answers = " ".join(page.texts["dl"][0].split())
    assert "lora reaches UAR 0.80 [0.70, 0.90] and WAR 0.75 (N = 12; chance is 0.50)." in answers
    # position 2 of emb, 0, 1, 2, out is layer 1; 0.4 + 0.1 + 0.2 there, 0.4 + 0.2 elsewhere
    assert (
        "lora is read best at layer 1: UAR 0.70 [0.60, 0.80], 0.48 with permuted labels" in answers
    )
    assert "lora against frozen, equal layers of the residual stream: median CKA 0.70" in answers
    assert "lora_a.v: 90 % of the energy lies in this many directions" in answers
    # overlaps 1/3, 2/3, 1, each with 0.1 below: only the last interval is above 0.6 throughout
    assert "above chance (0.60, with its whole interval) first at layer 2: 1.00" in answers
    # -0.05 x 3 layers - 0.2, and an interval that reaches 0.1 further; of the seven changes of lora
    # the three erasures by zero and the last of those by the mean lie below 0 with theirs
    loss = "UAR -0.35 [-0.45, -0.25], KL 0.30 [0.20, 0.40] (4 of 7 lie below 0"
    assert f"lora loses most by erase, zero at layer 2: {loss.replace('-', MINUS)}" in answers
    assert "(effective rank, mean): 8.0 of 8 in frozen, 2.0 of 8 in lora." in answers
    assert (
        "lora shares with frozen: 0.90 of A (random: 0.12), 0.20 of B (random: 0.12)." in page.text
    )
    cosines = "0.75 and -0.25 in frozen, 0.75 and -0.25 in lora".replace("-", MINUS)
    assert (
        f"grad.lora_b.v: cosine of two samples of one class and of two classes (mean over layers): {cosines}."
        in answers
    )
    assert "demo:whisper" in page.texts["header"][0]
    for fact in (
        "analyze --store run.zarr",
        "sha256:c0ffee",
        "LoRA r = 8",
        "leave-one-speaker-out",
    ):
        assert fact in page.text


def test_small_groups_are_not_broken_out(page) -> None:
    assert "fold-of-nine" not in page.source
    assert "fold-of-ten" in page.source
    assert "single folds 0.65 to 0.70" in page.text  # not 0.11, which is of the nine
    assert "10 rows about groups of fewer than 10 left out" in page.text


def test_figures_stand_alone_and_follow_the_page(page) -> None:
    svgs = sorted((page.folder / "figures").glob("*.svg"))
    assert len(svgs) == page.source.count("<svg") == len([*page.folder.glob("figures/*.png")])
    for path in svgs:
        root = ET.parse(path).getroot()
        assert any(e.get("id") == "paper" for e in root.iter()), "a file of its own has white paper"
    assert not [name for name in page.attributes("id") if name.endswith("paper")]
    for _, attrs in page.elements:
        for key in ("fill", "stroke"):
            if attrs.get(key, "").lower() in THEME:  # else it would stay dark on dark
                assert f"{key[0]}-{THEME[attrs[key].lower()]}" in attrs["class"]
    assert "prefers-color-scheme: dark" in page.texts["style"][0]


def test_pictures_stand_beside_their_numbers(page) -> None:
    panel = re.search(r"<svg[^>]*embedding-1-title.*?</svg>", page.source, re.DOTALL)
    assert panel
    # the first start alone, and no more points than promised, of the two labels
    assert panel[0].count("<use") == 300 + 2  # and those of the legend
    assert {"s0", "s1"} <= set(re.findall(r"f-(s\d)", panel[0]))
    for text in (
        "same label: 0.60 [0.50, 0.70], chance 0.25",
        "same speaker: 0.30 [0.20, 0.40], chance 0.05",
        "neighbours kept in the picture: 0.50",
        "300 of 400 samples as points",
    ):
        assert text in panel[0]
    assert "Panels cannot be compared by eye" in page.text


def test_lines_differ_by_more_than_colour(page) -> None:
    source = (page.folder / "figures" / "probe-all.svg").read_text()
    for colour in ("#0f62ac", "#c0430e"):
        assert colour in source
    lines = re.findall(r'style="fill: none; ([^"]*stroke: #(?:0f62ac|c0430e)[^"]*)"', source)
    assert {"stroke-dasharray" in line for line in lines} == {True, False}


def test_equal_input_gives_an_equal_page(tables, summary, render, tmp_path) -> None:
    again, twice = (
        render({"outputs": tables()["outputs"]}, summary(), tmp_path / name) for name in "ab"
    )
    assert again.source == twice.source


def test_the_page_of_a_deep_model_stays_small(tables, summary, render, tmp_path) -> None:
    deep = tables(32)
    page = render({name: deep[name] for name in ("cka", "probe")}, summary(), tmp_path)
    assert len(page.source.encode()) <= 2**20  # 3 MiB is promised for all; this is the bulk of it
