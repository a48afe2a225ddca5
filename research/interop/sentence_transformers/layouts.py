"""The modules of a sentence-transformers folder, by the kind of embeddings."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from research.config_sections import parse_call
from research.inference.model import EmbeddingModel
from research.interop.sentence_transformers.read import (
    ACTIVATIONS,
    POOLING_FLAGS,
    POOLINGS,
)
from research.models.pooling.projection import Dense
from research.text.late_interaction import LateInteraction
from research.text.prompts import inference_free
from research.text.templates import tokenize_with_prompt
from research.text.tokens import Piece


class Module(NamedTuple):
    """A module after the transformer: its class, its config.json and its tensors."""

    type: str
    config: dict[str, Any]
    tensors: dict[str, np.ndarray] = {}


class Layout(NamedTuple):
    """What a folder has besides the transformer's weights.

    Attributes:
        model: The model, with the tokenizer and the prompts of the folder.
        transformer: Class of the first module.
        modules: The modules after it.
        options: Options of the transformer, besides those of every folder.
        fields: Fields of config_sentence_transformers.json, besides the prompts.
        mlm_head: Whether the transformer has a head, which is the pooling's.
        query_weights: [V] weights of the tokens of queries, which have no encoder; None
            if queries go the way of documents.
    """

    model: EmbeddingModel
    transformer: str
    modules: list[Module]
    options: dict[str, Any]
    fields: dict[str, Any]
    mlm_head: bool = False
    query_weights: np.ndarray | None = None

    @property
    def body(self) -> str:
        """The folder of the transformer within that of the model."""
        return "" if self.query_weights is None else "document_0_Transformer"


def describe_dense(model: EmbeddingModel) -> Layout:
    """One vector per text, in the layout of versions before 6, which all read.

    Raises:
        ValueError: sentence-transformers does not have the pooling, or has no
            templates.
    """
    if model.pool not in POOLINGS.values():
        raise ValueError(
            f"sentence-transformers has no module that pools by {model.pool}; it has "
            f"{', '.join(POOLINGS.values())}"
        )
    if model.prompt is not None:
        raise ValueError(NO_TEMPLATES)
    # Pooling, linear layers and normalization
    modules = [Module(f"{OLD_PACKAGE}.Pooling", pooling_config(model))]
    modules += [
        Module(f"{OLD_PACKAGE}.Dense", _dense_config(layer), _dense_tensors(layer))
        for layer in _dense_layers(model)
    ]
    if model.normalize:
        config = name_features("sentence_embedding")
        modules.append(Module(f"{OLD_PACKAGE}.Normalize", config))
    fields = {"similarity_fn_name": model.similarity}
    return Layout(model, f"{OLD_PACKAGE}.Transformer", modules, {}, fields)


def describe_multi_vector(model: EmbeddingModel) -> Layout:
    """A vector per token: a MultiVectorEncoder of version 6.2 or later.

    Raises:
        ValueError: It cannot compute the model's similarity or its templates.
    """
    names = {True: ("maxsim", "meanmaxsim"), False: ("maxsim_dot",)}[model.normalize]
    if model.similarity not in names:
        length = "of length 1" if model.normalize else "not normalized"
        raise ValueError(
            f"MultiVectorEncoder compares vectors that are {length} by "
            f"{' or '.join(names)}, not {model.similarity}"
        )
    if model.prompt is not None and model.prompt.late_interaction is None:
        raise ValueError(NO_TEMPLATES)
    # The projection, cut to the width, then linear layers
    kernel = model.params.get("pooling", {}).get("kernel")
    layers = [*([] if kernel is None else [Dense(np.asarray(kernel))]), *model.dense]
    if model.dim is not None and model.dim < model.full_width:
        layers.append(Dense(np.eye(model.full_width, model.dim, dtype="f4")))
    late = model.prompt.late_interaction if model.prompt else NO_CHANGE
    names = name_features("token_embeddings")
    modules = [
        Module(
            f"{BASE}.dense.Dense", _dense_config(layer) | names, _dense_tensors(layer)
        )
        for layer in layers
    ]
    mask = {
        "skiplist_words": list(late.skiplist),
        "skiplist_tasks": ["document"],
        "keep_only_token_ids": None,
    }
    modules.append(Module(MASK_TYPE, mask))
    if model.normalize:
        modules.append(Module(f"{BASE}.normalize.Normalize", names))
    # How texts become tokens: lengths beyond the model's own would be taken as they are
    lengths = {
        role: late.find_length(role, model.max_length) for role in ("query", "document")
    }
    options: dict[str, Any] = {
        "document_length": late.document_length and lengths["document"] or None
    }
    if late.expansion:
        options["query_expansion"] = {
            "strategy": "fixed",
            "attend": late.attends,
            "token": late.expansion,
            "length": lengths["query"],
        }
    elif late.query_length:
        options["query_length"] = lengths["query"]
    similarity = model.similarity.removesuffix("_dot")
    fields = {"model_type": "MultiVectorEncoder", "similarity_fn_name": similarity}
    if model.prompt is not None:
        model = _write_markers(model)
    return Layout(model, f"{BASE}.transformer.Transformer", modules, options, fields)


def describe_m3(model: EmbeddingModel) -> Layout:
    """The dense vector of BGE-M3 alone, as the authors' folder has it."""
    dense = model._replace(pool="cls", normalize=True, similarity="cosine", dim=None)
    return describe_dense(dense._replace(dim=min(model.width, dense.width)))


