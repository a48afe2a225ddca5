"""Reads sentence-transformers folders of every kind of embeddings.

A MultiVectorEncoder of sentence-transformers 6.2 and a ColBERT model of PyLate or of
Stanford give a vector per token, a SparseEncoder weights of the vocabulary.
"""

import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, normalizers

from research.atomic_write import read_json
from research.config_sections import format_call
from research.inference.model import EmbeddingModel
from research.interop.hf.tensor_files import read_file
from research.interop.json_files import check_number
from research.interop.sentence_transformers.autoencoder import read_autoencoder
from research.interop.sentence_transformers.layouts import (
    LOGITS,
    SPLADE_ACTIVATIONS,
)
from research.interop.sentence_transformers.m3_heads import add_heads, has_heads
from research.interop.sentence_transformers.read import (
    Modules,
    check_values,
    list_modules,
    read_dense,
    read_modules,
    read_options,
    read_prompts,
    read_section,
)
from research.interop.sentence_transformers.stanford import (
    TokenModules,
    read_stanford,
)
from research.models.pooling.projection import Dense
from research.text.multi_vector_prompts import colbert
from research.text.prompts import inference_free


def read_folder(path: Path) -> Modules | TokenModules:
    """Reads the modules of a folder, whatever its kind.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: The folder needs something that Embax does not compute.
    """
    if not (path / "modules.json").exists():
        return read_stanford(path)
    fields = read_json(path / "config_sentence_transformers.json", missing={})
    if fields.get("model_type") in ("MultiVectorEncoder", "ColBERT"):
        return _read_token_modules(path, fields)
    if fields.get("model_type") == "SparseEncoder":
        return _read_sparse_modules(path, fields)
    return read_modules(path)


def apply_modules(
    model: EmbeddingModel, folder: Modules | TokenModules
) -> EmbeddingModel:
    """A transformer's model with the settings of the folder around it."""
    late = folder if isinstance(folder, TokenModules) else None
    modules = late.modules if late else folder
    if modules.lower_case:
        _lower_case_input(model.tokenizer)
    model = model._replace(
        pool=modules.pool,
        prompts=modules.prompts,
        default_prompt=modules.default_prompt,
        similarity=modules.similarity,
        normalize=modules.normalize,
        dense=modules.dense,
        dim=modules.dim,
    )
    # Parameters of poolings, those of the vocabulary with the head
    if modules.mlm_head and model.params:
        params = dict(model.params)
        params["pooling"] = {"head": params.pop("head")}
        if modules.query_weights is not None:
            params["pooling"]["query_weights"] = modules.query_weights
        model = model._replace(params=params)
    if modules.pooling is not None and model.params:
        model = model._replace(params={**model.params, "pooling": modules.pooling})
    if modules.query_weights is not None:
        model = model._replace(prompt=inference_free())
    if has_heads(modules.transformer):
        model = add_heads(model, modules.transformer)
    return _apply_token_modules(model, late) if late else model


def get_modules(folder: Modules | TokenModules) -> Modules:
    """The modules that every kind has."""
    return folder.modules if isinstance(folder, TokenModules) else folder


