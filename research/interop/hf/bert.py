"""BERT and its descendants: the fields of their `config.json` <-> EncoderConfig.

These are readers and writers for `families.FAMILIES`. A reader raises an error for what
our encoder does not compute; a writer leaves out what its family cannot express (see
`families.find_family`). Defaults are those of `transformers` 5.
"""

from typing import Any

from research.interop.hf import common
from research.interop.hf.common import HF_ACTS, Fields, activation, bias_groups, require
from research.models.config import EncoderConfig


def read_bert(fields: Fields) -> EncoderConfig:
    """BERT (Devlin et al. 2019): post-norm, learned positions."""
    require(
        fields,
        position_embedding_type=("absolute",),
        is_decoder=(False,),
        add_cross_attention=(False,),
    )
    max_len = fields.get("max_position_embeddings", 512)
    return _bert(fields, max_len=max_len, type_vocab=fields.get("type_vocab_size", 2))


def write_bert(cfg: EncoderConfig) -> dict[str, Any]:
    """The inverse of `read_bert`; both dropout rates are `cfg.dropout`."""
    return {
        "architectures": ["BertModel"],
        **_write_bert(cfg),
        "max_position_embeddings": cfg.max_len,
        "type_vocab_size": cfg.type_vocab,
        "position_embedding_type": "absolute",
    }


def read_roberta(fields: Fields) -> EncoderConfig:
    """RoBERTa and XLM-R (Conneau et al. 2020): BERT, positions from pad id + 1."""
    require(
        fields,
        position_embedding_type=("absolute",),
        is_decoder=(False,),
        add_cross_attention=(False,),
    )
    pad_token_id = fields.get("pad_token_id", 1)
    if pad_token_id is None:
        raise ValueError(
            "config.json has pad_token_id null, but the positions of a RoBERTa begin "
            "after it: 1 in the published models"
        )
    offset = pad_token_id + 1
    return _bert(
        fields,
        max_len=fields.get("max_position_embeddings", 512) - offset,
        position_offset=offset,
        type_vocab=fields.get("type_vocab_size", 2),
    )


