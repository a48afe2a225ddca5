"""Names of a Hugging Face family's tensors, and their paths in our parameter tree.

A file of `transformers` has a tensor per layer, which sometimes holds several of our
parameters. Our parameters are stacked over layers; query, key and value are separate.
"""

from functools import partial
from typing import NamedTuple


class TensorMap(NamedTuple):
    """One tensor of a family and the parameters that it holds.

    Attributes:
        name: Name in the file, without prefix, with `{l}` for the layer and `{e}` for
            the expert.
        paths: Paths of the parameters in our tree. If the name has `{l}` (and `{e}`),
            the tensor is at index l (and e) of their first axes.
        transform: The rearrangement, a key of `weight_transforms.TRANSFORMS`.
        gated: Whether the tensor exists only in encoders with a gated feed-forward
            layer, or only in the others; None for both.
    """

    name: str
    paths: tuple[str, ...]
    transform: str
    gated: bool | None = None


def canonical_name(name: str) -> str:
    """The tensor's name without prefixes, as current files have it."""
    while name.startswith(PREFIXES):
        name = name.partition(".")[2]
    for old, new in RENAMED.items():
        name = name.removesuffix(old) + new if name.endswith(old) else name
    return name


def is_body(name: str, family: str) -> bool:
    """Whether a tensor belongs to a family's encoder, and not to a head.

    Heads, poolers and decoders have names of their own beside those of the encoder,
    which `transformers` passes over when it loads an encoder.

    Args:
        name: Name of the tensor, with or without prefix.
        family: Name of the family.
    """
    name = canonical_name(name)
    if name.startswith(UNUSED.get(family, ())) or name.endswith(BUFFERS):
        return False
    roots = {tensor.name.partition(".")[0] for tensor in WEIGHT_NAMES[family]}
    return name.partition(".")[0] in roots


def _embedding(name: str, path: str) -> TensorMap:
    """An embedding table."""
    return TensorMap(f"{name}.weight", (f"{path}/embedding",), "same")


def _norm(name: str, path: str) -> tuple[TensorMap, TensorMap]:
    """The scale and the bias of a norm."""
    return (
        TensorMap(f"{name}.weight", (f"{path}/scale",), "same"),
        TensorMap(f"{name}.bias", (f"{path}/bias",), "same"),
    )


def _linear(
    name: str, *layers: str, kernel: str, bias: str, gated: bool | None = None
) -> tuple[TensorMap, TensorMap]:
    """The weight and the bias of a linear layer, which holds one or several of ours."""
    kernels = tuple(f"layers/{layer}/kernel" for layer in layers)
    biases = tuple(f"layers/{layer}/bias" for layer in layers)
    return (
        TensorMap(f"{name}.weight", kernels, kernel, gated),
        TensorMap(f"{name}.bias", biases, bias, gated),
    )


_heads_in = partial(_linear, kernel="heads_in", bias="flat")
_heads_out = partial(_linear, kernel="heads_out", bias="same")
_dense = partial(_linear, kernel="transpose", bias="same")
QKV = ("query", "key", "value")
_fused_heads = partial(_linear, kernel="fused_heads_in", bias="fused_flat")
_fused_dense = partial(_linear, kernel="fused_transpose", bias="fused_same")


def _bert_attention(layer: str) -> tuple[TensorMap, ...]:
    return (
        *_heads_in(f"{layer}.attention.self.query", "query"),
        *_heads_in(f"{layer}.attention.self.key", "key"),
        *_heads_in(f"{layer}.attention.self.value", "value"),
        *_heads_out(f"{layer}.attention.output.dense", "out"),
        *_norm(f"{layer}.attention.output.LayerNorm", "layers/attention_norm"),
    )


def _llama_attention(layer: str) -> tuple[TensorMap, ...]:
    return (
        *_heads_in(f"{layer}.self_attn.q_proj", "query"),
        *_heads_in(f"{layer}.self_attn.k_proj", "key"),
        *_heads_in(f"{layer}.self_attn.v_proj", "value"),
        *_norm(f"{layer}.self_attn.q_norm", "layers/query_norm"),
        *_norm(f"{layer}.self_attn.k_norm", "layers/key_norm"),
        *_heads_out(f"{layer}.self_attn.o_proj", "out"),
        *_norm(f"{layer}.input_layernorm", "layers/attention_norm"),
    )