def _read_token_modules(path: Path, fields: Mapping[str, Any]) -> TokenModules:
    """Reads a folder of a vector per token, of sentence-transformers or PyLate."""
    file = path / "config_sentence_transformers.json"
    is_pylate = fields["model_type"] == "ColBERT"
    modules = list_modules(path / "modules.json")
    kinds = [kind for kind, _ in modules]
    dense = kinds.count("Dense")
    wanted = ["Transformer", *["Dense"] * dense]
    wanted += (
        [] if is_pylate else ["MultiVectorMask", "Normalize"][: len(kinds) - 1 - dense]
    )
    if kinds != wanted:
        raise ValueError(
            f"{path / 'modules.json'} has the modules {', '.join(kinds)}; of a vector "
            "per token we compute Transformer, any number of Dense, MultiVectorMask "
            "and Normalize, in this order"
        )
    # Settings of the transformer, the projections and the scored tokens
    transformer = modules[0][1]
    options_file, options = read_options(transformer, LATE_OPTIONS)
    names = {} if is_pylate else dict.fromkeys(FEATURES, ("token_embeddings", None))
    layers = [read_dense(folder, names) for kind, folder in modules if kind == "Dense"]
    mask = {}
    if "MultiVectorMask" in kinds:
        mask_file = modules[kinds.index("MultiVectorMask")][1] / "config.json"
        mask = read_json(mask_file)
        check_values(mask_file, mask, ALLOWED_OF_MASK)
    normalize = is_pylate or "Normalize" in kinds
    if "Normalize" in kinds:
        normalize_file = modules[-1][1] / "config.json"
        check_values(normalize_file, read_json(normalize_file), names)
    # PyLate's own names of the settings
    settings = {**fields, **_convert_pylate(fields)} if is_pylate else options
    # Tokens that lengthen queries, and document tokens that do not score
    expansion = settings.get("query_expansion") or {}
    if expansion.get("strategy", "fixed") != "fixed":
        raise ValueError(
            f"{options_file} has query_expansion {expansion!r}; we compute only the "
            "strategy 'fixed'"
        )
    skiplist = settings.get("skiplist_words", mask.get("skiplist_words"))
    if skiplist is None:
        skiplist = list(string.punctuation) if is_pylate else []
    tokenizer_fields = dict(read_section(options, "processor_kwargs"))
    return TokenModules(
        Modules(
            transformer=transformer,
            max_length=check_number(options_file, tokenizer_fields, "model_max_length")
            or check_number(options_file, options, "max_seq_length"),
            lower_case=bool(options.get("do_lower_case")),
            tokenizer_fields=tokenizer_fields,
            config_fields=dict(read_section(options, "config_kwargs")),
            pool="colbert(dim=0)",
            prompts=read_prompts(file, settings if is_pylate else fields),
            default_prompt=fields.get("default_prompt_name") or "",
            similarity=_read_similarity(file, fields, normalize),
            normalize=normalize,
            dense=tuple(layers),
            dim=None,
        ),
        query_length=expansion.get("length") or settings.get("query_length") or 0,
        document_length=settings.get("document_length") or 0,
        expansion=expansion.get("token") if expansion else "",
        attends=bool(expansion.get("attend")),
        skiplist=tuple(skiplist),
    )


def _read_sparse_modules(path: Path, fields: Mapping[str, Any]) -> Modules:
    """Reads a folder of SPLADE: a masked language model, and a pooling of logits."""
    file = path / "config_sentence_transformers.json"
    modules_file, query_weights = path / "modules.json", None
    modules = list_modules(modules_file)
    if [kind for kind, _ in modules] == ["Router"]:
        modules_file, modules, query_weights = _read_routes(modules[0][1])
    kinds = [kind for kind, _ in modules]
    if kinds[-1:] == ["SparseAutoEncoder"]:
        return read_autoencoder(path, modules)
    if kinds != ["Transformer", "SpladePooling"]:
        raise ValueError(
            f"{modules_file} has the modules {', '.join(kinds)}; of sparse vectors we "
            "compute Transformer and SpladePooling, or SparseAutoEncoder at the end"
        )
    # A transformer whose outputs are logits of the vocabulary
    options_file, options = read_options(modules[0][1], ("transformer_task",), LOGITS)
    check_values(options_file, options, {"transformer_task": ("fill-mask",)})
    check_values(file, fields, {"similarity_fn_name": ("dot", "cosine", None)})
    # The pooling, as a call
    pooling_file = modules[1][1] / "config.json"
    pooling = read_json(pooling_file)
    names = {theirs: ours for ours, theirs in SPLADE_ACTIVATIONS.items()}
    allowed = {
        "pooling_strategy": ("max", "sum"),
        "activation_function": tuple(names),
    }
    check_values(pooling_file, pooling, allowed)
    arguments = {
        "aggregate": pooling.get("pooling_strategy", "max"),
        "activation": names[pooling.get("activation_function", "relu")],
        "top": check_number(file, fields, "max_active_dims") or 0,
    }
    name = "splade" if query_weights is None else "splade_doc"
    tokenizer_fields = dict(read_section(options, "processor_kwargs"))
    return Modules(
        transformer=modules[0][1],
        max_length=check_number(options_file, tokenizer_fields, "model_max_length")
        or check_number(options_file, options, "max_seq_length"),
        lower_case=bool(options.get("do_lower_case")),
        tokenizer_fields=tokenizer_fields,
        config_fields=dict(read_section(options, "config_kwargs")),
        pool=format_call({"name": name, **arguments}),
        prompts=read_prompts(file, fields),
        default_prompt=fields.get("default_prompt_name") or "",
        similarity=fields.get("similarity_fn_name") or "dot",
        normalize=False,
        dense=(),
        dim=None,
        mlm_head=True,
        query_weights=query_weights,
    )


