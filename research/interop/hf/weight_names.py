"""Where each tensor of a family's files lives in our parameter tree."""

from functools import partial
from typing import NamedTuple


class Row(NamedTuple):
    """One tensor of a family.

    Attributes:
        hf: its name in the file, without prefix; `{l}` stands for the layer, `{e}` for
            an expert of it.
        ours: its path in our tree, or those of the several tensors that it holds; with
            `{l}` (and `{e}`) in `hf`, index l (and e) of their first axes.
        op: how it is rearranged, a key of `rearrangements.OPS`.
        gated: whether it is there in encoders with a gated feed-forward layer only, or
            in the others only; None for both.
    """

    hf: str
    ours: tuple[str, ...]
    op: str
    gated: bool | None = None


def _table(hf: str, name: str) -> Row:
    """The row of an embedding table."""
    return Row(f"{hf}.weight", (f"{name}/embedding",), "same")


def _norm(hf: str, name: str) -> tuple[Row, Row]:
    """The rows of a norm's scale and bias."""
    return (
        Row(f"{hf}.weight", (f"{name}/scale",), "same"),
        Row(f"{hf}.bias", (f"{name}/bias",), "same"),
    )


def _linear(
    hf: str, *ours: str, kernel: str, bias: str, gated: bool | None = None
) -> tuple[Row, Row]:
    """The rows of a linear layer's weight and bias, in blocks of the encoder."""
    kernels = tuple(f"layers/{path}/kernel" for path in ours)
    biases = tuple(f"layers/{path}/bias" for path in ours)
    return (
        Row(f"{hf}.weight", kernels, kernel, gated),
        Row(f"{hf}.bias", biases, bias, gated),
    )


_heads = partial(_linear, kernel="heads_in", bias="flat")
_out = partial(_linear, kernel="heads_out", bias="same")
_dense = partial(_linear, kernel="transpose", bias="same")
QKV = ("query", "key", "value")
_joined_heads = partial(_linear, kernel="joined_heads_in", bias="joined_flat")
_joined_dense = partial(_linear, kernel="joined_transpose", bias="joined_same")


def _bert_attention(layer: str) -> tuple[Row, ...]:
    return (
        *_heads(f"{layer}.attention.self.query", "query"),
        *_heads(f"{layer}.attention.self.key", "key"),
        *_heads(f"{layer}.attention.self.value", "value"),
        *_out(f"{layer}.attention.output.dense", "out"),
        *_norm(f"{layer}.attention.output.LayerNorm", "layers/attention_norm"),
    )


def _llama_attention(layer: str) -> tuple[Row, ...]:
    return (
        *_heads(f"{layer}.self_attn.q_proj", "query"),
        *_heads(f"{layer}.self_attn.k_proj", "key"),
        *_heads(f"{layer}.self_attn.v_proj", "value"),
        *_norm(f"{layer}.self_attn.q_norm", "layers/query_norm"),
        *_norm(f"{layer}.self_attn.k_norm", "layers/key_norm"),
        *_out(f"{layer}.self_attn.o_proj", "out"),
        *_norm(f"{layer}.input_layernorm", "layers/attention_norm"),
    )


def _llama_block(layer: str) -> tuple[Row, ...]:
    return (
        *_llama_attention(layer),
        *_dense(f"{layer}.mlp.gate_proj", "gate"),
        *_dense(f"{layer}.mlp.up_proj", "up"),
        *_dense(f"{layer}.mlp.down_proj", "down"),
    )


