"""Reads the modules of a sentence-transformers folder: pooling, dense, prompts."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from research.atomic_write import read_json
from research.interop.hf.tensor_files import read_file
from research.interop.json_files import check_number
from research.models.pooling.projection import Dense


class Modules(NamedTuple):
    """The modules of a folder and their options.

    Attributes:
        transformer: Folder of the transformer.
        max_length: Maximum length of a text in tokens; None if the folder has none.
        lower_case: Whether texts are lowercased first.
        tokenizer_fields: Fields that replace those of tokenizer_config.json.
        config_fields: Fields that replace those of config.json.
        pool: A key of `BASIC_POOLINGS`.
        prompts: Prefix of texts by name; "query" and "document" are always there.
        default_prompt: Name of the prompt of `encode`; "" for none.
        similarity: How vectors are compared, one of SIMILARITIES.
        normalize: Whether embeddings are scaled to length 1.
        dense: Linear layers after the pooling.
        dim: Number of leading components that are kept; None for all.
        mlm_head: Whether the transformer has a head, which belongs to the pooling.
        query_weights: [V] weights of the tokens of queries that have no encoder.
        pooling: Other parameters of the pooling.
    """

    transformer: Path
    max_length: int | None
    lower_case: bool
    tokenizer_fields: dict[str, Any]
    config_fields: dict[str, Any]
    pool: str
    prompts: dict[str, str]
    default_prompt: str
    similarity: str
    normalize: bool
    dense: tuple[Dense, ...]
    dim: int | None
    mlm_head: bool = False
    query_weights: np.ndarray | None = None
    pooling: dict[str, np.ndarray] | None = None


def read_modules(path: Path, modules: Sequence | None = None) -> Modules:
    """Reads the modules of a folder: Transformer, Pooling and perhaps more.

    A last Dense module that only truncates the vector, as `export` writes it, becomes
    `dim`. `modules` are those that are read; None for all of modules.json.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: The folder needs something that Embax does not compute.
    """
    # Modules and their order; Dropout does nothing after training.
    modules = modules or list_modules(path / "modules.json")
    modules = [m for m in modules if m[0] != "Dropout"]
    kinds = [kind for kind, _ in modules]
    if not re.fullmatch("Transformer Pooling( Dense)*( Normalize)?", " ".join(kinds)):
        raise ValueError(
            f"{path / 'modules.json'} has the modules {', '.join(kinds)}; we compute "
            "Transformer, Pooling, any number of Dense, and Normalize, in this order"
        )
    transformer = modules[0][1]
    options_file, options = read_options(transformer)
    model_file = path / "config_sentence_transformers.json"
    fields = read_json(model_file, missing={})
    check_values(model_file, fields, ALLOWED_OF_MODEL)
    prompts = read_prompts(model_file, fields)
    # Dense modules; the last one may be a truncation.
    dense = [read_dense(folder) for kind, folder in modules if kind == "Dense"]
    dim = check_number(model_file, fields, "truncate_dim")
    if dense and dim is None and _is_truncation(dense[-1]):
        dim = dense.pop().kernel.shape[1]
    if kinds[-1] == "Normalize":
        file = modules[-1][1] / "config.json"
        check_values(file, read_json(file, missing={}), ALLOWED_OF_NORMALIZE)
        if fields.get("truncate_dim"):
            raise ValueError(
                f"{model_file} has truncate_dim {dim}, which cuts vectors after they "
                "are normalized; we cut them before"
            )
    tokenizer_fields = dict(read_section(options, "processor_kwargs"))
    return Modules(
        transformer=transformer,
        max_length=check_number(options_file, tokenizer_fields, "model_max_length")
        or check_number(options_file, options, "max_seq_length"),
        lower_case=bool(options.get("do_lower_case")),
        tokenizer_fields=tokenizer_fields,
        config_fields=dict(read_section(options, "config_kwargs")),
        pool=_read_pooling(modules[1][1] / "config.json", prompts),
        prompts=prompts,
        default_prompt=fields.get("default_prompt_name") or "",
        similarity=fields.get("similarity_fn_name") or "cosine",
        normalize=kinds[-1] == "Normalize",
        dense=tuple(dense),
        dim=dim,
    )


def check_values(
    file: Path, fields: Mapping[str, Any], allowed: Mapping[str, tuple]
) -> None:
    """Checks fields for which we compute only some values.

    Args:
        file: The file of the fields.
        fields: The fields.
        allowed: {field: the values that it may have}. A field may also be missing.

    Raises:
        ValueError: A field has another value.
    """
    for name, values in allowed.items():
        if name in fields and fields[name] not in values:
            raise ValueError(
                f"{file} has {name} {fields[name]!r}; we compute only "
                f"{' or '.join(map(repr, values))}"
            )


def list_modules(file: Path) -> list[tuple[str, Path]]:
    """(kind, folder) of each module of modules.json."""
    modules = []
    for module in read_json(file, kind=list):
        entries = module if isinstance(module, dict) else {}
        name, folder = entries.get("type"), entries.get("path")
        if not isinstance(name, str) or not isinstance(folder, str):
            raise ValueError(f"{file} has a module without type and path: {module!r}")
        if not name.startswith(("sentence_transformers.", "pylate.")):
            raise ValueError(
                f"{file} has the module {name}, whose code we neither run nor know"
            )
        modules.append((name.split(".")[-1], file.parent / folder))
    return modules


def read_options(
    folder: Path,
    known: Sequence[str] = (),
    modality: Mapping[str, str] | None = None,
) -> tuple[Path, dict[str, Any]]:
    """The file of the transformer's options, and its fields.

    Options in `known` may have any value; `modality` tells how texts are computed.
    """
    modality = modality or TEXT_MODALITY
    # The first file with any field, by the names that versions gave it.
    for name in OPTION_FILES:
        file = folder / name
        if options := read_json(file, missing={}):
            break
    allowed = {n: values for n, values in ALLOWED_OPTIONS.items() if n not in known}
    check_values(file, options, allowed)
    # Texts must go through the tokenizer as they are, without a chat template.
    modalities = options.get("modality_config", {"text": modality})
    if "message" in modalities or modalities.get("text") != modality:
        raise ValueError(
            f"{file} has modality_config {modalities!r}; we compute only texts, by "
            f"{modality!r}"
        )
    processing = options.get("processing_kwargs") or {}
    check_values(file, processing, {"text": ({},), "common": ({},)})
    # Arguments of the model that do not change what it computes.
    unknown = set(read_section(options, "model_kwargs")) - HARMLESS_MODEL_KWARGS
    if unknown:
        raise ValueError(
            f"{file} gives the model the arguments {', '.join(sorted(unknown))}, which "
            "we do not know"
        )
    return file, options


def read_section(options: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Keyword arguments of the options, by their new or old name."""
    section = options.get(OLD_SECTIONS[name]) or options.get(name) or {}
    if not isinstance(section, dict):
        raise ValueError(
            f"{name} of the transformer's options is no object: {section!r}"
        )
    return section


