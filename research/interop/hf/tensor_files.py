"""Finds and reads the tensors of a folder's safetensors files."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from research.atomic_write import read_json
from research.interop.hf.weight_transforms import Shape

INDEX_FILE = "model.safetensors.index.json"
FLOATS = ("F16", "BF16", "F32", "F64")  # other tensors are quantized


class StoredTensor(NamedTuple):
    """Where a tensor is stored.

    Attributes:
        file: A safetensors file.
        name: The tensor's name in it.
        shape: The tensor's shape.
        dtype: The tensor's type, as safetensors names it.
    """

    file: Path
    name: str
    shape: Shape
    dtype: str


def list_tensors(folder: Path) -> Iterator[StoredTensor]:
    """Yields where each tensor of the folder is stored.

    Raises:
        FileNotFoundError: There is no safetensors file in the folder, or a shard is
            missing.
        ValueError: A file is not safetensors, or the index cannot be parsed.
    """
    for path in _list_files(folder):
        yield from _list_file(path)


def read_tensor(stored: StoredTensor, rows: slice | None = None) -> np.ndarray:
    """A tensor, or some of its rows, as float32, checked to be finite.

    The file is opened anew each time; otherwise its pages would stay in memory.
    """
    with safe_open(stored.file, framework="np") as file:
        if rows is None:
            tensor = file.get_tensor(stored.name)
        else:
            tensor = file.get_slice(stored.name)[rows]
    tensor = tensor.astype(np.float32, copy=False)
    # The smallest and the largest value are NaN if there is one.
    if tensor.size and not np.isfinite([tensor.min(), tensor.max()]).all():
        raise ValueError(
            f"{stored.file} has values in {stored.name} that are not finite"
        )
    return tensor


def read_file(path: Path) -> dict[str, np.ndarray]:
    """Reads all tensors of a file as `read_tensor` does.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not safetensors, or a value is not finite.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path.parent} has no {path.name}")
    stored = _list_file(path)
    return {part.name: read_tensor(part) for part in stored}


def _list_file(path: Path) -> list[StoredTensor]:
    """Where each tensor of a file is stored."""
    try:
        with safe_open(path, framework="np") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return [
                StoredTensor(path, name, tuple(part.get_shape()), part.get_dtype())
                for name, part in parts.items()
            ]
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from None


def _list_files(folder: Path) -> list[Path]:
    """The safetensors files of the folder, as `transformers` chooses them."""
    files, index = [folder / "model.safetensors"], folder / INDEX_FILE
    shards = read_json(index, missing={"weight_map": {}}).get("weight_map")
    if not isinstance(shards, dict):
        raise ValueError(f"{index} has no weight_map")
    # Beside a complete file, an index is left over from a version in several files.
    if shards and not files[0].exists():
        files = [folder / str(shard) for shard in sorted(set(shards.values()))]
    for file in files:
        if not file.exists():
            raise FileNotFoundError(f"{folder} has no {file.name}")
    return files
