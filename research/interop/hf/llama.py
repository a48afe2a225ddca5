"""Llama and its descendants: the fields of their `config.json` <-> EncoderConfig.

They are causal unless `is_causal` is false, which switches off the causal mask of any
of them in transformers >= 5.2. Readers and writers are as in `bert.py`.
"""

from dataclasses import replace
from typing import Any

from research.interop.hf import common
from research.interop.hf.common import (
    HF_ACTS,
    UNUSED_FIELDS,
    Fields,
    activation,
    bias_groups,
    require,
    write_causality,
)
from research.models.config import EncoderConfig


def read_llama(fields: Fields) -> EncoderConfig:
    """Llama (Touvron et al. 2023)."""
    return _llama(
        fields,
        bias=bias_groups(
            ("qkv out", fields.get("attention_bias", False)),
            ("up down", fields.get("mlp_bias", False)),
        ),
    )


def write_llama(cfg: EncoderConfig) -> dict[str, Any]:
    """The inverse of `read_llama`."""
    return {
        "architectures": ["LlamaModel"],
        **_write_llama(cfg),
        "attention_bias": "qkv" in cfg.bias,
        "mlp_bias": "up" in cfg.bias,
    }


def read_eurobert(fields: Fields) -> EncoderConfig:
    """EuroBERT (Boizard et al. 2025): Llama trained without a causal mask."""
    defaults = {"max_position_embeddings": 8_192, "rms_norm_eps": 1e-5}
    return read_llama({**defaults, **fields, "is_causal": False})


def write_eurobert(cfg: EncoderConfig) -> dict[str, Any]:
    """The inverse of `read_eurobert`."""
    fields = {**write_llama(cfg), "architectures": ["EuroBertModel"]}
    for name in ("is_causal", "use_bidirectional_attention"):
        fields.pop(name, None)
    return fields


def read_mistral(fields: Fields) -> EncoderConfig:
    """Mistral (Jiang et al. 2023): Llama, with a window in all blocks or in none."""
    defaults = {"num_key_value_heads": 8, "max_position_embeddings": 131_072}
    fields = {**defaults, **fields}
    is_local = [True] * fields["num_hidden_layers"]
    return _llama(fields, **common.local_blocks({}, is_local, _read_window(fields)))


def write_mistral(cfg: EncoderConfig) -> dict[str, Any]:
    """The inverse of `read_mistral`."""
    window = _write_window(cfg) if cfg.sliding_window_layers else None
    return {
        "architectures": ["MistralModel"],
        **_write_llama(cfg),
        "sliding_window": window,
    }


def read_mixtral(fields: Fields) -> EncoderConfig:
    """Mixtral (Jiang et al. 2024): Mistral with experts."""
    require(fields, router_jitter_noise=(0, None))
    defaults = {"rope_theta": 1_000_000.0, "sliding_window": None}
    cfg = read_mistral({**defaults, "rms_norm_eps": 1e-5, **fields})
    num_experts = fields.get("num_local_experts", 8)
    if num_experts < 1:
        raise ValueError(f"num_local_experts is {num_experts}; it should be at least 1")
    experts_per_token = fields.get("num_experts_per_tok", 2)
    return replace(cfg, num_experts=num_experts, experts_per_token=experts_per_token)


def write_mixtral(cfg: EncoderConfig) -> dict[str, Any]:
    """The inverse of `read_mixtral`."""
    return {
        **write_mistral(cfg),
        "architectures": ["MixtralModel"],
        "num_local_experts": cfg.num_experts,
        "num_experts_per_tok": cfg.experts_per_token,
        "router_jitter_noise": 0.0,
    }


def read_qwen2(fields: Fields) -> EncoderConfig:
    """Qwen2 (Yang et al. 2024): Llama with biases of queries, keys and values."""
    fields = {"max_position_embeddings": 32_768, **fields}
    return _llama(fields, **_qwen_local_blocks(fields), bias=("qkv",))


def write_qwen2(cfg: EncoderConfig) -> dict[str, Any]:
    """The inverse of `read_qwen2`."""
    return {
        "architectures": ["Qwen2Model"],
        **_write_llama(cfg),
        **_write_qwen_local_blocks(cfg),
    }


