"""BERT and the encoders of the same structure: norms after each residual sum, none at the end.

`attn_out` and `mlp_out` are what the two blocks give before they are added and normed, so that
``resid_post = LN(LN(resid_pre + attn_out) + mlp_out)``; dropout, in training, acts in between.
"""

from __future__ import annotations

from .base import Attention, Family, Stream, Tap

BERT = Family(
    name="bert",
    model_types=("bert", "roberta", "xlm-roberta", "camembert", "electra"),
    streams=(
        Stream(
            name="tokens",
            layers="encoder.layer",
            layer_sites={
                "resid_pre": Tap("", "input"),
                "attn_out": Tap("attention.output.dense"),
                "mlp_out": Tap("output.dense"),
                "resid_post": Tap(""),
            },
            model_sites={
                "embed": Tap("encoder.layer.0", "input"),
                "encoder_out": Tap("encoder"),
            },
            width=lambda config: int(config.hidden_size),
            final_norm=lambda _config: None,
            attention={
                "attention": Attention(
                    Tap("attention.self", item=1),
                    heads=lambda config: int(config.num_attention_heads),
                    keys=lambda config: int(config.max_position_embeddings),
                )
            },
        ),
    ),
)
