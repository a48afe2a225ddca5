"""The weights of a Hugging Face folder <-> our parameter tree, row by row.

A `Row` says where one tensor of a family lives in both, and how the one is rearranged
into the other. PyTorch keeps a linear layer's weight as [out, in], we as [in, out].
"""

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from research.models import encoder
from research.models.config import EncoderConfig
from research.models.families import family_of
from research.structs import Params

Shape = tuple[int, ...]


class Row(NamedTuple):
    """One tensor of a family.

    Attributes:
        hf: its name in the file, without prefix; `{l}` stands for the layer.
        ours: its path in our tree; with `{l}` in `hf`, index l of the first axis.
        op: how it is rearranged, a key of `OPS`.
    """

    hf: str
    ours: str
    op: str


class Op(NamedTuple):
    """An invertible rearrangement of a tensor.

    Attributes:
        shape: our shape -> the shape in the file.
        read: (tensor of the file, our shape) -> ours.
        write: ours -> tensor of the file.
    """

    shape: Callable[[Shape], Shape]
    read: Callable[[np.ndarray, Shape], np.ndarray]
    write: Callable[[np.ndarray], np.ndarray]


def read_safetensors(folder: Path, cfg: EncoderConfig) -> Params:
    """The encoder's parameters from `model.safetensors` or its shards.

    Tensors are read one at a time, and 16-bit ones become float32.

    Args:
        folder: holds model.safetensors, or model.safetensors.index.json and the files
            that it names.
        cfg: what the folder's `config.json` says (`families.read_config`).
    Returns:
        The nested dict of `encoder.init`, of float32 NumPy arrays.
    Raises:
        FileNotFoundError: no safetensors in the folder, or a shard is missing.
        ValueError: a file is not safetensors, or names are missing, extra or hold
            other shapes than `cfg` says; all of them are listed.
    """
    shapes, tree = _shapes(cfg)
    expected = dict(_expected(cfg, shapes))
    params = {path: np.empty(shape, np.float32) for path, shape in shapes.items()}
    faults, seen = [], set()
    for name, file in _tensors(folder):
        name = _canonical(name)
        if name.startswith(IGNORED):
            continue
        if name not in expected or name in seen:
            faults.append(f"{'repeated' if name in seen else 'extra'} {name}")
            continue
        seen.add(name)
        row, layer, ours = expected[name]
        tensor = file()
        want = OPS[row.op].shape(ours)
        if tensor.shape != want:
            faults.append(f"{name} is {list(tensor.shape)} instead of {list(want)}")
            continue
        place = params[row.ours] if layer is None else params[row.ours][layer]
        place[...] = OPS[row.op].read(tensor.astype(np.float32), ours)
    faults += [f"missing {name}" for name in expected if name not in seen]
    if faults:
        raise ValueError(
            f"the weights in {folder} do not fit its config.json: {'; '.join(faults)}"
        )
    return jax.tree.unflatten(tree, params.values())


def write_safetensors(folder: Path, params: Params, cfg: EncoderConfig) -> None:
    """Writes the parameters as `model.safetensors`; the inverse of `read_safetensors`.

    Raises:
        ValueError: no Hugging Face family computes `cfg`.
        OSError: no space, or no right to write.
    """
    flat = _flat(jax.device_get(params))
    tensors = {}
    for name, (row, layer, _) in _expected(cfg, _shapes(cfg)[0]):
        ours = flat[row.ours] if layer is None else flat[row.ours][layer]
        tensors[name] = np.ascontiguousarray(OPS[row.op].write(ours), np.float32)
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


def _shapes(cfg: EncoderConfig) -> tuple[dict[str, Shape], jax.tree_util.PyTreeDef]:
    """The shape of every parameter by path, and the tree; nothing is computed."""
    tree = jax.eval_shape(partial(encoder.init, cfg=cfg), jax.random.key(0))
    shapes = {path: value.shape for path, value in _flat(tree).items()}
    return shapes, jax.tree.structure(tree)


