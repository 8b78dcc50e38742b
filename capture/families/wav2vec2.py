"""wav2vec 2.0, HuBERT and WavLM: convolutions on the waveform, then a transformer encoder.

Models with ``do_stable_layer_norm`` norm before each block and once more at the end; the others
norm after each residual sum, and have no norm at the end. A model whose convolutions use group norm
(``feat_extract_norm: group``) gives other values for a padded batch than for single utterances
(34 to 55 % off when measured): record it with batches of one, or of equal lengths.
"""

from __future__ import annotations

from typing import Any

from .base import Attention, Family, Stream, Tap


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


WAV2VEC2 = Family(
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
)
