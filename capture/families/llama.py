"""Llama and the decoders of the same structure (Qwen, Mistral): RMS norms before each block."""

from __future__ import annotations

from .base import Attention, Family, Stream, Tap

LLAMA = Family(
    name="llama",
    model_types=("llama", "qwen2", "qwen3", "mistral"),
    streams=(
        Stream(
            name="tokens",
            layers="layers",
            layer_sites={
                "resid_pre": Tap("", "input"),
                "attn_out": Tap("self_attn"),
                "mlp_out": Tap("mlp"),
                "resid_post": Tap(""),
            },
            model_sites={"embed": Tap("layers.0", "input"), "decoder_out": Tap("norm")},
            width=lambda config: int(config.hidden_size),
            final_norm=lambda _config: "norm",
            attention={
                "attention": Attention(
                    Tap("self_attn", item=1),
                    heads=lambda config: int(config.num_attention_heads),
                    keys=lambda config: int(config.max_position_embeddings),
                )
            },
        ),
    ),
)
