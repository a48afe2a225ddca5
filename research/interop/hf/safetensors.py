"""The weights of a Hugging Face folder <-> our parameter tree, by `WEIGHT_NAMES`."""

from collections.abc import Callable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from research.atomic_write import to_json
from research.interop.hf.families import find_family
from research.interop.hf.tensor_files import (
    FLOATS,
    INDEX_FILE,
    StoredTensor,
    list_tensors,
    read_tensor,
)
from research.interop.hf.weight_names import (
    MLM_HEADS,
    OUTPUT_LAYERS,
    WEIGHT_NAMES,
    TensorMap,
    canonical_name,
    is_body,
)
from research.interop.hf.weight_transforms import TRANSFORMS, Shape
from research.models.config import EncoderConfig
from research.models.param_shapes import abstract_params
from research.types import Array, Params

# Large tensors, such as embedding tables, are read in slices of so many bytes.
SLICE_BYTES = 1 << 24
MAX_SHARD_SIZE = "5GB"  # as `transformers` and the hub
MAX_LISTED = 8  # faults that an error message lists


def read_safetensors(
    folder: Path,
    cfg: EncoderConfig,
    sharding: Callable[[Params], Any] | None = None,
    *,
    lm_head: bool = False,
    mlm_head: bool = False,
) -> Params:
    """Reads the encoder's parameters from `model.safetensors` or its shards.

    Parameters are filled one after another from their tensors, which are cast to
    float32, and are placed on their devices. The peak memory is that of the model and,
    with `sharding`, once more its largest parameter.

    Args:
        folder: Folder with model.safetensors, or with model.safetensors.index.json and
            the files that it names.
        cfg: Config of the encoder, from `families.read_config`.
        sharding: Function from a tree of shapes to a tree of shardings; None leaves
            all parameters on the host.
        lm_head: Whether the output layer is read, too, as "lm_head". The folder must be
            that of a causal language model whose output layer is not tied.
        mlm_head: Whether the head of masked language modeling is read, too, as "head".

    Returns:
        A tree as from `encoder.init`, of float32 arrays: JAX arrays with `sharding`,
        NumPy arrays without.

    Raises:
        FileNotFoundError: There is no safetensors file in the folder, or a shard is
            missing.
        ValueError: A file is not safetensors; tensors are missing, unknown, quantized
            or have unexpected shapes, of which the first are listed; or a tensor has a
            value that is not finite.
    """
    # Where each parameter is stored, checked before anything is read.
    tree = abstract_params(cfg, lm_head=lm_head, mlm_head=mlm_head)
    shapes = {path: leaf.shape for path, leaf in _flatten(tree).items()}
    tensor_maps = _tensor_maps(cfg, shapes)
    stored = _find_tensors(folder, cfg, tensor_maps, shapes)
    place = _make_placer(tree, sharding)
    # Fill and place the parameters, the largest first.
    params = {}
    for tensor_map in tensor_maps:
        leaves = {path: np.empty(shapes[path], np.float32) for path in tensor_map.paths}
        _fill_leaves(leaves, tensor_map, cfg, stored)
        for path in tensor_map.paths:
            params[path] = place(path, leaves.pop(path))
    return jax.tree.unflatten(jax.tree.structure(tree), [params[p] for p in shapes])


def has_mlm_head(folder: Path, cfg: EncoderConfig) -> bool:
    """Whether the files of a folder hold the head of masked language modeling."""
    heads = MLM_HEADS.get(find_family(cfg), ((),))[0]
    wanted = {tensor_map.name for tensor_map in heads}
    names = {canonical_name(tensor.name) for tensor in list_tensors(folder)}
    return bool(wanted) and wanted <= names