# BERT's tensors around its feed-forward layer; those of its descendants vary there.
_BERT = "encoder.layer.{l}"
_BERT_EMBEDDINGS = (
    _table("embeddings.word_embeddings", "embed/token"),
    _table("embeddings.position_embeddings", "embed/position"),
    _table("embeddings.token_type_embeddings", "embed/type"),
    *_norm("embeddings.LayerNorm", "embed/norm"),
)
_BERT_MLP = (
    *_dense(f"{_BERT}.intermediate.dense", "up"),
    *_dense(f"{_BERT}.output.dense", "down"),
    *_norm(f"{_BERT}.output.LayerNorm", "layers/mlp_norm"),
)
_BERT_ROWS = (*_BERT_EMBEDDINGS, *_bert_attention(_BERT), *_BERT_MLP)
_LAYER = "layers.{l}"
_LLAMA_ROWS = (
    _table("embed_tokens", "embed/token"),
    *_llama_block(_LAYER),
    *_norm(f"{_LAYER}.post_attention_layernorm", "layers/mlp_norm"),
    *_norm("norm", "final_norm"),
)
_GEMMA_ROWS = (
    _table("embed_tokens", "embed/token"),
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
ROWS = {
    "bert": _BERT_ROWS,
    "xlm-roberta": _BERT_ROWS,
    "roberta": _BERT_ROWS,
    "mpnet": (
        *_BERT_EMBEDDINGS,
        _table("encoder.relative_attention_bias", "position_bias"),
        *_heads(f"{_BERT}.attention.attn.q", "query"),
        *_heads(f"{_BERT}.attention.attn.k", "key"),
        *_heads(f"{_BERT}.attention.attn.v", "value"),
        *_out(f"{_BERT}.attention.attn.o", "out"),
        *_norm(f"{_BERT}.attention.LayerNorm", "layers/attention_norm"),
        *_BERT_MLP,
    ),
    "jina_bert": (
        *_BERT_EMBEDDINGS,
        *_bert_attention(_BERT),
        *_joined_dense(f"{_BERT}.mlp.gated_layers", "gate", "up"),
        *_dense(f"{_BERT}.mlp.wo", "down"),
        *_norm(f"{_BERT}.mlp.layernorm", "layers/mlp_norm"),
    ),
    # `transformers` writes the names of the remote code too.
    "nomic_bert": (
        *_BERT_EMBEDDINGS[:3],
        *_norm("emb_ln", "embed/norm"),
        *_joined_heads(f"{_NOMIC}.attn.Wqkv", *QKV),
        *_out(f"{_NOMIC}.attn.out_proj", "out"),
        *_norm(f"{_NOMIC}.norm1", "layers/attention_norm"),
        *_dense(f"{_NOMIC}.mlp.fc11", "up"),
        *_dense(f"{_NOMIC}.mlp.fc12", "gate"),
        *_dense(f"{_NOMIC}.mlp.fc2", "down"),
        *_norm(f"{_NOMIC}.norm2", "layers/mlp_norm"),
    ),
    "modernbert": (
        _table("embeddings.tok_embeddings", "embed/token"),
        *_norm("embeddings.norm", "embed/norm"),
        *_norm(f"{_LAYER}.attn_norm", "layers/attention_norm"),
        *_joined_heads(f"{_LAYER}.attn.Wqkv", *QKV),
        *_out(f"{_LAYER}.attn.Wo", "out"),
        *_norm(f"{_LAYER}.mlp_norm", "layers/mlp_norm"),
        *_joined_dense(f"{_LAYER}.mlp.Wi", "gate", "up"),
        *_dense(f"{_LAYER}.mlp.Wo", "down"),
        *_norm("final_norm", "final_norm"),
    ),
    "t5": (
        _table("shared", "embed/token"),
        _table(
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias",
            "position_bias",
        ),
        *_norm(f"{_T5}.0.layer_norm", "layers/attention_norm"),
        *_heads(f"{_T5}.0.SelfAttention.q", "query"),
        *_heads(f"{_T5}.0.SelfAttention.k", "key"),
        *_heads(f"{_T5}.0.SelfAttention.v", "value"),
        *_out(f"{_T5}.0.SelfAttention.o", "out"),
        *_norm(f"{_T5}.1.layer_norm", "layers/mlp_norm"),
        *_dense(f"{_T5_MLP}.wi", "up", gated=False),
        *_dense(f"{_T5_MLP}.wi_0", "gate", gated=True),
        *_dense(f"{_T5_MLP}.wi_1", "up", gated=True),
        *_dense(f"{_T5_MLP}.wo", "down"),
        *_norm("encoder.final_layer_norm", "final_norm"),
    ),
    "llama": _LLAMA_ROWS,
    "eurobert": _LLAMA_ROWS,
    "mistral": _LLAMA_ROWS,
    "qwen2": _LLAMA_ROWS,
    "qwen3": _LLAMA_ROWS,
    "gemma2": _GEMMA_ROWS,
    "gemma3_text": _GEMMA_ROWS,
    "mixtral": (
        _table("embed_tokens", "embed/token"),
        *_llama_attention(_LAYER),
        *_norm(f"{_LAYER}.post_attention_layernorm", "layers/mlp_norm"),
        *_dense(f"{_MOE}.gate", "router"),
        *_dense(f"{_MOE}.experts.{{e}}.w1", "experts/gate"),
        *_dense(f"{_MOE}.experts.{{e}}.w3", "experts/up"),
        *_dense(f"{_MOE}.experts.{{e}}.w2", "experts/down"),
        *_norm("norm", "final_norm"),
    ),
    "gpt2": (  # whose linear layers are [in, out] as ours
        _table("wte", "embed/token"),
        _table("wpe", "embed/position"),
        *_norm("h.{l}.ln_1", "layers/attention_norm"),
        *_linear("h.{l}.attn.c_attn", *QKV, kernel="joined_flat", bias="joined_flat"),
        *_linear("h.{l}.attn.c_proj", "out", kernel="flat_out", bias="same"),
        *_norm("h.{l}.ln_2", "layers/mlp_norm"),
        *_linear("h.{l}.mlp.c_fc", "up", kernel="same", bias="same"),
        *_linear("h.{l}.mlp.c_proj", "down", kernel="same", bias="same"),
        *_norm("ln_f", "final_norm"),
    ),
    "gpt_neox": (
        _table("embed_in", "embed/token"),
        *_norm(f"{_LAYER}.input_layernorm", "layers/attention_norm"),
        *_linear(
            f"{_LAYER}.attention.query_key_value",
            *QKV,
            kernel="heads_in_by_head",
            bias="flat_by_head",
        ),
        *_out(f"{_LAYER}.attention.dense", "out"),
        *_norm(f"{_LAYER}.post_attention_layernorm", "layers/mlp_norm"),
        *_dense(f"{_LAYER}.mlp.dense_h_to_4h", "up"),
        *_dense(f"{_LAYER}.mlp.dense_4h_to_h", "down"),
        *_norm("final_layer_norm", "final_norm"),
    ),
    "opt": (
        _table("decoder.embed_tokens", "embed/token"),
        _table("decoder.embed_positions", "embed/position"),
        *_norm(f"{_OPT}.self_attn_layer_norm", "layers/attention_norm"),
        *_heads(f"{_OPT}.self_attn.q_proj", "query"),
        *_heads(f"{_OPT}.self_attn.k_proj", "key"),
        *_heads(f"{_OPT}.self_attn.v_proj", "value"),
        *_out(f"{_OPT}.self_attn.out_proj", "out"),
        *_norm(f"{_OPT}.final_layer_norm", "layers/mlp_norm"),
        *_dense(f"{_OPT}.fc1", "up"),
        *_dense(f"{_OPT}.fc2", "down"),
        *_norm("decoder.final_layer_norm", "final_norm"),
    ),
}