def describe_slim(model: EmbeddingModel) -> Layout:
    """Raises ValueError, since no module gives each token sparse weights."""
    raise ValueError(
        "sentence-transformers has no module that gives each token sparse weights, as "
        f"the pooling {model.pool} does"
    )


def describe_sparse(model: EmbeddingModel) -> Layout:
    """Weights of the vocabulary: a SparseEncoder of version 6 or later.

    Raises:
        ValueError: It cannot compute the model's pooling, or what is done after it.
    """
    call = parse_call(model.pool)
    if call.name not in ("splade", "splade_doc"):
        raise ValueError(f"SparseEncoder has no module that pools by {model.pool}")
    # Its queries without an encoder are without special tokens
    query_weights = model.params["pooling"].get("query_weights")
    prompt = None if query_weights is None else inference_free()
    if model.prompt != prompt:
        raise ValueError(
            NO_TEMPLATES
            if prompt is None
            else "SparseEncoder leaves special tokens out of queries without an "
            "encoder, as the prompt inference_free does, which this model does not have"
        )
    model = model._replace(prompt=None)
    if model.dim not in (None, model.full_width) or model.dense or model.normalize:
        raise ValueError(
            "SparseEncoder neither cuts, projects nor normalizes sparse vectors, as "
            "this model does"
        )
    # Logits of the masked language model, and their pooling
    activation = call.kwargs.get("activation", "log1p")
    config = {
        "pooling_strategy": call.kwargs.get("aggregate", "max"),
        "activation_function": SPLADE_ACTIVATIONS[activation],
        "embedding_dimension": model.config.vocab_size,
    }
    options = {
        "transformer_task": "fill-mask",
        "modality_config": {"text": LOGITS},
        "module_output_name": "token_embeddings",
    }
    fields = {"model_type": "SparseEncoder", "similarity_fn_name": model.similarity}
    if top := call.kwargs.get("top"):
        fields["max_active_dims"] = top
    modules = [Module(SPLADE_TYPE, config)]
    transformer = f"{BASE}.transformer.Transformer"
    return Layout(
        *(model, transformer, modules, options, fields),
        mlm_head=True,
        query_weights=query_weights,
    )