def _llama_block(layer: str) -> tuple[TensorMap, ...]:
    return (
        *_llama_attention(layer),
        *_dense(f"{layer}.mlp.gate_proj", "gate"),
        *_dense(f"{layer}.mlp.up_proj", "up"),
        *_dense(f"{layer}.mlp.down_proj", "down"),
    )


# BERT's tensors; its descendants differ in attention or in the feed-forward layer.
_BERT = "encoder.layer.{l}"
_BERT_EMBEDDINGS = (
    _embedding("embeddings.word_embeddings", "embed/token"),
    _embedding("embeddings.position_embeddings", "embed/position"),
    _embedding("embeddings.token_type_embeddings", "embed/type"),
    *_norm("embeddings.LayerNorm", "embed/norm"),
)
_BERT_MLP = (
    *_dense(f"{_BERT}.intermediate.dense", "up"),
    *_dense(f"{_BERT}.output.dense", "down"),
    *_norm(f"{_BERT}.output.LayerNorm", "layers/mlp_norm"),
)
_BERT_TENSORS = (*_BERT_EMBEDDINGS, *_bert_attention(_BERT), *_BERT_MLP)
_LAYER = "layers.{l}"
_LLAMA_TENSORS = (
    _embedding("embed_tokens", "embed/token"),
    *_llama_block(_LAYER),
    *_norm(f"{_LAYER}.post_attention_layernorm", "layers/mlp_norm"),
    *_norm("norm", "final_norm"),
)
_GEMMA_TENSORS = (
    _embedding("embed_tokens", "embed/token"),
    *_llama_block(_LAYER),
    *_norm(f"{_LAYER}.post_attention_layernorm", "layers/attention_post_norm"),
    *_norm(f"{_LAYER}.pre_feedforward_layernorm", "layers/mlp_norm"),
    *_norm(f"{_LAYER}.post_feedforward_layernorm", "layers/mlp_post_norm"),
    *_norm("norm", "final_norm"),
)
_MOE = "layers.{l}.block_sparse_moe"
_NOMIC = "encoder.layers.{l}"
_T5 = "encoder.block.{l}.layer"
_T5_MLP = f"{_T5}.1.DenseReluDense"
_OPT = "decoder.layers.{l}"
# {family: its tensors}
WEIGHT_NAMES = {
    "bert": _BERT_TENSORS,
    "xlm-roberta": _BERT_TENSORS,
    "roberta": _BERT_TENSORS,
    "mpnet": (
        *_BERT_EMBEDDINGS,
        _embedding("encoder.relative_attention_bias", "position_bias"),
        *_heads_in(f"{_BERT}.attention.attn.q", "query"),
        *_heads_in(f"{_BERT}.attention.attn.k", "key"),
        *_heads_in(f"{_BERT}.attention.attn.v", "value"),
        *_heads_out(f"{_BERT}.attention.attn.o", "out"),
        *_norm(f"{_BERT}.attention.LayerNorm", "layers/attention_norm"),
        *_BERT_MLP,
    ),
    "jina_bert": (
        *_BERT_EMBEDDINGS,
        *_bert_attention(_BERT),
        *_fused_dense(f"{_BERT}.mlp.gated_layers", "gate", "up"),
        *_dense(f"{_BERT}.mlp.wo", "down"),
        *_norm(f"{_BERT}.mlp.layernorm", "layers/mlp_norm"),
    ),
    # `transformers` writes the names of the remote code too.
    "nomic_bert": (
        *_BERT_EMBEDDINGS[:3],
        *_norm("emb_ln", "embed/norm"),
        *_fused_heads(f"{_NOMIC}.attn.Wqkv", *QKV),
        *_heads_out(f"{_NOMIC}.attn.out_proj", "out"),
        *_norm(f"{_NOMIC}.norm1", "layers/attention_norm"),
        *_dense(f"{_NOMIC}.mlp.fc11", "up"),
        *_dense(f"{_NOMIC}.mlp.fc12", "gate"),
        *_dense(f"{_NOMIC}.mlp.fc2", "down"),
        *_norm(f"{_NOMIC}.norm2", "layers/mlp_norm"),
    ),
    "modernbert": (
        _embedding("embeddings.tok_embeddings", "embed/token"),
        *_norm("embeddings.norm", "embed/norm"),
        *_norm(f"{_LAYER}.attn_norm", "layers/attention_norm"),
        *_fused_heads(f"{_LAYER}.attn.Wqkv", *QKV),
        *_heads_out(f"{_LAYER}.attn.Wo", "out"),
        *_norm(f"{_LAYER}.mlp_norm", "layers/mlp_norm"),
        *_fused_dense(f"{_LAYER}.mlp.Wi", "gate", "up"),
        *_dense(f"{_LAYER}.mlp.Wo", "down"),
        *_norm("final_norm", "final_norm"),
    ),
    "t5": (
        _embedding("shared", "embed/token"),
        _embedding(
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias",
            "position_bias",
        ),
        *_norm(f"{_T5}.0.layer_norm", "layers/attention_norm"),
        *_heads_in(f"{_T5}.0.SelfAttention.q", "query"),
        *_heads_in(f"{_T5}.0.SelfAttention.k", "key"),
        *_heads_in(f"{_T5}.0.SelfAttention.v", "value"),
        *_heads_out(f"{_T5}.0.SelfAttention.o", "out"),
        *_norm(f"{_T5}.1.layer_norm", "layers/mlp_norm"),
        *_dense(f"{_T5_MLP}.wi", "up", gated=False),
        *_dense(f"{_T5_MLP}.wi_0", "gate", gated=True),
        *_dense(f"{_T5_MLP}.wi_1", "up", gated=True),
        *_dense(f"{_T5_MLP}.wo", "down"),
        *_norm("encoder.final_layer_norm", "final_norm"),
    ),
    "llama": _LLAMA_TENSORS,
    "eurobert": _LLAMA_TENSORS,
    "mistral": _LLAMA_TENSORS,
    "qwen2": _LLAMA_TENSORS,
    "qwen3": _LLAMA_TENSORS,
    "gemma2": _GEMMA_TENSORS,
    "gemma3_text": _GEMMA_TENSORS,
    "mixtral": (
        _embedding("embed_tokens", "embed/token"),
        *_llama_attention(_LAYER),
        *_norm(f"{_LAYER}.post_attention_layernorm", "layers/mlp_norm"),
        *_dense(f"{_MOE}.gate", "router"),
        *_dense(f"{_MOE}.experts.{{e}}.w1", "experts/gate"),
        *_dense(f"{_MOE}.experts.{{e}}.w3", "experts/up"),
        *_dense(f"{_MOE}.experts.{{e}}.w2", "experts/down"),
        *_norm("norm", "final_norm"),
    ),
    "gpt2": (  # its linear layers are [in, out] like ours
        _embedding("wte", "embed/token"),
        _embedding("wpe", "embed/position"),
        *_norm("h.{l}.ln_1", "layers/attention_norm"),
        *_linear("h.{l}.attn.c_attn", *QKV, kernel="fused_flat", bias="fused_flat"),
        *_linear("h.{l}.attn.c_proj", "out", kernel="flat_out", bias="same"),
        *_norm("h.{l}.ln_2", "layers/mlp_norm"),
        *_linear("h.{l}.mlp.c_fc", "up", kernel="same", bias="same"),
        *_linear("h.{l}.mlp.c_proj", "down", kernel="same", bias="same"),
        *_norm("ln_f", "final_norm"),
    ),
    "gpt_neox": (
        _embedding("embed_in", "embed/token"),
        *_norm(f"{_LAYER}.input_layernorm", "layers/attention_norm"),
        *_linear(
            f"{_LAYER}.attention.query_key_value",
            *QKV,
            kernel="heads_in_by_head",
            bias="flat_by_head",
        ),
        *_heads_out(f"{_LAYER}.attention.dense", "out"),
        *_norm(f"{_LAYER}.post_attention_layernorm", "layers/mlp_norm"),
        *_dense(f"{_LAYER}.mlp.dense_h_to_4h", "up"),
        *_dense(f"{_LAYER}.mlp.dense_4h_to_h", "down"),
        *_norm("final_layer_norm", "final_norm"),
    ),
    "opt": (
        _embedding("decoder.embed_tokens", "embed/token"),
        _embedding("decoder.embed_positions", "embed/position"),
        *_norm(f"{_OPT}.self_attn_layer_norm", "layers/attention_norm"),
        *_heads_in(f"{_OPT}.self_attn.q_proj", "query"),
        *_heads_in(f"{_OPT}.self_attn.k_proj", "key"),
        *_heads_in(f"{_OPT}.self_attn.v_proj", "value"),
        *_heads_out(f"{_OPT}.self_attn.out_proj", "out"),
        *_norm(f"{_OPT}.final_layer_norm", "layers/mlp_norm"),
        *_dense(f"{_OPT}.fc1", "up"),
        *_dense(f"{_OPT}.fc2", "down"),
        *_norm("decoder.final_layer_norm", "final_norm"),
    ),
}
# The output layer of a causal language model, [V, D], where it is not tied to the token
# table; and the prefix that such a model puts before its encoder's names.
OUTPUT_LAYER = TensorMap("lm_head.weight", ("lm_head/kernel",), "same")
_NEOX_OUTPUT_LAYER = OUTPUT_LAYER._replace(name="embed_out.weight")
OUTPUT_LAYERS = {
    "llama": (OUTPUT_LAYER, "model."),
    "mistral": (OUTPUT_LAYER, "model."),
    "mixtral": (OUTPUT_LAYER, "model."),
    "qwen2": (OUTPUT_LAYER, "model."),
    "qwen3": (OUTPUT_LAYER, "model."),
    "gemma2": (OUTPUT_LAYER, "model."),
    "gemma3_text": (OUTPUT_LAYER, "model."),
    "gpt2": (OUTPUT_LAYER, "transformer."),
    "gpt_neox": (_NEOX_OUTPUT_LAYER, "gpt_neox."),
    "opt": (OUTPUT_LAYER, "model."),
}