def read_qwen3(fields: Fields) -> EncoderConfig:
    """Qwen3 (Yang et al. 2025): Llama that normalizes queries and keys."""
    return _llama(
        {"head_dim": 128, "max_position_embeddings": 32_768, **fields},
        **_qwen_local_blocks(fields),
        bias=bias_groups(("qkv out", fields.get("attention_bias", False))),
        qk_norm=True,
    )


def write_qwen3(cfg: EncoderConfig) -> dict[str, Any]:
    """The inverse of `read_qwen3`."""
    return {
        "architectures": ["Qwen3Model"],
        **_write_llama(cfg),
        **_write_qwen_local_blocks(cfg),
        "attention_bias": "qkv" in cfg.bias,
    }


def read_gemma2(fields: Fields) -> EncoderConfig:
    """Gemma 2 (Gemma Team 2024): a window in every other block, soft-capped logits."""
    require(fields, use_bidirectional_attention=(False, None))
    is_local = [layer % 2 == 0 for layer in range(fields["num_hidden_layers"])]
    return _gemma(
        fields,
        **common.read_rope(fields, max_len=8_192),
        **common.local_blocks(fields, is_local, _read_window(fields)),
        attn_logit_softcap=fields.get("attn_logit_softcapping", 50.0) or 0.0,
    )


def write_gemma2(cfg: EncoderConfig) -> dict[str, Any]:
    """The inverse of `read_gemma2`."""
    return {
        "architectures": ["Gemma2Model"],
        **_write_gemma(cfg),
        **write_causality(cfg),
        **common.write_rope(cfg),
        "sliding_window": _write_window(cfg),
    }


def read_gemma3(fields: Fields) -> EncoderConfig:
    """Gemma 3 (Gemma Team 2025), and EmbeddingGemma, whose mask is not causal.

    `use_bidirectional_attention` halves `sliding_window`: a token attends to those at
    most half of it away.
    """
    # The mask and the window.
    bidirectional = fields.get("use_bidirectional_attention")
    if bidirectional:
        require(fields, is_causal=(True, None))
        fields = {**fields, "is_causal": False}
    window = _read_window(fields)
    if bidirectional and window is not None:
        window //= 2
    # Every sixth block has global attention unless the config has another period.
    period = fields.get("sliding_window_pattern") or 6
    depth = fields["num_hidden_layers"]
    is_local = [(layer + 1) % period > 0 for layer in range(depth)]
    return _gemma(
        fields,
        **common.read_local_rope(
            fields,
            old_names=GEMMA_BASES,
            thetas=(1_000_000.0, 10_000.0),
            max_len=131_072,
        ),
        **common.local_blocks(fields, is_local, window),
        attn_logit_softcap=fields.get("attn_logit_softcapping") or 0.0,
        qk_norm=True,
    )


def write_gemma3(cfg: EncoderConfig) -> dict[str, Any]:
    """The inverse of `read_gemma3`."""
    window = _write_window(cfg) if cfg.causal else 2 * cfg.window
    return {
        "architectures": ["Gemma3TextModel"],
        **_write_gemma(cfg),
        **common.write_local_rope(cfg, old_names=GEMMA_BASES),
        "use_bidirectional_attention": not cfg.causal,
        "sliding_window": window,
        **common.write_global_period("_sliding_window_pattern", cfg, shift=1),
    }


def _llama(fields: Fields, **specific: Any) -> EncoderConfig:
    """The config from fields that all descendants of Llama have, and specific ones."""
    defaults = {
        "norm_at": "pre",
        "norm": "rms",
        "bias": (),
        "act": activation(fields, "hidden_act", "silu"),
        **common.read_rope(fields, max_len=2_048),
    }
    return _decoder(fields, **{**defaults, **specific})


def _gemma(fields: Fields, **specific: Any) -> EncoderConfig:
    """The config from fields that Gemma 2 and 3 have, and specific ones."""
    fields = {"head_dim": 256, "num_key_value_heads": 4, **fields}
    return _decoder(
        fields,
        norm="rms_plus_one",
        norm_at="sandwich",
        bias=bias_groups(("qkv out", fields.get("attention_bias", False))),
        act=activation(fields, "hidden_activation", "gelu_pytorch_tanh"),
        scale=fields.get("query_pre_attn_scalar", 256) ** -0.5,
        embed_scale=fields["hidden_size"] ** 0.5,
        **specific,
    )


