"""What the recorder writes is what the model computed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from lorascope.capture import CaptureError, ConfigError, Recorder, SiteRequest, find_sites
from lorascope.capture.config_models import AdapterConfig
from lorascope.capture.lora import extract_weights
from lorascope.capture.pooling import prefix_mask
from lorascope.store import open_store

ADAPTER = AdapterConfig(r=4, alpha=8, target_modules=("v_proj", "fc1"), dropout=0.5, init="normal")
SITES = ["embed", "resid_post", "attn_out", "mlp_out", "lora_a", "lora_b", "encoder_out"]
GRADIENTS = ["resid_post", "lora_a", "lora_b"]


def record(loaded, writer, waves, **options):
    """Record `waves` as one batch; return (features, logits, valid frames)."""
    features = loaded.features(waves)
    classes = torch.arange(len(waves)) % 4
    valid = [loaded.family.valid_frames(len(wave), loaded.frames) for wave in waves]
    ids = [str(i) for i in range(len(waves))]
    options = {"sites": SITES, "gradients": GRADIENTS, "dtype": "float32", **options}
    recorder = Recorder(loaded.model, writer, **options)
    with recorder, recorder.batch(ids, mask=prefix_mask(valid, loaded.frames)):
        logits = loaded.model(features).logits
        losses = nn.functional.cross_entropy(logits, classes, reduction="none")
        if options["gradients"]:
            recorder.backward(losses)
        recorder.output(logits=logits, loss=losses)
    return features, logits.detach(), valid


@pytest.fixture(scope="module")
def recorded(make_model, make_waves, make_writer):
    """One batch of 8 with every site, in float32."""
    writer = make_writer()
    loaded = make_model(ADAPTER)
    features, logits, valid = record(loaded, writer, make_waves(8))
    return loaded, writer, features, logits, valid


def reference_activations(model, features):
    """Read every layer's output and the encoder's with hooks of the test's own."""
    seen = {}

    def keep(name):
        return lambda _m, _a, output: seen.update({name: output.detach().clone()})

    encoder = model.encoder
    handles = [layer.register_forward_hook(keep(i)) for i, layer in enumerate(encoder.layers)]
    with torch.no_grad():
        states = model(features, output_hidden_states=True).hidden_states
    for handle in handles:
        handle.remove()
    return seen, states


def test_resid_post_is_the_models_own_bit_for_bit(recorded):
    loaded, writer, features, _, valid = recorded
    own, states = reference_activations(loaded.model, features)
    for i, n in enumerate(valid):
        got = writer.samples[str(i)]
        np.testing.assert_array_equal(got["embed"], states[0][i, :n])
        for layer in range(3):
            np.testing.assert_array_equal(got["resid_post"][layer], states[layer + 1][i, :n])
        # hidden_states[-1] is after the final norm: the last layer needs a hook
        np.testing.assert_array_equal(got["resid_post"][3], own[3][i, :n])
        np.testing.assert_array_equal(got["encoder_out"], states[-1][i, :n])
        assert not np.array_equal(got["resid_post"][3], states[-1][i, :n])


def test_components_sum_to_the_layer(recorded):
    _, writer, *_ = recorded
    for got in writer.samples.values():
        before = np.concatenate([got["embed"][None], got["resid_post"][:-1]])
        # the model adds in this order in float32, so the sum is exact
        np.testing.assert_array_equal(
            (before + got["attn_out"]) + got["mlp_out"], got["resid_post"]
        )


def test_b_output_is_a_output_times_b(recorded):
    loaded, writer, *_ = recorded
    weights = extract_weights(loaded.model, loaded.family)
    for module in ("v_proj", "fc1"):
        for layer in range(4):
            b = weights[f"adapter.{layer}.{module}.lora_b"].astype(np.float64)
            for got in writer.samples.values():
                a_out = got[f"lora_a.{module}"][layer].astype(np.float64)
                g_b = got[f"grad.lora_b.{module}"][layer].astype(np.float64)
                b_out, g_a = got[f"lora_b.{module}"][layer], got[f"grad.lora_a.{module}"][layer]
                # sums of 4 and of 64 to 128 float32 products: 1e-6 of the largest value
                np.testing.assert_allclose(b_out, a_out @ b.T, atol=1e-6 * np.abs(b_out).max())
                np.testing.assert_allclose(g_a, g_b @ b, atol=1e-6 * np.abs(g_a).max())