def _read_routes(
    path: Path,
) -> tuple[Path, list[tuple[str, Path]], np.ndarray]:
    """The modules of documents, and the weights of queries without an encoder.

    Returns:
        The file of the routes, (kind, folder) of each module, and [V] weights.
    """
    file = path / "router_config.json"
    fields = read_json(file)
    # {role: (kind, folder) of each module}
    types, structure = fields.get("types", {}), fields.get("structure", {})
    routes = {
        role: [(str(types.get(name)).split(".")[-1], path / name) for name in names]
        for role, names in structure.items()
    }
    queries = [kind for kind, _ in routes.get("query", [])]
    if set(routes) != {"query", "document"} or queries != ["SparseStaticEmbedding"]:
        raise ValueError(
            f"{file} has the routes {', '.join(routes)}, with {', '.join(queries)} for "
            "queries; we compute SparseStaticEmbedding for queries and other modules "
            "for documents"
        )
    tensors = read_file(routes["query"][0][1] / "model.safetensors")
    return file, routes["document"], np.asarray(tensors["weight"], np.float32)


def _convert_pylate(fields: Mapping[str, Any]) -> dict[str, Any]:
    """PyLate's settings by the names of sentence-transformers."""
    # A prefix of its own comes before the prompt of the role
    prompts = dict(fields.get("prompts") or {})
    for role in ("query", "document"):
        prefix = fields.get(f"{role}_prefix") or ""
        prompts[role] = prefix + (prompts.get(role) or "").removeprefix(prefix)
    expansion = None
    if fields.get("do_query_expansion", True):
        expansion = {
            "attend": fields.get("attend_to_expansion_tokens"),
            "length": fields.get("query_length") or 32,
        }
    return {"prompts": prompts, "query_expansion": expansion}


def _read_similarity(file: Path, fields: Mapping[str, Any], normalize: bool) -> str:
    """Our name of the similarity of token vectors."""
    name = (fields.get("similarity_fn_name") or "maxsim").lower()
    if name not in ("maxsim", "meanmaxsim") or (name == "meanmaxsim" and not normalize):
        raise ValueError(
            f"{file} has similarity_fn_name {name!r}; of token vectors "
            f"{'of length 1' if normalize else 'that are not normalized'} we compute "
            f"{'maxsim, meanmaxsim' if normalize else 'maxsim'}"
        )
    return name if normalize else "maxsim_dot"


def _apply_token_modules(model: EmbeddingModel, late: TokenModules) -> EmbeddingModel:
    """Adds the projection and the prompt of a model of a vector per token."""
    # A single projection is the pooling's own, which training goes on with
    dense = late.modules.dense
    if len(dense) == 1 and _is_projection(dense[0]):
        kernel = np.asarray(dense[0].kernel)
        params = model.params and {**model.params, "pooling": {"kernel": kernel}}
        pool = f"colbert(dim={kernel.shape[1]})"
        model = model._replace(pool=pool, params=params, dense=())
    # Prompts that are tokens are markers; others are texts.
    texts = {}
    for role in ("query", "document"):
        prompt = model.prompts[role]
        token = find_marker(model.tokenizer, prompt)
        texts |= {f"{role}_marker": token or ""}
        texts |= {f"{role}_prefix": "" if token else prompt}
    expansion = late.expansion
    if expansion is None:
        expansion = model.special_tokens.get("mask_token", "[MASK]")
    prompt = colbert(
        **texts,
        query_length=late.query_length,
        document_length=late.document_length,
        expansion=expansion,
        attends=late.attends,
        skiplist=late.skiplist,
    )
    roles = {"query": "", "document": ""}
    return model._replace(prompt=prompt, prompts={**model.prompts, **roles})


def find_marker(tokenizer: Tokenizer, prompt: str) -> str | None:
    """The token that a prompt consists of, perhaps with a space; None if it is text."""
    for token in (prompt, prompt.strip()):
        if token and tokenizer.token_to_id(token) is not None:
            return token
    return None


def _is_projection(layer: Dense) -> bool:
    return layer.bias is None and layer.activation == "identity"


def _lower_case_input(tokenizer: Tokenizer) -> None:
    """Makes the tokenizer lowercase its input first."""
    # Before the tokenizer's own normalizer.
    steps = [normalizers.Lowercase()]
    if tokenizer.normalizer is not None:
        steps.append(tokenizer.normalizer)
    tokenizer.normalizer = normalizers.Sequence(steps)


# Files that tell of what comes after a transformer.
MODULE_FILES = ("modules.json", "artifact.metadata")
FEATURES = ("module_input_name", "module_output_name")
# Options of the transformer that only models of token vectors have.
LATE_OPTIONS = ("query_length", "document_length", "query_expansion")
ALLOWED_OF_MASK = {
    "skiplist_tasks": (["document"],),
    "keep_only_token_ids": (None, []),
}