def _flat(tree: Params) -> dict[str, Any]:
    """The leaves by path, in the order of `jax.tree.leaves`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in leaves}


def _expected(
    cfg: EncoderConfig, shapes: Mapping[str, Shape]
) -> Iterator[tuple[str, tuple[Row, int | None, Shape]]]:
    """(name in the file, (row, layer, our shape of it)) of every tensor.

    Rows whose parameter this encoder does not have (biases, token types) are skipped.
    """
    rows = [row for row in ROWS[family_of(cfg)] if row.ours in shapes]
    unmapped = shapes.keys() - {row.ours for row in rows}
    if unmapped:
        raise ValueError(f"no Hugging Face name for {', '.join(sorted(unmapped))}")
    for row in rows:
        shape = shapes[row.ours]
        if "{l}" in row.hf:
            for layer in range(cfg.depth):
                yield row.hf.format(l=layer), (row, layer, shape[1:])
        else:
            yield row.hf, (row, None, shape)


def _tensors(folder: Path) -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
    """(name, function that reads it) of every tensor of the folder."""
    for path in _files(folder):
        try:
            with safe_open(path, framework="np") as file:
                for name in file.keys():  # noqa: SIM118 - not a dict
                    yield name, partial(file.get_tensor, name)
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


def _canonical(name: str) -> str:
    """The name as a base model saves it today."""
    while name.startswith(PREFIXES):
        name = name.partition(".")[2]
    for old, new in RENAMED.items():
        name = name.removesuffix(old) + new if name.endswith(old) else name
    return name


# What a model with a head, or a multimodal one, puts before its encoder's names.
PREFIXES = ("bert.", "roberta.", "model.", "language_model.")
# Files of before 2019's PyTorch.
RENAMED = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
# Known parts of the files that are no part of the encoder: BERT's pooler (a layer of
# next-sentence prediction), heads, and buffers that old versions saved.
IGNORED = ("pooler.", "cls.", "lm_head.", "embeddings.position_ids")

OPS = {
    "same": Op(lambda s: s, lambda x, s: x, lambda x: x),
    "transpose": Op(lambda s: s[::-1], lambda x, s: x.T, lambda x: x.T),
    # weight [H*D/H, D] <-> kernel [D, H, D/H]
    "heads_in": Op(
        lambda s: (s[1] * s[2], s[0]),
        lambda x, s: x.T.reshape(s),
        lambda x: x.reshape(len(x), -1).T,
    ),
    # bias [H*D/H] <-> [H, D/H]
    "heads_bias": Op(
        lambda s: (s[0] * s[1],), lambda x, s: x.reshape(s), lambda x: x.reshape(-1)
    ),
    # weight [D, H*D/H] <-> kernel [H, D/H, D]
    "heads_out": Op(
        lambda s: (s[2], s[0] * s[1]),
        lambda x, s: x.T.reshape(s),
        lambda x: x.reshape(-1, x.shape[-1]).T,
    ),
}


def _linear(hf: str, ours: str, *, kernel: str, bias: str) -> tuple[Row, Row]:
    """The rows of a linear layer's weight and bias."""
    return (
        Row(f"{hf}.weight", f"{ours}/kernel", kernel),
        Row(f"{hf}.bias", f"{ours}/bias", bias),
    )


def _norm(hf: str, ours: str) -> tuple[Row, Row]:
    """The rows of a norm's scale and bias."""
    return (
        Row(f"{hf}.weight", f"{ours}/scale", "same"),
        Row(f"{hf}.bias", f"{ours}/bias", "same"),
    )


_heads_in = partial(_linear, kernel="heads_in", bias="heads_bias")
_heads_out = partial(_linear, kernel="heads_out", bias="same")
_dense = partial(_linear, kernel="transpose", bias="same")

_BERT = "encoder.layer.{l}"
_LLAMA = "layers.{l}"
ROWS = {
    "bert": (
        Row("embeddings.word_embeddings.weight", "embed/token/embedding", "same"),
        Row(
            "embeddings.position_embeddings.weight", "embed/position/embedding", "same"
        ),
        Row("embeddings.token_type_embeddings.weight", "embed/type/embedding", "same"),
        *_norm("embeddings.LayerNorm", "embed/norm"),
        *_heads_in(f"{_BERT}.attention.self.query", "layers/query"),
        *_heads_in(f"{_BERT}.attention.self.key", "layers/key"),
        *_heads_in(f"{_BERT}.attention.self.value", "layers/value"),
        *_heads_out(f"{_BERT}.attention.output.dense", "layers/out"),
        *_norm(f"{_BERT}.attention.output.LayerNorm", "layers/attention_norm"),
        *_dense(f"{_BERT}.intermediate.dense", "layers/up"),
        *_dense(f"{_BERT}.output.dense", "layers/down"),
        *_norm(f"{_BERT}.output.LayerNorm", "layers/mlp_norm"),
    ),
    "llama": (
        Row("embed_tokens.weight", "embed/token/embedding", "same"),
        *_norm(f"{_LLAMA}.input_layernorm", "layers/attention_norm"),
        *_heads_in(f"{_LLAMA}.self_attn.q_proj", "layers/query"),
        *_heads_in(f"{_LLAMA}.self_attn.k_proj", "layers/key"),
        *_heads_in(f"{_LLAMA}.self_attn.v_proj", "layers/value"),
        *_heads_out(f"{_LLAMA}.self_attn.o_proj", "layers/out"),
        *_norm(f"{_LLAMA}.post_attention_layernorm", "layers/mlp_norm"),
        *_dense(f"{_LLAMA}.mlp.gate_proj", "layers/gate"),
        *_dense(f"{_LLAMA}.mlp.up_proj", "layers/up"),
        *_dense(f"{_LLAMA}.mlp.down_proj", "layers/down"),
        *_norm("norm", "final_norm"),
    ),
}
