"""Sparse autoencoders (CSR) in folders of sentence-transformers, read and written."""

import inspect
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from research.atomic_write import read_json
from research.config_sections import format_call, parse_call
from research.inference.model import EmbeddingModel
from research.interop.hf.tensor_files import read_file
from research.interop.sentence_transformers.layouts import (
    NO_TEMPLATES,
    OLD_PACKAGE,
    Layout,
    Module,
    name_features,
    pooling_config,
)
from research.interop.sentence_transformers.read import (
    Modules,
    check_values,
    read_modules,
)
from research.models.pooling.vector_heads import csr

AUTOENCODER_TYPE = (
    "sentence_transformers.sparse_encoder.modules.sparse_auto_encoder.SparseAutoEncoder"
)


def read_autoencoder(path: Path, modules: Sequence[tuple[str, Path]]) -> Modules:
    """Reads a folder of Transformer, Pooling, perhaps Normalize, and SparseAutoEncoder.

    Args:
        path: The folder.
        modules: (kind, folder) of each module.

    Raises:
        ValueError: There are other modules, options that we do not compute, or tensors
            of other shapes than the options say.
    """
    base, folder = read_modules(path, modules[:-1]), modules[-1][1]
    if base.dense or base.dim:
        raise ValueError(
            f"{path / 'modules.json'} has Dense before SparseAutoEncoder; we compute "
            "Transformer, Pooling, perhaps Normalize, and SparseAutoEncoder"
        )
    file, tensors = folder / "config.json", folder / "model.safetensors"
    fields = read_json(file)
    check_values(file, fields, {"normalize": (False,)})
    # The tied matrix has one of two names
    weights = read_file(tensors)
    kernel = weights.get("decoder.linear.weight", weights.get("encoder.weight"))
    sizes = fields.get("hidden_dim"), fields.get("input_dim")
    bias, center = (weights.get(name) for name in ("latent_bias", "pre_bias"))
    shapes = [None if x is None else x.shape for x in (kernel, bias, center)]
    if shapes != [sizes, sizes[:1], sizes[1:]]:
        raise ValueError(
            f"{tensors} has a matrix and biases of the shapes {shapes}, but {file} "
            f"says hidden_dim {sizes[0]} and input_dim {sizes[1]}"
        )
    # Settings of the model, which may keep fewer latents than the module
    options = read_json(path / "config_sentence_transformers.json", missing={})
    call = {
        "name": "csr",
        "latents": sizes[0],
        "k": options.get("max_active_dims") or fields.get("k"),
        "base": base.pool,
        "unit": base.normalize,
    }
    return base._replace(
        pool=format_call(call),
        similarity=options.get("similarity_fn_name") or "dot",
        normalize=False,
        pooling={
            "kernel": np.ascontiguousarray(kernel.T),
            "bias": bias,
            "center": center,
        },
    )


def describe_autoencoder(model: EmbeddingModel) -> Layout:
    """Latents of a vector: a SparseEncoder with a SparseAutoEncoder (CSR).

    Raises:
        ValueError: The model has templates, or does more after the pooling.
    """
    if model.prompt is not None:
        raise ValueError(NO_TEMPLATES)
    if model.dim not in (None, model.full_width) or model.dense or model.normalize:
        raise ValueError(
            "SparseEncoder neither cuts, projects nor normalizes sparse vectors, as "
            "this model does"
        )
    # The options, those that the call leaves out at their defaults
    signature = inspect.signature(csr).parameters.items()
    options = {name: parameter.default for name, parameter in signature}
    options |= parse_call(model.pool).kwargs
    weights = {k: np.asarray(x) for k, x in model.params["pooling"].items()}
    # The vector, perhaps of length 1, and its latents
    pooled = pooling_config(model._replace(pool=options["base"]))
    modules = [Module(f"{OLD_PACKAGE}.Pooling", pooled)]
    if options["unit"]:
        names = name_features("sentence_embedding")
        modules.append(Module(f"{OLD_PACKAGE}.Normalize", names))
    config = {
        "input_dim": model.config.width,
        "hidden_dim": options["latents"],
        "k": options["k"],
        "k_aux": min(512, options["latents"]),
        "normalize": False,
        "dead_threshold": 30,
    }
    tensors = {
        "decoder.linear.weight": np.ascontiguousarray(weights["kernel"].T),
        "latent_bias": weights["bias"],
        "pre_bias": weights["center"],
        "stats_last_nonzero": np.zeros(options["latents"], np.int64),
    }
    modules.append(Module(AUTOENCODER_TYPE, config, tensors))
    fields = {
        "model_type": "SparseEncoder",
        "similarity_fn_name": model.similarity,
        "max_active_dims": options["k"],
    }
    return Layout(model, f"{OLD_PACKAGE}.Transformer", modules, {}, fields)
