"""Model families of Hugging Face `transformers`: `config.json` <-> EncoderConfig.

A family is a pair of functions, reader and writer, in `FAMILIES`, and the rows of
`huggingface.ROWS` that name its tensors. The reader refuses whatever our encoder does
not compute, so that what is read is what `transformers` would compute.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from research.models.config import EncoderConfig


class Family(NamedTuple):
    """How one `model_type` is read and written.

    Attributes:
        read: the fields of a `config.json` -> EncoderConfig.
        write: EncoderConfig -> the fields of a `config.json`; fields of the config
            that the family cannot say are left out (see `family_of`).
    """

    read: Callable[[Mapping[str, Any]], EncoderConfig]
    write: Callable[[EncoderConfig], dict[str, Any]]


def read_config(fields: Mapping[str, Any]) -> EncoderConfig:
    """The EncoderConfig that a `config.json` describes.

    Args:
        fields: the parsed `config.json` of a Hugging Face model folder.
    Raises:
        ValueError: an unknown family, a missing field, or a field whose value our
            encoder does not compute.
    """
    name = fields.get("model_type")
    if name not in FAMILIES:
        raise ValueError(
            f"config.json has model_type {name!r}; known are {', '.join(FAMILIES)}"
        )
    try:
        return FAMILIES[name].read(fields)
    except KeyError as missing:
        raise ValueError(f"config.json of a {name} model lacks {missing}") from None


def write_config(cfg: EncoderConfig) -> dict[str, Any]:
    """The `config.json` fields of the family that computes what `cfg` says.

    Raises:
        ValueError: no family of `transformers` computes it.
    """
    return FAMILIES[family_of(cfg)].write(cfg)


def family_of(cfg: EncoderConfig) -> str:
    """The first family that can say everything in `cfg`: reading back gives `cfg`.

    How the arithmetic is run (dtype, remat, attention) is ours and not compared.

    Raises:
        ValueError: no family can.
    """
    for name, family in FAMILIES.items():
        try:
            again = family.read(family.write(cfg))
        except ValueError:
            continue
        ours = {"dtype": cfg.dtype, "remat": cfg.remat, "attention": cfg.attention}
        if replace(again, **ours) == cfg:
            return name
    raise ValueError(
        f"no Hugging Face family ({', '.join(FAMILIES)}) computes norm={cfg.norm}, "
        f"norm_at={cfg.norm_at}, position={cfg.position}, act={cfg.act}, "
        f"gated={cfg.gated}, bias={cfg.bias}, embed_norm={cfg.embed_norm}"
    )


def read_bert(fields: Mapping[str, Any]) -> EncoderConfig:
    """BERT (`transformers` models/bert): post-norm, learned positions."""
    _require(
        fields,
        position_embedding_type=("absolute",),
        is_decoder=(False,),
        add_cross_attention=(False,),
    )
    return EncoderConfig(
        vocab=fields["vocab_size"],
        width=fields["hidden_size"],
        depth=fields["num_hidden_layers"],
        heads=fields["num_attention_heads"],
        mlp=fields["intermediate_size"],
        max_len=fields.get("max_position_embeddings", 512),
        norm_eps=fields.get("layer_norm_eps", 1e-12),
        act=_act(fields.get("hidden_act", "gelu")),
        type_vocab=fields.get("type_vocab_size", 2),
        dropout=fields.get("hidden_dropout_prob", 0.1),
    )


def write_bert(cfg: EncoderConfig) -> dict[str, Any]:
    """The inverse of `read_bert`; both dropout rates are `cfg.dropout`."""
    return {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": cfg.vocab,
        "hidden_size": cfg.width,
        "num_hidden_layers": cfg.depth,
        "num_attention_heads": cfg.heads,
        "intermediate_size": cfg.mlp,
        "max_position_embeddings": cfg.max_len,
        "layer_norm_eps": cfg.norm_eps,
        "hidden_act": HF_ACTS[cfg.act],
        "type_vocab_size": cfg.type_vocab,
        "hidden_dropout_prob": cfg.dropout,
        "attention_probs_dropout_prob": cfg.dropout,
        "position_embedding_type": "absolute",
        "initializer_range": 0.02,
        "pad_token_id": 0,
    }


def read_llama(fields: Mapping[str, Any]) -> EncoderConfig:
    """Bidirectional Llama (`transformers` models/llama with `is_causal` false).

    `is_causal: false` is how transformers >= 5.2 switches a decoder's causal mask off;
    a config without it is a causal model, which our encoder is not.
    """
    heads = fields["num_attention_heads"]
    _require(
        {"is_causal": True, **fields},
        is_causal=(False,),
        num_key_value_heads=(heads, None),
        head_dim=(fields["hidden_size"] // heads, None),
        mlp_bias=(fields.get("attention_bias", False),),
    )
    return EncoderConfig(
        vocab=fields["vocab_size"],
        width=fields["hidden_size"],
        depth=fields["num_hidden_layers"],
        heads=heads,
        mlp=fields["intermediate_size"],
        max_len=fields.get("max_position_embeddings", 2048),
        norm="rms",
        norm_at="pre",
        norm_eps=fields.get("rms_norm_eps", 1e-6),
        bias=fields.get("attention_bias", False),
        act=_act(fields.get("hidden_act", "silu")),
        gated=True,
        position="rope",
        rope_theta=_rope_theta(fields),
        type_vocab=0,
        embed_norm=False,
        dropout=fields.get("attention_dropout", 0.0),
    )


def write_llama(cfg: EncoderConfig) -> dict[str, Any]:
    """The inverse of `read_llama`; rotary fields for transformers v4 and v5."""
    return {
        "architectures": ["LlamaModel"],
        "model_type": "llama",
        "is_causal": False,
        "vocab_size": cfg.vocab,
        "hidden_size": cfg.width,
        "num_hidden_layers": cfg.depth,
        "num_attention_heads": cfg.heads,
        "num_key_value_heads": cfg.heads,
        "head_dim": cfg.head_dim,
        "intermediate_size": cfg.mlp,
        "max_position_embeddings": cfg.max_len,
        "rms_norm_eps": cfg.norm_eps,
        "hidden_act": HF_ACTS[cfg.act],
        "attention_bias": cfg.bias,
        "mlp_bias": cfg.bias,
        "attention_dropout": cfg.dropout,
        "rope_parameters": {"rope_type": "default", "rope_theta": cfg.rope_theta},
        "rope_theta": cfg.rope_theta,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "use_cache": False,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def _require(fields: Mapping[str, Any], **allowed: tuple) -> None:
    """Raises for each field that is there and holds something that is not allowed."""
    wrong = [
        f"{name} {fields[name]!r} (allowed: {', '.join(map(repr, values))})"
        for name, values in allowed.items()
        if name in fields and fields[name] not in values
    ]
    if wrong:
        kind = fields.get("model_type")
        raise ValueError(
            f"config.json asks for what our {kind} encoder does not compute: "
            + "; ".join(wrong)
        )


def _act(name: str) -> str:
    """Our name of a Hugging Face activation."""
    if name not in ACTS:
        raise ValueError(
            f"config.json has hidden_act {name!r}; allowed are {', '.join(ACTS)}"
        )
    return ACTS[name]


def _rope_theta(fields: Mapping[str, Any]) -> float:
    """The rotary base, from v5's `rope_parameters` or v4's `rope_theta`."""
    rope = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ValueError(f"config.json has rope_type {kind!r}; allowed is 'default'")
    return float(rope.get("rope_theta", fields.get("rope_theta", 10_000.0)))


ACTS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
}
HF_ACTS = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "silu": "silu",
    "relu": "relu",
}
FAMILIES = {
    "bert": Family(read_bert, write_bert),
    "llama": Family(read_llama, write_llama),
}
