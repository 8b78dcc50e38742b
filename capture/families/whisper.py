"""Whisper: its encoder and decoder, and the encoder with a head of classes on it.

Whisper pads every utterance to its window and masks nothing; 16 kHz audio gives a mel frame every
160 samples and, after the second convolution (stride 2), an encoder frame every 320 samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .base import Attention, Head, SpeechFamily, Stream, Tap

SAMPLES_PER_FRAME = 320
FULL_FRAMES = 1500
FRAMES_PER_SECOND = 50


def window_frames(seconds: float) -> int | None:
    """Return the frames of a window: at most 30 s, in whole frames."""
    frames = seconds * FRAMES_PER_SECOND
    whole = abs(frames - round(frames)) <= 1e-6
    return round(frames) if whole and 0 < frames <= FULL_FRAMES else None


def valid_frames(n_samples: int, frames: int) -> int:
    """Return the encoder frames that hold audio: ceil(n_samples / 320), at most `frames`."""
    return min(-(-n_samples // SAMPLES_PER_FRAME), frames)


def inputs(extractor: Any, waveforms: Sequence[Any]) -> dict[str, Any]:  # noqa: ANN401
    """Return the mel features of waveforms."""
    made = extractor(list(waveforms), sampling_rate=extractor.sampling_rate, return_tensors="pt")
    return {"input_features": made["input_features"]}


def model_class() -> type[Any]:
    """`WhisperForAudioClassification`."""
    from transformers import WhisperForAudioClassification

    return WhisperForAudioClassification


def shorten(model: Any, extractor: Any, seconds: float) -> None:  # noqa: ANN401
    """Make model and extractor see `seconds` of audio instead of 30 s, in place.

    The encoder keeps the first position embeddings, the extractor pads and cuts to the new window.
    Features change a little (cosine of the pooled features 0.991 against a 30 s window with real
    weights), which is why the window is part of a capture's identity.
    """
    import torch

    frames = round(seconds * FRAMES_PER_SECOND)
    if extractor is not None:
        extractor.n_samples = frames * SAMPLES_PER_FRAME
        extractor.nb_max_frames = extractor.n_samples // extractor.hop_length
        extractor.chunk_length = seconds
    if model is None:
        return
    model.config.max_source_positions = frames
    encoder = model.encoder
    encoder.max_source_positions = frames
    weight = encoder.embed_positions.weight.detach()[:frames].clone()
    encoder.embed_positions = torch.nn.Embedding.from_pretrained(weight, freeze=True)


def demo() -> tuple[Any, Any]:
    """Make configuration and extractor of ``demo:whisper``: 4 layers of width 64, no download.

    The weights are drawn with a larger spread than Whisper's 0.02, because with 0.02 the
    sinusoidal position embeddings (size 1) would drown what the convolutions say about the audio.
    """
    from transformers import WhisperConfig, WhisperFeatureExtractor

    config = WhisperConfig(
        vocab_size=64,
        num_mel_bins=80,
        d_model=64,
        encoder_layers=4,
        encoder_attention_heads=4,
        encoder_ffn_dim=128,
        decoder_layers=1,
        decoder_attention_heads=4,
        decoder_ffn_dim=64,
        max_source_positions=FULL_FRAMES,
        max_target_positions=8,
        classifier_proj_size=64,
        init_std=0.15,
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=3,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    return config, WhisperFeatureExtractor(feature_size=80)


def pool(_model: Any, encoded: Any, _inputs: Any) -> Any:  # noqa: ANN401
    """Mean over all frames, padding included, as the model itself does."""
    return encoded.mean(dim=1)


def apply_head(model: Any, pooled: Any) -> Any:  # noqa: ANN401
    """Logits of pooled features; projector and mean commute, because the projector is linear."""
    return model.classifier(model.projector(pooled))


ENCODER = Stream(
    name="encoder",
    layers="encoder.layers",
    layer_sites={
        "resid_pre": Tap("", "input"),
        "attn_out": Tap("self_attn"),
        "mlp_out": Tap("fc2"),
        "resid_post": Tap(""),
    },
    model_sites={
        "embed": Tap("encoder.layers.0", "input"),
        "encoder_out": Tap("encoder.layer_norm"),
    },
    width=lambda config: int(config.d_model),
    final_norm=lambda _config: "encoder.layer_norm",
    attention={
        "attention": Attention(
            Tap("self_attn", item=1),
            heads=lambda config: int(config.encoder_attention_heads),
            keys=lambda config: int(config.max_source_positions),
        )
    },
)

DECODER = Stream(
    name="decoder",
    layers="decoder.layers",
    layer_sites={
        "resid_pre": Tap("", "input"),
        "attn_out": Tap("self_attn"),
        "cross_attn_out": Tap("encoder_attn"),
        "mlp_out": Tap("fc2"),
        "resid_post": Tap(""),
    },
    model_sites={
        "embed": Tap("decoder.layers.0", "input"),
        "decoder_out": Tap("decoder.layer_norm"),
    },
    width=lambda config: int(config.d_model),
    final_norm=lambda _config: "decoder.layer_norm",
    attention={
        "attention": Attention(
            Tap("self_attn", item=1),
            heads=lambda config: int(config.decoder_attention_heads),
            keys=lambda config: int(config.max_target_positions),
        ),
        "cross_attention": Attention(
            Tap("encoder_attn", item=1),
            heads=lambda config: int(config.decoder_attention_heads),
            keys=lambda config: int(config.max_source_positions),
        ),
    },
    prefix="decoder.",
    foreign={"encoder_attn.k_proj": "encoder", "encoder_attn.v_proj": "encoder"},
)

WHISPER = SpeechFamily(
    name="whisper",
    model_types=("whisper",),
    streams=(ENCODER, DECODER),
    encoder="encoder",
    head=Head(
        modules={"head.projector": "projector", "head.classifier": "classifier"},
        apply=apply_head,
        pool=pool,
    ),
    sampling_rate=16000,
    window_frames=window_frames,
    window_rule="at most 30 s, in steps of 0.02 s",
    valid_frames=valid_frames,
    inputs=inputs,
    padded=True,
    model_class=model_class,
    shorten=shorten,
    demo=demo,
)
