"""wav2vec 2.0, HuBERT and WavLM: convolutions on the waveform, then a transformer encoder.

Models with ``do_stable_layer_norm`` norm before each block and once more at the end; the others
norm after each residual sum, and have no norm at the end. A model whose convolutions use group norm
(``feat_extract_norm: group``) gives other values for a padded batch than for single utterances
(34 to 55 % off when measured), and so does one that gets no attention mask: only audio of one
length may share a batch there.

Audio is padded to the longest of its batch, never to a window, and the head averages the frames
that hold audio.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from .base import Attention, Head, SpeechFamily, Stream, Tap, join_inputs

SAMPLING_RATE = 16000
LONGEST_SECONDS = 30.0
"""Longer audio is cut: the memory of attention grows with the square of the length."""


def valid_frames(config: Any, n_samples: int) -> int:  # noqa: ANN401  a transformers configuration
    """Return the frames that `n_samples` of audio give: no padding in the convolutions.

    Each convolution gives floor((n - kernel) / stride) + 1; with the usual seven, 1 s of 16 kHz
    audio gives 49 frames.
    """
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        n_samples = (n_samples - kernel) // stride + 1
    return max(n_samples, 0)


def _final_norm(config: Any) -> str | None:  # noqa: ANN401
    return "encoder.layer_norm" if config.do_stable_layer_norm else None


def _no_limit(_config: Any) -> int:  # noqa: ANN401
    """Positions are relative here, so only the audio bounds the keys; 30 s give 1499 frames."""
    return 1499


def _uncalled(config: Any) -> tuple[str, ...]:  # noqa: ANN401
    """WavLM hands the weights of its projections to torch's own attention."""
    return ("q_proj", "k_proj", "v_proj", "out_proj") if config.model_type == "wavlm" else ()


def inputs(extractor: Any, waveforms: Sequence[Any]) -> dict[str, Any]:  # noqa: ANN401
    """Return the waveforms, each normed over its own samples, and a mask where the model wants one.

    One by one, because an extractor without a mask would norm over the padding too.
    """
    made = [
        dict(extractor(wave, sampling_rate=SAMPLING_RATE, return_tensors="pt"))
        for wave in waveforms
    ]
    wanted = ("input_values", *(["attention_mask"] if extractor.return_attention_mask else []))
    return join_inputs([{name: one[name] for name in wanted} for one in made])


def model_class(model_type: str) -> type[Any]:
    """Return the class with a classification head of a model type."""
    import transformers

    prefix = {"wav2vec2": "Wav2Vec2", "hubert": "Hubert", "wavlm": "WavLM"}[model_type]
    return getattr(transformers, f"{prefix}ForSequenceClassification")


def pool(model: Any, encoded: Any, inputs: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """Mean over the frames that hold audio, as the model itself does."""
    mask = inputs.get("attention_mask")
    if mask is None:
        return encoded.mean(dim=1)
    valid = model._get_feature_vector_attention_mask(encoded.shape[1], mask)
    weights = valid / valid.sum(dim=1, keepdim=True)
    return (encoded * weights[..., None].to(encoded.dtype)).sum(dim=1)


def apply_head(model: Any, pooled: Any) -> Any:  # noqa: ANN401
    """Logits of pooled features; projector and mean commute, because the projector is linear."""
    return model.classifier(model.projector(pooled))


def shorten(_model: Any, _extractor: Any, _seconds: float) -> None:  # noqa: ANN401
    """Nothing to do: these models take audio of any length, and longer audio is cut before."""


def demo() -> tuple[Any, Any]:
    """Make configuration and extractor of ``demo:wav2vec2``: 4 layers of width 64, no download.

    Its convolutions are those of the real models in kernels and strides, narrow, with layer norm.
    """
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor

    config = Wav2Vec2Config(
        vocab_size=32,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=128,
        conv_dim=(32,) * 7,
        feat_extract_norm="layer",
        conv_bias=True,
        do_stable_layer_norm=True,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        classifier_proj_size=64,
        initializer_range=0.1,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        feat_proj_dropout=0.0,
        final_dropout=0.0,
        layerdrop=0.0,
        apply_spec_augment=False,
    )
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    return config, extractor


def fit(family: SpeechFamily, config: Any, extractor: Any) -> SpeechFamily:  # noqa: ANN401
    """Return the table of one model: its own convolutions, class, mask and norm."""
    kind = str(config.model_type)

    def window_frames(seconds: float) -> int | None:
        frames = valid_frames(config, family.window_samples(seconds))
        return frames if frames > 0 and seconds <= LONGEST_SECONDS else None

    return replace(
        family,
        encoder=kind,
        valid_frames=lambda n_samples, frames: min(valid_frames(config, n_samples), frames),
        window_frames=window_frames,
        model_class=lambda: model_class(kind),
        equal_lengths=config.feat_extract_norm == "group" or not extractor.return_attention_mask,
    )


def _unfitted(*_: Any) -> Any:  # noqa: ANN401
    """Stand where `fit` puts what depends on the model."""
    msg = "the table of wav2vec2 has to be fitted to a model first."
    raise AssertionError(msg)


WAV2VEC2 = SpeechFamily(
    name="wav2vec2",
    model_types=("wav2vec2", "hubert", "wavlm"),
    streams=(
        Stream(
            name="encoder",
            layers="encoder.layers",
            layer_sites={
                "resid_pre": Tap("", "input"),
                "attn_out": Tap("attention"),
                "mlp_out": Tap("feed_forward"),
                "resid_post": Tap(""),
            },
            model_sites={
                "embed": Tap("encoder.layers.0", "input"),
                "encoder_out": Tap("encoder"),
            },
            width=lambda config: int(config.hidden_size),
            final_norm=_final_norm,
            pooled_frames="valid",
            attention={
                "attention": Attention(
                    Tap("attention", item=1),
                    heads=lambda config: int(config.num_attention_heads),
                    keys=_no_limit,
                )
            },
        ),
    ),
    valid_rows=valid_frames,
    uncalled=_uncalled,
    encoder="wav2vec2",
    head=Head(
        modules={"head.projector": "projector", "head.classifier": "classifier"},
        apply=apply_head,
        pool=pool,
    ),
    sampling_rate=SAMPLING_RATE,
    window_frames=_unfitted,
    window_rule="at most 30 s, and at least one frame (0.025 s with the usual convolutions)",
    valid_frames=_unfitted,
    inputs=inputs,
    padded=False,
    model_class=_unfitted,
    shorten=shorten,
    demo=demo,
    fit=fit,
)