def test_gradient_of_b_is_the_scaled_gradient_of_the_module(make_model, make_waves, writer):
    loaded = make_model(ADAPTER)
    caught = {}
    module = loaded.model.encoder.layers[1].self_attn.v_proj

    def watch(_module, _args, output):
        output.register_hook(lambda gradient: caught.update(module=gradient.clone()))

    handle = module.register_forward_hook(watch)
    *_, valid = record(loaded, writer, make_waves(2))
    handle.remove()
    scaling = ADAPTER.alpha / ADAPTER.r
    for i, n in enumerate(valid):
        got = writer.samples[str(i)]["grad.lora_b.v_proj"][1]
        # one float32 multiplication by a power of two: exact
        np.testing.assert_array_equal(got, scaling * caught["module"][i, :n].numpy())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_storage_is_the_rounded_value(recorded, make_waves, writer, dtype):
    loaded, full, *_ = recorded
    record(loaded, writer, make_waves(8), dtype=dtype)
    import ml_dtypes

    narrow = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float16
    for key, got in writer.samples["3"].items():
        expected = full.samples["3"][key]
        if key.endswith(("mean_valid", "mean_all_normed")):
            # pools are float32, made from float32 tensors before the cast
            assert got.dtype == np.float32
            np.testing.assert_array_equal(got, expected, err_msg=key)
        else:
            assert got.dtype == narrow
            np.testing.assert_array_equal(got, expected.astype(narrow), err_msg=key)


def test_identities_hold_within_bfloat16(make_model, make_waves, writer):
    loaded = make_model(ADAPTER)
    record(loaded, writer, make_waves(4), dtype="bfloat16")
    weights = extract_weights(loaded.model, loaded.family)
    got = writer.samples["3"]
    for layer in range(4):
        b = weights[f"adapter.{layer}.v_proj.lora_b"]
        a_out = got["lora_a.v_proj"][layer].astype(np.float32)
        b_out = got["lora_b.v_proj"][layer].astype(np.float32)
        # 8 significant bits: A and B outputs are each off by at most 2^-8 of themselves
        bound = 2.0**-7 * (np.abs(a_out) @ np.abs(b.T)).max()
        assert np.abs(b_out - a_out @ b.T).max() <= bound


def test_a_batch_records_what_single_samples_record(recorded, make_waves, make_writer):
    loaded, together, *_ = recorded
    for i, wave in enumerate(make_waves(8)):
        alone = make_writer()
        features = loaded.features([wave])
        n = loaded.family.valid_frames(len(wave), loaded.frames)
        with (
            Recorder(
                loaded.model, alone, sites=SITES, gradients=GRADIENTS, dtype="float32"
            ) as recorder,
            recorder.batch(["0"], mask=prefix_mask([n], loaded.frames)),
        ):
            logits = loaded.model(features).logits
            target = torch.tensor([i % 4])
            recorder.backward(nn.functional.cross_entropy(logits, target, reduction="none"))
        for key, expected in alone.samples["0"].items():
            got = together.samples[str(i)][key]
            # matrix products of another height sum in another order: measured 2e-6 of the largest
            # value; a loss that was a mean over the batch would be off by a factor of 8
            scale = np.abs(expected).max()
            np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * scale, err_msg=key)


def test_pools_against_float64(recorded):
    loaded, writer, features, _, valid = recorded
    own, states = reference_activations(loaded.model, features)
    norm = loaded.model.encoder.layer_norm
    gain, shift = (x.detach().double().numpy() for x in (norm.weight, norm.bias))
    for i, n in enumerate(valid):
        got = writer.samples[str(i)]
        frames = own[2][i].double().numpy()
        np.testing.assert_allclose(
            got["resid_post.mean_valid"][2], frames[:n].mean(0), rtol=0, atol=1e-6 * 10
        )
        centred = frames - frames.mean(1, keepdims=True)
        normed = centred / np.sqrt(frames.var(1, keepdims=True) + norm.eps) * gain + shift
        # float32 means of 50 values of size 1
        np.testing.assert_allclose(
            got["resid_post.mean_all_normed"][2], normed.mean(0), rtol=0, atol=2e-6
        )
        embed = states[0][i].double().numpy()
        np.testing.assert_allclose(got["embed.mean_valid"], embed[:n].mean(0), rtol=0, atol=1e-5)
    assert "attn_out.mean_all_normed" not in writer.samples["0"]
    assert "grad.resid_post.mean_all_normed" not in writer.samples["0"]


