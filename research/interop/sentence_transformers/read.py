"""The modules of a sentence-transformers folder: what follows the transformer."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import load_file

from research.models.pooling.projection import Dense


class Modules(NamedTuple):
    """What the folder says.

    Attributes:
        body: the folder of the transformer.
        max_length: of texts in tokens; None where it says nothing.
        lower_case: whether texts are lower-cased first.
        pool: a key of `BASIC_POOLINGS`.
        prompts: what is put before a text, for the roles "query" and "document".
        normalize: whether embeddings are divided by their length.
        dense: layers that the pooled vector goes through.
        dim: how many leading numbers are kept; None for all.
    """

    body: Path
    max_length: int | None
    lower_case: bool
    pool: str
    prompts: dict[str, str]
    normalize: bool
    dense: tuple[Dense, ...]
    dim: int | None


def read_modules(path: Path) -> Modules:
    """The modules of a folder: Transformer, Pooling and perhaps more.

    A last Dense module that only cuts the vector to its first numbers, as `export`
    writes it, is our `dim`.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the folder asks for something that we do not compute.
    """
    modules = read_json(path / "modules.json")
    kinds = [module["type"].split(".")[-1] for module in modules]
    whole = " ".join(kinds)
    if not re.fullmatch("Transformer Pooling( Dense)*( Normalize)?", whole):
        raise ValueError(
            f"{path / 'modules.json'} has the modules {', '.join(kinds)}; we compute "
            "Transformer, Pooling, any number of Dense, and Normalize, in this order"
        )
    paths = [path / module["path"] for module in modules]
    options = read_json(paths[0] / "sentence_bert_config.json", missing={})
    said = read_json(path / "config_sentence_transformers.json", missing={})
    prompts = _prompts(said)
    dense = [_dense(p) for p, k in zip(paths, kinds, strict=True) if k == "Dense"]
    dim = None
    if dense and _only_cuts(dense[-1]):
        dim = dense.pop().kernel.shape[1]
    return Modules(
        body=paths[0],
        max_length=options.get("max_seq_length"),
        lower_case=bool(options.get("do_lower_case")),
        pool=_pool(paths[1] / "config.json", prompts),
        prompts=prompts,
        normalize="Normalize" in kinds,
        dense=tuple(dense),
        dim=dim,
    )


def _pool(file: Path, prompts: Mapping[str, str]) -> str:
    """Our name of the pooling that 1_Pooling/config.json asks for."""
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


def _prompts(fields: Mapping[str, Any]) -> dict[str, str]:
    """The prompts of queries and of documents; the default prompt where not named."""
    named = fields.get("prompts") or {}
    default = named.get(fields.get("default_prompt_name"), "")
    documents = [named[n] for n in ("document", "passage", "corpus") if n in named]
    return {
        "query": named.get("query", default),
        "document": documents[0] if documents else default,
    }


def _dense(path: Path) -> Dense:
    """The layer of a Dense module."""
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
    weights = {name: x.astype(np.float32) for name, x in load_file(file).items()}
    kernel = np.ascontiguousarray(weights["linear.weight"].T)
    return Dense(kernel, weights.get("linear.bias"), ACTIVATIONS[activation])


def _only_cuts(layer: Dense) -> bool:
    """Whether a layer does nothing but keep the first numbers."""
    before, after = layer.kernel.shape
    linear = layer.bias is None and layer.activation == "identity"
    return (
        linear
        and after <= before
        and np.array_equal(layer.kernel, np.eye(before, after))
    )


def read_json(file: Path, missing: Any = None) -> Any:
    """The parsed file; `missing` if given and there is no such file."""
    if missing is not None and not file.exists():
        return missing
    if not file.exists():
        raise FileNotFoundError(f"{file.parent} has no {file.name}")
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from None


# Poolings: their name -> ours.
POOLINGS = {
    "mean": "mean",
    "cls": "cls",
    "max": "max",
    "lasttoken": "last",
    "weightedmean": "weighted_mean",
}
POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# Activations of Dense modules: their name -> ours.
ACTIVATIONS = {
    "torch.nn.modules.linear.Identity": "identity",
    "torch.nn.modules.activation.Tanh": "tanh",
    "torch.nn.modules.activation.ReLU": "relu",
    "torch.nn.modules.activation.GELU": "gelu",
}
