"""For every family: what is recorded is what passes in the model, bit for bit, both ways."""

from __future__ import annotations

from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from torch import nn

from lorascope.capture import (
    CaptureError,
    ConfigError,
    ModelError,
    Recorder,
    SiteRequest,
    find_sites,
)
from lorascope.capture.families import WAV2VEC2

from .family_models import CASES, LENGTHS, WAVE_FRAMES, Case

# PEFT asks transformers by an old name
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False"),
    pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask"),
]

IDS = ["a", "b", "c"]
R, ALPHA = 4, 6


def adapted(case: Case, attention: str = "sdpa", **options: Any) -> Any:
    """The model of a case with LoRA on it, B drawn so that it does something."""
    settings = {"r": R, "lora_alpha": ALPHA, "lora_dropout": 0.2, "target_modules": case.adapt}
    generator = torch.Generator().manual_seed(3)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(3)
        model = peft.get_peft_model(case.make(attention), peft.LoraConfig(**settings | options))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval().requires_grad_(requires_grad=False)


def watch(model: Any, case: Case) -> tuple[dict[str, list[torch.Tensor]], list[Any]]:
    """Catch, with hooks of the test's own, the tensors of the written-out places."""
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in case.places}
    handles = []
    for name, paths in case.places.items():
        for path in [paths] if isinstance(paths, str) else paths:
            module = model.get_submodule(path.removeprefix("<"))

            def keep(_m, args, kwargs, output, name=name, path=path):
                of_input = path.startswith("<")
                value = (args[0] if args else kwargs["hidden_states"]) if of_input else output
                seen[name].append(value if isinstance(value, torch.Tensor) else value[0])

            handles.append(module.register_forward_hook(keep, with_kwargs=True))
    return seen, handles


def total(output: Any) -> torch.Tensor:
    """One loss a sample, made of everything that the model gives."""
    given = output["logits"] if "logits" in output else output["last_hidden_state"]
    weights = torch.randn(given.shape[1:], generator=torch.Generator().manual_seed(4))
    return (given * weights).flatten(1).sum(1)


def run(case: Case, writer: Any, *, train: bool) -> dict[str, list[torch.Tensor]]:
    """Record every site and gradient of one batch; return what the test's own hooks saw."""
    model = adapted(case)
    model.train(train)
    names = [*case.places, "lora_a", "lora_b"]
    recorder = Recorder(model, writer, sites=names, gradients=names, dtype="float32", pool=())
    writer.streams = {site.name: site.stream for site in recorder.recorded}
    torch.manual_seed(5)
    with recorder, recorder.batch(IDS, mask=case.masks or None):
        seen, handles = watch(model.get_base_model(), case)
        output = model(**case.inputs(model))
        for tensors in seen.values():
            for tensor in tensors:
                tensor.retain_grad()
        recorder.backward(total(output))
    for handle in handles:
        handle.remove()
    return seen


def gradient_of(tensor: torch.Tensor) -> torch.Tensor:
    assert tensor.grad is not None
    return tensor.grad


def masks_of(case: Case, name: str, frames: int) -> np.ndarray:
    decoder = name.startswith("decoder") and "decoder" in case.masks
    stream = "decoder" if decoder else next(iter(case.masks), "")
    return case.masks.get(stream, np.ones((3, frames), bool))


def assert_recorded(case: Case, seen: dict[str, list[torch.Tensor]], writer: Any) -> None:
    """Compare every site and gradient with what the test's own hooks saw, bit for bit."""
    for site, tensors in seen.items():
        for source in (site, f"grad.{site}"):
            values = [gradient_of(t) if source != site else t.detach() for t in tensors]
            arrays = [value.cpu().numpy() for value in values]
            assert all(np.abs(array).sum() > 0 for array in arrays), source
            mask = masks_of(case, site, arrays[0].shape[1])
            for i, id_ in enumerate(IDS):
                got = writer.samples[id_][source]
                got = got if got.ndim == 3 else got[None]
                expected = np.stack([array[i][mask[i]] for array in arrays])
                np.testing.assert_array_equal(got, expected, err_msg=f"{source} of {id_}")


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", CASES)
def test_recorded_is_what_passes_in_the_model(name, train, writer):
    case = CASES[name]
    assert_recorded(case, run(case, writer, train=train), writer)


