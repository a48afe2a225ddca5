"""The weights of a Hugging Face folder <-> our parameter tree, by `rows.ROWS`."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from research.interop.hf.families import family_of
from research.interop.hf.weight_names import ROWS, Row
from research.interop.hf.weight_transforms import OPS, Shape
from research.models import encoder
from research.models.config import EncoderConfig
from research.types import Array, Params

# A large table is read in pieces of this many bytes.
PIECE = 1 << 24


class Stored(NamedTuple):
    """Where a tensor is stored.

    Attributes:
        file: a safetensors file.
        name: the tensor's name in it.
        shape: the tensor's shape.
    """

    file: Path
    name: str
    shape: Shape


def read_safetensors(
    folder: Path, cfg: EncoderConfig, sharding: Callable[[Params], Any] | None = None
) -> Params:
    """The encoder's parameters from `model.safetensors` or its shards.

    One parameter after the other is filled from its tensors, which are read one at a
    time and become float32, and is placed on its devices: the peak of memory is the
    model and, with `sharding`, its largest parameter once more.

    Args:
        folder: holds model.safetensors, or model.safetensors.index.json and the files
            that it names.
        cfg: what the folder's `config.json` says (`families.read_config`).
        sharding: the tree of shapes -> the tree of shardings, such as
            `partial(parallel.shardings, mesh=mesh)`; None leaves all on the host.

    Returns:
        The nested dict of `encoder.init`, of float32 arrays: JAX's with `sharding`,
        else NumPy's.

    Raises:
        FileNotFoundError: no safetensors in the folder, or a shard is missing.
        ValueError: a file is not safetensors, or names are missing, extra or hold
            other shapes than `cfg` says; all of them are listed.
    """
    tree = _abstract(cfg)
    shapes = {path: leaf.shape for path, leaf in _flat(tree).items()}
    rows = _rows(cfg, shapes)
    stored = _stored(folder, cfg, rows, shapes)
    place = _placer(tree, sharding)
    params = {}
    for row in rows:
        leaves = {path: np.empty(shapes[path], np.float32) for path in row.ours}
        _fill(leaves, row, cfg, stored)
        for path in row.ours:
            params[path] = place(path, leaves.pop(path))
    return jax.tree.unflatten(jax.tree.structure(tree), [params[p] for p in shapes])


def write_safetensors(folder: Path, params: Params, cfg: EncoderConfig) -> None:
    """Writes the parameters as `model.safetensors`; the inverse of `read_safetensors`.

    Raises:
        ValueError: no Hugging Face family computes `cfg`.
        OSError: no space, or no right to write.
    """
    flat = _flat(jax.device_get(params))
    shapes = {path: leaf.shape for path, leaf in _flat(_abstract(cfg)).items()}
    tensors = {}
    for row in _rows(cfg, shapes):
        for name, at in _names(row, cfg):
            ours = [flat[path][at] for path in row.ours]
            tensors[name] = np.ascontiguousarray(OPS[row.op].write(*ours), np.float32)
    save_tensors(folder / "model.safetensors", tensors)


def save_tensors(file: Path, tensors: dict[str, np.ndarray]) -> None:
    """Writes a safetensors file that PyTorch's readers accept.

    Raises:
        OSError: no space, or no right to write.
    """
    file.touch()
    mode = file.stat().st_mode  # safetensors would let nobody else read it
    try:
        save_file(tensors, file, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{file} cannot be written: {error}") from None
    file.chmod(mode)


def _abstract(cfg: EncoderConfig) -> Params:
    """The tree of the parameters' shapes; nothing is computed."""
    return jax.eval_shape(partial(encoder.init, cfg=cfg), jax.random.key(0))


def _flat(tree: Params) -> dict[str, Any]:
    """The leaves by path, in the order of `jax.tree.leaves`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in leaves}


def _rows(cfg: EncoderConfig, shapes: dict[str, Shape]) -> list[Row]:
    """The rows of the parameters that this encoder has, the largest first.

    Others of its family (biases, token types) are skipped.
    """
    rows = [
        row
        for row in ROWS[family_of(cfg)]
        if row.gated in (None, cfg.gated) and shapes.keys() >= set(row.ours)
    ]
    unmapped = shapes.keys() - {path for row in rows for path in row.ours}
    if unmapped:
        raise ValueError(f"no Hugging Face name for {', '.join(sorted(unmapped))}")
    return sorted(rows, key=lambda row: -sum(np.prod(shapes[p]) for p in row.ours))


def _names(row: Row, cfg: EncoderConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name in the file, index into ours) of each tensor of a row.

    The index is (), (layer) or (layer, expert).
    """
    counts = {"l": cfg.depth, "e": cfg.num_experts}
    named = [name for name in counts if f"{{{name}}}" in row.hf]
    for at in product(*(range(counts[name]) for name in named)):
        if at and at[0] == 0 and _unused_norm(row, cfg):
            continue
        yield row.hf.format(**dict(zip(named, at, strict=True))), at


def _unused_norm(row: Row, cfg: EncoderConfig) -> bool:
    """Whether block 0 does without this parameter, and files too."""
    return not cfg.first_norm and row.ours[0].startswith("layers/attention_norm/")


