"""GPT-2: a decoder whose blocks add attention and MLP to the residual stream, in this order."""

from __future__ import annotations

from .base import Attention, Family, Stream, Tap

GPT2 = Family(
    name="gpt2",
    model_types=("gpt2",),
    streams=(
        Stream(
            name="tokens",
            layers="h",
            layer_sites={
                "resid_pre": Tap("", "input"),
                "attn_out": Tap("attn"),
                "mlp_out": Tap("mlp"),
                "resid_post": Tap(""),
            },
            model_sites={"embed": Tap("h.0", "input"), "decoder_out": Tap("ln_f")},
            width=lambda config: int(config.n_embd),
            final_norm=lambda _config: "ln_f",
            attention={
                "attention": Attention(
                    Tap("attn", item=1),
                    heads=lambda config: int(config.n_head),
                    keys=lambda config: int(config.n_positions),
                )
            },
        ),
    ),
)