@pytest.mark.parametrize("name", CASES)
def test_resid_post_is_the_models_own_hidden_states(name, writer):
    case = CASES[name]
    run(case, writer, train=False)
    model = adapted(case)
    with torch.no_grad():
        output = model(**case.inputs(model), output_hidden_states=True)
    for stream, key in case.states.items():
        prefix = "decoder." if stream == "decoder" else ""
        states = output[key]
        assert len(states) == 4
        mask = masks_of(case, prefix, states[0].shape[1])
        for i, id_ in enumerate(IDS):
            got = writer.samples[id_]
            embed, after = got[f"{prefix}embed"], got[f"{prefix}resid_post"]
            np.testing.assert_array_equal(embed, states[0][i].numpy()[mask[i]])
            # the last of them is after the final norm, where there is one
            for layer in (0, 1):
                expected = states[layer + 1][i].numpy()[mask[i]]
                np.testing.assert_array_equal(after[layer], expected)


@pytest.mark.parametrize("name", [n for n, case in CASES.items() if case.exact_sum])
def test_components_sum_to_the_layer(name, writer):
    run(CASES[name], writer, train=False)
    for got in writer.samples.values():
        # the model adds in this order in float32, so the sum is exact
        sums = (got["resid_pre"] + got["attn_out"]) + got["mlp_out"]
        np.testing.assert_array_equal(sums, got["resid_post"])
        if name == "whisper":
            before = got["decoder.resid_pre"] + got["decoder.attn_out"]
            before = before + got["decoder.cross_attn_out"]
            after = got["decoder.resid_post"]
            np.testing.assert_array_equal(before + got["decoder.mlp_out"], after)


@pytest.mark.parametrize("name", CASES)
def test_identities_of_lora(name, writer):
    case = CASES[name]
    run(case, writer, train=False)
    model = adapted(case)
    weights = {
        n.replace(".default", "").removeprefix("base_model.model."): p.numpy()
        for n, p in model.named_parameters()
        if "lora_B" in n
    }
    got = writer.samples["b"]
    names = [n for n in got if n.startswith("lora_a.")]
    assert names
    for a_name in names:
        b_name = a_name.replace("lora_a", "lora_b")
        short = a_name.removeprefix("lora_a.").removeprefix("decoder.")
        paths = [p for p in weights if p.removesuffix(".lora_B.weight").endswith(f".{short}")]
        if name == "whisper":
            # v_proj of the encoder, and of both attentions of the decoder
            part = "decoder" if ".decoder." in a_name else "encoder"
            own = short if "." in short else f"self_attn.{short}"
            paths = [p for p in paths if f"model.{part}.layers" in p and f".{own}." in p]
        keep = [p for p in paths if short != "output.dense" or ".attention." not in p]
        assert len(keep) == 3, (a_name, keep)
        for layer, path in enumerate(keep):
            a, b = got[a_name][layer], got[b_name][layer]
            expected = a.astype(np.float64) @ weights[path].T
            # sums of 4 float32 products
            np.testing.assert_allclose(b, expected, atol=1e-6 * np.abs(b).max() + 1e-12)


def test_gradients_of_weights_are_those_of_each_sample_alone(writer):
    case = CASES["llama"]
    model = adapted(case)
    sites = ["lora_a_weight", "lora_b_weight"]
    recorder = Recorder(model, writer, sites=["embed"], gradients=sites)
    with recorder, recorder.batch(IDS, mask=case.masks):
        recorder.backward(total(model(**case.inputs(model))))
    matrices = {n: p for n, p in model.named_parameters() if "lora_" in n}
    for parameter in matrices.values():
        parameter.requires_grad_()
    losses = total(model(**case.inputs(model)))
    for i, id_ in enumerate(IDS):
        own = torch.autograd.grad(losses[i], list(matrices.values()), retain_graph=True)
        own = dict(zip(matrices, own, strict=True))
        for part, key in (("lora_a_weight", "lora_A"), ("lora_b_weight", "lora_B")):
            for module in ("v_proj", "down_proj"):
                got = writer.samples[id_][f"grad.{part}.{module}"]
                paths = [n for n in own if f"{module}.{key}" in n]
                expected = np.stack([own[path].numpy().ravel() for path in paths])
                # sums over 9 tokens in another order
                bound = 1e-5 * np.abs(expected).max()
                np.testing.assert_allclose(got, expected, atol=bound)


