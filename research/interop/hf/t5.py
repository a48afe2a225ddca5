"""T5's encoder: the fields of its `config.json` <-> EncoderConfig."""

from typing import Any

from research.interop.hf.common import Fields, require
from research.models.config import EncoderConfig


def read_t5(fields: Fields) -> EncoderConfig:
    """The encoder of T5 (Raffel et al. 2020) and T5 v1.1, as in Sentence-T5 and GTR.

    T5 v1.1 has a gated feed-forward layer, T5 has not. T5 has no maximum length; it was
    trained at 512 tokens (`n_positions` of the first files).
    """
    require(
        fields,
        is_decoder=(False,),
        relative_attention_num_buckets=(32,),
        relative_attention_max_distance=(128,),
        feed_forward_proj=tuple(T5_ACTS),
    )
    # feed_forward_proj names the activation and whether there is a gate.
    act, gated = T5_ACTS[fields.get("feed_forward_proj", "relu")]
    return EncoderConfig(
        # Sizes
        vocab_size=fields["vocab_size"],
        width=fields["d_model"],
        depth=fields["num_layers"],
        num_heads=fields["num_heads"],
        head_dim=fields.get("d_kv", 64),
        mlp=fields["d_ff"],
        max_len=fields.get("n_positions", 512),
        norm="rms",
        # Norms and linear layers
        norm_at="pre",
        norm_eps=fields.get("layer_norm_epsilon", 1e-6),
        bias=(),
        act=act,
        gated=gated,
        # Positions
        position="none",
        position_bias="t5",
        scale=1.0,
        type_vocab=0,
        embed_norm=False,
        dropout=fields.get("dropout_rate", 0.1),
    )


def write_t5(cfg: EncoderConfig) -> dict[str, Any]:
    """The inverse of `read_t5`."""
    projections = {ours: name for name, ours in T5_ACTS.items()}
    return {
        "architectures": ["T5EncoderModel"],
        # Sizes
        "vocab_size": cfg.vocab_size,
        "d_model": cfg.width,
        "num_layers": cfg.depth,
        "num_heads": cfg.num_heads,
        "d_kv": cfg.head_dim,
        "d_ff": cfg.mlp,
        "n_positions": cfg.max_len,
        # Norms and linear layers
        "layer_norm_epsilon": cfg.norm_eps,
        "feed_forward_proj": projections.get((cfg.act, cfg.gated), cfg.act),
        # Buckets of the attention bias
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        # All dropout rates are equal
        "dropout_rate": cfg.dropout,
        "is_encoder_decoder": False,
        "is_decoder": False,
        "use_cache": False,
        "pad_token_id": 0,
        "eos_token_id": None,
    }


# T5's feed-forward layers: (activation, gated). Its gated-gelu is the tanh form.
T5_ACTS = {
    "relu": ("relu", False),
    "gelu": ("gelu", False),
    "gelu_new": ("gelu_tanh", False),
    "silu": ("silu", False),
    "gated-gelu": ("gelu_tanh", True),
    "gated-silu": ("silu", True),
    "gated-relu": ("relu", True),
}