def _write_markers(model: EmbeddingModel) -> EmbeddingModel:
    """The model with prompts instead of templates, and markers as special tokens.

    Raises:
        ValueError: The tokenizer would give other tokens than the templates.
    """
    tokenizer = tokenizers.Tokenizer.from_str(model.tokenizer.to_str())
    prompts, length = dict(model.prompts), model.max_length
    for role, (template,) in model.prompt.templates.items():
        # The pieces between the opening token and the text
        first = next(i for i, piece in enumerate(template) if piece.is_text)
        pieces = [piece for piece in template[:first] if piece.special != "bos"]
        markers = [piece.special for piece in pieces if piece.special]
        tokenizer.add_special_tokens(
            [tokenizers.AddedToken(marker, normalized=False) for marker in markers]
        )
        # Some tokenizers need a space between the marker and the text
        plain = model.prompt._replace(late_interaction=None)
        (rows,) = tokenize_with_prompt(plain, model.tokenizer, [SAMPLE], length, role)
        start = "".join(map(_write_piece, pieces))
        for prompt in (start, f"{start} "):
            ids = tokenizer.encode(prompt + SAMPLE).ids
            if ids == rows.token_ids[0].tolist():
                prompts[role] = prompt
                break
        else:
            raise ValueError(
                f"the tokenizer does not read {start!r} before a text as the prompt "
                f"of the {role} does; the model can only be used by us"
            )
    return model._replace(tokenizer=tokenizer, prompts=prompts, prompt=None)


def _write_piece(piece: Piece) -> str:
    """The text of a marker, or of a literal."""
    return piece.special or piece.literal.replace("{{", "{").replace("}}", "}")


def pooling_config(model: EmbeddingModel) -> dict[str, Any]:
    """The fields of 1_Pooling/config.json, for all versions."""
    mode = {ours: name for name, ours in POOLINGS.items()}[model.pool]
    return {
        "word_embedding_dimension": model.config.width,
        **{flag: name == mode for flag, name in POOLING_FLAGS.items()},
        "include_prompt": True,
        "embedding_dimension": model.config.width,
        "pooling_mode": mode,
    }


def _dense_layers(model: EmbeddingModel) -> list[Dense]:
    """The linear layers of the model, and one more if the width is truncated."""
    layers, full_width = list(model.dense), model._replace(dim=None).width
    if model.dim < full_width:
        layers.append(Dense(np.eye(full_width, model.dim, dtype="f4")))
    return layers


def _dense_config(layer: Dense) -> dict[str, Any]:
    """The fields of 2_Dense/config.json."""
    names = {ours: name for name, ours in ACTIVATIONS.items()}
    return {
        "in_features": layer.kernel.shape[0],
        "out_features": layer.kernel.shape[1],
        "bias": layer.bias is not None,
        "activation_function": names[layer.activation],
    }


def _dense_tensors(layer: Dense) -> dict[str, np.ndarray]:
    """The tensors of 2_Dense/model.safetensors."""
    weight = np.ascontiguousarray(np.asarray(layer.kernel).T)
    bias = {} if layer.bias is None else {"linear.bias": np.asarray(layer.bias)}
    return {"linear.weight": weight, **bias}


def name_features(name: str) -> dict[str, Any]:
    """The fields of a module that reads and writes these features.

    Written for every module, since git and the hub drop empty folders.
    """
    return {"module_input_name": name, "module_output_name": name}


OLD_PACKAGE = "sentence_transformers.models"
BASE = "sentence_transformers.base.modules"
MASK_TYPE = (
    "sentence_transformers.multi_vector_encoder.modules.multi_vector_mask"
    ".MultiVectorMask"
)
SPLADE_TYPE = (
    "sentence_transformers.sparse_encoder.modules.splade_pooling.SpladePooling"
)
STATIC_TYPE = (
    "sentence_transformers.sparse_encoder.modules.sparse_static_embedding"
    ".SparseStaticEmbedding"
)
ROUTER_TYPE = f"{BASE}.router.Router"
LOGITS = {"method": "forward", "method_output_name": "logits"}
# {our name of an activation: theirs}
SPLADE_ACTIVATIONS = {"log1p": "relu", "log1p_twice": "log1p_relu"}
# Neither markers, nor longer queries, nor tokens that are not scored.
NO_CHANGE = LateInteraction(0, 0, "", skiplist=())
NO_TEMPLATES = (
    "the model puts texts into templates, which sentence-transformers has not; it can "
    "only be used by us"
)
SAMPLE = "a text"  # that two tokenizers are compared by
# {kind of embeddings: the layout of a model}
LAYOUTS: dict[str, Callable[[EmbeddingModel], Layout]] = {
    "dense": describe_dense,
    "multi_vector": describe_multi_vector,
    "sparse": describe_sparse,
    "slim": describe_slim,
}
