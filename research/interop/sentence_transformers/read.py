"""Reads the modules of a sentence-transformers folder: pooling, dense, prompts."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import load_file

from research.models.pooling.projection import Dense


class Modules(NamedTuple):
    """The modules of a folder and their options.

    Attributes:
        transformer: Folder of the transformer.
        max_length: Maximum length of a text in tokens; None if the folder has none.
        lower_case: Whether texts are lowercased first.
        pool: A key of `BASIC_POOLINGS`.
        prompts: Prefixes of texts, for the roles "query" and "document".
        normalize: Whether embeddings are scaled to length 1.
        dense: Linear layers after the pooling.
        dim: Number of leading components that are kept; None for all.
    """

    transformer: Path
    max_length: int | None
    lower_case: bool
    pool: str
    prompts: dict[str, str]
    normalize: bool
    dense: tuple[Dense, ...]
    dim: int | None


def read_modules(path: Path) -> Modules:
    """Reads the modules of a folder: Transformer, Pooling and perhaps more.

    A last Dense module that only truncates the vector, as `export` writes it, becomes
    `dim`.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: The folder needs something that Embax does not compute.
    """
    # Check the order of the modules.
    modules = read_json(path / "modules.json")
    kinds = [module["type"].split(".")[-1] for module in modules]
    if not re.fullmatch("Transformer Pooling( Dense)*( Normalize)?", " ".join(kinds)):
        raise ValueError(
            f"{path / 'modules.json'} has the modules {', '.join(kinds)}; we compute "
            "Transformer, Pooling, any number of Dense, and Normalize, in this order"
        )
    paths = [path / module["path"] for module in modules]
    options = read_json(paths[0] / "sentence_bert_config.json", missing={})
    prompts = _read_prompts(
        read_json(path / "config_sentence_transformers.json", missing={})
    )
    # Dense modules; the last one may be a truncation.
    dense = [_read_dense(p) for p, k in zip(paths, kinds, strict=True) if k == "Dense"]
    dim = None
    if dense and _is_truncation(dense[-1]):
        dim = dense.pop().kernel.shape[1]
    return Modules(
        transformer=paths[0],
        max_length=options.get("max_seq_length"),
        lower_case=bool(options.get("do_lower_case")),
        pool=_read_pooling(paths[1] / "config.json", prompts),
        prompts=prompts,
        normalize="Normalize" in kinds,
        dense=tuple(dense),
        dim=dim,
    )


def _read_pooling(file: Path, prompts: Mapping[str, str]) -> str:
    """Our name for the pooling of 1_Pooling/config.json."""
    fields = read_json(file)
    modes = fields.get("pooling_mode")
    if modes is None:  # before version 6: a flag for each
        modes = [name for flag, name in POOLING_FLAGS.items() if fields.get(flag)]
    modes = [modes] if isinstance(modes, str) else modes or ["mean"]
    if len(modes) > 1 or modes[0] not in POOLINGS:
        raise ValueError(
            f"{file} pools by {' and '.join(modes)}; we compute one of "
            f"{', '.join(POOLINGS)}"
        )
    if not fields.get("include_prompt", True) and any(prompts.values()):
        raise ValueError(f"{file} leaves the prompt out of pooling, which we do not")
    return POOLINGS[modes[0]]


def _read_prompts(fields: Mapping[str, Any]) -> dict[str, str]:
    """The prompts for queries and documents, by name, or else the default prompt."""
    named = fields.get("prompts") or {}
    default = named.get(fields.get("default_prompt_name"), "")
    # Names of document prompts in common models.
    documents = [named[n] for n in ("document", "passage", "corpus") if n in named]
    return {
        "query": named.get("query", default),
        "document": documents[0] if documents else default,
    }


def _read_dense(path: Path) -> Dense:
    """Reads the linear layer of a Dense module."""
    # Check the options of the module.
    fields = read_json(path / "config.json")
    activation = fields.get("activation_function", "torch.nn.modules.activation.Tanh")
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"{path / 'config.json'} has activation_function {activation}; we compute "
            f"{', '.join(ACTIVATIONS)}"
        )
    pooled = {fields.get(f"module_{side}_name") for side in ("input", "output")}
    if fields.get("use_residual") or pooled - {"sentence_embedding", None}:
        raise ValueError(
            f"{path / 'config.json'} has a residual sum, or reads or writes something "
            "else than sentence_embedding, which we do not compute"
        )
    file = path / "model.safetensors"
    if not file.exists():
        raise FileNotFoundError(f"{path} has no {file.name}")
    # PyTorch stores [out, in], we [in, out].
    weights = {name: x.astype(np.float32) for name, x in load_file(file).items()}
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


def read_json(file: Path, missing: Any = None) -> Any:
    """Parses a JSON file; if it is missing, returns `missing` unless that is None."""
    if missing is not None and not file.exists():
        return missing
    if not file.exists():
        raise FileNotFoundError(f"{file.parent} has no {file.name}")
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from None


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
