"""ViT: rows are the class token (position 0) and then the patches, line by line."""

from __future__ import annotations

from typing import Any

from .base import Attention, Family, Stream, Tap


def n_tokens(config: Any) -> int:  # noqa: ANN401  a transformers configuration
    """Return the tokens of an image: its patches and the special ones of the model type."""
    special = 2 if config.model_type == "deit" else 1
    return (int(config.image_size) // int(config.patch_size)) ** 2 + special


def _stream(layers: str, *, attn_out: str, mlp_out: str, attention: str) -> Stream:
    return Stream(
        name="patches",
        layers=layers,
        layer_sites={
            "resid_pre": Tap("", "input"),
            "attn_out": Tap(attn_out),
            "mlp_out": Tap(mlp_out),
            "resid_post": Tap(""),
        },
        model_sites={"embed": Tap(f"{layers}.0", "input"), "encoder_out": Tap("layernorm")},
        width=lambda config: int(config.hidden_size),
        final_norm=lambda _config: "layernorm",
        attention={
            "attention": Attention(
                Tap(attention, item=1),
                heads=lambda config: int(config.num_attention_heads),
                keys=n_tokens,
            )
        },
    )


VIT = Family(
    name="vit",
    model_types=("vit", "deit"),
    streams=(
        _stream("layers", attn_out="attention", mlp_out="mlp", attention="attention"),
        # the layout of earlier releases of transformers
        _stream(
            "encoder.layer",
            attn_out="attention.output.dense",
            mlp_out="output.dense",
            attention="attention.attention",
        ),
    ),
)