def _fill(
    leaves: dict[str, np.ndarray],
    row: Row,
    cfg: EncoderConfig,
    stored: dict[str, Stored],
) -> None:
    """Reads a row's tensors into our parameters."""
    if _unused_norm(row, cfg):
        for path, leaf in leaves.items():
            leaf[0] = path.endswith("/scale")
    for name, at in _names(row, cfg):
        ours = [leaf[at] for leaf in leaves.values()]
        if row.op == "same" and len(ours) == 1:
            _read_pieces(ours[0], stored[name])
            continue
        tensor = _read(stored[name])
        parts = OPS[row.op].read(tensor, *(x.shape for x in ours))
        for place, part in zip(ours, parts, strict=True):
            place[...] = part  # casts


def _read(at: Stored, part: slice | None = None) -> np.ndarray:
    """A tensor, or some of its rows.

    The file is opened anew each time, or its pages would count as ours until the end.
    """
    with safe_open(at.file, framework="np") as file:
        if part is None:
            return file.get_tensor(at.name)
        return file.get_slice(at.name)[part]


def _read_pieces(leaf: np.ndarray, at: Stored) -> None:
    """Reads a tensor into a parameter of its shape."""
    rows = max(1, PIECE // max(1, leaf[:1].nbytes))
    for start in range(0, len(leaf), rows):
        part = slice(start, min(start + rows, len(leaf)))
        leaf[part] = _read(at, part)


def _placer(
    tree: Params, sharding: Callable[[Params], Any] | None
) -> Callable[[str, np.ndarray], Array]:
    """(path, parameter) -> the parameter where it belongs."""
    if sharding is None:
        return lambda path, leaf: leaf
    wanted = _flat(sharding(tree))

    def place(path, leaf):
        # Waits, so that the host's copy goes before the next one comes.
        return jax.block_until_ready(jax.device_put(leaf, wanted[path]))

    return place


def _stored(
    folder: Path, cfg: EncoderConfig, rows: list[Row], shapes: dict[str, Shape]
) -> dict[str, Stored]:
    """Where each tensor that the rows name is; everything wrong is in one error."""
    expected = {}
    for row in rows:
        for name, at in _names(row, cfg):
            ours = [shapes[path][len(at) :] for path in row.ours]
            expected[name] = OPS[row.op].shape(*ours)
    stored, faults = {}, []
    for name, at in _tensors(folder):
        if name not in expected and _ignored(name, family_of(cfg)):
            continue
        if name not in expected or name in stored:
            faults.append(f"{'repeated' if name in stored else 'extra'} {name}")
            continue
        stored[name] = at
        if at.shape != expected[name]:
            have, want = list(at.shape), list(expected[name])
            faults.append(f"{name} is {have} instead of {want}")
    faults += [f"missing {name}" for name in expected if name not in stored]
    if faults:
        raise ValueError(
            f"the weights in {folder} do not fit its config.json: {'; '.join(faults)}"
        )
    return stored


def _tensors(folder: Path) -> Iterator[tuple[str, Stored]]:
    """(canonical name, place) of every tensor of the folder."""
    for path in _files(folder):
        try:
            with safe_open(path, framework="np") as file:
                for name in file.keys():  # noqa: SIM118 - not a dict
                    shape = tuple(file.get_slice(name).get_shape())
                    yield canonical(name), Stored(path, name, shape)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a safetensors file: {error}") from None


def _files(folder: Path) -> list[Path]:
    """The safetensors files of the folder."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        shards = json.loads(index.read_text())["weight_map"].values()
        files = [folder / shard for shard in sorted(set(shards))]
    else:
        files = [folder / "model.safetensors"]
    for file in files:
        if not file.exists():
            raise FileNotFoundError(f"{folder} has no {file.name}")
    return files


def canonical(name: str) -> str:
    """The name as a base model saves it today."""
    while name.startswith(PREFIXES):
        name = name.partition(".")[2]
    for old, new in RENAMED.items():
        name = name.removesuffix(old) + new if name.endswith(old) else name
    return name


def _ignored(name: str, family: str) -> bool:
    """Whether a tensor is a known part of a file that is no part of the encoder."""
    parts = (*IGNORED, *IGNORED_OF.get(family, ()))
    return name.startswith(parts) or name.endswith(BUFFERS)


# What a model with a head, or a multimodal one, puts before its encoder's names.
PREFIXES = (
    "bert.",
    "roberta.",
    "mpnet.",
    "nomic_bert.",
    "model.",
    "language_model.",
    "transformer.",
    "gpt_neox.",
)
# Files of before 2019's PyTorch.
RENAMED = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
# BERT's pooler (a layer of next-sentence prediction) and heads.
IGNORED = ("pooler.", "cls.", "lm_head.", "embed_out.")
IGNORED_OF = {
    "modernbert": ("head.", "decoder."),
    "t5": ("decoder.", "encoder.embed_tokens."),
}
# What old versions saved besides parameters.
BUFFERS = (
    "embeddings.position_ids",
    ".rotary_emb.inv_freq",
    ".attn.bias",
    ".attn.masked_bias",
    ".attention.bias",
    ".attention.masked_bias",
)