def write_safetensors(
    folder: Path,
    params: Params,
    cfg: EncoderConfig,
    *,
    max_shard_size: int | str = MAX_SHARD_SIZE,
) -> None:
    """Writes the parameters; the inverse of `read_safetensors`.

    A model of up to `max_shard_size` becomes model.safetensors; a larger one becomes
    several files, which are written one after another, and an index. With "lm_head" in
    the parameters, names are those of the family's causal language model; with "head",
    those of its masked language model.

    Args:
        folder: An existing folder.
        params: The encoder's parameters.
        cfg: The encoder's shape.
        max_shard_size: Maximum size of a file, in bytes or such as "5GB"; a larger
            tensor has its own file.

    Raises:
        ValueError: No Hugging Face family computes `cfg`.
        OSError: No space, or no right to write.
    """
    from huggingface_hub import split_state_dict_into_shards_factory

    flat = _flatten(jax.device_get(params))
    heads = {"lm_head": "lm_head" in params, "mlm_head": "head" in params}
    tree = abstract_params(cfg, **heads)
    shapes = {path: leaf.shape for path, leaf in _flatten(tree).items()}
    prefix = ""
    if any(heads.values()):
        table = OUTPUT_LAYERS if heads["lm_head"] else MLM_HEADS
        prefix = table[find_family(cfg)][1]
    # The origin and the size of each tensor.
    sources, sizes = {}, {}
    for tensor_map in _tensor_maps(cfg, shapes):
        is_output = tensor_map.paths[0].startswith(("lm_head/", "head/"))
        for name, index in _tensor_names(tensor_map, cfg):
            name = name if is_output else prefix + name
            sources[name] = tensor_map, index
            sizes[name] = 4 * sum(flat[path][index].size for path in tensor_map.paths)
    # Assign tensors to files by size only; each is made when its file is written.
    split = split_state_dict_into_shards_factory(
        sizes,
        get_storage_size=lambda size: size,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    for file, names in split.filename_to_tensors.items():
        tensors = {name: _make_tensor(flat, *sources[name]) for name in names}
        save_tensors(folder / file, tensors)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        text = to_json(index, indent=2, sort_keys=True) + "\n"
        (folder / INDEX_FILE).write_text(text, encoding="utf-8")


def save_tensors(file: Path, tensors: dict[str, np.ndarray]) -> None:
    """Writes a safetensors file that PyTorch's readers accept.

    Raises:
        OSError: No space, or no right to write.
    """
    file.touch()
    mode = file.stat().st_mode  # safetensors would restrict it to the owner
    try:
        save_file(tensors, file, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{file} cannot be written: {error}") from None
    file.chmod(mode)


def _flatten(tree: Params) -> dict[str, Any]:
    """The leaves by path, in the order of `jax.tree.leaves`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in leaves}


def _tensor_maps(cfg: EncoderConfig, shapes: Mapping[str, Shape]) -> list[TensorMap]:
    """The tensors that hold this encoder's parameters, the largest first.

    Tensors that only other encoders of the family have (biases, token types) are left
    out.
    """
    family = find_family(cfg)
    heads = MLM_HEADS.get(family, ((),))[0]
    candidates = [*WEIGHT_NAMES[family], *OUTPUT_LAYERS.get(family, ())[:1], *heads]
    tensor_maps = [
        tensor_map
        for tensor_map in candidates
        if tensor_map.gated in (None, cfg.gated)
        and shapes.keys() >= set(tensor_map.paths)
    ]
    unmapped = shapes.keys() - {path for m in tensor_maps for path in m.paths}
    if unmapped:
        raise ValueError(f"no Hugging Face name for {', '.join(sorted(unmapped))}")
    return sorted(
        tensor_maps, key=lambda m: -sum(np.prod(shapes[path]) for path in m.paths)
    )


def _tensor_names(
    tensor_map: TensorMap, cfg: EncoderConfig
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name in the file, index into our parameters) for each layer and expert.

    The index is (), (layer) or (layer, expert).
    """
    counts = {"l": cfg.depth, "e": cfg.num_experts}
    fields = [name for name in counts if f"{{{name}}}" in tensor_map.name]
    for index in product(*(range(counts[name]) for name in fields)):
        if index and index[0] == 0 and _lacks_first_norm(tensor_map, cfg):
            continue
        yield tensor_map.name.format(**dict(zip(fields, index, strict=True))), index


def _lacks_first_norm(tensor_map: TensorMap, cfg: EncoderConfig) -> bool:
    """Whether this is the first norm of an encoder whose block 0 has none."""
    is_norm = tensor_map.paths[0].startswith("layers/attention_norm/")
    return is_norm and not cfg.first_norm


def _make_tensor(
    flat: Mapping[str, np.ndarray], tensor_map: TensorMap, index: tuple[int, ...]
) -> np.ndarray:
    """Makes a tensor of the file from our parameters."""
    params = [flat[path][index] for path in tensor_map.paths]
    tensor = TRANSFORMS[tensor_map.transform].write(*params)
    return np.ascontiguousarray(tensor, np.float32)


def _fill_leaves(
    leaves: dict[str, np.ndarray],
    tensor_map: TensorMap,
    cfg: EncoderConfig,
    stored: dict[str, StoredTensor],
) -> None:
    """Reads the tensors of all layers into our parameters."""
    # A missing first norm gets scale 1 and bias 0; it is not used.
    if _lacks_first_norm(tensor_map, cfg):
        for path, leaf in leaves.items():
            leaf[0] = path.endswith("/scale")
    for name, index in _tensor_names(tensor_map, cfg):
        params = [leaf[index] for leaf in leaves.values()]
        if tensor_map.transform == "same" and len(params) == 1:
            _read_slices(params[0], stored[name])
            continue
        tensor = read_tensor(stored[name])
        transform = TRANSFORMS[tensor_map.transform]
        parts = transform.read(tensor, *(x.shape for x in params))
        for param, part in zip(params, parts, strict=True):
            param[...] = part  # casts


def _read_slices(leaf: np.ndarray, stored: StoredTensor) -> None:
    """Reads a tensor into a parameter of its shape, some rows at a time."""
    size = max(1, SLICE_BYTES // max(1, leaf[:1].nbytes))
    for start in range(0, len(leaf), size):
        rows = slice(start, min(start + size, len(leaf)))
        leaf[rows] = read_tensor(stored, rows)


def _make_placer(
    tree: Params, sharding: Callable[[Params], Any] | None
) -> Callable[[str, np.ndarray], Array]:
    """Makes a function (path, parameter) -> the parameter on its devices."""
    if sharding is None:
        return lambda path, leaf: leaf
    shardings = _flatten(sharding(tree))

    def place(path, leaf):
        # Wait, so that the host's copy is freed before the next one is made.
        return jax.block_until_ready(jax.device_put(leaf, shardings[path]))

    return place


def _find_tensors(
    folder: Path,
    cfg: EncoderConfig,
    tensor_maps: list[TensorMap],
    shapes: Mapping[str, Shape],
) -> dict[str, StoredTensor]:
    """Finds where each required tensor is stored; one error lists all faults."""
    # Required: {name: shape in the file}.
    expected = {}
    for tensor_map in tensor_maps:
        for name, index in _tensor_names(tensor_map, cfg):
            part_shapes = [shapes[path][len(index) :] for path in tensor_map.paths]
            hf_shape = TRANSFORMS[tensor_map.transform].hf_shape
            expected[name] = hf_shape(*part_shapes)
    # Stored: compare names and shapes.
    stored, faults, extra, family = {}, [], [], find_family(cfg)
    for tensor in list_tensors(folder):
        name = canonical_name(tensor.name)
        if name not in expected:
            extra.append(tensor.name)
            continue
        if name in stored:
            faults.append(f"repeated {name}")
        stored[name] = tensor
        if tensor.dtype not in FLOATS:
            faults.append(f"{name} is quantized ({tensor.dtype})")
        if tensor.shape != expected[name]:
            faults.append(
                f"{name} is {list(tensor.shape)} instead of {list(expected[name])}"
            )
    missing = [name for name in expected if name not in stored]
    if prefix := _find_prefix(extra, missing):
        faults.append(f"the names of tensors have the unknown prefix {prefix!r}")
    else:
        faults += [f"extra {name}" for name in extra if is_body(name, family)]
        faults += [f"missing {name}" for name in missing]
    if faults:
        if len(faults) > MAX_LISTED:
            faults[MAX_LISTED:] = [f"and {len(faults) - MAX_LISTED} more"]
        raise ValueError(
            f"the weights in {folder} do not fit its config.json: {'; '.join(faults)}"
        )
    return stored


def _find_prefix(extra: list[str], missing: list[str]) -> str:
    """The prefix that all missing names have in the file; empty if there is none."""
    if not missing:
        return ""
    ends = [name for name in extra if name.endswith(f".{missing[0]}")]
    prefix = ends[0].removesuffix(missing[0]) if ends else ""
    has_all = {prefix + name for name in missing} <= set(extra)
    return prefix if prefix and has_all else ""
