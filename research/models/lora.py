"""LoRA adapters in the parameter tree: create, select, merge, remove, partition.

The parameters of a linear layer of the blocks, such as `layers/query`, get a subtree
`lora` with A adapters of rank r, concatenated along one axis:

    a      [L, ...in, A*r]
    b      [L, A*r, ...out]
    scale  [L, A]           alpha / r of each adapter, a constant that is never trained
    rate   [L]              the dropout rate of inputs, only if training has dropout

The number of adapters and their factors are thus part of the tree and not of the
encoder's config, which stays equal to that of the base model.
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

# Paths of the adapters' trained leaves.
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
    """Adds adapters that do not change the outputs yet (Hu et al. 2021, section 4.1).

    a is Kaiming-uniform with a = sqrt(5), that is U(-1, 1) / sqrt(inputs); b is zero.

    Args:
        key: PRNG key.
        params: The encoder's parameters, or their shapes under `jax.eval_shape`.
        rank: r, the rank of each adapter.
        alpha: Numerator of the adapters' factor alpha / rank.
        targets: Regular expression for the names of linear layers with adapters, among
            `layers.LINEAR_LAYERS`.
        count: A, the number of adapters.
        dropout: Dropout rate of the adapters' inputs in training.

    Raises:
        ValueError: The rank is below 1, no layer matches, or the encoder already has
            adapters.
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
    # Their adapters: a [L, ...in, A*r], b [L, A*r, ...out], and constants per layer
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
    """Number of input axes in the kernel of a linear layer, after the layer axis."""
    return 2 if name == "out" else 1


def _init_layer(key: Key, shape: tuple[int, ...], axes: int, rank: int) -> Params:
    """Random a and zero b for a kernel [L, ...in, ...out]."""
    depth, in_shape, out_shape = shape[0], shape[1 : 1 + axes], shape[1 + axes :]
    bound = math.prod(in_shape) ** -0.5
    a = jax.random.uniform(key, (depth, *in_shape, rank), minval=-bound, maxval=bound)
    return {"a": a, "b": jnp.zeros((depth, rank, *out_shape))}


def num_adapters(params: Params) -> int:
    """A, the number of adapters of an encoder; 0 if it has none."""
    for layer in params["layers"].values():
        if "lora" in layer:
            return layer["lora"]["scale"].shape[-1]
    return 0


def select_adapter(params: Params, adapter: int) -> Params:
    """Keeps only one of the encoder's adapters."""

    def select(layer: Params) -> Params:
        lora = layer["lora"]
        # The adapter's r columns of a and rows of b
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
    """Removes the encoder's adapters."""

    def remove(layer: Params) -> Params:
        return {key: value for key, value in layer.items() if key != "lora"}

    return _map_adapted_layers(remove, params)


def merge_lora(params: Params, adapter: int = 0) -> Params:
    """Merges one adapter into the kernels, W + scale a b, and removes all adapters.

    The merged kernels are float32, whatever their type was.
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
    """W + scale a b for the layer of one block, in float32."""
    # [in, r] x [r, ...out] -> the shape of the kernel
    delta = product(a.reshape(-1, a.shape[-1]), b, 1).reshape(kernel.shape)
    return kernel.astype(jnp.float32) + scale * delta


def _map_adapted_layers(function: Callable[[Params], Params], params: Params) -> Params:
    """Applies `function` to the parameters of every layer that has adapters."""
    layers = {
        name: function(layer) if "lora" in layer else layer
        for name, layer in params["layers"].items()
    }
    return {**params, "layers": layers}


def partition(tree: Params, pattern: str) -> tuple[Params, Params]:
    """Splits a tree into the leaves whose path matches the pattern, and the others.

    Neither tree has empty dicts; `combine` is the inverse.
    """

    def select(tree: Any, path: tuple, matching: bool) -> Any:
        # A leaf, which belongs to one of the two trees
        if not isinstance(tree, Mapping):
            matches = re.search(pattern, path_name(path)) is not None
            return tree if matches == matching else None
        parts = {
            key: select(value, (*path, jax.tree_util.DictKey(key)), matching)
            for key, value in tree.items()
        }
        # Drop empty dicts
        return {key: value for key, value in parts.items() if value is not None} or None

    return select(tree, (), True) or {}, select(tree, (), False) or {}


def combine(tree: Params, second: Params) -> Params:
    """Merges two trees with disjoint leaves into one."""
    combined = dict(tree)
    for key, value in second.items():
        combined[key] = combine(tree[key], value) if key in tree else value
    return combined


def num_params(tree: Params) -> int:
    """Number of scalar parameters in a tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def full_params(params: Params, frozen: Params) -> Params:
    """The parameters of a model, combined from trained and frozen ones."""
    return combine(params, frozen.get("base", {}))
