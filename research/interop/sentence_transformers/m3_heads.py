"""The heads of a BGE-M3 folder: weights of tokens and projected token vectors.

The authors' folder is one of sentence-transformers for the dense vector, with two files
of PyTorch beside it. Ours has one file of safetensors instead.
"""

import pickle
from pathlib import Path

import numpy as np

from research.inference.model import EmbeddingModel
from research.interop.hf.safetensors import save_tensors
from research.interop.hf.tensor_files import read_file
from research.types import Params

# {our name of a head: file of the authors, whose tensors are weight [out, D] and bias}
LINEAR_FILES = {"sparse": "sparse_linear.pt", "tokens": "colbert_linear.pt"}
HEADS_FILE = "m3_heads.safetensors"
POOL = "m3(output='dense')"


def has_heads(folder: Path) -> bool:
    """Whether a folder is one of BGE-M3."""
    files = [folder / name for name in LINEAR_FILES.values()]
    return (folder / HEADS_FILE).is_file() or all(file.is_file() for file in files)


def add_heads(model: EmbeddingModel, folder: Path) -> EmbeddingModel:
    """The folder's dense model with the heads of its two other embeddings.

    Args:
        model: The model without the heads, whose pooling is "cls".
        folder: A folder that `has_heads`.

    Raises:
        ValueError: The model has another pooling, a file cannot be read, or a head is
            not one of the model's width.
    """
    if model.pool != "cls":
        raise ValueError(
            f"{folder} has the heads of BGE-M3 and the pooling {model.pool}; they need "
            "cls"
        )
    if not model.params:
        return model._replace(pool=POOL)
    # {head: {"kernel": [D, out], "bias": [out]}}
    heads: Params = {}
    if (folder / HEADS_FILE).is_file():
        for name, tensor in read_file(folder / HEADS_FILE).items():
            head, _, part = name.partition(".")
            heads.setdefault(head, {})[part] = tensor
    else:
        heads = {h: _read_linear(folder / file) for h, file in LINEAR_FILES.items()}
    _check_shapes(folder, heads, model.config.width)
    return model._replace(pool=POOL, params={**model.params, "pooling": heads})


def write_heads(heads: Params, folder: Path) -> None:
    """Writes the heads of a model of BGE-M3, which `add_heads` reads."""
    tensors = {
        f"{head}.{part}": np.asarray(tensor, np.float32)
        for head, parts in heads.items()
        for part, tensor in parts.items()
    }
    save_tensors(folder / HEADS_FILE, tensors)


def _read_linear(file: Path) -> Params:
    """A linear layer that PyTorch has saved, read without running its pickle."""
    try:
        import torch
    except ImportError:
        raise ValueError(f"{file} needs PyTorch: `pip install torch`") from None
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True)
        # PyTorch multiplies [out, D] from the left
        weight, bias = (tensors[n].float().numpy() for n in ("weight", "bias"))
    except (pickle.UnpicklingError, RuntimeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file} has no weight and bias of a linear layer ({type(error).__name__})"
        ) from None
    return {"kernel": np.ascontiguousarray(weight.T), "bias": bias}


def _check_shapes(folder: Path, heads: Params, width: int) -> None:
    """Raises ValueError unless the heads read states of this width."""
    # The loss adds the dense vector's score, so that all vectors are of one width
    wanted = {"sparse": (width, 1), "tokens": (width, width)}
    for name, shape in wanted.items():
        found = {part: np.shape(x) for part, x in heads.get(name, {}).items()}
        if found != {"kernel": shape, "bias": shape[1:]}:
            raise ValueError(
                f"{folder} has a head {name!r} of the shapes {found}; BGE-M3 of width "
                f"{width} has a kernel {shape} and a bias {shape[1:]}"
            )
