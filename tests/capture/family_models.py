"""Tiny models of every family, with what a user of each would feed them, and where to look.

The paths here are written out by hand, as the reference for the tables of ``capture/families``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers as hf

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
LENGTHS = (9, 4, 7)
"""Tokens of the three samples of a batch of text; the longest first, so that padding is seen."""


@dataclass(frozen=True)
class Case:
    """One model of one family."""

    make: Callable[[str], Any]
    """The seeded model, for an attention implementation."""
    inputs: Callable[[Any], dict[str, torch.Tensor]]
    """Three samples, for a model."""
    masks: dict[str, np.ndarray]
    """Stream to valid positions."""
    places: dict[str, str | list[str]]
    """Site to module path, or to one a layer; ``<`` before a path means its input."""
    adapt: tuple[str, ...]
    """Modules that LoRA adapts in the tests."""
    states: dict[str, str]
    """Stream to the name of the model's own hidden states in its output."""
    exact_sum: bool = True
    """Whether resid_pre + attn_out + mlp_out is resid_post, bit for bit."""


def seeded(kind: Any, config: Any, attention: str = "sdpa") -> Any:
    config._attn_implementation = attention
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20261124)
        return kind(config).eval()


def layers(pattern: str, count: int = 3) -> list[str]:
    return [pattern.format(i) for i in range(count)]


def residual(root: str, attention: str, mlp: str, final: str | None, prefix: str = "") -> dict:
    last = final or f"{root}.2"
    return {
        f"{prefix}embed": f"<{root}.0",
        f"{prefix}resid_pre": layers(f"<{root}.{{}}"),
        f"{prefix}attn_out": layers(f"{root}.{{}}.{attention}"),
        f"{prefix}mlp_out": layers(f"{root}.{{}}.{mlp}"),
        f"{prefix}resid_post": layers(f"{root}.{{}}"),
        ("decoder_out" if prefix or final in NORMS_OF_DECODERS else "encoder_out"): last,
    }


NORMS_OF_DECODERS = ("transformer.ln_f", "model.norm", "norm")


def prefix_mask(lengths: tuple[int, ...] = LENGTHS) -> np.ndarray:
    return np.arange(max(lengths))[None, :] < np.array(lengths)[:, None]


def text(model: Any) -> dict[str, torch.Tensor]:
    mask = torch.from_numpy(prefix_mask())
    ids = torch.randint(3, 40, mask.shape, generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids.masked_fill(~mask, 0), "attention_mask": mask.long()}


def images(model: Any) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))}


def waves(model: Any) -> dict[str, torch.Tensor]:
    values = torch.randn(3, 1600, generator=torch.Generator().manual_seed(1))
    mask = torch.arange(1600)[None, :] < torch.tensor([1600, 900, 1300])[:, None]
    return {"input_values": values * mask, "attention_mask": mask.long()}


WAVE_FRAMES = (80, 45, 65)
"""Frames of 1600, 900 and 1300 samples: kernel 10 and stride 5, then kernel 3 and stride 4.

floor((1600 - 10) / 5) + 1 = 319, floor((319 - 3) / 4) + 1 = 80, and so on.
"""


def speech(model: Any) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "input_features": torch.randn(3, 80, 60, generator=generator),
        "decoder_input_ids": torch.randint(3, 40, (3, max(LENGTHS)), generator=generator),
    }


def make_whisper(attention: str) -> Any:
    config = hf.WhisperConfig(
        vocab_size=48,
        d_model=16,
        encoder_layers=3,
        decoder_layers=3,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_source_positions=30,
        max_target_positions=12,
        init_std=0.2,
        dropout=0.1,
        decoder_start_token_id=3,
        suppress_tokens=None,
        begin_suppress_tokens=None,
        **SPECIAL,
    )
    return seeded(hf.WhisperForConditionalGeneration, config, attention)


def make_wav(config: type, kind: type, *, stable: bool) -> Callable[[str], Any]:
    settings = {
        "vocab_size": 32,
        "conv_dim": (16, 16),
        "conv_kernel": (10, 3),
        "conv_stride": (5, 4),
        "num_feat_extract_layers": 2,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 2,
        "do_stable_layer_norm": stable,
        "feat_extract_norm": "layer",
        "layerdrop": 0.0,
        "apply_spec_augment": False,
        "initializer_range": 0.2,
        **SMALL,
    }
    # WavLM, with its relative positions, has one implementation of attention only
    own = {"eager"} if config is hf.WavLMConfig else {"eager", "sdpa"}
    return lambda attention: seeded(
        kind, config(**settings), attention if attention in own else "eager"
    )


