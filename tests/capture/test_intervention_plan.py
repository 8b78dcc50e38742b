"""From entries of a configuration to single interventions, and what is refused before any work."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest

from lorascope.capture import ConfigError, load_config
from lorascope.capture.conditions import order_conditions
from lorascope.capture.intervention_plan import expand_interventions
from lorascope.capture.preparing import resolve_subject

CONFIG = """
seed: 0
model: {base: "demo:whisper", window_seconds: 1}
data: {corpus: demo, labels: [anger, happiness, neutral, sadness], per_class: 2}
split: {by: speaker, test: ["07", "08"]}
captures:
  frozen: {adapter: null, train: {epochs: 1}}
  untrained: {adapter: {r: 4, alpha: 8, target_modules: [v_proj]}}
  random: {adapter: {r: 4, alpha: 8, target_modules: [v_proj, q_proj], init: normal}}
record:
  sites: {embed: {}, resid_post: {layers: [1, 2]}, attn_out: {frames: none}, lora_a: {}}
"""


@functools.cache
def subjects_of(path, overrides):
    """What the models of a configuration look like; interventions change nothing in that."""
    config = load_config(path, overrides)
    return {one.name: resolve_subject(config, one, 4) for one in order_conditions(config)}


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    """A function that expands interventions and gives them by capture."""
    path = tmp_path_factory.mktemp("plan") / "config.yaml"
    path.write_text(CONFIG)

    def expand(interventions, *overrides):
        config = load_config(path, [f"interventions={interventions}", *overrides])
        found = expand_interventions(config, subjects_of(path, overrides))
        return {name: {c.name: c for c in changes} for name, changes in found.items() if changes}

    return expand


def test_without_interventions_nothing_is_planned(plan):
    assert plan("[]") == {}
    assert plan("null") == {}


@pytest.mark.parametrize(
    ("entry", "captures", "names"),
    [
        ("{erase: {layer: 3, how: mean}}", "all", ["erase3-mean"]),
        ("{erase: {layer: [2, 0]}}", "all", ["erase0_2-zero"]),
        ("{erase: {layer: together}}", "all", ["erase0to3-zero"]),
        ("{erase: {layer: all}}", "all", [f"erase{i}-zero" for i in range(4)]),
        ("{name: skip, erase: {layer: all}}", "all", [f"skip-{i}" for i in range(4)]),
        ("{name: skip, erase: {layer: 1}, captures: [frozen]}", ["frozen"], ["skip"]),
        (
            "{erase_cumulative: {from: bottom, how: mean}}",
            "all",
            [f"erase-to{i}-mean" for i in range(4)],
        ),
        (
            "{erase_cumulative: {from: top, how: resample}}",
            "all",
            [f"erase-from{i}-resample" for i in (3, 2, 1, 0)],
        ),
        # an adapter with B = 0 adds nothing that could be taken away
        ("{lora_off: }", ["random"], ["lora_off"]),
        ("{lora_off: {layer: 2}, captures: [untrained]}", ["untrained"], ["lora_off2"]),
        ("{scale_lora: {by: 0.5, layer: [1, 2]}}", ["random"], ["scale_lora1to2-x0.5"]),
        ("{scale_lora: {by: -1}}", ["random"], ["scale_lora-x-1"]),
        ("{ablate: {matrix: A, how: random}}", ["random"], ["ablate_a-random"]),
        (
            "{ablate: {matrix: B, layer: all}}",
            ["random"],
            [f"ablate_b{i}-zero" for i in range(4)],
        ),
        (
            "{patch: {site: resid_post, layer: all, from: frozen}}",
            ["untrained", "random"],
            ["patch-resid_post1-frozen", "patch-resid_post2-frozen"],
        ),
        ("{patch: {site: embed, from: random}}", ["frozen", "untrained"], ["patch-embed-random"]),
        (
            "{patch: {site: lora_a, layer: 0, from: untrained}}",
            ["random"],
            ["patch-lora_a.v_proj0-untrained"],
        ),
    ],
)
def test_what_an_entry_stands_for(plan, entry, captures, names):
    wanted = ["frozen", "untrained", "random"] if captures == "all" else captures
    found = plan(f"[{entry}]")
    assert {name: list(changes) for name, changes in found.items()} == dict.fromkeys(wanted, names)


def test_the_layer_of_each(plan):
    plans = plan(
        "[{erase_cumulative: {from: bottom}}, {erase_cumulative: {from: top}},"
        " {lora_off: {}}, {erase: {layer: 2, how: resample}}]"
    )["random"]
    about = {name: change.describe() for name, change in plans.items()}
    assert (about["erase-to2-zero"]["layer"], about["erase-to2-zero"]["layers"]) == (2, [0, 1, 2])
    assert (about["erase-from2-zero"]["layer"], about["erase-from2-zero"]["layers"]) == (2, [2, 3])
    assert about["erase-from2-zero"]["end"] == "top"
    assert "layer" not in about["lora_off"]
    assert about["lora_off"]["layers"] == [0, 1, 2, 3]
    # resampling runs another sample before each
    assert plans["erase2-resample"].passes == 2 * plans["lora_off"].passes == 2


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{erase: {layer: 4}}", r"interventions\[0\].erase: there is no layer 4.*are 0, 1, 2, 3"),
        (
            "{patch: {site: resid_post, layer: 3, from: frozen}}",
            r"interventions\[0\].patch: there is no layer 3 to change: there are 1, 2",
        ),
        ("{patch: {site: resid_post, from: frozen}}", "resid_post has layers: say which"),
        ("{patch: {site: embed, layer: 0, from: frozen}}", "embed has no layers: leave out"),
        (
            "{patch: {site: mlp_out, layer: 0, from: frozen}}",
            "'frozen' does not record mlp_out. Recorded with all their rows: embed, resid_post.",
        ),
        (
            "{patch: {site: attn_out, layer: 0, from: frozen}}",
            "records attn_out with frames: none, and a patch needs the row of every frame",
        ),
        ("{patch: {site: lora_a, layer: 0, from: random}}", "lora_a is several sites: name one of"),
        ("{patch: {site: lora_a, layer: 0, from: frozen}}", "'frozen' does not record lora_a"),
        (
            "{patch: {site: lora_a.v_proj, layer: 0, from: random}, captures: [frozen]}",
            "needs an adapter",
        ),
        ("{patch: {site: lora_a.q_proj, layer: 0, from: random}}", "needs a capture other than"),
        (
            "{patch: {site: lora_a.v_proj, layer: 0, from: random}, captures: [untrained]}",
            "lora_a.v_proj has 2 features in the model that is changed and 4 in capture 'random'",
        ),
        ("{name: x, erase: {layer: 0}}, {name: X, lora_off: {}}", "would be named 'random.X'"),
        (f"{{name: {'x' * 96}, erase: {{layer: 0}}}}", "more than 100 characters"),
    ],
)
def test_what_cannot_be_done_is_refused(plan, entry, message):
    other = ["captures.untrained.adapter.r=2"] if "has 2 features" in message else []
    with pytest.raises(ConfigError, match=message):
        plan(f"[{entry}]", *other)


def test_rows_of_some_frames_do_not_cover(plan):
    with pytest.raises(ConfigError, match="frames: every:2, and a patch needs the row of every"):
        plan(
            "[{patch: {site: resid_post, layer: 1, from: frozen}}]",
            "record={sites: [resid_post], frames: 'every:2'}",
        )


def test_an_adapter_is_needed(plan):
    captures = "captures={frozen: {adapter: null, train: {epochs: 1}}}"
    sites = "record={sites: [embed]}"
    with pytest.raises(ConfigError, match="lora_off: it would change nothing: it needs a capture"):
        plan("[{lora_off: {}}]", captures, sites)


def test_names_are_those_of_captures_too(plan):
    captures = (
        "captures={plain: {adapter: null, train: {epochs: 1}}, plain.erase0-zero: {adapter: null}}"
    )
    with pytest.raises(ConfigError, match=r"would be named 'plain\.erase0-zero'"):
        plan("[{erase: {layer: 0}}]", captures, "record={sites: [embed]}")


def test_the_example_of_the_docs_is_served(tmp_path):
    docs = Path(__file__).parents[2] / "docs" / "interventions.md"
    (example,) = re.findall(r"```yaml\n(.*?)```", docs.read_text(), flags=re.DOTALL)
    lora = "lora: {adapter: {r: 4, alpha: 8, target_modules: [v_proj]}, train: {epochs: 1}}"
    text = CONFIG.replace("captures:\n", f"captures:\n  {lora}\n")
    (tmp_path / "docs.yaml").write_text(text + example)
    found = expand_interventions(
        load_config(tmp_path / "docs.yaml"), subjects_of(tmp_path / "docs.yaml", ())
    )
    names = [change.name for change in found["lora"]]
    assert {"erase0-mean", "erase-from3-zero", "lora_off", "lora_off0", "swap"} < set(names)
    assert names.index("erase-from3-zero") < names.index("erase-from2-zero")