def test_head_on_the_normed_pool_of_the_last_layer_gives_the_logits(recorded):
    loaded, writer, _, logits, _ = recorded
    weights = {
        k: v.astype(np.float64) for k, v in extract_weights(loaded.model, loaded.family).items()
    }
    for i in range(8):
        pooled = writer.samples[str(i)]["resid_post.mean_all_normed"][-1]
        hidden = weights["head.projector.weight"] @ pooled + weights["head.projector.bias"]
        lens = weights["head.classifier.weight"] @ hidden + weights["head.classifier.bias"]
        np.testing.assert_allclose(lens, logits[i], rtol=0, atol=1e-5)


def test_untrained_adapter_gives_exact_zeros(make_model, make_waves, writer):
    loaded = make_model(AdapterConfig(r=4, alpha=8, target_modules=("v_proj",)))
    record(loaded, writer, make_waves(2))
    got = writer.samples["1"]
    assert not got["lora_b.v_proj"].any()
    assert not got["grad.lora_a.v_proj"].any()
    assert np.abs(got["lora_a.v_proj"]).min(axis=(1, 2)).max() > 0
    assert np.abs(got["grad.lora_b.v_proj"]).max(axis=(1, 2)).min() > 0


def test_no_parameter_gets_a_gradient_and_hooks_are_removed(make_model, make_waves, writer):
    loaded = make_model(ADAPTER)
    record(loaded, writer, make_waves(2))
    assert all(parameter.grad is None for parameter in loaded.model.parameters())
    for module in loaded.model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        ("valid", lambda n, t: np.arange(n)),
        ("all", lambda n, t: np.arange(t)),
        ("every:3", lambda n, t: np.arange(0, n, 3)),
    ],
)
def test_kept_frames_and_their_positions(make_model, make_waves, writer, frames, expected):
    loaded = make_model()
    options = {"sites": ["resid_post"], "gradients": (), "frames": frames}
    features, _, valid = record(loaded, writer, make_waves(3), **options)
    own, _ = reference_activations(loaded.model, features)
    for i, n in enumerate(valid):
        kept = expected(n, loaded.frames)
        positions = writer.details[str(i)]["positions"]["encoder"]
        np.testing.assert_array_equal(positions, kept)
        np.testing.assert_array_equal(writer.samples[str(i)]["resid_post"][1], own[1][i][kept])


def test_frames_none_keeps_only_pools(make_model, make_waves, writer):
    record(make_model(), writer, make_waves(2), sites=["resid_post"], gradients=(), frames="none")
    assert set(writer.samples["0"]) == {"resid_post.mean_valid", "resid_post.mean_all_normed"}
    assert not writer.details["0"]["positions"]


def test_a_ragged_mask_picks_its_frames(make_model, make_waves, writer):
    loaded = make_model()
    features = loaded.features(make_waves(1))
    mask = np.zeros((1, loaded.frames), bool)
    mask[0, [1, 4, 9]] = True
    own, _ = reference_activations(loaded.model, features)
    recorder = Recorder(loaded.model, writer, sites=["resid_post"], dtype="float32")
    with recorder, recorder.batch(["a"], mask=mask), torch.no_grad():
        loaded.model(features)
    np.testing.assert_array_equal(writer.samples["a"]["resid_post"][0], own[0][0][[1, 4, 9]])


def test_layers_and_options_of_one_site(make_model, make_waves, writer):
    sites = {
        "resid_post": SiteRequest(layers=(2, 0), dtype="float32", pool=()),
        "attn_out": SiteRequest(frames="none"),
    }
    loaded = make_model()
    features, *_ = record(loaded, writer, make_waves(2), sites=sites, gradients=())
    own, _ = reference_activations(loaded.model, features)
    got = writer.samples["1"]
    assert set(got) == {"resid_post", "attn_out.mean_valid"}
    np.testing.assert_array_equal(got["resid_post"][1], own[2][1])