def text_model(kind: Any, config: Any, **settings: Any) -> Callable[[str], Any]:
    return lambda attention: seeded(
        kind,
        config(
            vocab_size=48,
            max_position_embeddings=24,
            initializer_range=0.2,
            **SMALL,
            **SPECIAL,
            **settings,
        ),
        attention,
    )


def make_gpt2(attention: str) -> Any:
    config = hf.GPT2Config(
        vocab_size=48,
        n_embd=16,
        n_layer=3,
        n_head=2,
        n_positions=24,
        initializer_range=0.2,
        **SPECIAL,
    )
    return seeded(hf.GPT2LMHeadModel, config, attention)


def make_vit(attention: str) -> Any:
    config = hf.ViTConfig(image_size=16, patch_size=4, initializer_range=0.2, **SMALL)
    return seeded(hf.ViTForImageClassification, config, attention)


TOKENS = {"tokens": prefix_mask()}
FRAMES = {"encoder": prefix_mask(WAVE_FRAMES)}
WHISPER_PLACES = {
    **residual("model.encoder.layers", "self_attn", "fc2", "model.encoder.layer_norm"),
    **residual("model.decoder.layers", "self_attn", "fc2", "model.decoder.layer_norm", "decoder."),
    "decoder.cross_attn_out": layers("model.decoder.layers.{}.encoder_attn"),
}
BERT_PARTS = ("attention.output.dense", "output.dense")

CASES: dict[str, Case] = {
    "whisper": Case(
        make_whisper,
        speech,
        {"encoder": prefix_mask((30, 13, 21)), "decoder": prefix_mask()},
        WHISPER_PLACES,
        ("v_proj",),
        {"encoder": "encoder_hidden_states", "decoder": "decoder_hidden_states"},
    ),
    "wav2vec2": Case(
        make_wav(hf.Wav2Vec2Config, hf.Wav2Vec2ForSequenceClassification, stable=False),
        waves,
        FRAMES,
        residual("wav2vec2.encoder.layers", "attention", "feed_forward", None),
        ("v_proj",),
        {"encoder": "hidden_states"},
        exact_sum=False,
    ),
    "hubert-stable": Case(
        make_wav(hf.HubertConfig, hf.HubertForSequenceClassification, stable=True),
        waves,
        FRAMES,
        residual("hubert.encoder.layers", "attention", "feed_forward", "hubert.encoder.layer_norm"),
        ("v_proj",),
        {"encoder": "hidden_states"},
    ),
    "wavlm": Case(
        make_wav(hf.WavLMConfig, hf.WavLMForSequenceClassification, stable=True),
        waves,
        FRAMES,
        residual("wavlm.encoder.layers", "attention", "feed_forward", "wavlm.encoder.layer_norm"),
        # its attention multiplies with the weights of v_proj itself, past any LoRA on it
        ("intermediate_dense",),
        {"encoder": "hidden_states"},
    ),
    "bert": Case(
        text_model(hf.BertForSequenceClassification, hf.BertConfig),
        text,
        TOKENS,
        residual("bert.encoder.layer", *BERT_PARTS, None),
        ("value", "output.dense"),
        {"tokens": "hidden_states"},
        exact_sum=False,
    ),
    "roberta": Case(
        text_model(hf.RobertaModel, hf.RobertaConfig),
        text,
        TOKENS,
        residual("encoder.layer", *BERT_PARTS, None),
        ("value",),
        {"tokens": "hidden_states"},
        exact_sum=False,
    ),
    "gpt2": Case(
        make_gpt2,
        text,
        TOKENS,
        residual("transformer.h", "attn", "mlp", "transformer.ln_f"),
        ("c_attn", "mlp.c_proj"),
        {"tokens": "hidden_states"},
    ),
    "llama": Case(
        text_model(hf.LlamaForCausalLM, hf.LlamaConfig, num_key_value_heads=1),
        text,
        TOKENS,
        residual("model.layers", "self_attn", "mlp", "model.norm"),
        ("v_proj", "down_proj"),
        {"tokens": "hidden_states"},
    ),
    "qwen3": Case(
        text_model(hf.Qwen3Model, hf.Qwen3Config, num_key_value_heads=1, head_dim=8),
        text,
        TOKENS,
        residual("layers", "self_attn", "mlp", "norm"),
        ("v_proj",),
        {"tokens": "hidden_states"},
    ),
    "vit": Case(
        make_vit,
        images,
        {},
        residual("vit.layers", "attention", "mlp", "vit.layernorm"),
        ("v_proj",),
        {"patches": "hidden_states"},
    ),
}