def _decoder(fields: Fields, **specific: Any) -> EncoderConfig:
    """The config from fields that Llama and Gemma share, and specific ones."""
    return EncoderConfig(
        # Sizes
        vocab_size=fields["vocab_size"],
        width=fields["hidden_size"],
        depth=fields["num_hidden_layers"],
        num_heads=fields["num_attention_heads"],
        num_kv_heads=fields.get("num_key_value_heads") or 0,
        head_dim=fields.get("head_dim") or 0,
        mlp=fields["intermediate_size"],
        # Norms and linear layers
        norm_eps=fields.get("rms_norm_eps", 1e-6),
        gated=True,
        causal=fields.get("is_causal", True),
        # A decoder has no token types and no norm after the embeddings
        type_vocab=0,
        embed_norm=False,
        # These families have dropout of attention weights only
        dropout=0.0,
        attention_dropout=float(fields.get("attention_dropout", 0.0)) or None,
        **specific,
    )


def _write_llama(cfg: EncoderConfig) -> dict[str, Any]:
    """The inverse of `_llama`."""
    return {
        **_write_decoder(cfg),
        **write_causality(cfg),
        # transformers reads is_causal, and text-embeddings-inference only this
        **({} if cfg.causal else {"use_bidirectional_attention": True}),
        "hidden_act": HF_ACTS[cfg.act],
        **common.write_rope(cfg),
        "tie_word_embeddings": False,
    }


def _write_gemma(cfg: EncoderConfig) -> dict[str, Any]:
    """The inverse of `_gemma`."""
    return {
        **_write_decoder(cfg),
        "hidden_activation": HF_ACTS[cfg.act],
        "attention_bias": "qkv" in cfg.bias,
        "query_pre_attn_scalar": round(cfg.scale**-2),
        "attn_logit_softcapping": cfg.attn_logit_softcap or None,
        "final_logit_softcapping": None,
        "layer_types": common.layer_types(cfg),
    }


def _write_decoder(cfg: EncoderConfig) -> dict[str, Any]:
    """The inverse of `_decoder`."""
    return {
        # Sizes
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.width,
        "num_hidden_layers": cfg.depth,
        "num_attention_heads": cfg.num_heads,
        "num_key_value_heads": cfg.num_kv_heads,
        "head_dim": cfg.head_dim,
        "intermediate_size": cfg.mlp,
        # Norms and linear layers
        "rms_norm_eps": cfg.norm_eps,
        "attention_dropout": cfg.attention_dropout_rate,
        **UNUSED_FIELDS,
    }


def _read_window(fields: Fields) -> int | None:
    """Tokens visible to each side; `sliding_window` of a causal model is one more."""
    size = fields.get("sliding_window", 4_096)
    if size is None:
        return None
    return size - 1 if fields.get("is_causal", True) else size


def _write_window(cfg: EncoderConfig) -> int:
    """The inverse of `_read_window`."""
    return cfg.window + 1 if cfg.causal else cfg.window


def _qwen_local_blocks(fields: Fields) -> dict[str, Any]:
    """Qwen's sliding windows: in blocks from `max_window_layers` on, if switched on."""
    if not fields.get("use_sliding_window", False):
        return common.local_blocks(fields, (), None)
    first = fields.get("max_window_layers", 28)
    is_local = [layer >= first for layer in range(fields["num_hidden_layers"])]
    return common.local_blocks(fields, is_local, _read_window(fields))


def _write_qwen_local_blocks(cfg: EncoderConfig) -> dict[str, Any]:
    """The inverse of `_qwen_local_blocks`."""
    return {
        "use_sliding_window": bool(cfg.sliding_window_layers),
        "sliding_window": _write_window(cfg) if cfg.sliding_window_layers else None,
        "max_window_layers": (*cfg.sliding_window_layers, True).index(True),
        "layer_types": common.layer_types(cfg),
    }


# Gemma 3's names for the RoPE bases before `transformers` 5.
GEMMA_BASES = ("rope_theta", "rope_local_base_freq")
