"""Dense layers from the pooled vector of a text to its embedding."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import chex
import jax
import jax.numpy as jnp

from research.types import Array

ACTIVATIONS = {
    "identity": lambda x: x,
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
}


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("kernel", "bias"),
    meta_fields=("activation",),
)
@dataclass(frozen=True)
class Dense:
    """A linear layer and its activation.

    Attributes:
        kernel: [D, E] weights.
        bias: [E] bias; None for none.
        activation: Name in ACTIVATIONS.
    """

    kernel: Array
    bias: Array | None = None
    activation: str = "identity"


def project(layers: Sequence[Dense], x: Array) -> Array:
    """Applies dense layers one after the other.

    Args:
        layers: The layers; without layers, x is returned.
        x: [..., D] float32 vectors.

    Returns:
        [..., E] float32 vectors.
    """
    for layer in layers:
        # Full precision: sentence-transformers computes these layers in float32.
        kernel = jnp.asarray(layer.kernel)
        chex.assert_shape(kernel, (x.shape[-1], None))
        x = jnp.matmul(x, kernel, precision=jax.lax.Precision.HIGHEST)
        # [..., E] plus bias, then the activation
        if layer.bias is not None:
            x = x + jnp.asarray(layer.bias).reshape((1,) * (x.ndim - 1) + (-1,))
        x = ACTIVATIONS[layer.activation](x)
    return x