def _read_pooling(file: Path, prompts: Mapping[str, str]) -> str:
    """Our name for the pooling of 1_Pooling/config.json."""
    fields = read_json(file)
    modes = fields.get("pooling_mode")
    if modes is None:  # before version 6: a flag for each
        modes = [name for flag, name in POOLING_FLAGS.items() if fields.get(flag)]
    modes = [modes] if isinstance(modes, str) else modes or ["mean"]
    if not isinstance(modes, list) or len(modes) > 1 or f"{modes[0]}" not in POOLINGS:
        named = " and ".join(map(str, modes)) if isinstance(modes, list) else modes
        raise ValueError(
            f"{file} pools by {named}; we compute one of {', '.join(POOLINGS)}"
        )
    if not fields.get("include_prompt", True) and any(prompts.values()):
        raise ValueError(f"{file} leaves the prompt out of pooling, which we do not")
    return POOLINGS[modes[0]]


def read_prompts(file: Path, fields: Mapping[str, Any]) -> dict[str, str]:
    """The prompts by name; "query" and "document" are "" if there are none."""
    named = fields.get("prompts") or {}
    if not isinstance(named, Mapping):
        raise ValueError(f"{file} has prompts {named!r}; they should have names")
    prompts = {name: prompt or "" for name, prompt in named.items()}
    for name, prompt in prompts.items():
        if not isinstance(prompt, str) or LONE_SURROGATE.search(prompt):
            raise ValueError(
                f"{file} has the prompt {name} {prompt!r}, which is no text"
            )
    default = fields.get("default_prompt_name")
    if default is not None and default not in [*prompts, *ROLES]:
        raise ValueError(
            f"{file} has default_prompt_name {default!r}, but only the prompts "
            f"{', '.join(prompts) or 'none'}"
        )
    # Names of document prompts in common models.
    documents = [prompts[n] for n in ("document", "passage", "corpus") if n in prompts]
    roles = {"query": prompts.get("query", ""), "document": (documents or [""])[0]}
    return {**roles, **prompts, **roles}