def test_a_weight_is_no_activation():
    with pytest.raises(ConfigError, match="name it in gradients"):
        find_sites(adapted(CASES["llama"]), sites=["lora_a_weight"])


@pytest.mark.parametrize("name", ["whisper", "bert", "gpt2", "llama", "vit", "wav2vec2"])
def test_attention_patterns(name, writer):
    case = CASES[name]
    model = case.make("eager")
    inputs = case.inputs(model)
    keys = {"wav2vec2": 80}.get(name)
    request = SiteRequest(dtype="float32", pool=(), keys=keys)
    recorder = Recorder(model, writer, sites={"attention": request})
    with torch.no_grad(), recorder, recorder.batch(IDS, mask=case.masks or None):
        model(**inputs)
    with torch.no_grad():
        output = model(**inputs, output_attentions=True)
    own = output["encoder_attentions" if name == "whisper" else "attentions"]
    for i, id_ in enumerate(IDS):
        got = writer.samples[id_]["attention"]
        mask = masks_of(case, "", own[0].shape[2])[i]
        rows = got.reshape(3, int(mask.sum()), 2, -1)
        n_keys = own[0].shape[3]
        for layer in range(3):
            expected = own[layer][i].numpy()[:, mask].transpose(1, 0, 2)
            np.testing.assert_array_equal(rows[layer][..., :n_keys], expected)
        assert not rows[..., n_keys:].any()
        # weights of each head sum to 1: float32 sums of at most 80 numbers
        np.testing.assert_allclose(rows.sum(-1), 1, atol=1e-6)


def test_attention_needs_an_implementation_that_computes_it(writer):
    model = CASES["llama"].make("sdpa")
    recorder = Recorder(model, writer, sites=["attention"], pool=())
    with recorder, pytest.raises(ModelError, match="attn_implementation"), recorder.batch(IDS):
        model(**CASES["llama"].inputs(model))


def test_more_keys_than_announced_are_told(writer):
    model = CASES["llama"].make("eager")
    recorder = Recorder(model, writer, sites={"attention": SiteRequest(pool=(), keys=5)})
    with recorder, pytest.raises(CaptureError, match="at most 5 keys"), recorder.batch(IDS):
        model(**CASES["llama"].inputs(model))


def test_any_module_by_its_path(writer):
    case = CASES["whisper"]
    model = adapted(case)
    bare = model.get_base_model()
    paths = ["model.decoder.layers.1.fc1", "model.encoder.conv2", "proj_out"]
    sites = find_sites(model, sites=[f"module.{paths[0]}", f"module.{paths[2]}"])
    assert [(s.name, s.stream, s.width) for s in sites if s.kind == "row"] == [
        (f"module.{paths[0]}", "decoder", 32),
        (f"module.{paths[2]}", "decoder", 48),
    ]
    caught = {}
    module = bare.get_submodule(paths[0])
    handle = module.register_forward_hook(lambda _m, _a, output: caught.update(x=output))
    recorder = Recorder(
        model, writer, sites=[f"module.{paths[0]}"], gradients=[f"module.{paths[0]}"], pool=(),
        dtype="float32",
    )  # fmt: skip
    with recorder, recorder.batch(IDS, mask={"decoder": case.masks["decoder"]}):
        output = model(**case.inputs(model))
        caught["x"].retain_grad()
        recorder.backward(total(output))
    handle.remove()
    for i, (id_, n) in enumerate(zip(IDS, LENGTHS, strict=True)):
        got = writer.samples[id_]
        expected = caught["x"].detach()[i, :n].numpy()
        np.testing.assert_array_equal(got[f"module.{paths[0]}"], expected)
        expected = caught["x"].grad[i, :n].numpy()
        np.testing.assert_array_equal(got[f"grad.module.{paths[0]}"], expected)


