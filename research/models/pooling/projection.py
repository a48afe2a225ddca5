"""Linear layers between the pooled vector of a text and its embedding."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from research.types import Array


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("kernel", "bias"),
    meta_fields=("activation",),
)
@dataclass(frozen=True)
class Dense:
    """A linear layer and what follows it.

    Attributes:
        kernel: [D, E].
        bias: [E] or None.
        activation: a key of `ACTIVATIONS`.
    """

    kernel: Array
    bias: Array | None = None
    activation: str = "identity"


def project(layers: Sequence[Dense], x: Array) -> Array:
    """Applies one layer after the other to vectors [..., D] float32: [..., E]."""
    for layer in layers:
        kernel = jnp.asarray(layer.kernel)
        x = jnp.matmul(x, kernel, precision=jax.lax.Precision.HIGHEST)
        if layer.bias is not None:
            x = x + jnp.asarray(layer.bias).reshape((1,) * (x.ndim - 1) + (-1,))
        x = ACTIVATIONS[layer.activation](x)
    return x


ACTIVATIONS = {
    "identity": lambda x: x,
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
}