def read_dense(path: Path, names: Mapping[str, tuple] | None = None) -> Dense:
    """Reads the linear layer of a Dense module.

    `names` are the allowed names of its input and output; None are a text's vector's.
    """
    # Check the options of the module.
    fields = read_json(path / "config.json")
    activation = fields.get("activation_function", "torch.nn.modules.activation.Tanh")
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"{path / 'config.json'} has activation_function {activation}; we compute "
            f"{', '.join(ACTIVATIONS)}"
        )
    allowed = ALLOWED_OF_NORMALIZE if names is None else names
    allowed = {**allowed, "use_residual": (False,)}
    check_values(path / "config.json", fields, allowed)
    # PyTorch stores [out, in], we [in, out].
    file = path / "model.safetensors"
    weights = read_file(file)
    expected = {"linear.weight"} | (
        {"linear.bias"} if fields.get("bias", True) else set()
    )
    if set(weights) != expected:
        raise ValueError(
            f"{file} has the tensors {', '.join(sorted(weights)) or 'none'}, but the "
            f"module has {', '.join(sorted(expected))}"
        )
    kernel = np.ascontiguousarray(weights["linear.weight"].T)
    return Dense(kernel, weights.get("linear.bias"), ACTIVATIONS[activation])


def _is_truncation(layer: Dense) -> bool:
    """Whether a layer only keeps the leading values: an identity kernel, no bias."""
    in_features, out_features = layer.kernel.shape
    linear = layer.bias is None and layer.activation == "identity"
    return (
        linear
        and out_features <= in_features
        and np.array_equal(layer.kernel, np.eye(in_features, out_features))
    )


LONE_SURROGATE = re.compile("[\\ud800-\\udfff]")  # half of a character, from JSON
ROLES = ("query", "document")
SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
# Names of the file with the transformer's options; the first one with fields counts.
OPTION_FILES = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)
# {section of keyword arguments in the options: its name before version 5.4}
OLD_SECTIONS = {
    "model_kwargs": "model_args",
    "processor_kwargs": "tokenizer_args",
    "config_kwargs": "config_args",
}
TEXT_MODALITY = {"method": "forward", "method_output_name": "last_hidden_state"}
# The fields that change vectors, and the values that we compute. Others are versions,
# names, or options of training, images and speed.
ALLOWED_OPTIONS = {
    "transformer_task": ("feature-extraction",),
    "module_output_name": ("token_embeddings",),
    "query_length": (None,),
    "document_length": (None,),
    "query_expansion": (None,),
}
ALLOWED_OF_MODEL = {
    "model_type": ("SentenceTransformer", "SparseEncoder"),
    "similarity_fn_name": (*SIMILARITIES, None),
}
ALLOWED_OF_NORMALIZE = {
    "module_input_name": ("sentence_embedding",),
    "module_output_name": ("sentence_embedding", None),
}
HARMLESS_MODEL_KWARGS = {
    "add_pooling_layer",
    "attn_implementation",
    "cache_dir",
    "device_map",
    "dtype",
    "local_files_only",
    "low_cpu_mem_usage",
    "revision",
    "token",
    "torch_dtype",
    "trust_remote_code",
    "use_cache",
    "use_safetensors",
}
# {sentence-transformers' name of a pooling: ours}
POOLINGS = {
    "mean": "mean",
    "cls": "cls",
    "max": "max",
    "lasttoken": "last",
    "weightedmean": "weighted_mean",
}
# {flag of a version before 6: its name of a pooling}
POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# {activation of a Dense module: our name}
ACTIVATIONS = {
    "torch.nn.modules.linear.Identity": "identity",
    "torch.nn.modules.activation.Tanh": "tanh",
    "torch.nn.modules.activation.ReLU": "relu",
    "torch.nn.modules.activation.GELU": "gelu",
}
