"""LoRA as functions of trees: adapters beside the kernels of an encoder's blocks.

Under a linear layer of the blocks, `layers/query/lora` holds, for A adapters of rank r
side by side, a [L, ...in, A*r], b [L, A*r, ...out] and scale [L, A]: alpha / r of each,
a constant that is never trained. It stands in the tree and not in the encoder's shape,
so that the tree says all: how many adapters there are, and what each one weighs; shapes
stay those that a config.json describes. `rate` [L] is there where training drops
inputs.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from research.models.layers import LINEAR_LAYERS
from research.models.linear import product
from research.sharding import path_name
from research.types import Array, Key, Params

# The trained leaves of adapters, by path.
LORA_LEAVES = r"(^|/)lora/[ab]$"


def init_lora(
    key: Key,
    params: Params,
    *,
    rank: int,
    alpha: float,
    targets: str = ".*",
    count: int = 1,
    dropout: float = 0.0,
) -> Params:
    """An encoder with adapters that change nothing yet (Hu et al. 2021, section 4.1).

    a is Kaiming-uniform with sqrt(5), which is U(-1, 1) / sqrt(inputs), and b zero.

    Args:
        key: PRNG key.
        params: the encoder's; shapes are enough under `jax.eval_shape`.
        rank: r of each adapter.
        alpha: adapters are multiplied by alpha / rank.
        targets: pattern of the names of the linear layers that get them, among
            `layers.LINEAR_LAYERS`.
        count: A, how many adapters lie side by side.
        dropout: rate of the inputs of adapters, in training.

    Raises:
        ValueError: a rank below 1, no such layer, or there are adapters already.
    """
    if rank < 1 or count < 1 or not 0 <= dropout < 1:
        raise ValueError(
            f"LoRA needs a rank and a number of adapters of at least 1 and a dropout "
            f"in [0, 1), not {rank}, {count} and {dropout}"
        )
    layers = params["layers"]
    names = [name for name in LINEAR_LAYERS if name in layers]
    found = [name for name in names if re.fullmatch(targets, name)]
    if not found:
        raise ValueError(f"targets {targets!r} matches none of {', '.join(names)}")
    if num_adapters(params):
        raise ValueError(f"the encoder has {num_adapters(params)} adapters already")
    added = {}
    for name, own in zip(found, jax.random.split(key, len(found)), strict=True):
        kernel = layers[name]["kernel"]
        lora = _lora(own, kernel.shape, input_axes(name), rank * count)
        depth = len(kernel)
        lora["scale"] = jnp.full((depth, count), alpha / rank, jnp.float32)
        if dropout:
            lora["rate"] = jnp.full((depth,), dropout, jnp.float32)
        added[name] = {"lora": lora}
    return combine(params, {"layers": added})


def input_axes(name: str) -> int:
    """How many axes of the kernel of a linear layer are of its input."""
    return 2 if name == "out" else 1


def _lora(key: Key, shape: tuple[int, ...], axes: int, rank: int) -> Params:
    """The a and b of a kernel [L, ...in, ...out]."""
    depth, before, after = shape[0], shape[1 : 1 + axes], shape[1 + axes :]
    size = 1
    for width in before:
        size *= width
    bound = size**-0.5
    a = jax.random.uniform(key, (depth, *before, rank), minval=-bound, maxval=bound)
    return {"a": a, "b": jnp.zeros((depth, rank, *after))}


def num_adapters(params: Params) -> int:
    """How many adapters an encoder has, side by side; 0 without."""
    for layer in params["layers"].values():
        if "lora" in layer:
            return layer["lora"]["scale"].shape[-1]
    return 0


def select_adapter(params: Params, adapter: int) -> Params:
    """The encoder with one of its adapters only."""

    def one(lora: Params) -> Params:
        count = lora["scale"].shape[-1]
        rank = lora["a"].shape[-1] // count
        part = slice(adapter * rank, (adapter + 1) * rank)
        alone = {
            "a": lora["a"][..., part],
            "b": lora["b"][:, part],
            "scale": lora["scale"][:, adapter : adapter + 1],
        }
        return {**lora, **alone}

    return _layers(params, lambda name, layer: {**layer, "lora": one(layer["lora"])})


def remove_adapters(params: Params) -> Params:
    """The encoder without its adapters."""

    def bare(name: str, layer: Params) -> Params:
        del name
        return {key: value for key, value in layer.items() if key != "lora"}

    return _layers(params, bare)


def merge_lora(params: Params, adapter: int = 0) -> Params:
    """The plain encoder that computes what one with an adapter does: W + scale a b.

    The kernels that change are float32 then, whatever they were.
    """

    def sum_of(name: str, layer: Params) -> Params:
        lora = layer["lora"]
        axes = input_axes(name)
        kernel = jax.vmap(lambda *leaves: _sum(*leaves, axes))(
            *(layer["kernel"], lora["a"], lora["b"], lora["scale"][:, 0])
        )
        rest = {key: value for key, value in layer.items() if key != "lora"}
        return {**rest, "kernel": kernel}

    return _layers(select_adapter(params, adapter), sum_of)


def _sum(kernel: Array, a: Array, b: Array, scale: Array, axes: int) -> Array:
    """W + scale a b of a layer, in float32."""
    rows = a.reshape(-1, a.shape[-1])
    flat = product(rows, b, 1).reshape(kernel.shape)
    return kernel.astype(jnp.float32) + scale * flat


def _layers(params: Params, changed) -> Params:
    """The encoder with `changed(name, layer)` for its layers that have adapters."""
    layers = {
        name: changed(name, layer) if "lora" in layer else layer
        for name, layer in params["layers"].items()
    }
    return {**params, "layers": layers}


def partition(tree: Params, pattern: str) -> tuple[Params, Params]:
    """The leaves whose path the pattern is found in, and the others, as trees.

    Neither holds empty dicts; `joined` puts them together again.
    """

    def part(tree: Any, path: tuple, found: bool) -> Any:
        if not isinstance(tree, Mapping):
            name = path_name(path)
            return tree if bool(re.search(pattern, name)) == found else None
        parts = {
            key: part(value, (*path, jax.tree_util.DictKey(key)), found)
            for key, value in tree.items()
        }
        return {key: value for key, value in parts.items() if value is not None} or None

    return part(tree, (), True) or {}, part(tree, (), False) or {}


def combine(tree: Params, other: Params) -> Params:
    """Two trees of different leaves as one."""
    both = dict(tree)
    for key, value in other.items():
        both[key] = combine(tree[key], value) if key in tree else value
    return both


def num_params(tree: Params) -> int:
    """How many numbers a tree holds."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def full_params(params: Params, frozen: Params) -> Params:
    """All parameters of a model, of what is trained and what is frozen."""
    return combine(params, frozen.get("base", {}))