def test_modules_that_do_not_exist_or_do_not_tell_their_width():
    model = CASES["llama"].make("sdpa")
    with pytest.raises(ConfigError, match=r"no module 'model.layers.0.mpl'; did you mean 'model"):
        find_sites(model, sites=["module.model.layers.0.mpl"])
    with pytest.raises(ConfigError, match=r"does not tell how many features .*width"):
        find_sites(model, sites=["module.model.layers.0.mlp.act_fn"])


def test_a_model_without_a_table_is_recorded_by_path(writer):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    x = torch.randn(2, 4, 5)
    recorder = Recorder(
        model, writer, sites=["module.0"], gradients=["module.0"], dtype="float32",
        pool=["mean_valid"],
    )  # fmt: skip
    with recorder, recorder.batch(["x", "y"]):
        y = model(x)
        recorder.backward(y.pow(2).sum((1, 2)))
    expected = model[0](x).detach().numpy()
    np.testing.assert_array_equal(writer.samples["y"]["module.0"], expected[1])
    mean = writer.samples["y"]["module.0.mean_valid"]
    np.testing.assert_allclose(mean, expected[1].mean(0), atol=1e-6)
    assert np.abs(writer.samples["x"]["grad.module.0"]).max() > 0
    with pytest.raises(ConfigError, match=r"no table of sites .* module"):
        find_sites(model, sites=["resid_post"])


def test_dora_is_refused_only_where_its_parts_are_asked_for():
    model = adapted(CASES["llama"], use_dora=True)
    assert find_sites(model, sites=["resid_post"])
    with pytest.raises(ConfigError, match=r"uses Dora.*not base"):
        find_sites(model, sites=["lora_a"])


def test_several_adapters_are_recorded_side_by_side(writer):
    case = CASES["llama"]
    model = adapted(case)
    model.add_adapter("other", peft.LoraConfig(r=2, target_modules=["v_proj"]))
    model.base_model.set_adapter(["default", "other"])
    model.eval().requires_grad_(requires_grad=False)
    recorder = Recorder(model, writer, sites=["lora_a"], pool=())
    assert [(s.name, s.width) for s in recorder.recorded] == [
        ("lora_a.down_proj", R),
        ("lora_a.v_proj.default", R),
        ("lora_a.v_proj.other", 2),
    ]
    with torch.no_grad(), recorder, recorder.batch(IDS, mask=case.masks):
        model(**case.inputs(model))
    assert writer.samples["a"]["lora_a.v_proj.other"].shape == (3, LENGTHS[0], 2)


def test_layers_of_one_batch_may_have_different_masks(writer):
    case = CASES["whisper"]
    model = adapted(case)
    recorder = Recorder(model, writer, sites=["resid_post", "decoder.resid_post"])
    writer.streams = {site.name: site.stream for site in recorder.recorded}
    with torch.no_grad(), recorder, recorder.batch(IDS, mask=case.masks):
        model(**case.inputs(model))
    assert [writer.samples[i]["resid_post"].shape[1] for i in IDS] == [30, 13, 21]
    decoder = [writer.samples[i]["decoder.resid_post"].shape[1] for i in IDS]
    assert decoder == list(LENGTHS)
    with recorder, pytest.raises(CaptureError, match="mask names the stream 'encodr'"):
        recorder.batch(IDS, mask={"encodr": case.masks["encoder"]}).__enter__()


def test_valid_frames_of_wav2vec2_are_the_models_own():
    model = CASES["wav2vec2"].make("sdpa")
    assert WAV2VEC2.valid_rows is not None
    lengths = [1600, 900, 1300]
    got = [WAV2VEC2.valid_rows(model.config, n) for n in lengths]
    own = model._get_feat_extract_output_lengths(torch.tensor(lengths))
    assert got == own.tolist() == list(WAVE_FRAMES)
    assert WAV2VEC2.valid_rows(transformers.Wav2Vec2Config(), 16_000) == 49