def test_own_loop_into_a_path(make_model, make_waves, tmp_path):
    loaded = make_model()
    waves = make_waves(3)
    path = tmp_path / "own.zarr"
    recorder = Recorder(loaded.model, path, sites=["resid_post"], dtype="float32")
    with recorder, torch.no_grad():
        loaded.model(loaded.features(waves[:2]))
        loaded.model(loaded.features(waves[2:]))
    assert recorder.family.name == "whisper"
    capture = open_store(path).capture("capture")
    assert list(capture.samples["id"]) == ["0", "1", "2"]
    own, _ = reference_activations(loaded.model, loaded.features(waves[2:]))
    rows = capture.read_rows("resid_post", 3, samples=slice(2, 3))
    np.testing.assert_array_equal(rows, own[3][0])


def test_own_loop_with_gradients_needs_no_batch(make_model, make_waves, writer):
    loaded = make_model(ADAPTER)
    with Recorder(loaded.model, writer, sites=["embed"], gradients=["embed"]) as recorder:
        for wave in make_waves(2):
            recorder.backward(loaded.model(loaded.features([wave])).logits[:, 0])
    assert list(writer.samples) == ["0", "1"]
    assert np.abs(writer.samples["1"]["grad.embed.mean_valid"]).max() > 0


# peft asks a model about gradient checkpointing by the name that transformers retires
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_a_peft_model_records_like_the_bare_one(make_model, make_waves, make_writer, writer):
    from peft import LoraConfig, get_peft_model

    bare, waves = make_model(), make_waves(2)
    plain = make_writer()
    record(bare, plain, waves, sites=["resid_post"], gradients=())
    wrapped = get_peft_model(bare.model, LoraConfig(r=2, target_modules=["q_proj"])).eval()
    recorder = Recorder(wrapped, writer, sites=["resid_post", "lora_a"], dtype="float32")
    with recorder, recorder.batch(["0", "1"]), torch.no_grad():
        wrapped(bare.features(waves))
    n = plain.samples["0"]["resid_post"].shape[1]
    # B = 0: the adapter adds exact zeros
    np.testing.assert_array_equal(
        writer.samples["0"]["resid_post"][:, :n], plain.samples["0"]["resid_post"]
    )
    assert writer.samples["0"]["lora_a.q_proj"].shape == (4, bare.frames, 2)


# the new name of the method is younger than the oldest transformers that is served
@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable:FutureWarning")
def test_gradient_checkpointing_records_once(make_model, make_waves, make_writer, writer):
    loaded, waves = make_model(ADAPTER), make_waves(2)
    plain = make_writer()
    record(loaded, plain, waves)
    model = loaded.model
    model.gradient_checkpointing_enable({"use_reentrant": False})
    # checkpointing only acts in training mode; nothing random may be left there
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    runs = []
    handle = model.encoder.layers[0].fc1.base_layer.register_forward_hook(lambda *_: runs.append(1))
    record(loaded, writer, waves)
    handle.remove()
    model.eval()
    assert len(runs) == 2
    for key, expected in plain.samples["1"].items():
        scale = np.abs(expected).max()
        np.testing.assert_allclose(writer.samples["1"][key], expected, rtol=0, atol=1e-5 * scale)


def test_forward_stops_above_the_deepest_recorded_module(make_model, make_waves, make_writer):
    loaded = make_model(ADAPTER)
    features = loaded.features(make_waves(2))
    sites = {"resid_post": SiteRequest(layers=(0, 1)), "lora_a.v_proj": SiteRequest(layers=(1,))}
    reached = []
    for i, layer in enumerate(loaded.model.encoder.layers):
        layer.register_forward_pre_hook(lambda _m, _a, i=i: reached.append(i))
    whole, short = make_writer(), make_writer()
    with torch.no_grad(), Recorder(loaded.model, whole, sites=sites) as recorder:
        with recorder.batch(["a", "b"]):
            loaded.model(features)
        assert reached == [0, 1, 2, 3]
    reached.clear()
    recorder = Recorder(loaded.model, short, sites=sites)
    with recorder:
        for ids in (["a", "b"], ["c", "d"]):
            with recorder.batch(ids):
                recorder.forward(features)
    assert reached == [0, 1, 0, 1]
    for name, expected in whole.samples["b"].items():
        np.testing.assert_array_equal(short.samples["b"][name], expected)
    with recorder, pytest.raises(CaptureError, match=r"outside recorder\.batch"):
        recorder.forward(features)
    backward = Recorder(loaded.model, short, sites=sites, gradients=["embed"])
    with backward, pytest.raises(CaptureError, match="records no gradients"):
        backward.forward(features)


