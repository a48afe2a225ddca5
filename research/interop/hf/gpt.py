"""GPT-2, GPT-NeoX and OPT: the fields of their `config.json` <-> EncoderConfig.

They are causal unless `is_causal` is false, like the families of `llama.py`.
"""

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


def read_gpt2(fields: Fields) -> EncoderConfig:
    """GPT-2 (Radford et al. 2019), also as the smallest SGPT."""
    require(
        fields,
        scale_attn_by_inverse_layer_idx=(False,),
        add_cross_attention=(False,),
    )
    width = fields["n_embd"]
    return EncoderConfig(
        # Sizes
        vocab_size=fields["vocab_size"],
        width=width,
        depth=fields["n_layer"],
        num_heads=fields["n_head"],
        mlp=fields.get("n_inner") or 4 * width,
        max_len=fields.get("n_positions", 1_024),
        # Norms and linear layers
        norm_at="pre",
        norm_eps=fields.get("layer_norm_epsilon", 1e-5),
        act=activation(fields, "activation_function", "gelu_new"),
        causal=fields.get("is_causal", True),
        # A decoder has no token types and no norm after the embeddings
        scale=0.0 if fields.get("scale_attn_weights", True) else 1.0,
        type_vocab=0,
        embed_norm=False,
        **common.read_dropout(fields, "resid_pdrop", "attn_pdrop", (0.1, 0.1)),
    )


def write_gpt2(cfg: EncoderConfig) -> dict[str, Any]:
    """The inverse of `read_gpt2`."""
    return {
        "architectures": ["GPT2Model"],
        **write_causality(cfg),
        # Sizes
        "vocab_size": cfg.vocab_size,
        "n_embd": cfg.width,
        "n_layer": cfg.depth,
        "n_head": cfg.num_heads,
        "n_inner": cfg.mlp,
        "n_positions": cfg.max_len,
        # Norms and linear layers
        "layer_norm_epsilon": cfg.norm_eps,
        "activation_function": HF_ACTS[cfg.act],
        "scale_attn_weights": cfg.scale != 1,
        "resid_pdrop": cfg.dropout,
        "embd_pdrop": cfg.dropout,
        "attn_pdrop": cfg.attention_dropout_rate,
        **UNUSED_FIELDS,
    }


def read_gpt_neox(fields: Fields) -> EncoderConfig:
    """GPT-NeoX (Black et al. 2022) and Pythia: partial rotary positions."""
    # v4 has rotary_emb_base and rotary_pct, v5 rope_parameters.
    rope_fields = {"rope_theta": fields.get("rotary_emb_base", 10_000.0), **fields}
    rope = dict(fields.get("rope_parameters") or {})
    fraction = rope.pop("partial_rotary_factor", None)
    parallel = fields.get("use_parallel_residual", True)
    return EncoderConfig(
        # Sizes
        vocab_size=fields["vocab_size"],
        width=fields["hidden_size"],
        depth=fields["num_hidden_layers"],
        num_heads=fields["num_attention_heads"],
        mlp=fields["intermediate_size"],
        # Norms and linear layers
        norm_at="parallel" if parallel else "pre",
        norm_eps=fields.get("layer_norm_eps", 1e-5),
        bias=bias_groups(
            ("qkv out", fields.get("attention_bias", True)), ("up down", True)
        ),
        act=activation(fields, "hidden_act", "gelu"),
        # Positions
        **common.read_rope({**rope_fields, "rope_parameters": rope}, max_len=2_048),
        rope_fraction=fields.get("rotary_pct", 0.25) if fraction is None else fraction,
        causal=fields.get("is_causal", True),
        # A decoder has no token types and no norm after the embeddings
        type_vocab=0,
        embed_norm=False,
        **common.read_dropout(
            fields, "hidden_dropout", "attention_dropout", (0.0, 0.0)
        ),
    )


def write_gpt_neox(cfg: EncoderConfig) -> dict[str, Any]:
    """The inverse of `read_gpt_neox`."""
    rope = common.write_rope(cfg)
    rope["rope_parameters"]["partial_rotary_factor"] = cfg.rope_fraction
    return {
        "architectures": ["GPTNeoXModel"],
        **write_causality(cfg),
        # Sizes
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.width,
        "num_hidden_layers": cfg.depth,
        "num_attention_heads": cfg.num_heads,
        "intermediate_size": cfg.mlp,
        # Norms and linear layers
        "layer_norm_eps": cfg.norm_eps,
        "hidden_act": HF_ACTS[cfg.act],
        "attention_bias": "qkv" in cfg.bias,
        "use_parallel_residual": cfg.norm_at == "parallel",
        **rope,
        "rotary_emb_base": cfg.rope_theta,
        "rotary_pct": cfg.rope_fraction,
        "hidden_dropout": cfg.dropout,
        "attention_dropout": cfg.attention_dropout_rate,
        **UNUSED_FIELDS,
    }


def read_opt(fields: Fields) -> EncoderConfig:
    """OPT (Zhang et al. 2022): learned positions from 2; not its post-norm 350M."""
    width = fields["hidden_size"]
    require(
        fields,
        do_layer_norm_before=(True,),
        _remove_final_layer_norm=(False,),
        layer_norm_elementwise_affine=(True,),
        word_embed_proj_dim=(width, None),
    )
    return EncoderConfig(
        # Sizes
        vocab_size=fields["vocab_size"],
        width=width,
        depth=fields["num_hidden_layers"],
        num_heads=fields["num_attention_heads"],
        mlp=fields["ffn_dim"],
        max_len=fields.get("max_position_embeddings", 2_048),
        # Norms and linear layers
        norm_at="pre",
        norm_eps=1e-5,
        bias=common.all_biases(fields.get("enable_bias", True)),
        act=activation(fields, "activation_function", "relu"),
        # Positions
        position_offset=2,
        causal=fields.get("is_causal", True),
        # A decoder has no token types and no norm after the embeddings
        type_vocab=0,
        embed_norm=False,
        **common.read_dropout(fields, "dropout", "attention_dropout", (0.1, 0.0)),
    )


def write_opt(cfg: EncoderConfig) -> dict[str, Any]:
    """The inverse of `read_opt`."""
    return {
        "architectures": ["OPTModel"],
        **write_causality(cfg),
        # Sizes
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.width,
        "num_hidden_layers": cfg.depth,
        "num_attention_heads": cfg.num_heads,
        "ffn_dim": cfg.mlp,
        "max_position_embeddings": cfg.max_len,
        "activation_function": HF_ACTS[cfg.act],
        "enable_bias": bool(cfg.bias),
        "dropout": cfg.dropout,
        "attention_dropout": cfg.attention_dropout_rate,
        **UNUSED_FIELDS,
    }
