"""An adapter that PEFT saved: captured as PEFT itself restores it, or refused with the reason."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from lorascope.capture import ConfigError, ModelError, SilentReporter, load_config, run_capture
from lorascope.capture.config_models import ModelConfig
from lorascope.capture.corpora import load_corpus
from lorascope.capture.models import load_model
from lorascope.capture.planning import plan_capture
from lorascope.store import ConfigMismatchError, open_store

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated"),
    pytest.mark.filterwarnings("ignore:Already found a .peft_config.:UserWarning"),
]

CONFIG = """
seed: 0
model: {base: "demo:whisper", window_seconds: 1}
data: {corpus: demo, labels: [anger, happiness, neutral, sadness], per_class: 4}
split: {by: speaker, test: ["07", "08"]}
captures:
  mine: {adapter: {path: PATH}}
run: {batch_size: 4}
record:
  sites: [resid_post, lora_a, lora_b]
  gradients: [lora_b]
  dtype: float32
"""
MODEL = ModelConfig(base="demo:whisper", window_seconds=1)


def base_model():
    return load_model(MODEL, 4, seed=5, device="cpu")


def save(folder, *, heads=("projector", "classifier"), seed=3, **options):
    """Save an adapter as a training elsewhere would leave it, B not 0, heads not the seeded ones."""
    torch.manual_seed(seed)
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["v_proj", "fc1"],
        modules_to_save=list(heads) or None,
        **options,
    )
    model = get_peft_model(base_model().model, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter.normal_(std=0.1)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save(tmp_path_factory.mktemp("adapters") / "emotion")


def config_of(tmp_path, adapter, *overrides, text=CONFIG):
    path = tmp_path / "config.yaml"
    path.write_text(text.replace("PATH", str(adapter)))
    return load_config(path, list(overrides))


def test_it_is_captured_as_peft_restores_it(tmp_path, saved) -> None:
    """Rows of A and B, logits and what is exposed, against PeftModel.from_pretrained."""
    moved = shutil.copytree(saved, tmp_path / "emotion")
    edit(moved, base_model_name_or_path="/home/somebody/whisper")
    config = config_of(tmp_path, moved)
    summary = run_capture(config, store_path=tmp_path / "s", reporter=SilentReporter())
    capture = open_store(tmp_path / "s").capture("mine")
    loaded = base_model()
    reference = PeftModel.from_pretrained(loaded.model, saved).eval()
    seen: dict[str, torch.Tensor] = {}
    for name, module in reference.named_modules():
        if name.endswith(("fc1.lora_A.default", "fc1.lora_B.default")):
            layer = name.partition("layers.")[2].partition(".")[0]
            part = name.split(".")[-2]
            module.register_forward_hook(
                lambda _m, _i, out, key=f"{layer}{part}": seen.__setitem__(key, out.detach())
            )
    corpus = load_corpus("demo", labels=config.data.labels, per_class=4, seed=0)
    by_id = {u.id: u for u in corpus.utterances}
    first = capture.samples["id"].iloc[0]
    with torch.no_grad():
        logits = reference(loaded.features([corpus.read(by_id[first])])).logits[0].numpy()
    np.testing.assert_allclose(capture.read_output("logits")[0], logits, atol=1e-5)
    count = capture.row_counts("encoder")[0]
    for layer in (0, 3):
        for part, site in (("lora_A", "lora_a.fc1"), ("lora_B", "lora_b.fc1")):
            rows = capture.read_rows(site, layer, slice(0, 1))
            np.testing.assert_allclose(rows, seen[f"{layer}{part}"][0, :count], atol=2e-5)
    assert capture.attrs["adapter"]["saved_as"] == "emotion"
    assert capture.attrs["adapter"]["scaling"] == 1.5
    assert capture.attrs["adapter"]["base"] == "whisper"
    written = b"".join(f.read_bytes() for f in (tmp_path / "s").rglob("*") if f.is_file())
    for folder in ("/home/somebody", str(tmp_path)):  # a store is shared
        assert folder.encode() not in written
    assert capture.attrs["trained"] == ["head", "adapter"]
    table = capture.samples
    assert (table["exposed"] == ~table["speaker"].isin(["07", "08"])).all()
    assert [r.name for r in summary.conditions] == ["mine"]


def test_without_a_head_it_uses_that_of_another_capture(tmp_path) -> None:
    adapter = save(tmp_path / "a", heads=())
    text = CONFIG.replace(
        "captures:\n", "captures:\n  frozen: {adapter: null, train: {epochs: 1}}\n"
    )
    config = config_of(tmp_path, adapter, text=text)
    run_capture(config, store_path=tmp_path / "s", reporter=SilentReporter())
    store = open_store(tmp_path / "s")
    for name in ("head.classifier.weight", "head.projector.weight"):
        mine, frozen = (store.capture(c).parameters[name] for c in ("mine", "frozen"))
        np.testing.assert_array_equal(mine, frozen)
    assert store.capture("mine").attrs["head"] == {"from": "frozen"}
    assert store.capture("mine").attrs["trained"] == ["head", "adapter"]


def test_moving_the_folder_changes_nothing_other_weights_do(tmp_path, saved) -> None:
    first = shutil.copytree(saved, tmp_path / "first")
    run_capture(config_of(tmp_path, first), store_path=tmp_path / "s", reporter=SilentReporter())
    digest = open_store(tmp_path / "s").content_digest()
    second = shutil.copytree(saved, tmp_path / "second")
    run_capture(config_of(tmp_path, second), store_path=tmp_path / "s", reporter=SilentReporter())
    assert open_store(tmp_path / "s").content_digest() == digest
    other = save(tmp_path / "other", seed=4)
    with pytest.raises(ConfigMismatchError, match=r"adapter\.sha256"):
        run_capture(
            config_of(tmp_path, other), store_path=tmp_path / "s", reporter=SilentReporter()
        )


def edit(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shutil.rmtree, "no folder .*save_pretrained"),
        (lambda f: (f / "adapter_config.json").unlink(), "has no adapter_config.json.*There: "),
        (lambda f: (f / "adapter_config.json").write_text("{"), "cannot be read"),
        (lambda f: (f / "adapter_config.json").write_text("[]"), "no JSON object"),
        (lambda f: edit(f, peft_type="IA3"), "type 'IA3'; what can be captured is LORA"),
        (lambda f: edit(f, use_dora=True), "use_dora = True, which cannot be recorded"),
        (lambda f: edit(f, rank_pattern={"fc1": 2}), "rank_pattern = "),
        (lambda f: edit(f, init_lora_weights="pissa_niter_4"), "changes the base weights too"),
        (lambda f: edit(f, r="8"), "says r = '8'"),
        (lambda f: edit(f, target_modules=None), "names no target_modules"),
        (lambda f: edit(f, modules_to_save=["pooler"]), "pooler was saved, and .* lacks it"),
        (
            lambda f: (f / "adapter_model.safetensors").rename(f / "adapter_model.bin"),
            "a pickle is never opened",
        ),
        (
            lambda f: (f / "adapter_model.safetensors").write_bytes(b"\xff" * 100),
            "adapter_model.safetensors cannot be read",
        ),
    ],
)
def test_what_is_no_adapter_is_told_with_its_place(tmp_path, saved, change, message) -> None:
    folder = shutil.copytree(saved, tmp_path / "a")
    change(folder)
    with pytest.raises(
        ConfigError, match=rf"config.yaml:7:\d+: captures.mine.adapter.path: .*{message}"
    ):
        config_of(tmp_path, folder)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("captures.mine.adapter.r=3",), "'r' is read from `path`; leave it out"),
        (("captures.mine.train={epochs: 1}",), "an adapter that is loaded is captured as it is"),
        (("split=null",), "'mine' was trained, so say what it never saw"),
    ],
)
def test_what_contradicts_a_loaded_adapter(tmp_path, saved, overrides, message) -> None:
    with pytest.raises(ConfigError, match=message):
        config_of(tmp_path, saved, *overrides)


def test_an_adapter_of_another_model_is_refused_before_weights_are_loaded(tmp_path, saved) -> None:
    """Of another width, with other modules, with a head of other classes: told by the plan."""
    from safetensors.torch import load_file, save_file

    weights = load_file(saved / "adapter_model.safetensors")
    key = "base_model.model.encoder.layers.0.fc1.lora_A.weight"
    cases = {
        "width": ({**weights, key: torch.zeros(4, 7)}, r"fc1.lora_A.weight has shape \(4, 7\)"),
        "lost": ({k: v for k, v in weights.items() if k != key}, "the adapter has no .*fc1.lora_A"),
        "foreign": (
            {**weights, key.replace("layers.0", "layers.9"): weights[key].clone()},
            r"this model has no encoder.layers.9.fc1.lora_A.weight \(1 of ",
        ),
        "classes": (
            {**weights, "base_model.model.classifier.weight": torch.zeros(7, 32)},
            "has the head as many classes as data.labels",
        ),
    }
    for name, (changed, message) in cases.items():
        folder = shutil.copytree(saved, tmp_path / name)
        save_file(changed, folder / "adapter_model.safetensors")
        with pytest.raises(ModelError, match=message):
            plan_capture(config_of(tmp_path, folder))
