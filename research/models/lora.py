"""LoRA as functions of trees: adapters beside the kernels of an encoder's blocks.

Under a linear layer of the blocks, `layers/query/lora` holds A adapters of rank r side
by side:

    a      [L, ...in, A*r]
    b      [L, A*r, ...out]
    scale  [L, A]           alpha / r of each adapter, a constant that is never trained
    rate   [L]              the dropout rate of inputs, only where training has one

How many adapters there are, and what each one weighs, is thus said by the tree and not
by the encoder's config, which stays the one that a config.json describes.
"""

import math
import re
from collections.abc import Callable, Mapping
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
        params: The encoder's; shapes are enough under `jax.eval_shape`.
        rank: r of each adapter.
        alpha: Adapters are multiplied by alpha / rank.
        targets: Pattern of the names of the linear layers that get adapters, among
            `layers.LINEAR_LAYERS`.
        count: A, how many adapters lie side by side.
        dropout: Rate at which inputs of adapters are dropped in training.

    Raises:
        ValueError: The rank is below 1, no layer matches, or there are adapters
            already.
    """
    if rank < 1 or count < 1 or not 0 <= dropout < 1:
        raise ValueError(
            f"LoRA needs a rank and a number of adapters of at least 1 and a dropout "
            f"in [0, 1), not {rank}, {count} and {dropout}"
        )
    if num_adapters(params):
        raise ValueError(f"the encoder has {num_adapters(params)} adapters already")
    # The linear layers that get adapters
    layers = params["layers"]
    names = [name for name in LINEAR_LAYERS if name in layers]
    targeted = [name for name in names if re.fullmatch(targets, name)]
    if not targeted:
        raise ValueError(f"targets {targets!r} matches none of {', '.join(names)}")
    # Their adapters: a and b, and the constants of each layer
    adapters = {}
    keys = jax.random.split(key, len(targeted))
    for name, layer_key in zip(targeted, keys, strict=True):
        kernel = layers[name]["kernel"]
        lora = _init_layer(layer_key, kernel.shape, input_axes(name), rank * count)
        depth = len(kernel)
        lora["scale"] = jnp.full((depth, count), alpha / rank, jnp.float32)
        if dropout:
            lora["rate"] = jnp.full((depth,), dropout, jnp.float32)
        adapters[name] = {"lora": lora}
    return combine(params, {"layers": adapters})


def input_axes(name: str) -> int:
    """How many axes the input of a linear layer has in its kernel."""
    return 2 if name == "out" else 1


def _init_layer(key: Key, shape: tuple[int, ...], axes: int, rank: int) -> Params:
    """The a and b of a kernel [L, ...in, ...out]."""
    depth, in_shape, out_shape = shape[0], shape[1 : 1 + axes], shape[1 + axes :]
    bound = math.prod(in_shape) ** -0.5
    a = jax.random.uniform(key, (depth, *in_shape, rank), minval=-bound, maxval=bound)
    return {"a": a, "b": jnp.zeros((depth, rank, *out_shape))}


def num_adapters(params: Params) -> int:
    """How many adapters an encoder has, side by side; 0 without."""
    for layer in params["layers"].values():
        if "lora" in layer:
            return layer["lora"]["scale"].shape[-1]
    return 0


def select_adapter(params: Params, adapter: int) -> Params:
    """The encoder with one of its adapters only."""

    def select(layer: Params) -> Params:
        lora = layer["lora"]
        rank = lora["a"].shape[-1] // lora["scale"].shape[-1]
        columns = slice(adapter * rank, (adapter + 1) * rank)
        selected = {
            "a": lora["a"][..., columns],
            "b": lora["b"][:, columns],
            "scale": lora["scale"][:, adapter : adapter + 1],
        }
        return {**layer, "lora": {**lora, **selected}}

    return _map_adapted_layers(select, params)


def remove_adapters(params: Params) -> Params:
    """The encoder without its adapters."""

    def remove(layer: Params) -> Params:
        return {key: value for key, value in layer.items() if key != "lora"}

    return _map_adapted_layers(remove, params)


def merge_lora(params: Params, adapter: int = 0) -> Params:
    """The encoder without adapters that computes what one of them does: W + scale a b.

    The kernels that change become float32, whatever they were.
    """

    def merge(layer: Params) -> Params:
        lora = layer["lora"]
        kernel = jax.vmap(_merge_kernel)(
            layer["kernel"], lora["a"], lora["b"], lora["scale"][:, 0]
        )
        plain = {key: value for key, value in layer.items() if key != "lora"}
        return {**plain, "kernel": kernel}

    return _map_adapted_layers(merge, select_adapter(params, adapter))


def _merge_kernel(kernel: Array, a: Array, b: Array, scale: Array) -> Array:
    """W + scale a b of one block's layer, in float32."""
    delta = product(a.reshape(-1, a.shape[-1]), b, 1).reshape(kernel.shape)
    return kernel.astype(jnp.float32) + scale * delta


def _map_adapted_layers(function: Callable[[Params], Params], params: Params) -> Params:
    """The encoder with `function(layer)` for its layers that have adapters."""
    layers = {
        name: function(layer) if "lora" in layer else layer
        for name, layer in params["layers"].items()
    }
    return {**params, "layers": layers}


def partition(tree: Params, pattern: str) -> tuple[Params, Params]:
    """The leaves in whose path the pattern occurs, and the others, as two trees.

    Neither holds empty dicts; `combine` puts them together again.
    """

    def select(tree: Any, path: tuple, matching: bool) -> Any:
        if not isinstance(tree, Mapping):
            matches = re.search(pattern, path_name(path)) is not None
            return tree if matches == matching else None
        parts = {
            key: select(value, (*path, jax.tree_util.DictKey(key)), matching)
            for key, value in tree.items()
        }
        return {key: value for key, value in parts.items() if value is not None} or None

    return select(tree, (), True) or {}, select(tree, (), False) or {}


def combine(tree: Params, second: Params) -> Params:
    """Two trees of different leaves as one."""
    combined = dict(tree)
    for key, value in second.items():
        combined[key] = combine(tree[key], value) if key in tree else value
    return combined


def num_params(tree: Params) -> int:
    """How many numbers a tree holds."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def full_params(params: Params, frozen: Params) -> Params:
    """All parameters of a model, from those that are trained and those that are not."""
    return combine(params, frozen.get("base", {}))