def _mlm_head(dense: str, norm: str, bias: str) -> tuple[TensorMap, ...]:
    """BERT's head that predicts masked tokens, with the token table as its output."""
    return (
        TensorMap(f"{dense}.weight", ("head/transform/kernel",), "transpose"),
        TensorMap(f"{dense}.bias", ("head/transform/bias",), "same"),
        *_norm(norm, "head/norm"),
        TensorMap(bias, ("head/bias",), "same"),
    )


_ROBERTA_HEAD = _mlm_head("lm_head.dense", "lm_head.layer_norm", "lm_head.bias")
# The head of masked language modeling; the prefix that such a model puts before its
# encoder's names; and its class.
MLM_HEADS = {
    "bert": (
        _mlm_head(
            "cls.predictions.transform.dense",
            "cls.predictions.transform.LayerNorm",
            "cls.predictions.bias",
        ),
        "bert.",
        "BertForMaskedLM",
    ),
    "roberta": (_ROBERTA_HEAD, "roberta.", "RobertaForMaskedLM"),
    "xlm-roberta": (_ROBERTA_HEAD, "roberta.", "XLMRobertaForMaskedLM"),
    "mpnet": (_ROBERTA_HEAD, "mpnet.", "MPNetForMaskedLM"),
}
# Prefixes of the encoder's names in files of models with a head or of several modes.
PREFIXES = (
    "bert.",
    "roberta.",
    "mpnet.",
    "nomic_bert.",
    "model.",
    "language_model.",
    "transformer.",
    "gpt_neox.",
)
# Names in the first files of BERT, of 2018.
RENAMED = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
# A second copy of the token table.
UNUSED = {"t5": ("encoder.embed_tokens.",)}
# Buffers that old versions saved beside the parameters.
BUFFERS = (
    "embeddings.position_ids",
    ".rotary_emb.inv_freq",
    ".attn.bias",
    ".attn.masked_bias",
    ".attention.bias",
    ".attention.masked_bias",
)