def test_a_shared_module_is_refused(make_model, make_waves, writer):
    loaded = make_model()
    loaded.model.encoder.layers[2] = loaded.model.encoder.layers[1]
    with pytest.raises(CaptureError, match=r"encoder.layers.1 ran twice in one batch"):
        record(loaded, writer, make_waves(2), sites=["resid_post"], gradients=())
    assert not writer.samples


def test_two_forwards_in_one_batch_are_refused(make_model, make_waves, writer):
    loaded = make_model()
    features = loaded.features(make_waves(1))
    with Recorder(loaded.model, writer, sites=["embed"]) as recorder:
        message = pytest.raises(CaptureError, match="ran twice in one batch")
        with message, recorder.batch(["a"]), torch.no_grad():
            loaded.model(features)
            loaded.model(features)
        with recorder.batch(["a"]), torch.no_grad():
            loaded.model(features)
    assert list(writer.samples) == ["a"]


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda model, x, rec: None, "no forward ran"),
        (lambda model, x, rec: model(x), "recorder.backward did not run"),
        (lambda model, x, rec: rec.backward(model(x).logits.mean()), "one loss a sample"),
        (lambda model, x, rec: rec.backward(torch.zeros(2)), "before a forward"),
        (lambda model, x, rec: torch.no_grad()(model)(x), "not reached by autograd"),
        (lambda model, x, rec: model(x[:1]), r"ran on 1 samples, .* named 2 ids"),
    ],
)
def test_wrong_use_is_told(make_model, make_waves, writer, run, message):
    loaded = make_model()
    features = loaded.features(make_waves(2))
    recorder = Recorder(loaded.model, writer, sites=["embed"], gradients=["resid_post"])
    with recorder, pytest.raises(CaptureError, match=message), recorder.batch(["a", "b"]):
        run(loaded.model, features, recorder)
    assert not writer.samples


def test_a_mask_of_another_length_is_told(make_model, make_waves, writer):
    loaded = make_model()
    recorder = Recorder(loaded.model, writer, sites=["embed"])
    message = pytest.raises(CaptureError, match="one entry a frame")
    with recorder, message, recorder.batch(["a"], mask=np.ones((1, 7), bool)):
        loaded.model(loaded.features(make_waves(1)))


def test_float16_overflow_is_refused(make_model, make_waves, writer):
    loaded = make_model()
    with torch.no_grad():
        loaded.model.encoder.layers[2].fc2.bias[5] = 1e5
    with pytest.raises(CaptureError, match=r"mlp_out of layer 2 .* float16"):
        record(loaded, writer, make_waves(1), sites=["mlp_out"], gradients=(), dtype="float16")


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        (["resid_pst"], r"unknown site 'resid_pst' in family whisper; did you mean 'resid_post'"),
        (["lora_a.q_proj"], r"unknown site 'lora_a.q_proj'.*lora_a.v_proj"),
        ({"resid_post": SiteRequest(layers=(4,))}, r"no layer 4: it has layers 0 to 3"),
        ({"resid_post": SiteRequest(pool=("mean",))}, r"unknown pool 'mean'"),
        (
            {"embed": SiteRequest(frames="all"), "resid_post": SiteRequest(frames="valid")},
            r"the frames asked for differ: all \(embed\) and valid \(resid_post\)",
        ),
        ({"attn_out": SiteRequest(frames="none", pool=())}, "would record nothing"),
        ([], "nothing to record"),
    ],
)
def test_unknown_sites_are_told(make_model, sites, message):
    with pytest.raises(ConfigError, match=message):
        find_sites(make_model(ADAPTER).model, sites=sites)


def test_adapter_sites_need_an_adapter(make_model):
    with pytest.raises(ConfigError, match="'lora_a' needs an adapter"):
        find_sites(make_model().model, sites=["lora_a"])