def write_roberta(cfg: EncoderConfig) -> dict[str, Any]:
    """The inverse of `read_roberta`."""
    return {
        "architectures": ["XLMRobertaModel"],
        **_write_bert(cfg),
        "max_position_embeddings": cfg.max_len + cfg.position_offset,
        "type_vocab_size": cfg.type_vocab,
        "position_embedding_type": "absolute",
        "pad_token_id": cfg.position_offset - 1,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def read_mpnet(fields: Fields) -> EncoderConfig:
    """MPNet (Song et al. 2020): learned positions from 2, and T5's attention bias."""
    require(fields, relative_attention_num_buckets=(32,))
    return _bert(
        fields,
        max_len=fields.get("max_position_embeddings", 512) - 2,
        position_offset=2,
        position_bias="t5",
        type_vocab=0,
    )


def write_mpnet(cfg: EncoderConfig) -> dict[str, Any]:
    """The inverse of `read_mpnet`."""
    return {
        "architectures": ["MPNetModel"],
        **_write_bert(cfg),
        "max_position_embeddings": cfg.max_len + 2,
        # Buckets of the attention bias
        "relative_attention_num_buckets": 32,
        "pad_token_id": 1,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def read_jina_bert(fields: Fields) -> EncoderConfig:
    """JinaBERT v2 (Günther et al. 2023): symmetric ALiBi and a gated layer.

    `transformers` runs it as remote code only.
    """
    require(fields, feed_forward_type=tuple(GATES), is_decoder=(False,))
    gate = fields["feed_forward_type"]
    return _bert(
        {**fields, "hidden_act": GATES[gate]},
        max_len=fields.get("max_position_embeddings", 512),
        position="none",
        position_bias="alibi",
        gated=True,
        bias=("qkv", "out", "down"),
        type_vocab=fields.get("type_vocab_size", 2),
    )


def write_jina_bert(cfg: EncoderConfig) -> dict[str, Any]:
    """The inverse of `read_jina_bert`."""
    gates = {act: gate for gate, act in GATES.items()}
    return {
        "architectures": ["JinaBertModel"],
        "auto_map": {
            "AutoConfig": f"{JINA_CODE}--configuration_bert.JinaBertConfig",
            "AutoModel": f"{JINA_CODE}--modeling_bert.JinaBertModel",
        },
        **_write_bert(cfg),
        "model_type": "bert",
        "max_position_embeddings": cfg.max_len,
        "type_vocab_size": cfg.type_vocab,
        "position_embedding_type": "alibi",
        "feed_forward_type": gates.get(cfg.act),
        "emb_pooler": "mean",
    }


def read_modernbert(fields: Fields) -> EncoderConfig:
    """ModernBERT (Warner et al. 2024) and Ettin: local and global attention blocks."""
    # Every third block has global attention unless the config has another period.
    depth = fields["num_hidden_layers"]
    period = fields.get("global_attn_every_n_layers") or 3
    is_local = [layer % period > 0 for layer in range(depth)]
    return EncoderConfig(
        # Sizes
        vocab_size=fields["vocab_size"],
        width=fields["hidden_size"],
        depth=depth,
        num_heads=fields["num_attention_heads"],
        mlp=fields["intermediate_size"],
        # Norms and linear layers
        norm_at="pre",
        norm_eps=fields.get("norm_eps", 1e-5),
        norm_bias=fields.get("norm_bias", False),
        first_norm=False,
        bias=bias_groups(
            ("qkv out", fields.get("attention_bias", False)),
            ("up down", fields.get("mlp_bias", False)),
        ),
        act=activation(fields, "hidden_activation", "gelu"),
        gated=True,
        # Positions
        **common.read_local_rope(
            fields, old_names=MODERN_BASES, thetas=(160_000.0, 10_000.0), max_len=8_192
        ),
        **common.local_blocks(
            fields, is_local, fields.get("local_attention", 128) // 2
        ),
        type_vocab=0,
        **common.read_dropout(fields, "mlp_dropout", "attention_dropout", (0.0, 0.0)),
    )


def write_modernbert(cfg: EncoderConfig) -> dict[str, Any]:
    """The inverse of `read_modernbert`."""
    return {
        "architectures": ["ModernBertModel"],
        # Sizes
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.width,
        "num_hidden_layers": cfg.depth,
        "num_attention_heads": cfg.num_heads,
        "intermediate_size": cfg.mlp,
        # Norms and linear layers
        "norm_eps": cfg.norm_eps,
        "norm_bias": cfg.norm_bias,
        "attention_bias": "qkv" in cfg.bias,
        "mlp_bias": "up" in cfg.bias,
        "hidden_activation": HF_ACTS[cfg.act],
        # Positions
        **common.write_local_rope(cfg, old_names=MODERN_BASES),
        # Sliding windows: `window` tokens to each side
        "layer_types": common.layer_types(cfg),
        **common.write_global_period("global_attn_every_n_layers", cfg, shift=0),
        "local_attention": 2 * cfg.window,
        "embedding_dropout": cfg.dropout,
        "attention_dropout": cfg.attention_dropout_rate,
        "mlp_dropout": cfg.dropout,
        # Not used by the encoder, but text-embeddings-inference requires them
        "initializer_range": 0.02,
        "initializer_cutoff_factor": 2.0,
        "classifier_activation": "gelu",
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": None,
        "cls_token_id": None,
        "sep_token_id": None,
    }


def read_nomic_bert(fields: Fields) -> EncoderConfig:
    """nomic-bert (Nussbaum et al. 2024): BERT with rotary positions and SwiGLU.

    Files from before `transformers` 5 have the names of their remote code.
    """
    # Options of the remote code
    require(
        fields,
        prenorm=(False,),
        causal=(False,),
        parallel_block=(False,),
        use_rms_norm=(False,),
        moe_every_n_layers=(0, None),
        qkv_proj_bias=(False,),
        mlp_fc1_bias=(False,),
        mlp_fc2_bias=(False,),
        rotary_emb_fraction=(1.0,),
        rotary_emb_interleaved=(False,),
        rotary_emb_scale_base=(None,),
        rotary_scaling_factor=(None,),
        activation_function=("swiglu",),
    )
    # The fields by their names in `transformers` 5
    renamed = {**fields, **{NOMIC.get(name, name): x for name, x in fields.items()}}
    heads, width = renamed["num_attention_heads"], renamed["hidden_size"]
    require(renamed, head_dim=(width // heads, None))
    return _bert(
        {"hidden_act": "silu", "hidden_dropout_prob": 0.0, **renamed},
        **common.read_rope(renamed, theta=1_000.0, max_len=2_048),
        gated=True,
        bias=(),
        type_vocab=renamed.get("type_vocab_size", 2),
    )


def write_nomic_bert(cfg: EncoderConfig) -> dict[str, Any]:
    """The inverse of `read_nomic_bert`, as `transformers` 5 writes it."""
    return {
        "architectures": ["NomicBertModel"],
        **_write_bert(cfg),
        "type_vocab_size": cfg.type_vocab,
        **common.write_rope(cfg),
    }


def _bert(fields: Fields, **specific: Any) -> EncoderConfig:
    """The config from fields that all descendants of BERT have, and specific ones."""
    return EncoderConfig(
        # Sizes
        vocab_size=fields["vocab_size"],
        width=fields["hidden_size"],
        depth=fields["num_hidden_layers"],
        num_heads=fields["num_attention_heads"],
        mlp=fields["intermediate_size"],
        # Norms and linear layers
        norm_eps=fields.get("layer_norm_eps", 1e-12),
        act=activation(fields, "hidden_act", "gelu"),
        **common.read_dropout(
            fields, "hidden_dropout_prob", "attention_probs_dropout_prob", (0.1, 0.1)
        ),
        **specific,
    )


def _write_bert(cfg: EncoderConfig) -> dict[str, Any]:
    """The inverse of `_bert`."""
    return {
        # Sizes
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.width,
        "num_hidden_layers": cfg.depth,
        "num_attention_heads": cfg.num_heads,
        "intermediate_size": cfg.mlp,
        # Norms and linear layers
        "layer_norm_eps": cfg.norm_eps,
        "hidden_act": HF_ACTS[cfg.act],
        "hidden_dropout_prob": cfg.dropout,
        "attention_probs_dropout_prob": cfg.attention_dropout_rate,
        "initializer_range": 0.02,
        "pad_token_id": 0,
    }


# ModernBERT's names for the RoPE bases before `transformers` 5.
MODERN_BASES = ("global_rope_theta", "local_rope_theta")
JINA_CODE = "jinaai/jina-bert-implementation"
# JinaBERT's gated layers and their activations.
GATES = {"geglu": "gelu", "reglu": "relu"}
# nomic-bert's names in its remote code -> those of `transformers` 5.
NOMIC = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "n_positions": "max_position_embeddings",
    "layer_norm_epsilon": "layer_norm_eps",
    "resid_pdrop": "hidden_dropout_prob",
    "attn_pdrop": "attention_probs_dropout_prob",
    "rotary_emb_base": "rope_theta",
}
